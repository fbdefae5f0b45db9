"""Training augmentations beyond crop and flip: keyed tensor code that runs where the batch is."""
