"""Print how often nominal 90 % prediction intervals hold a fresh run, over simulated studies.

Run: python tests/bench/coverage.py [--studies 500]
Each study draws 4 or 5 sizes (5.5M to 630M parameters) x 4 durations, one seed per cell and three
for the smallest size, seed noise of 0.05 to 0.3 points, and its own law; the largest cell is held
out. Bar: 85 to 95 % where the fitted law generated the data; misspecified beside it, and under 75 %
never shown as trustworthy.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping

import numpy as np
from support.simulated_studies import (
    SHOWN_BELOW,
    Coverage,
    Design,
    Truth,
    coverage,
    full_grid,
    generate,
    holds,
)

from studies.analysis.laws import forms
from studies.analysis.laws.fit import Method
from studies.analysis.laws.forms import F64, Law, Parameter
from studies.analysis.laws.selection import choose, default_candidates

SIZES = (5.5e6, 21.6e6, 85.7e6, 303e6, 630e6)
IMAGES = tuple(1.28e6 * epochs for epochs in (100, 200, 400, 800))
REFERENCES = {"N": 6e7, "T": 3e8}
TOP = 99.9
LEVEL = 0.90
METHOD = Method(starts=4)
ADDITIVE, BOUNDED, PRODUCT = forms.additive(), forms.bounded(TOP), forms.product()


def interaction_columns(theta: F64, x: Mapping[str, F64]) -> F64:
    n, t = x["N"] ** -theta[0], x["T"] ** -theta[1]
    return np.column_stack([n, t, n * t])


def plateau_columns(theta: F64, x: Mapping[str, F64]) -> F64:
    late = x["T"] / (1 + x["T"] / 4)
    return np.column_stack([x["N"] ** -theta[0], late ** -theta[1]])


def truth_law(name: str, columns: forms.Columns, linear: tuple[str, ...]) -> Law:
    """A law that only generates."""
    exponents = tuple(Parameter(name=n, low=0.01, high=3.0) for n in ("alpha", "beta"))
    return Law(
        name=name,
        formula=name,
        axes=("N", "T"),
        nonlinear=exponents,
        linear=linear,
        columns=columns,
        floor=True,
        min_distinct={},
    )


INTERACTION = truth_law("additive with interaction", interaction_columns, ("E", "A", "B", "C"))
PLATEAU = truth_law("gain that ends with duration", plateau_columns, ("E", "A", "B"))


def draw_truth(law: Law, rng: np.random.Generator) -> Truth:
    """Numbers such as linear probes and fine-tunes of masked autoencoders have, in points."""
    theta = (rng.uniform(0.2, 0.6), rng.uniform(0.2, 0.7))
    if law is BOUNDED:
        found: tuple[float, ...] = (rng.uniform(5, 20), *rng.uniform(0.05, 0.3, 2))
    elif law is PRODUCT:
        theta = (rng.uniform(0.08, 0.3), rng.uniform(0.02, 0.2))
        found = (rng.uniform(15, 50),)
    else:
        found = (rng.uniform(5, 20), *rng.uniform(3, 12, 2))
        found += (rng.uniform(2, 6),) if law is INTERACTION else ()
    return Truth(law=law, theta=theta, coefficients=found, references=REFERENCES)


def draw_design(rng: np.random.Generator) -> tuple[Design, float]:
    """Sizes x durations, and the noise of a seed."""
    sizes = (SIZES, SIZES[:4], SIZES[1:])[int(rng.integers(0, 3))]
    return full_grid(sizes, IMAGES, seeds_of_smallest=3), float(rng.uniform(0.05, 0.3))


def largest_cell(design: Design) -> tuple[Design, dict[str, float]]:
    """The design without its largest cell, and that cell."""
    target = {a: float(v.max()) for a, v in design.axes.items()}
    return design.without(target), target


def largest_size(design: Design) -> tuple[Design, dict[str, float]]:
    """The design without its largest size, and that size's longest cell."""
    target = {a: float(v.max()) for a, v in design.axes.items()}
    return design.without({"N": target["N"]}), target


def over_studies(truth: Law, law: Law, studies: int, *, hold: str = "cell") -> Coverage:
    """Coverage over studies that each have their own law, design and noise."""
    held = largest_cell if hold == "cell" else largest_size
    covered = fitted = 0
    for i in range(studies):
        rng = np.random.default_rng((1, i))
        design, noise = draw_design(rng)
        kept, target = held(design)
        one = coverage(
            draw_truth(truth, rng),
            kept,
            target,
            law,
            noise_sd=noise,
            studies=1,
            level=LEVEL,
            method=METHOD,
            seed=i,
        )
        covered, fitted = covered + one.covered, fitted + one.fitted
    return Coverage(
        covered=covered, fitted=fitted, studies=studies, level=LEVEL, truth=truth.name, law=law.name
    )


def chosen_by_hold_out(truth: Law, studies: int) -> Coverage:
    """The same, with the law chosen among all by hold-out at the large end."""
    covered = fitted = 0
    for i in range(studies):
        rng = np.random.default_rng((1, i))
        design, noise = draw_design(rng)
        kept, target = largest_cell(design)
        numbers = draw_truth(truth, rng)
        data = generate(numbers, kept, noise, (i, 11, 0))
        choice = choose(default_candidates(top=TOP), data, method=METHOD)
        if choice.best is None:
            continue
        at = {a: np.asarray([v]) for a, v in target.items()}
        fresh = float(numbers.error(at)[0]) + noise * float(rng.standard_normal())
        held = holds(choice.best.law, data, target, fresh, LEVEL, METHOD)
        if held is not None:
            fitted, covered = fitted + 1, covered + int(held)
    return Coverage(
        covered=covered,
        fitted=fitted,
        studies=studies,
        level=LEVEL,
        truth=truth.name,
        law="chosen by hold-out",
    )


def show(found: Coverage, *, bar: bool) -> bool:
    """Print one row; return whether the bar is met (or there is none)."""
    low, high = found.interval
    met = not bar or 0.85 <= found.share <= 0.95
    trust = "trusted" if found.is_trusted else "NOT TRUSTED"
    if found.is_trusted and found.share < SHOWN_BELOW:
        trust = "shown with its true coverage"
    mark = ("ok  " if met else "MISS") if bar else "    "
    print(
        f"  {mark} {found.truth:29} -> {found.law:18} {100 * found.share:5.1f} % "
        f"[{100 * low:.1f}, {100 * high:.1f}] = {found.covered}/{found.fitted} fitted of "
        f"{found.studies}; {trust}",
        flush=True,
    )
    return met


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=500)
    studies = parser.parse_args().studies
    began = time.process_time()
    print(
        f"Law that generates -> law that is fitted: coverage of the nominal {LEVEL:.0%} "
        "prediction interval, [95 % of the share]"
    )
    print("Well specified, largest cell held out (bar: 85 to 95 %)")
    good = [show(over_studies(law, law, studies), bar=True) for law in (ADDITIVE, BOUNDED, PRODUCT)]
    print("Well specified, largest size held out")
    for law in (ADDITIVE, BOUNDED, PRODUCT):
        show(over_studies(law, law, studies, hold="size"), bar=False)
    print("Misspecified, largest cell held out")
    for truth, law in (
        (BOUNDED, ADDITIVE),
        (PRODUCT, ADDITIVE),
        (INTERACTION, ADDITIVE),
        (PLATEAU, ADDITIVE),
        (ADDITIVE, BOUNDED),
        (ADDITIVE, PRODUCT),
        (BOUNDED, PRODUCT),
    ):
        show(over_studies(truth, law, studies), bar=False)
    print("Law chosen by hold-out at the large end, largest cell held out")
    for truth in (ADDITIVE, BOUNDED, PRODUCT, INTERACTION, PLATEAU):
        show(chosen_by_hold_out(truth, max(studies // 5, 20)), bar=False)
    print(
        f"{sum(good)} of {len(good)} well-specified rows within 85 to 95 %; "
        f"{time.process_time() - began:.0f} s of one core"
    )


if __name__ == "__main__":
    main()
