"""Study, Cell, Stage: a question, the points that answer it, and the work for each point."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass, replace

from studies.errors import StudyError, unknown
from studies.reference import published_set
from studies.spec.axes import AXES, MEASURES, axis, parts_of, size_name
from studies.spec.cell import Cell, Stage, check_address, map_cell
from studies.spec.overrides import check_section, override_cell
from studies.spec.sweep import Sweep, with_value


@dataclass(frozen=True, kw_only=True)
class Study:
    """A question and the cells that answer it."""

    name: str
    question: str
    cells: tuple[Cell, ...]
    sweep: Sweep | None = None
    notes: tuple[str, ...] = ()
    """What a reader of the report must know: what such data can show and what it cannot."""
    axes: tuple[str, ...] = ()
    """What the report draws accuracy against, a figure each (`studies.spec.axes`); none: duration,
    parameters and compute. Not part of any identity."""
    measures: tuple[str, ...] = ("top1",)
    """What it draws: `top1`, and of pretraining `speedup`, `relative_flops`."""
    published: tuple[str, ...] = ()
    """Sets of `studies.reference` that it draws next to the measured: `MAE paper, Fig 5`."""

    def __post_init__(self) -> None:
        check_address("study name", self.name)
        check_figures(self)
        seen = set()
        for cell in self.cells:
            if cell.address in seen:
                raise StudyError(f"study {self.name} has two cells at address {cell.address!r}")
            seen.add(cell.address)
            if cell.uses_winner and self.sweep is None:
                raise StudyError(f"cell {cell.address} uses a sweep's winner, and there is none")
        if self.sweep is not None:
            check_sizes(self.sweep, self.cells)
            check_winner_fits(self.sweep, self.cells)

    def cell(self, address: str) -> Cell:
        """Return the cell at `address`; raises `StudyError` if there is none."""
        for cell in self.cells:
            if cell.address == address:
                return cell
        known = [c.address for c in self.cells]
        raise unknown("cell", address, known, where=f"study {self.name}")

    def map_cells(self, change: Callable[[Cell], Cell]) -> Study:
        """Return a copy with `change(cell)` in place of each cell, the sweep's base included."""
        sweep = self.sweep and replace(self.sweep, base=change(self.sweep.base))
        return replace(self, cells=tuple(map(change, self.cells)), sweep=sweep)

    def map_stages(self, change: Callable[[Stage], Stage]) -> Study:
        """Return a copy with `change(stage)` in place of each stage, the sweep's base included."""
        return self.map_cells(lambda cell: map_cell(cell, change))

    def all_stages(self) -> Iterator[Stage]:
        """Every stage of the grid and of the sweep's base."""
        for cell in (*self.cells, *((self.sweep.base,) if self.sweep else ())):
            yield from cell.stages


def override_study(study: Study, settings: Mapping[str, object]) -> Study:
    """Apply settings to every stage of the study; raises `StudyError` for an unknown key."""
    for key in settings:
        check_section(key, list(study.all_stages()))
    return study.map_cells(lambda cell: override_cell(cell, settings))


def check_winner_fits(sweep: Sweep, cells: Iterable[Cell]) -> None:
    """Refuse a value of the sweep that a cell could not use if it won."""
    for cell in cells:
        if cell.uses_winner:
            for axis in sweep.space:
                for value in axis.examples:
                    with_value(cell, axis, value)


def check_figures(study: Study) -> None:
    """Refuse an axis, a measure or an unknown published set; raises `StudyError`."""
    for name in study.axes:
        axis(name)
        for part in parts_of(name):
            if part not in AXES:
                _check_setting(part, list(study.all_stages()))
    for measure in study.measures:
        if measure not in MEASURES:
            raise unknown("measure", measure, MEASURES, where=f"study {study.name}")
    for name in study.published:
        published_set(name)


def _check_setting(key: str, stages: list[Stage]) -> None:
    """Refuse an axis that is a setting of no stage here, at whatever depth it is misspelt."""
    where, _, path = key.partition(".")
    at: list[object] = [s.recipe for s in stages if where in (s.name, s.kind)]
    if not at:
        raise unknown("axis", key, [*AXES, *(f"{s.name}.{path}" for s in stages)])
    for name in path.split("."):
        found = [value for value in at if hasattr(value, name)]
        if not found and None not in at:
            below = {f for value in at if is_dataclass(value) for f in vars(value)}
            raise unknown("axis", key, [f"{where}.{f}" for f in below])
        where, at = f"{where}.{name}", [getattr(value, name) for value in found]


def check_sizes(sweep: Sweep, cells: Iterable[Cell]) -> None:
    """Refuse a cell that takes the winner of its size where that size is not searched."""
    for cell in cells if sweep.sizes else ():
        if cell.uses_winner and cell.encoder not in sweep.sizes:
            encoder = cell.encoder
            what = "no encoder" if encoder is None else f"the encoder {size_name(encoder)}"
            known = ", ".join(size_name(e) for e in sweep.sizes)
            raise StudyError(
                f"cell {cell.address} takes the winner of its size and has {what}; the sweep "
                f"searches {known}: add it to the sweep's sizes, alike in every setting"
            )
