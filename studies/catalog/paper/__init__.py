"""One study per table or figure of the MAE paper (arXiv 2111.06377), at its full scale."""
