"""The fifteen corruption families of Hendrycks & Dietterich (arXiv 1903.12261), on the fly."""
