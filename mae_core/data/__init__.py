"""Images in: Parquet and embedded sources, sample order, transforms, importers."""
