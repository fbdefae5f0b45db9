"""What can go wrong in `mae_core`; every message says what, which value, and what to do."""

from __future__ import annotations


class MaeCoreError(Exception):
    """Base of every error that `mae_core` raises on purpose."""


class ConfigError(MaeCoreError, ValueError):
    """A configuration that cannot be meant: wrong value, impossible combination."""


class DataError(MaeCoreError):
    """Data that is missing, truncated, or not what it should be."""


class CheckpointError(MaeCoreError):
    """A checkpoint that is damaged, or belongs to another run."""


class NumericsError(MaeCoreError):
    """A loss or gradient that is not a finite number."""
