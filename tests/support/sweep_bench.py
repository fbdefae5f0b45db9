"""A sweep in a store without a cluster: trials are finished by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.store.driver import LocalStore
from orchestrator.store.records import DoneRecord, Records
from orchestrator.sweep.optuna_driver import JOURNAL, SweepDriver
from orchestrator.sweep.trials import Trials
from studies.catalog import quickstart
from studies.spec.sweep import Choices, Range, Sweep

CONTINUOUS = (
    Range(key="pretrain.optimizer.base_lr", low=1e-4, high=1e-2, log=True),
    Range(key="pretrain.mask_ratio", low=0.5, high=0.9),
    Choices(key="pretrain.decoder.depth", values=(1, 2)),
)


class Bench:
    """One sweep in one store; a new driver is a new process."""

    def __init__(self, root: Path, **changes: Any) -> None:
        self.store = LocalStore(root)
        self.records = Records(self.store)
        fields = {"space": CONTINUOUS, "num_trials": 6} | changes
        self.sweep: Sweep = replace(quickstart.sweep(), **fields)
        self.trials = Trials(self.store, self.sweep, {"digits": "f"})

    def driver(self) -> SweepDriver:
        return SweepDriver(self.trials, self.records)

    def wanting(self, num_trials: int) -> Bench:
        """The same store, another number of trials."""
        return Bench(self.store.root, space=self.sweep.space, num_trials=num_trials)

    def finish(self, number: int, top1: float | None = None, **metrics: Any) -> float:
        """Complete a trial as the controller would; its score is its mask ratio unless given."""
        settings = self.trials.settings(number)
        assert settings is not None
        score = 100 * settings["pretrain.mask_ratio"] if top1 is None else top1
        cell = self.trials.cell(number, settings)
        self.complete(self.trials.objective_hash(cell), {"top1": score} | metrics)
        return score

    def finish_all(self, number: int, values: tuple[float, ...]) -> tuple[float, ...]:
        """Complete a trial of several protocols."""
        cell = self.trials.cell(number, self.trials.settings(number) or {})
        for key, value in zip(self.trials.objective_hashes(cell), values, strict=True):
            self.complete(key, {"top1": value})
        return values

    def complete(self, key: str, metrics: dict[str, Any]) -> None:
        """Complete a stage by its hash."""
        record = DoneRecord(
            science_hash=key,
            kind="linear_probe",
            attempt=1,
            metrics=metrics,
            outputs={},
            parents={},
            seconds=1.0,
            world_size=1,
        )
        self.records.complete(record)

    def settings(self) -> dict[int, Any]:
        return {n: self.trials.settings(n) for n in self.trials.numbers()}

    def scores(self) -> dict[int, float]:
        return self.trials.scores(self.records)

    @property
    def journal(self) -> Path:
        return self.trials.path(JOURNAL)


def drive(bench: Bench, driver: SweepDriver, *, parallel: int = 2, until: int = 1000) -> None:
    """Run trials to their end as the controller does, at most `until` of them."""
    while not driver.is_finished and until > 0:
        driver.ask(parallel)
        for number in driver.running[:until]:
            driver.tell(number, bench.finish(number))
            until -= 1
