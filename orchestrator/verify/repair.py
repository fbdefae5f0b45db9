"""`mae-study repair`: what `verify` found is moved below `damaged/`, so that it is made again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from orchestrator.plan.history import kept_studies
from orchestrator.store.lease import hold
from orchestrator.store.records import Records
from orchestrator.verify.damage import Damage, Kind

LEFT = frozenset((Kind.CHECKPOINT, Kind.LEASE))
"""What nothing but its own reader may move: a rank passes over it, epochs are never used again."""


def repair(records: Records, damages: Iterable[Damage]) -> list[str]:
    """Move damaged records away, and records that name damaged files; return where they are now.

    Raises:
        StudyBusy: a driver runs a study of this store.
    """
    keys = dict.fromkeys(d.apart or d.key for d in damages if d.kind not in LEFT)
    with contextlib.ExitStack() as leases:
        for study in kept_studies(records) if keys else ():
            leases.enter_context(hold(records.store, study))
        present = [key for key in keys if records.store.path(key).exists()]
        return [records.store.set_apart(key) for key in present]
