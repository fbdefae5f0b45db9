"""Searches by Optuna, and the trials that they make."""
