"""Replay complete grids in the advised order and in size order: error at the target against cost.

Run: python tests/bench/advice.py [--data FOLDER] [--studies 40]
Each step asks for advice with the results so far, takes its first cell, and predicts the held-out
target. Bar: twice the hold-out error of the full grid is reached with at most 25 % of its cost (the
target's own cost not counted), and the advised order is never worse than size order by more than
its noise. Of a small grid every affordable subset is tried too: where none reaches the bar, no
order of runs could have.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from interval_coverage import ADDITIVE, BOUNDED, IMAGES, PRODUCT, SIZES, draw_truth
from support.simulated_studies import full_grid, generate

from studies.analysis.laws import forms
from studies.analysis.laws.conclusions import conclude
from studies.analysis.laws.fit import Method
from studies.analysis.laws.forms import Law
from studies.analysis.laws.next_runs import PossibleRun, advise
from studies.analysis.laws.observations import Observations, observe
from studies.reference.scaling_tables import MMPRETRAIN_GRID

DATA = Path(__file__).resolve().parents[3] / "shared" / "reference" / "scaling"
GFLOPS = (34.0, 39.0, 58.7, 124.5, 291.4)
"""Per image of pretraining at Ti, S, B, L, H with the standard decoder: encoder and decoder."""
METHOD = Method(starts=4)
SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.35, 0.5, 1.0)
ALLOWED = 0.25
FALLBACKS = (PRODUCT, forms.power("N"), forms.power("T"))
TOKENS_PER_PARAMETER = 4
"""Porian et al. trained far below this too, where more parameters make a short run worse: over all
of their runs every law that can only fall is refused."""
MAX_CELLS_TO_TRY_ALL = 10


@dataclass(frozen=True)
class Grid:
    """A complete grid to replay."""

    data: Observations
    """Every cell but the targets."""
    costs: Mapping[str, float]
    targets: Sequence[tuple[dict[str, float], float]]
    """Held-out cells and their measured error."""
    law: Law
    fallbacks: tuple[Law, ...]
    """What predicts while the law cannot be fitted yet, the first that can."""
    noise: float


Track = list[tuple[float, float]]
"""Share of the grid's cost so far, root mean square error at the targets."""


def error_at_targets(grid: Grid, seen: Observations) -> float:
    """Root mean square error of the predictions; of the nearest cell while no law fits."""
    for law in (grid.law, *grid.fallbacks):
        done = conclude(law, seen, method=METHOD, parameters=False)
        if done.fit is not None:
            misses = [float(done.fit.predict(t)[0]) - y for t, y in grid.targets]
            return math.sqrt(float(np.mean(np.square(misses))))
    misses = [nearest(grid, seen, t) - y for t, y in grid.targets]
    return math.sqrt(float(np.mean(np.square(misses))))


def nearest(grid: Grid, seen: Observations, target: Mapping[str, float]) -> float:
    """What was measured nearest to the target, in the logarithms of the axes."""
    away = sum(np.log(seen.axes[a] / target[a]) ** 2 for a in grid.law.axes)
    return float(seen.y[int(np.argmin(away))])


def best_affordable(grid: Grid) -> float:
    """Error of the best of all subsets within the allowed cost: what an oracle would choose."""
    limit = ALLOWED * sum(grid.costs.values())
    subsets = (s for n in range(1, len(grid.costs)) for s in combinations(grid.costs, n))
    affordable = [s for s in subsets if sum(grid.costs[c] for c in s) <= limit]
    return min(error_at_targets(grid, revealed(grid, list(s))) for s in affordable)


def replay(grid: Grid, *, advised: bool) -> Track:
    """Reveal the grid cell by cell up to half its cost, then the rest at once.

    Advice is asked for with a budget of a quarter of the cost, then with all of it.
    """
    total = sum(grid.costs.values())
    left = list(dict.fromkeys(grid.data.cells))
    left.sort(key=lambda c: tuple(at(grid, c).values()))
    seen: list[str] = []
    spent, track = 0.0, []
    while left and spent < 0.5 * total:
        budget = ALLOWED * total - spent
        cell = next_cell(grid, seen, left, budget) if advised else left[0]
        left.remove(cell)
        seen.append(cell)
        spent += grid.costs[cell]
        track.append((spent / total, error_at_targets(grid, revealed(grid, seen))))
    return [*track, (1.0, error_at_targets(grid, grid.data))]


def next_cell(grid: Grid, seen: list[str], left: list[str], budget: float) -> str:
    """The first cell of the advice; the cheapest where advice has none."""
    cheapest = min(left, key=lambda c: grid.costs[c])
    budget = budget if budget >= grid.costs[cheapest] else sum(grid.costs.values())
    options = [PossibleRun(cell=c, axes=at(grid, c), gpu_hours=grid.costs[c]) for c in left]
    found = advise(
        grid.law,
        revealed(grid, seen) if seen else None,
        grid.targets[0][0],
        options,
        budget,
        method=METHOD,
    )
    return found.steps[0].option.cell if found.steps else cheapest


def revealed(grid: Grid, seen: list[str]) -> Observations:
    return grid.data.take([i for i, c in enumerate(grid.data.cells) if c in seen])


def at(grid: Grid, cell: str) -> dict[str, float]:
    i = grid.data.cells.index(cell)
    return {a: float(grid.data.axes[a][i]) for a in grid.law.axes}


def error_by(track: Track, share: float) -> float:
    """Error after spending at most this share."""
    found = [e for s, e in track if s <= share + 1e-9]
    return found[-1] if found else math.inf


def reached(tracks: list[Track], limit: float) -> tuple[float, float]:
    """Smallest share at which the error of all tracks is within the limit: first, and for good."""
    shares = sorted({round(s, 4) for t in tracks for s, _ in t})
    errors = [rms([error_by(t, s + 1e-4) for t in tracks]) for s in shares]
    inside = [e <= limit for e in errors]
    first = next((s for s, ok in zip(shares, inside, strict=True) if ok), 1.0)
    last_out = max((i for i, ok in enumerate(inside) if not ok), default=-1)
    return first, shares[min(last_out + 1, len(shares) - 1)]


def rms(values: list[float]) -> float:
    return math.sqrt(float(np.mean(np.square(values))))


def report(name: str, grids: list[Grid]) -> tuple[bool, bool]:
    """Print both orders; return whether each half of the bar is met."""
    advised = [replay(g, advised=True) for g in grids]
    by_size = [replay(g, advised=False) for g in grids]
    full = rms([t[-1][1] for t in advised])
    noise = rms([g.noise for g in grids])
    first, stays = reached(advised, 2 * full)
    _, other = reached(by_size, 2 * full)
    held, cells = len(grids[0].targets), grids[0].data.num_cells
    print(
        f"{name}: {len(grids)} grids of {cells} cells, {held} held out; full-grid error "
        f"{full:.3g}, noise {noise:.2g}"
    )
    errors = [
        f"{share:.0%}: {rms([error_by(t, share) for t in advised]):.3g} / "
        f"{rms([error_by(t, share) for t in by_size]):.3g}"
        for share in SHARES
    ]
    print(f"    error by share of cost, advised / size order: {'; '.join(errors)}")
    quick = stays <= ALLOWED
    worse = max(
        rms([error_by(t, s) for t in advised]) - rms([error_by(t, s) for t in by_size])
        for s in SHARES
        if all(math.isfinite(error_by(t, s)) for t in by_size)
    )
    worse = 0.0 if math.isnan(worse) else worse
    print(
        f"  {'ok  ' if quick else 'MISS'} twice the full grid's error reached for good with "
        f"{stays:.1%} of its cost (first with {first:.1%}; size order {other:.1%})"
    )
    if not quick and cells <= MAX_CELLS_TO_TRY_ALL:
        oracle = rms([best_affordable(g) for g in grids])
        print(
            f"       of all subsets within {ALLOWED:.0%} of the cost the best has an error of "
            f"{oracle:.3g}, the bar is {2 * full:.3g}"
        )
    never = worse <= noise
    print(
        f"  {'ok  ' if never else 'MISS'} at no share worse than size order by more than noise: "
        f"largest difference {worse:.3g}",
        flush=True,
    )
    return quick, never


def simulated(law: Law, studies: int) -> list[Grid]:
    """Studies of five sizes x four durations, one seed, costs of real models, largest cell held."""
    design = full_grid(SIZES, IMAGES, seeds=1)
    target = {"N": SIZES[-1], "T": IMAGES[-1]}
    kept = design.without(target)
    flops = dict(zip(SIZES, GFLOPS, strict=True))
    costs = {
        c: flops[n] * t for c, n, t in zip(kept.cells, kept.axes["N"], kept.axes["T"], strict=True)
    }
    grids = []
    for i in range(studies):
        rng = np.random.default_rng((7, i))
        truth, noise = draw_truth(law, rng), float(rng.uniform(0.05, 0.3))
        measured = float(truth.error({a: np.asarray([v]) for a, v in target.items()})[0])
        measured += noise * float(rng.standard_normal())
        grids.append(
            Grid(
                generate(truth, kept, noise, (7, i, 1)),
                costs,
                [(target, measured)],
                law,
                FALLBACKS,
                noise,
            )
        )
    return grids


def mmpretrain(metric: str, held: int) -> list[Grid]:
    """The published grid, its largest cell held out."""
    rows = [
        (p, 100 - getattr(p, metric))
        for i, p in enumerate(MMPRETRAIN_GRID)
        if getattr(p, metric) and i != held
    ]
    flops = {"ViT-B/16": 58.7, "ViT-L/16": 124.5, "ViT-H/14": 291.4}
    data = observe(
        {"N": [p.encoder_params for p, _ in rows], "T": [p.images_seen for p, _ in rows]},
        [y for _, y in rows],
        cells=[f"{p.model}/{p.epochs}" for p, _ in rows],
    )
    costs = {f"{p.model}/{p.epochs}": flops[p.model] * p.images_seen for p, _ in rows}
    last = MMPRETRAIN_GRID[held]
    target = {"N": last.encoder_params, "T": last.images_seen}
    return [Grid(data, costs, [(target, 100 - getattr(last, metric))], PRODUCT, FALLBACKS, 0.1)]


def porian(folder: Path) -> list[Grid]:
    """Trained runs of the tuned setting, the highest budget held out; cost is FLOPs."""
    with (folder / "porian" / "isoflop_points.csv").open() as file:
        rows = [
            r
            for r in csv.DictReader(file)
            if r["loss"] and r["hparams"] == "tuned" and r["param_count"] == "standard"
        ]
    grids = []
    for dataset in ("rw", "owt2"):
        runs = [r for r in rows if r["dataset"] == dataset]
        top = max(float(r["flops"]) for r in runs)
        held = [r for r in runs if float(r["flops"]) == top]
        best = sorted(held, key=lambda r: float(r["loss"]))[:5]
        kept = [
            r
            for r in runs
            if float(r["flops"]) < top and float(r["t"]) >= TOKENS_PER_PARAMETER * float(r["n"])
        ]
        names = [f"{r['n']}/{r['t']}" for r in kept]
        data = observe(
            {"N": [float(r["n"]) for r in kept], "T": [float(r["t"]) for r in kept]},
            [float(r["loss"]) for r in kept],
            cells=names,
        )
        costs = {c: float(r["flops"]) for c, r in zip(names, kept, strict=True)}
        targets = [({"N": float(r["n"]), "T": float(r["t"])}, float(r["loss"])) for r in best]
        grids.append(Grid(data, costs, targets, ADDITIVE, FALLBACKS, 0.01))
    return grids


def main() -> None:
    """Print all replays."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--studies", type=int, default=40)
    arguments = parser.parse_args()
    found = [
        report("mmpretrain, linear probe, L/1600 held", mmpretrain("linear", 6)),
        report("mmpretrain, fine-tune, H/1600 held", mmpretrain("finetune", 7)),
    ]
    for law in (ADDITIVE, BOUNDED, PRODUCT):
        found.append(
            report(f"Simulated studies, {law.name} law", simulated(law, arguments.studies))
        )
    if arguments.data.is_dir():
        for name, grid in zip(("RefinedWeb", "OpenWebText2"), porian(arguments.data), strict=True):
            found.append(report(f"Porian et al., tuned, {name}, highest budget held", [grid]))
    else:
        print(f"No folder {arguments.data}: Porian et al. is left out (give --data).")
    quick, never = (sum(column) for column in zip(*found, strict=True))
    print(
        f"within 25 % of the cost: {quick} of {len(found)}; never worse than size order by more "
        f"than noise: {never} of {len(found)}"
    )


if __name__ == "__main__":
    main()
