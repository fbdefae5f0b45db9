"""What the store holds of a sweep: its trials and its winner. Optuna is not needed to read it.

sweeps/<hash>/trials/000000.json    settings of a trial, created when it is asked for
sweeps/<hash>/winner.json           the decision, created once
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.records import Records, now_iso
from orchestrator.store import Store
from studies.fingerprint import canonical, digest
from studies.identity import identify
from studies.overrides import override_cell
from studies.spec import Cell, Study, Sweep


class Trials:
    """Trials of one sweep. The sweep's identity is its base cell, space, objective and seed."""

    def __init__(self, store: Store, sweep: Sweep, fingerprints: dict[str, str]) -> None:
        self._store, self.sweep, self._fingerprints = store, sweep, fingerprints
        base = {n: i.science_hash for n, i in identify(sweep.base, fingerprints).items()}
        settings = {
            "base": base,
            "space": canonical(list(sweep.space), "space"),
            "objective": [sweep.objective, sweep.metric],
            "seed": sweep.seed,
        }
        self.sweep_hash = digest(settings)
        self.prefix = f"sweeps/{self.sweep_hash}"

    def path(self, name: str) -> Path:
        """Path of a file beside the records."""
        return self._store.path(f"{self.prefix}/{name}")

    def settings(self, number: int) -> dict[str, Any] | None:
        """Settings of a trial, None if it was never asked for."""
        raw = self._store.read_json(f"{self.prefix}/trials/{number:06d}.json")
        return None if raw is None else dict(raw["settings"])

    def numbers(self) -> list[int]:
        """Trials that were ever asked for."""
        return [int(n[:6]) for n in self._store.list(f"{self.prefix}/trials")]

    def record(self, number: int, settings: dict[str, Any]) -> None:
        """Keep the settings of a trial."""
        record = {"number": number, "settings": settings, "asked_at": now_iso()}
        self._store.create_json(f"{self.prefix}/trials/{number:06d}.json", record)

    def cell(self, number: int, settings: dict[str, Any]) -> Cell:
        """The ordinary cell that a trial is."""
        base = self.sweep.base
        cell = override_cell(base, settings)
        return replace(cell, address=f"{base.address}/t{number:03d}", role="sweep")

    def objective_hash(self, cell: Cell) -> str:
        """Science hash of the stage that scores a trial."""
        return identify(cell, self._fingerprints)[self.sweep.objective].science_hash

    def scores(self, records: Records) -> dict[int, float]:
        """Objective of every finished trial."""
        found = {}
        for number in self.numbers():
            cell = self.cell(number, self.settings(number) or {})
            done = records.done(self.objective_hash(cell))
            if done is not None and done.metrics.get(self.sweep.metric) is not None:
                found[number] = float(done.metrics[self.sweep.metric])
        return found

    def winner(self) -> dict[str, Any] | None:
        """The stored decision: `settings`, `trial`, `score`; None while the sweep runs."""
        return self._store.read_json(f"{self.prefix}/winner.json")

    def decide(self, scores: dict[int, float]) -> dict[str, Any]:
        """Store the best trial as the winner, once; the earliest of equals."""
        best = min(scores, key=lambda n: (-scores[n], n))
        winner = {
            "trial": best,
            "settings": self.settings(best),
            "score": scores[best],
            "objective": f"{self.sweep.objective}.{self.sweep.metric} on dev",
            "num_trials": len(scores),
            "decided_at": now_iso(),
        }
        self._store.create_json(f"{self.prefix}/winner.json", winner)
        return self.winner() or winner


def apply_winner(study: Study, settings: dict[str, Any]) -> Study:
    """Return the study with the winner's settings in every cell that uses them."""
    cells = tuple(
        replace(override_cell(c, settings), uses_winner=False) if c.uses_winner else c
        for c in study.cells
    )
    return replace(study, cells=cells)
