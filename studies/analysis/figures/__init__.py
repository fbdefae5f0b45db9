"""Figures of results: numbers in, one drawing out."""
