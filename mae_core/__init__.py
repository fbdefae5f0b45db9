"""One masked autoencoder: its configuration, data, training and evaluation."""
