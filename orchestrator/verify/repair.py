"""`mae-study repair`: what `verify` found is moved below `damaged/`, so that it is made again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence

from orchestrator.plan.history import kept_studies
from orchestrator.store.lease import hold
from orchestrator.store.records import Records
from orchestrator.verify.damage import Damage


def repair(records: Records, damages: Iterable[Damage]) -> Sequence[str]:
    """Move damaged records away, and records that name damaged files; return where they are now.

    Raises:
        StudyBusy: a driver runs a study of this store.
    """
    keys = dict.fromkeys(damage.apart or damage.key for damage in damages)
    with contextlib.ExitStack() as leases:  # ours are the newest: no epoch is given twice
        for study in kept_studies(records) if keys else ():
            leases.enter_context(hold(records.store, study))
        return records.store.set_apart(keys)
