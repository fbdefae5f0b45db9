"""Facts of data sets as a study knew them, kept in the store."""

from __future__ import annotations

from collections.abc import Mapping

from mae_core.data.facts import DataFacts
from orchestrator.store.data_facts import Datasets, keep, read_facts
from orchestrator.store.driver import Store


class KeptDatasets(Datasets):
    """Data sets as they were when a study was run, whether or not they are still there."""

    def __init__(self, store: Store, fingerprints: Mapping[str, str]) -> None:
        super().__init__(store)
        self._fingerprints = fingerprints
        """By path."""

    def facts(self, path: str) -> DataFacts | None:
        """Facts that were kept, else those at the path if they are of the same samples."""
        wanted = self._fingerprints.get(path)
        if wanted is None:
            return super().facts(path)
        found = read_facts(self._store, _key(wanted)) or super().facts(path)
        return found if found is not None and found.fingerprint == wanted else None

    def fingerprint(self, path: str) -> str:
        """What the study was run with."""
        return self._fingerprints.get(path) or super().fingerprint(path)


def keep_facts(store: Store, datasets: Datasets, paths: list[str]) -> None:
    """Remember facts by fingerprint: what lies at a path may change, or go away."""
    for path in paths:
        facts = datasets.facts(path)
        if facts is not None:
            keep(store, _key(facts.fingerprint), facts)


def _key(fingerprint: str) -> str:
    return f"datasets/facts-{fingerprint}.json"
