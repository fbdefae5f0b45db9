"""Commands that can be pasted into a shell: study and store are named in full, and quoted."""

from __future__ import annotations

import shlex

from orchestrator.plan.accepted import last_key
from orchestrator.store.records import Records


def command(records: Records, study: str, verb: str, *words: str) -> str:
    """`mae-study VERB STUDY WORDS --store PATH`, of the study as it was run last."""
    named = (verb, resolved_path(records, study) or study, *words)
    return f"mae-study {' '.join(map(shlex.quote, named))}{store_option(records)}"


def resolved_path(records: Records, study: str) -> str:
    """Path of a study as it was run last, with all its settings; empty if it never was."""
    key = last_key(records, study)
    return "" if key is None else str(records.store.path(key))


def store_option(records: Records) -> str:
    """The option that names this store."""
    return f" --store {shlex.quote(str(records.store.path('')))}"
