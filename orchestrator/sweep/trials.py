"""What the store holds of a sweep: its trials and its winner. Optuna is not needed to read it.

sweeps/<hash>/trials/000000.json    settings of a trial, created when it is asked for
sweeps/<hash>/winner-0012.json      the decision after 12 trials, created once
sweeps/<hash>/winner-0012-mean_rank.json    the same by another rule
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mae_core.config import EncoderConfig
from mae_core.errors import ConfigError
from orchestrator.store.driver import Store, numbered_key
from orchestrator.store.known_keys import IsoTime, build_known
from orchestrator.store.records import DoneRecord, Records, now_iso
from studies.errors import StudyError
from studies.spec.canonical_json import canonical, digest
from studies.spec.cell import Cell
from studies.spec.identity import identify
from studies.spec.overrides import override_cell
from studies.spec.search import mean_ranks, pareto_front, repeats
from studies.spec.study import Study
from studies.spec.sweep import Rule, Settings, Sweep

Values = tuple[float, ...]
"""A trial's metric by each of the sweep's protocols."""


@dataclass(frozen=True, kw_only=True)
class FrontTrial:
    """A trial that no other beats by every protocol."""

    trial: int
    settings: Settings
    values: dict[str, float]
    """Metric by protocol."""


@dataclass(frozen=True, kw_only=True)
class Winner:
    """The decision of a sweep, as the store keeps it."""

    trial: int
    settings: Settings
    score: float
    objective: str
    """For people: `linear_probe.top1 on dev`."""
    num_trials: int
    decided_at: IsoTime
    rule: Rule | None = None
    """Where several protocols decide, as are the following."""
    values: dict[str, float] = field(default_factory=dict)
    front: tuple[FrontTrial, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """What the store keeps; without a rule, nothing of several protocols."""
        plain = asdict(self)
        return plain if self.rule else {k: v for k, v in plain.items() if k not in _OF_SEVERAL}

    @staticmethod
    def from_json(plain: dict[str, Any], where: str) -> Winner:
        """Read it back; raises `StoreError` naming `where` if it is damaged."""
        return build_known(Winner, plain, where)


_OF_SEVERAL = ("rule", "values", "front")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a trial was asked for with."""

    settings: Settings


class Trials:
    """Trials of one plain sweep. Its identity is base cell, space, objectives, sampler and seed.

    The number of trials is no part of it: a sweep of 24 goes on from one of 12 and decides again.
    Nor is the rule: another one decides by the same trials.
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
        if sweep.objectives:
            settings["objectives"] = list(sweep.objectives)
        if sweep.sampler != "tpe":
            settings["sampler"] = sweep.sampler
        self.sweep_hash = digest(settings)
        self.prefix = f"sweeps/{self.sweep_hash}"

    def path(self, name: str) -> Path:
        """Path of a file beside the records."""
        return self._store.path(f"{self.prefix}/{name}")

    def settings(self, number: int) -> Settings | None:
        """Settings of a trial, None if it was never asked for."""
        key = self._trial_key(number)
        raw = self._store.read_json(key)
        return None if raw is None else build_known(Asked, raw, f"record {key}").settings

    def _trial_key(self, number: int) -> str:
        return numbered_key(f"{self.prefix}/trials", number)

    def numbers(self) -> Sequence[int]:
        """Trials that were ever asked for."""
        return self._store.numbered(f"{self.prefix}/trials")

    def record(self, number: int, settings: Settings, source: str = "") -> bool:
        """Keep the settings of a trial; False if the number is taken.

        `source` says where they are from if the sampler did not draw them.
        """
        record = {"number": number, "settings": settings, "asked_at": now_iso()}
        record |= {"source": source} if source else {}
        return self._store.create_json(self._trial_key(number), record)

    def source(self, number: int) -> str:
        """Where a trial's settings are from, empty if the sampler drew them."""
        raw = self._store.read_json(self._trial_key(number))
        return "" if raw is None else str(raw.get("source", ""))

    def cell(self, number: int, settings: Settings) -> Cell:
        """The ordinary cell that a trial is; raises `ConfigError` if the settings do not go."""
        base = self.sweep.base
        cell = override_cell(base, settings)
        return replace(cell, address=f"{base.address}/t{number:03d}", role="sweep")

    def objective_hash(self, cell: Cell) -> str:
        """Science hash of the stage that names the winner."""
        return identify(cell, self._fingerprints)[self.sweep.objective].science_hash

    def objective_hashes(self, cell: Cell) -> tuple[str, ...]:
        """Science hashes of the stages that score a trial."""
        found = identify(cell, self._fingerprints)
        return tuple(found[name].science_hash for name in self.sweep.protocols)

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
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None

    def values_of(self, cell: Cell, records: Records) -> Values | None:
        """The metric of a trial by each protocol, None if it lacks one."""
        values = [self.score(records.done(key)) for key in self.objective_hashes(cell)]
        return None if None in values else tuple(v for v in values if v is not None)

    def values(self, records: Records) -> dict[int, Values]:
        """Metrics of every finished trial, in the order of the sweep's protocols."""
        return {
            number: values
            for number, cell in self.cells().items()
            if (values := self.values_of(cell, records)) is not None
        }

    def scores(self, records: Records) -> dict[int, float]:
        """Metric of every finished trial by the protocol that names the winner."""
        at = self.sweep.protocols.index(self.sweep.objective)
        return {number: values[at] for number, values in self.values(records).items()}

    @property
    def _winner_key(self) -> str:
        rule = "" if self.sweep.rule == "objective" else f"-{self.sweep.rule}"
        return f"{self.prefix}/winner-{self.sweep.num_trials:04d}{rule}.json"

    def winner(self) -> Winner | None:
        """The decision after `num_trials`; None before it."""
        plain = self._store.read_json(self._winner_key)
        where = f"record {self._winner_key}"
        return None if plain is None else Winner.from_json(plain, where)

    def decide(self, scored: Mapping[int, float | Values]) -> Winner:
        """Store the winner by the sweep's rule, once; the earliest of equals."""
        values = {n: v if isinstance(v, tuple) else (v,) for n, v in scored.items()}
        at = self.sweep.protocols.index(self.sweep.objective)
        ranks = mean_ranks(values) if self.sweep.rule == "mean_rank" else dict.fromkeys(values, 0.0)
        # Of equals by the objective, one that no other beats by another protocol.
        front = pareto_front(values)
        best = min(front, key=lambda n: (ranks[n], -values[n][at], n))
        winner = Winner(
            trial=best,
            settings=self.settings(best) or {},
            score=values[best][at],
            objective=f"{self.sweep.objective}.{self.sweep.metric} on dev",
            num_trials=len(values),
            decided_at=now_iso(),
        )
        if self.sweep.objectives:
            winner = replace(
                winner,
                rule=self.sweep.rule,
                values=self._named(values[best]),
                front=tuple(
                    FrontTrial(
                        trial=n, settings=self.settings(n) or {}, values=self._named(values[n])
                    )
                    for n in front
                ),
            )
        self._store.create_json(self._winner_key, winner.to_json())
        return self.winner() or winner

    def _named(self, values: Values) -> dict[str, float]:
        return dict(zip(self.sweep.protocols, values, strict=True))

    def repeats(self, winner: Winner) -> tuple[Cell, ...]:
        """The winner at the sweep's further seeds."""
        return repeats(self.sweep, self.cell(winner.trial, winner.settings))


def apply_winner(study: Study, settings: Settings, encoder: EncoderConfig | None = None) -> Study:
    """Return the study with the winner's settings in every cell that uses them.

    With `encoder`: only in cells that train it.
    """
    return replace(
        study,
        cells=tuple(
            _use(c, settings) if encoder is None or c.encoder == encoder else c for c in study.cells
        ),
    )


def _use(cell: Cell, settings: Settings) -> Cell:
    if not cell.uses_winner:
        return cell
    try:
        return replace(override_cell(cell, settings), uses_winner=False)
    except ConfigError as error:
        raise StudyError(
            f"cell {cell.address} cannot use the sweep's winner {settings}: {error}"
        ) from error
