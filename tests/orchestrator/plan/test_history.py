"""Which studies a store remembers."""

from __future__ import annotations

from pathlib import Path

from orchestrator.plan.history import kept_studies
from orchestrator.store.driver import LocalStore
from orchestrator.store.records import Records


def test_a_study_whose_name_begins_with_that_of_another_is_found(tmp_path: Path) -> None:
    records = Records(LocalStore(tmp_path))
    for name in ("a", "a/b", "c/d/e"):
        for folder in ("resolved", "lease", "predictions"):
            records.store.append_numbered(f"studies/{name}/{folder}", {})
    assert list(kept_studies(records)) == ["a", "a/b", "c/d/e"]
