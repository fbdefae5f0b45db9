"""From the store's records to reports, comparisons and scored predictions."""
