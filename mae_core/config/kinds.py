"""Every kind of stage by name: the one list that plans, runs and reads recipes."""

from __future__ import annotations

from typing import get_args

from mae_core.config.evaluation import (
    CustomEvalRecipe,
    FinetuneRecipe,
    LinearProbeRecipe,
    ScratchRecipe,
)
from mae_core.config.inference import (
    BestOfRecipe,
    CorruptionRecipe,
    ReconstructionRecipe,
    ShiftRecipe,
)
from mae_core.config.pretraining import (
    AdoptedRecipe,
    BasisRecipe,
    ContrastiveRecipe,
    PretrainRecipe,
    TokenizerRecipe,
)
from mae_core.config.probes import (
    AttentiveProbeRecipe,
    FeatureProbeRecipe,
    FeaturesRecipe,
    KnnRecipe,
    PartialFinetuneRecipe,
)
from mae_core.config.recipe import EncoderUse, Recipe

AnyRecipe = (
    AdoptedRecipe
    | PretrainRecipe
    | BasisRecipe
    | TokenizerRecipe
    | ContrastiveRecipe
    | KnnRecipe
    | LinearProbeRecipe
    | FinetuneRecipe
    | ScratchRecipe
    | FeaturesRecipe
    | FeatureProbeRecipe
    | AttentiveProbeRecipe
    | CustomEvalRecipe
    | PartialFinetuneRecipe
    | BestOfRecipe
    | ReconstructionRecipe
    | CorruptionRecipe
    | ShiftRecipe
)
RECIPES: dict[str, type[Recipe]] = {recipe.KIND: recipe for recipe in get_args(AnyRecipe)}


def kinds_that(use: EncoderUse) -> tuple[str, ...]:
    """Kinds that do this with an encoder."""
    return tuple(kind for kind, recipe in RECIPES.items() if recipe.ENCODER_USE is use)
