"""What every stage's recipe has, and what it says about its place in the chain of stages."""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from mae_core.config.base import ENCODER_FILE, Duration, EvalSplit, Precision
from mae_core.config.execution import Execution
from mae_core.config.parts import DataConfig, EncoderConfig, check_takes

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class Family(enum.Enum):
    """Kinds whose results one figure may show together, in the order of figures."""

    KNN = "k-NN"
    LINEAR_PROBE = "Linear probe"
    FINETUNE = "Fine-tune"
    """Supervised runs and the best of a search on dev are compared with fine-tunes."""
    PRETRAINING = "Pretraining"
    PARTIAL_FINETUNE = "Partial fine-tune"
    FEATURE_PROBE = "Probe of cached features"
    ATTENTIVE_PROBE = "Attentive probe"
    SHIFT = "Another set, no tuning"
    CORRUPTIONS = "Corrupted images, no tuning"
    RECONSTRUCTION = "Reconstruction"
    ADOPTED = "Adopted"
    BASIS = "Basis"
    CUSTOM_EVAL = "Custom eval"
    FEATURES = "Features"
    TOKENIZER = "Tokenizer"


class EncoderUse(enum.Enum):
    """What a stage does with an encoder."""

    TRAINS = "trains"
    """From random weights."""
    FROZEN = "frozen"
    """Judges what its features hold, as they are."""
    TUNES = "tunes"
    """Goes on from trained weights."""
    NEITHER = "neither"


class Training(NamedTuple):
    """How a stage trains in steps."""

    duration: Duration
    global_batch: int
    base_lr: float | None
    """None where several are tried."""
    precision: Precision = "fp32"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What every stage's recipe has."""

    KIND: ClassVar[str]
    VERSION: ClassVar[int] = 1
    """Raise it when a bug fix changes this stage kind's results: old results become stale."""
    ENTRY: ClassVar[str]
    """`module:function` that computes it on each rank: (recipe, execution, context, data)."""
    YIELDS: ClassVar[tuple[str, ...]] = ()
    """Files that it leaves for other stages."""
    INSTEAD: ClassVar[Mapping[str, str]] = {}
    """A needed file, and another that may stand in for it: features for an encoder."""
    TRAINS: ClassVar[bool] = False
    """It has checkpoints, and needs a process group even on one rank."""
    FAMILY: ClassVar[Family]
    ENCODER_USE: ClassVar[EncoderUse] = EncoderUse.NEITHER
    IS_EVALUATION: ClassVar[bool] = False
    """It scores classes: its result is an accuracy."""

    data: DataConfig
    seed: int = 0

    @property
    def needs(self) -> tuple[str, ...]:
        """Files of its parents that it reads; exactly one parent yields each."""
        return ()

    @property
    def version(self) -> int:
        """`VERSION`, or an older one for settings whose results have not changed since."""
        return self.VERSION

    @property
    def sees_windows(self) -> bool:
        """It looks at images as evaluations do: `data.eval_crop` counts, also in its identity."""
        augmentation = getattr(self, "augmentation", None)
        return self.IS_EVALUATION or augmentation is None or not augmentation.crops

    @property
    def new_encoder(self) -> EncoderConfig | None:
        """Shape of the encoder that a cell has from this stage; None if none begins here."""
        return None

    @property
    def training(self) -> Training | None:
        """How it trains; None if it has no steps."""
        return None

    @property
    def scored_on(self) -> EvalSplit | None:
        """Split that its result is of; None for a stage that scores nothing."""
        return None

    @property
    def objective_name(self) -> str:
        """What an encoder that begins here is trained for, for people."""
        return self.KIND

    def check_parents(self, parents: Mapping[str, Recipe]) -> None:
        """Refuse (`ConfigError`) parents, given by the name of their stage, that do not fit."""

    def check_execution(self, execution: Execution) -> None:
        """Refuse (`ConfigError`) an execution that it cannot be computed with."""

    @property
    def protocol(self) -> str:
        """What a reader must know to compare two of its results: `k-NN (k=20), class token`."""
        raise NotImplementedError

    @property
    def extensions(self) -> tuple[str, ...]:
        """Code of the user's that takes part: `module:name` of each, sorted."""
        return tuple(sorted(set(_dotted(self))))


def encoder_parent(parents: Mapping[str, Recipe]) -> tuple[EncoderConfig, DataConfig] | None:
    """Shape of the encoder that a parent leaves, and the images it is for; None without one."""
    for parent in parents.values():
        if ENCODER_FILE in parent.YIELDS and parent.new_encoder is not None:
            return parent.new_encoder, parent.data
    return None


def check_frozen(data: DataConfig, parents: Mapping[str, Recipe]) -> None:
    """Refuse (`ConfigError`) images that a parent's encoder does not take as it is."""
    if found := encoder_parent(parents):
        check_takes(data, *found)


def _dotted(value: DataclassInstance) -> list[str]:
    found: list[str] = []
    for name, is_dotted in _fields_of(type(value)):
        item = getattr(value, name)
        if hasattr(item, "__dataclass_fields__"):
            found += _dotted(item)
        elif is_dotted and isinstance(item, str) and ":" in item:
            found.append(item)
    return found


@functools.cache
def _fields_of(cls: type[DataclassInstance]) -> tuple[tuple[str, bool], ...]:
    """Name of each field, and whether it may name code of the user's."""
    return tuple((f.name, bool(f.metadata.get("dotted"))) for f in dataclasses.fields(cls))
