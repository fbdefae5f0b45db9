"""Every kind of stage by name: the one list that plans, runs and reads recipes."""

from __future__ import annotations

from typing import Any

from mae_core.config.adopted import AdoptedRecipe
from mae_core.config.contrastive import ContrastiveRecipe
from mae_core.config.custom import CustomEvalRecipe
from mae_core.config.evaluation import (
    FinetuneRecipe,
    KnnRecipe,
    LinearProbeRecipe,
    ScratchRecipe,
)
from mae_core.config.pretraining import BasisRecipe, PretrainRecipe, TokenizerRecipe
from mae_core.config.probes import (
    AttentiveProbeRecipe,
    FeatureProbeRecipe,
    FeaturesRecipe,
    PartialFinetuneRecipe,
)
from mae_core.config.reconstruction import ReconstructionRecipe
from mae_core.config.robustness import CorruptionRecipe, ShiftRecipe
from mae_core.config.selection import BestOfRecipe

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
RECIPES: dict[str, type[Any]] = {
    r.KIND: r
    for r in (
        AdoptedRecipe,
        PretrainRecipe,
        BasisRecipe,
        TokenizerRecipe,
        ContrastiveRecipe,
        KnnRecipe,
        LinearProbeRecipe,
        FinetuneRecipe,
        ScratchRecipe,
        FeaturesRecipe,
        FeatureProbeRecipe,
        AttentiveProbeRecipe,
        CustomEvalRecipe,
        PartialFinetuneRecipe,
        BestOfRecipe,
        ReconstructionRecipe,
        CorruptionRecipe,
        ShiftRecipe,
    )
}
