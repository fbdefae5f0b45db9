"""Probes: what a small head can read off a frozen encoder."""
