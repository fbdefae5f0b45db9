"""Scaling laws: their forms, fits, intervals, choice and refusals."""
