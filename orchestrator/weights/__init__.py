"""Import of other libraries' checkpoints, export in their layouts."""
