"""The best of several finished candidates: chosen by their dev scores, scored once on test."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from mae_core.config import CLASSIFIER_FILE, BestOfRecipe, Execution, require
from mae_core.config.inference import check_candidate
from mae_core.data.sources import ImageData
from mae_core.errors import NumericsError
from mae_core.evaluate.classifier import evaluate, load_classifier
from mae_core.evaluate.scores import finish
from mae_core.runtime.context import RunContext
from mae_core.runtime.inputs import Parent
from mae_core.runtime.json_values import Json
from mae_core.runtime.metrics import Metrics


def run_best_of(
    recipe: BestOfRecipe, execution: Execution, ctx: RunContext, data: ImageData
) -> Metrics:
    """Score the classifier of the best candidate, by inference; keep it and the whole search.

    Raises:
        ConfigError: fewer than two candidates, one scored on test, one of other classes.
        NumericsError: no candidate has a dev score.
    """
    candidates = [p for p in ctx.parents if CLASSIFIER_FILE in p.files]
    require(len(candidates) >= 2, f"best_of of {len(candidates)} candidates: give two or more")
    for candidate in candidates:
        plain = {"eval_split": "nothing", **dict.fromkeys(recipe.ALIKE), **candidate.recipe}
        check_candidate(recipe, candidate.name, str(plain["eval_split"]), plain)
    chosen = best_candidate(candidates)
    split = data.split(recipe.eval_split)
    path = chosen.path(CLASSIFIER_FILE)
    model, class_names = load_classifier(path)
    require(
        class_names == tuple(split.class_names),
        f"candidate {chosen.name!r} knows other classes than the data: use the same data",
    )
    scores = finish(evaluate(model, recipe, split), split.class_names, ctx)
    if ctx.rank == 0:
        shutil.copyfile(path, ctx.output_dir / CLASSIFIER_FILE)
    ctx.log_metrics(0, {"top1": scores.top1, "eval_loss": scores.loss})
    details: dict[str, Json] = {
        "chosen": chosen.name,
        "search": [_entry(candidate) for candidate in candidates],
    }
    num_train = int(_number(chosen, "num_train_images") or 0)
    return scores.metrics(num_train_images=num_train, details=details)


def best_candidate(candidates: Sequence[Parent]) -> Parent:
    """Highest dev top-1; of equal ones the lower dev loss, then the earlier in the study.

    Raises `NumericsError` if none was scored.
    """
    scored = [
        (-top1, _number(candidate, "loss") or 0.0, number)
        for number, candidate in enumerate(candidates)
        if (top1 := _number(candidate, "top1")) is not None
    ]
    if not scored:
        raise NumericsError(f"none of {len(candidates)} candidates has a dev score")
    return candidates[min(scored)[-1]]


def _number(candidate: Parent, name: str) -> float | None:
    return Metrics.from_json(candidate.metrics).number(name)


def _entry(candidate: Parent) -> dict[str, Json]:
    """What is recorded of a candidate: its dev scores, and all that it was asked to compute."""
    return {
        "stage": candidate.name,
        "kind": candidate.kind,
        "dev_top1": _number(candidate, "top1"),
        "dev_loss": _number(candidate, "loss"),
        # Without what is no setting of the search.
        "settings": {k: v for k, v in candidate.recipe.items() if k not in ("kind", "data")},
    }
