"""Print published scaling fits beside what this engine finds on the same data, and how fast it is.

Run: python tests/bench/laws.py [--data FOLDER]
Bars: Porian et al. exponents to three digits; Gadre et al. hold-out errors; Muennighoff et al. both
optima and R_D* marked not identifiable; mmpretrain 75.23 and 86.54; MAWS 88.31, and no floor from
three sizes; a fit of 1,000 cells with intervals in at most 10 s on one core.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from support.effective_data import SinglePass, repetition

from studies.analysis.laws import forms
from studies.analysis.laws.conclusions import conclude
from studies.analysis.laws.fit import Fit, Method, fit_law
from studies.analysis.laws.frontier import GridOptimum, grid_optimum
from studies.analysis.laws.intervals import predict, profile
from studies.analysis.laws.observations import observe
from studies.analysis.laws.refusals import StatementKind
from studies.reference.scaling_tables import MAWS_IG3B, MMPRETRAIN_GRID

DATA = Path(__file__).resolve().parents[3] / "shared" / "reference" / "scaling"
Row = dict[str, str]
PORIAN = {
    "rw": ("RefinedWeb", (0.834, 0.701, 0.604, 0.571, 0.497)),
    "owt2": ("OpenWebText2", (0.870, 0.700, 0.602, 0.569, 0.518)),
}
STEPS = [
    ("kaplan", "long", "kaplan", "base"),
    ("standard", "long", "kaplan", "base"),
    ("standard", "short", "kaplan", "base"),
    ("standard", "short", "chinchilla", "base"),
    ("standard", "short", "const", "tuned"),
]
"""Parameter count, warm-up, decay, hyper-parameters: the paper's five steps."""
tally = {"met": 0, "of": 0}


def check(text: str, measured: float, expected: float, digits: int) -> None:
    """Print one figure beside the published one."""
    met = round(measured, digits) == round(expected, digits)
    tally["met"] += met
    tally["of"] += 1
    mark = "ok  " if met else "DIFF"
    print(f"  {mark} {text}: {measured:.{digits}f} (expected {expected:.{digits}f})")


def verdict(text: str, met: bool) -> None:
    """Print one statement that must hold."""
    tally["met"] += met
    tally["of"] += 1
    print(f"  {'ok  ' if met else 'DIFF'} {text}")


def rows(folder: Path, name: str) -> list[Row]:
    with (folder / name).open() as file:
        return list(csv.DictReader(file))


def porian(folder: Path) -> None:
    """Exponent of N* ~ C^a from the published optimal pairs, and from the raw runs."""
    pairs = rows(folder, "porian/optimal_pairs.csv")
    points = rows(folder, "porian/isoflop_points.csv")
    for dataset, (label, published) in PORIAN.items():
        print(f"Porian et al. 2024, {label}: exponent of the optimal size")
        for step, expected in zip(STEPS, published, strict=True):
            chosen = [r for r in pairs if matches(r, dataset, step) and r["n"]]
            data = observe(
                {"compute": [float(r["flops"]) for r in chosen]},
                [float(r["n"]) for r in chosen],
            )
            keep = np.isfinite(data.y)
            fit = rising(data.axes["compute"][keep], data.y[keep])
            interval = profile(fit, "alpha")
            check(
                f"{'/'.join(step)}, {int(keep.sum())} of {len(chosen)} budgets, 90 % "
                f"[{interval.low:.3f}, {interval.high:.3f}]",
                interval.value,
                expected,
                3,
            )
        raw_exponents(points, dataset, label)


def rising(x: np.ndarray, y: np.ndarray) -> Fit:
    """A power that rises: fitted as a falling one of 1 / y."""
    return fit_law(forms.power("compute"), observe({"compute": x}, 1 / y), Method(scale="log"))


def matches(row: Row, dataset: str, step: tuple[str, ...]) -> bool:
    names = ("param_count", "warmup", "decay", "hparams")
    return row["dataset"] == dataset and all(row[n] == v for n, v in zip(names, step, strict=True))


def raw_exponents(points: list[Row], dataset: str, label: str) -> None:
    """Our own optimum per budget (a parabola), edges refused; for comparison only."""
    found = []
    for step in STEPS:
        chosen = [r for r in points if matches(r, dataset, step)]
        budgets = sorted({float(r["flops"]) for r in chosen})
        optima = []
        for budget in budgets:
            runs = [r for r in chosen if float(r["flops"]) == budget and r["n"] and r["loss"]]
            best = grid_optimum(
                "N", [float(r["n"]) for r in runs], [float(r["loss"]) for r in runs], log=True
            )
            if isinstance(best, GridOptimum):
                optima.append((budget, best.x))
        x, y = np.asarray(optima).T
        found.append(f"{rising(x, y).values['alpha']:.3f} ({len(optima)}/{len(budgets)})")
    print(f"  for comparison, parabola per budget on raw {label} runs: {', '.join(found)}")


def gadre(folder: Path) -> None:
    """Hold-out errors of the over-trained 1.4B and the 6.9B model, loss and 17-task error."""
    print("Gadre et al. 2024, RedPajama: relative hold-out error, per cent")
    table = [
        r
        for r in rows(folder, "gadre_overtraining/testbed_104_models.csv")
        if r["dataset"] == "rpj"
    ]
    by = {(r["model"], float(r["cc_mult"])): r for r in table}
    small = [
        by[m, 1.0] for m in ("d=96_l=8_h=4", "d=512_l=8_h=4", "d=576_l=24_h=8", "d=1024_l=24_h=8")
    ]
    small.append(by["d=96_l=8_h=4", 16.0])
    axes = {a: [float(r[a]) for r in small] for a in ("N", "D")}
    loss = fit_law(
        forms.additive_shared("N", "D"), observe(axes, [float(r["loss_c4_val"]) for r in small])
    )
    tasks = [*small, by["open_lm_1b", 1.0]]
    losses = {"loss": [float(r["loss_c4_val"]) for r in tasks]}
    error = fit_law(
        forms.saturating(), observe(losses, [float(r["err_avg_subset"]) for r in tasks])
    )
    expected = {("open_lm_1b", 32.0): (0.7103, 3.6365), ("open_lm_7b", 1.0): (0.7320, 0.0464)}
    for key, (on_loss, on_error) in expected.items():
        held = by[key]
        found = loss.predict({a: float(held[a]) for a in ("N", "D")})[0]
        measured = float(held["loss_c4_val"])
        check(
            f"{key[0]} loss ({len(small)} runs fitted)", 100 * abs(found / measured - 1), on_loss, 4
        )
        task = float(error.predict({"loss": found})[0])
        check(
            f"{key[0]} 17-task error ({len(tasks)} runs fitted)",
            100 * abs(task / float(held["err_avg_subset"]) - 1),
            on_error,
            4,
        )


def muennighoff(folder: Path) -> None:
    """Both optima of the effective-data law, and how far R_D* is identified."""
    runs = rows(folder, "data_constrained/fit_runs_no_outliers.csv")
    print(f"Muennighoff et al. 2023: effective data, {len(runs)} runs, Huber 1e-3 on log residuals")
    base = SinglePass(
        E=math.exp(0.6254804),
        A=math.exp(6.255414),
        alpha=0.3526596,
        B=math.exp(7.3049974),
        beta=0.3526596,
    )
    names = {"N": "params", "T": "tokens", "U": "unique_tokens"}
    axes = {a: [float(r[c]) for r in runs] for a, c in names.items()}
    losses = [float(r["val_loss"]) for r in runs]
    data = observe(axes, losses, cells=[r["name"] for r in runs])
    fit = fit_law(repetition(base), data, Method(huber=1e-3, starts=30))
    for optimum in fit.optima:
        v = fit.values_of(optimum)
        print(
            f"       optimum R_D* {v['R_D*']:.4g}, R_N* {v['R_N*']:.4g}: objective "
            f"{optimum.objective:.8f}"
        )
    published = next((o for o in fit.optima if abs(fit.values_of(o)["R_D*"] - 15.39) < 0.5), None)
    verdict("the published optimum (R_D* 15.4, R_N* 5.3) is among them", published is not None)
    best = fit.values
    verdict(
        "a lower one at R_D* 95, R_N* 1.7 is found",
        abs(best["R_D*"] - 95.4) < 1 and abs(best["R_N*"] - 1.71) < 0.05,
    )
    for name, interval in ((n, profile(fit, n)) for n in fit.law.names):
        known = "yes" if interval.identifiable else "no"
        print(
            f"       {name} {interval.value:.3g}, 90 % [{interval.low:.3g}, {interval.high:.3g}],"
            f" identifiable: {known} ({interval.why})"
        )
    verdict("R_D* is marked not identifiable", not profile(fit, "R_D*").identifiable)


def masked_autoencoders() -> None:
    """Published MAE tables: hold-outs of the grid and of the size ladder."""
    print("mmpretrain MAE grid (8 cells) and MAWS ladder (5 sizes): top-1 of the held-out cell")
    for metric, held, without, expected in (
        ("linear", 6, (6,), 75.23),
        ("finetune", 7, (6, 7), 86.54),
    ):
        kept = [p for i, p in enumerate(MMPRETRAIN_GRID) if i not in without and getattr(p, metric)]
        fit = fit_law(
            forms.product(),
            observe(
                {"N": [p.encoder_params for p in kept], "T": [p.images_seen for p in kept]},
                [100 - getattr(p, metric) for p in kept],
            ),
        )
        point = MMPRETRAIN_GRID[held]
        found = predict(fit, {"N": point.encoder_params, "T": point.images_seen})
        check(
            f"{point.model} {metric}, {len(kept)} cells fitted, 90 % [{100 - found.high:.2f}, "
            f"{100 - found.low:.2f}], measured {getattr(point, metric)}",
            100 - found.value,
            expected,
            2,
        )
    for count in (4, 3):
        ladder = MAWS_IG3B[:count]
        data = observe({"N": [p.encoder_params for p in ladder]}, [100 - p.top1 for p in ladder])
        done = conclude(forms.power_floor("N"), data, [{"N": 6.5e9}])
        if count == 4:
            found = done.predictions[0]
            check(
                f"6.5B from {count} sizes, 90 % [{100 - found.high:.2f}, {100 - found.low:.2f}], "
                "measured 88.3",
                100 - found.value,
                88.31,
                2,
            )
        else:
            verdict(
                f"from {count} sizes the floor is refused: {done.texts(StatementKind.REFUSED)[0]}",
                done.is_refused,
            )


def timed_fits() -> Iterator[tuple[str, float]]:
    """Seconds of a fit of 1,000 cells with all intervals and a prediction."""
    rng = np.random.default_rng(0)
    n, t = rng.uniform(5e6, 6e8, 1000), rng.uniform(1e8, 1e9, 1000)
    h = 2e3 * n**-0.5 + 1e5 * t**-0.6
    for law, y in (
        (forms.additive(), 12 + 3e4 * n**-0.45 + 2e6 * t**-0.6),
        (forms.bounded(99.9), 9 + 90.9 * h / (1 + h)),
        (forms.product(), 3e3 * n**-0.2 * t**-0.1),
    ):
        began = time.perf_counter()
        done = conclude(
            law,
            observe({"N": n, "T": t}, y + 0.2 * rng.standard_normal(1000)),
            [{"N": 1.2e9, "T": 2e9}],
        )
        assert done.fit is not None and done.fit.num_cells == 1000
        yield law.name, time.perf_counter() - began


def main() -> None:
    """Print all comparisons; those with downloaded data only where the folder is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    folder = parser.parse_args().data
    if folder.is_dir():
        porian(folder)
        gadre(folder)
        muennighoff(folder)
    else:
        print(f"No folder {folder}: Porian, Gadre and Muennighoff are left out (give --data).")
    masked_autoencoders()
    print("Fit of 1,000 cells with intervals of all parameters and one prediction (bar: 10 s)")
    for name, seconds in timed_fits():
        verdict(f"{name}: {seconds:.1f} s", seconds <= 10)
    print(f"{tally['met']} of {tally['of']} figures as expected")


if __name__ == "__main__":
    main()
