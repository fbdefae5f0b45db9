"""Facts of data sets as a study knew them, kept in the store."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mae_core.data.facts import DataFacts
from orchestrator.store.data_facts import Datasets
from orchestrator.store.driver import Store
from studies.spec.identity import UNKNOWN_DATA


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
        kept = self._store.read_json(_key(wanted))
        found = DataFacts.from_json(kept) if kept is not None else super().facts(path)
        return found if found is not None and found.fingerprint == wanted else None

    def fingerprint(self, path: str) -> str:
        """What the study was run with."""
        return self._fingerprints.get(path) or super().fingerprint(path)


def keep_facts(store: Store, datasets: Datasets, paths: list[str]) -> None:
    """Remember facts by fingerprint: what lies at a path may change, or go away."""
    for path in paths:
        facts = datasets.facts(path)
        if facts is not None:
            store.create(_key(facts.fingerprint), json.dumps(facts.to_json()).encode())


def fingerprints_of(resolved: Mapping[str, Any]) -> dict[str, str]:
    """Fingerprints by path of a resolved study's data sets, from what its stages were hashed with.

    `resolved` is what the store keeps of a study: `study`, and `stages` by address.
    """
    paths = {
        f"{cell['address']}#{stage['name']}": stage["recipe"]["data"]["path"]
        for cell in resolved["study"]["cells"]
        for stage in cell["stages"]
    }
    found = {
        paths[address]: known["science"].get("data", UNKNOWN_DATA)
        for address, known in resolved["stages"].items()
        if address in paths
    }
    return {path: value for path, value in found.items() if value != UNKNOWN_DATA}


def _key(fingerprint: str) -> str:
    return f"datasets/facts-{fingerprint}.json"
