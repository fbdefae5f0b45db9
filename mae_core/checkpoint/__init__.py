"""Committed checkpoints: a manifest written last, shards verified before they are loaded."""
