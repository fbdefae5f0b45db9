"""Evaluations of a pretrained encoder, each one stage."""
