"""Checkpoints of others taken in, ours written in their layouts."""
