"""Recipes as frozen data: what one stage computes (science) and how (execution).

This module imports nothing heavy: studies, `plan` and `--help` load it. A field carries a string
below it with its meaning, unit and source; impossible values are refused on construction.
Paper = arXiv 2111.06377.
"""

from mae_core.config.adopted import AdoptedRecipe
from mae_core.config.base import (
    BASIS_FILE,
    CLASSIFIER_FILE,
    DECODER_FILE,
    DOTTED,
    ENCODER_FILE,
    EXECUTION,
    FEATURES_FILE,
    GALLERY_FILE,
    IMAGENET_MEAN,
    IMAGENET_STD,
    STATE_FILE,
    TOKENIZER_FILE,
    Duration,
    EvalSplit,
    FeatureKind,
    Precision,
    require,
)
from mae_core.config.contrastive import ContrastiveRecipe
from mae_core.config.custom import CustomEvalRecipe
from mae_core.config.evaluation import (
    EvalRecipe,
    FinetuneRecipe,
    KnnRecipe,
    LinearProbeRecipe,
    ScratchRecipe,
)
from mae_core.config.execution import MAX_AUTO_MICRO_BATCH, BatchSplit, Execution, split_batch
from mae_core.config.kinds import RECIPES, AnyRecipe
from mae_core.config.parts import (
    NO_AUGMENTATION,
    AugmentationConfig,
    DataConfig,
    DecoderConfig,
    EncoderConfig,
    LrScheduleConfig,
    OptimizerConfig,
    check_global_batch,
    check_patches,
    num_keep,
    num_patches,
)
from mae_core.config.pretraining import BasisRecipe, MaskConfig, PretrainRecipe, TokenizerRecipe
from mae_core.config.probes import (
    AttentiveProbeRecipe,
    FeatureProbeRecipe,
    FeaturesRecipe,
    PartialFinetuneRecipe,
)
from mae_core.config.recipe import Recipe
from mae_core.config.reconstruction import ReconstructionRecipe
from mae_core.config.robustness import CorruptionRecipe, InferenceRecipe, ShiftRecipe
from mae_core.config.selection import BestOfRecipe

__all__ = [
    "AdoptedRecipe",
    "AnyRecipe",
    "AttentiveProbeRecipe",
    "AugmentationConfig",
    "BASIS_FILE",
    "BasisRecipe",
    "BatchSplit",
    "BestOfRecipe",
    "CLASSIFIER_FILE",
    "ContrastiveRecipe",
    "CorruptionRecipe",
    "CustomEvalRecipe",
    "DECODER_FILE",
    "DOTTED",
    "DataConfig",
    "DecoderConfig",
    "Duration",
    "ENCODER_FILE",
    "EXECUTION",
    "EncoderConfig",
    "EvalRecipe",
    "EvalSplit",
    "Execution",
    "FEATURES_FILE",
    "FeatureKind",
    "FeatureProbeRecipe",
    "FeaturesRecipe",
    "FinetuneRecipe",
    "GALLERY_FILE",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "InferenceRecipe",
    "KnnRecipe",
    "LinearProbeRecipe",
    "LrScheduleConfig",
    "MAX_AUTO_MICRO_BATCH",
    "MaskConfig",
    "NO_AUGMENTATION",
    "OptimizerConfig",
    "PartialFinetuneRecipe",
    "Precision",
    "PretrainRecipe",
    "RECIPES",
    "Recipe",
    "ReconstructionRecipe",
    "STATE_FILE",
    "ScratchRecipe",
    "ShiftRecipe",
    "TOKENIZER_FILE",
    "TokenizerRecipe",
    "check_global_batch",
    "check_patches",
    "num_keep",
    "num_patches",
    "require",
    "split_batch",
]
