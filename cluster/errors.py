"""What can go wrong below the orchestrator; every message says what to do."""

from __future__ import annotations


class ClusterError(Exception):
    """Base of every error that `cluster` raises on purpose."""


class ResourcesUnavailable(ClusterError):
    """More GPUs or CPUs asked than the cluster has at all."""


class ClusterUnreachable(ClusterError):
    """No Ray cluster at the given address, or it refused the token."""


class HeadLost(ClusterError):
    """The Ray that this driver was connected to is gone; connect again and go on."""
