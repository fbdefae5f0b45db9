"""Entry point that starts engines in a gang and says which weights are not the given ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.ranks.actor import RankControl


def start_everything(payload: dict[str, Any], control: RankControl) -> dict[str, Any]:
    """Every kind of training at every ZeRO stage, in `precision`: wrong weights by their case."""
    from support.precision_cases import wrong_at_start

    from mae_core.train import deepspeed_engine

    deepspeed_engine.join_gang()
    try:
        wrong = {
            f"{kind} at ZeRO-{zero}": wrong_at_start(
                module, groups, payload["precision"], zero, **optimizer
            )
            for zero in (0, 1, 2, 3)
            for kind, module, groups, optimizer in _trainings(Path(payload["folder"]))
        }
    finally:
        deepspeed_engine.leave_gang()
    return {"cases": len(wrong), "wrong": {case: names for case, names in wrong.items() if names}}


def _trainings(folder: Path) -> Iterator[tuple[str, Any, Any, dict[str, Any]]]:
    """Pretrainings from random weights, fine-tunes of an encoder's file; whole and part frozen."""
    from support.contrastive_cases import small_recipe
    from support.precision_cases import DATA, RECIPE

    from mae_core.config import FinetuneRecipe, PartialFinetuneRecipe
    from mae_core.evaluate.classifier import build_classifier
    from mae_core.model.mae import MAE
    from mae_core.model.moco import MoCo
    from mae_core.train.optim import layer_decay_groups, pretrain_groups

    mae = MAE(RECIPE)
    yield "pretrain", mae, pretrain_groups(mae, 0.05), {}
    contrastive = MoCo(small_recipe(train_patch_embed=False))
    sgd = {"name": "sgd", "weight_decay": 0.0}
    yield "contrastive", contrastive, pretrain_groups(contrastive, 0.0), sgd
    for recipe in (FinetuneRecipe(data=DATA), PartialFinetuneRecipe(data=DATA, num_blocks=1)):
        # Three classes: a bias that does not divide over two ranks.
        tuned = build_classifier(recipe, folder / "encoder.safetensors", num_classes=3)
        groups = layer_decay_groups(tuned, 0.05, 0.75, RECIPE.encoder.depth)
        yield recipe.KIND, tuned, groups, {"clip_grad_norm": 1.0}
