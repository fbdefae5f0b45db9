"""What the store holds of a sweep: its trials and its winner. Optuna is not needed to read it.

sweeps/<hash>/trials/000000.json    settings of a trial, created when it is asked for
sweeps/<hash>/winner-0012.json      the decision after 12 trials, created once
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from mae_core.errors import ConfigError
from orchestrator.records import DoneRecord, Records, now_iso
from orchestrator.store import Store
from studies.errors import StudyError
from studies.fingerprint import canonical, digest
from studies.identity import identify
from studies.overrides import override_cell
from studies.spec import Cell, Study, Sweep


class Trials:
    """Trials of one sweep. The sweep's identity is its base cell, space, objective and seed.

    The number of trials is no part of it: a sweep of 24 goes on from one of 12 and decides anew.
    """

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
        return [int(n[:6]) for n in self._store.list(f"{self.prefix}/trials") if n[:6].isdigit()]

    def record(self, number: int, settings: dict[str, Any]) -> bool:
        """Keep the settings of a trial; False if the number is taken."""
        record = {"number": number, "settings": settings, "asked_at": now_iso()}
        return self._store.create_json(f"{self.prefix}/trials/{number:06d}.json", record)

    def cell(self, number: int, settings: dict[str, Any]) -> Cell:
        """The ordinary cell that a trial is; raises `ConfigError` if the settings do not go."""
        base = self.sweep.base
        cell = override_cell(base, settings)
        return replace(cell, address=f"{base.address}/t{number:03d}", role="sweep")

    def objective_hash(self, cell: Cell) -> str:
        """Science hash of the stage that scores a trial."""
        return identify(cell, self._fingerprints)[self.sweep.objective].science_hash

    def cells(self) -> dict[int, Cell]:
        """Cell of every trial, without those whose settings turned out not to go together."""
        found = {}
        for number in self.numbers():
            settings = self.settings(number)
            if settings is not None:
                with contextlib.suppress(ConfigError, StudyError):
                    found[number] = self.cell(number, settings)
        return found

    def score(self, done: DoneRecord | None) -> float | None:
        """Objective of a completion record, None if it has none."""
        value = None if done is None else done.metrics.get(self.sweep.metric)
        return float(value) if value is not None and math.isfinite(value) else None

    def scores(self, records: Records) -> dict[int, float]:
        """Objective of every finished trial."""
        found = {}
        for number, cell in self.cells().items():
            score = self.score(records.done(self.objective_hash(cell)))
            if score is not None:
                found[number] = score
        return found

    @property
    def _winner_key(self) -> str:
        return f"{self.prefix}/winner-{self.sweep.num_trials:04d}.json"

    def winner(self) -> dict[str, Any] | None:
        """The decision after `num_trials`: `settings`, `trial`, `score`; None before it."""
        return self._store.read_json(self._winner_key)

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
        self._store.create_json(self._winner_key, winner)
        return self.winner() or winner


def apply_winner(study: Study, settings: dict[str, Any]) -> Study:
    """Return the study with the winner's settings in every cell that uses them."""
    return replace(study, cells=tuple(_use(c, settings) for c in study.cells))


def _use(cell: Cell, settings: dict[str, Any]) -> Cell:
    if not cell.uses_winner:
        return cell
    try:
        return replace(override_cell(cell, settings), uses_winner=False)
    except ConfigError as error:
        raise StudyError(
            f"cell {cell.address} cannot use the sweep's winner {settings}: {error}"
        ) from error
