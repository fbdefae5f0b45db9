"""Stages that leave an encoder, and those that prepare its target."""
