"""What can go wrong in `mae_core`; every message says what, which value, and what to do.

`attempt_cause` says which cause an attempt has that ends with such an error (see
`cluster.ranks.outcome`, which reads it; derived classes inherit it).
"""

from __future__ import annotations


class MaeCoreError(Exception):
    """Base of every error that `mae_core` raises on purpose."""


class ConfigError(MaeCoreError, ValueError):
    """A configuration that cannot be meant: wrong value, impossible combination."""

    attempt_cause = "bad input"


class DataError(MaeCoreError):
    """Data that is missing, truncated, or not what it should be."""

    attempt_cause = "bad data"


class CheckpointError(MaeCoreError):
    """A checkpoint that is damaged, or belongs to another run."""

    attempt_cause = "checkpoint"


class RendezvousError(MaeCoreError):
    """A rank that does not meet the other ranks of its gang."""

    attempt_cause = "rendezvous"


class NumericsError(MaeCoreError):
    """A loss or gradient that is not a finite number."""

    attempt_cause = "numerics"
