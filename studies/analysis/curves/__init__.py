"""Accuracy along the axes of a study: seeds averaged, differences tested."""
