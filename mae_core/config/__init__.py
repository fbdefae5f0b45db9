"""Recipes as frozen data: what one stage computes (science) and how (execution).

This module imports nothing heavy: studies, `plan` and `--help` load it. A field carries a string
below it with its meaning, unit and source; impossible values are refused on construction.
Paper = arXiv 2111.06377.
"""

from mae_core.config.base import BASIS_FILE as BASIS_FILE
from mae_core.config.base import CLASSIFIER_FILE as CLASSIFIER_FILE
from mae_core.config.base import DECODER_FILE as DECODER_FILE
from mae_core.config.base import DOTTED as DOTTED
from mae_core.config.base import ENCODER_FILE as ENCODER_FILE
from mae_core.config.base import EXECUTION as EXECUTION
from mae_core.config.base import FEATURES_FILE as FEATURES_FILE
from mae_core.config.base import GALLERY_FILE as GALLERY_FILE
from mae_core.config.base import IMAGENET_MEAN as IMAGENET_MEAN
from mae_core.config.base import IMAGENET_STD as IMAGENET_STD
from mae_core.config.base import PRECISION_VERSION as PRECISION_VERSION
from mae_core.config.base import STATE_FILE as STATE_FILE
from mae_core.config.base import TOKENIZER_FILE as TOKENIZER_FILE
from mae_core.config.base import Duration as Duration
from mae_core.config.base import EvalSplit as EvalSplit
from mae_core.config.base import FeatureKind as FeatureKind
from mae_core.config.base import Precision as Precision
from mae_core.config.base import require as require
from mae_core.config.evaluation import CustomEvalRecipe as CustomEvalRecipe
from mae_core.config.evaluation import EvalRecipe as EvalRecipe
from mae_core.config.evaluation import FinetuneRecipe as FinetuneRecipe
from mae_core.config.evaluation import LinearProbeRecipe as LinearProbeRecipe
from mae_core.config.evaluation import ScratchRecipe as ScratchRecipe
from mae_core.config.execution import MAX_AUTO_MICRO_BATCH as MAX_AUTO_MICRO_BATCH
from mae_core.config.execution import BatchSplit as BatchSplit
from mae_core.config.execution import Execution as Execution
from mae_core.config.execution import split_batch as split_batch
from mae_core.config.inference import BestOfRecipe as BestOfRecipe
from mae_core.config.inference import CorruptionRecipe as CorruptionRecipe
from mae_core.config.inference import InferenceRecipe as InferenceRecipe
from mae_core.config.inference import ReconstructionRecipe as ReconstructionRecipe
from mae_core.config.inference import ShiftRecipe as ShiftRecipe
from mae_core.config.kinds import RECIPES as RECIPES
from mae_core.config.kinds import AnyRecipe as AnyRecipe
from mae_core.config.kinds import kinds_that as kinds_that
from mae_core.config.parts import NO_AUGMENTATION as NO_AUGMENTATION
from mae_core.config.parts import PROBE_CROP as PROBE_CROP
from mae_core.config.parts import SUPERVISED_CROP as SUPERVISED_CROP
from mae_core.config.parts import AugmentationConfig as AugmentationConfig
from mae_core.config.parts import DataConfig as DataConfig
from mae_core.config.parts import DecoderConfig as DecoderConfig
from mae_core.config.parts import EncoderConfig as EncoderConfig
from mae_core.config.parts import LrScheduleConfig as LrScheduleConfig
from mae_core.config.parts import OptimizerConfig as OptimizerConfig
from mae_core.config.parts import check_global_batch as check_global_batch
from mae_core.config.parts import check_patches as check_patches
from mae_core.config.parts import num_keep as num_keep
from mae_core.config.parts import num_patches as num_patches
from mae_core.config.pretraining import AdoptedRecipe as AdoptedRecipe
from mae_core.config.pretraining import BasisRecipe as BasisRecipe
from mae_core.config.pretraining import ContrastiveRecipe as ContrastiveRecipe
from mae_core.config.pretraining import MaskConfig as MaskConfig
from mae_core.config.pretraining import PretrainRecipe as PretrainRecipe
from mae_core.config.pretraining import TokenizerRecipe as TokenizerRecipe
from mae_core.config.probes import AttentiveProbeRecipe as AttentiveProbeRecipe
from mae_core.config.probes import FeatureProbeRecipe as FeatureProbeRecipe
from mae_core.config.probes import FeaturesRecipe as FeaturesRecipe
from mae_core.config.probes import KnnRecipe as KnnRecipe
from mae_core.config.probes import PartialFinetuneRecipe as PartialFinetuneRecipe
from mae_core.config.recipe import EncoderUse as EncoderUse
from mae_core.config.recipe import Family as Family
from mae_core.config.recipe import Recipe as Recipe
from mae_core.config.recipe import Training as Training
