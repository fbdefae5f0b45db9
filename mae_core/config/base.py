"""Shared words of recipes: durations, file names, and how a wrong value is refused."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from mae_core.errors import ConfigError

EXECUTION: dict[str, bool] = {"execution": True}
"""Field metadata: the field changes how a result is computed, never the result."""

Precision = Literal["fp32", "bf16-mixed", "bf16"]
"""Number format of a training. Science: it changes results.

`fp32`: all of it.
`bf16-mixed`: fp32 weights and gradients; matrix products and convolutions of the forward pass in
    bf16 (torch.autocast), norms, softmax, residual stream and loss in fp32. The official MAE and
    MoCo v3 code trains so in fp16 with a loss scaler, which bf16's range makes unnecessary.
`bf16`: weights, activations and gradients in bf16, also where gradients are added over
    micro-batches and ranks; fp32 masters and optimizer state. Least memory and traffic.

All keep averages (EMA, momentum encoders) of the fp32 weights, write fp32 files, and evaluate in
fp32.
"""
PRECISION_VERSION: dict[Precision, int] = {"bf16": 2}
"""Raised when a bug fix changes what a precision computes: its old results become stale.

bf16 2: masters start at the weights as given, not rounded to bf16.
"""
FeatureKind = Literal["cls", "mean", "pixels"]
EvalSplit = Literal["dev", "test"]

DOTTED: dict[str, bool] = {"dotted": True}
"""Field metadata: a value `module:name` names code of the user's, whose source is identity."""

ENCODER_FILE = "encoder.safetensors"  # what evaluations read
DECODER_FILE = "decoder.safetensors"
TOKENIZER_FILE = "tokenizer.safetensors"
BASIS_FILE = "basis.safetensors"
FEATURES_FILE = "features.parquet"
CLASSIFIER_FILE = "finetuned.safetensors"
STATE_FILE = "state.json"
GALLERY_FILE = "gallery.npz"
"""Output of a pretraining that the report draws: images, masks, reconstructions."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def require(condition: bool, message: str) -> None:
    """Raise `ConfigError(message)` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


SECRET_WORDS = ("secret", "password", "token", "account_key", "access_key", "signature")
"""Parts of names of a URI's options whose values are secrets."""


def require_no_secret(uri: str | None, name: str) -> None:
    """Raise `ConfigError`, which does not repeat it, if a URI holds a password or a key.

    A study's settings are kept in the store, in records, in MLflow and in reports.
    """
    if uri is None or "://" not in uri:
        return
    rest, _, options = uri.partition("://")[2].partition("?")
    authority = rest.partition("/")[0]
    login, at, _ = authority.rpartition("@")
    # A secret with a "/" in it ends the authority early; the port of a host is a number.
    secret = (login if at else authority).partition(":")[2]
    has_login = bool(secret) and (bool(at) or ("@" in rest and not secret.isdigit()))
    keys = [pair.partition("=")[0].lower() for pair in options.split("&")]
    require(
        not has_login and not any(word in key for key in keys for word in SECRET_WORDS),
        f"{name} holds a password or a key, and a study's settings are kept in the store: give it "
        "by the environment (such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY) instead",
    )


@dataclass(frozen=True)
class Duration:
    """How long to train. Zero is allowed and means an untrained network."""

    value: float
    """Amount, ≥ 0, in `unit`."""
    unit: Literal["epochs", "steps", "images"]
    """An epoch drops the last incomplete global batch, as the paper's code does."""

    SHORT: ClassVar[dict[str, str]] = {"epochs": "ep", "steps": "st", "images": "img"}

    def __post_init__(self) -> None:
        require(self.unit in self.SHORT, f"duration unit {self.unit!r}: use epochs, steps, images")
        ok = math.isfinite(self.value) and self.value >= 0
        require(ok, f"duration of {self.value} {self.unit}: must be a finite number ≥ 0")

    @classmethod
    def epochs(cls, value: float) -> Duration:
        """`value` passes over the training set."""
        return cls(value, "epochs")

    @classmethod
    def steps(cls, value: float) -> Duration:
        """`value` optimizer updates."""
        return cls(value, "steps")

    @classmethod
    def images(cls, value: float) -> Duration:
        """`value` images seen, rounded down to whole global batches."""
        return cls(value, "images")

    @classmethod
    def parse(cls, text: str) -> Duration:
        """Read `800ep`, `5000st`, `1000000img` or the long form `800 epochs`."""
        for unit, short in cls.SHORT.items():
            for suffix in (unit, short):
                head = text.strip().removesuffix(suffix).strip()
                if head != text.strip():
                    try:
                        return cls(float(head), unit)  # type: ignore[arg-type]
                    except ValueError:
                        break
        raise ConfigError(f"duration {text!r}: write a number and ep, st or img, such as 800ep")

    def num_steps(self, *, num_images: int, global_batch: int, may_be_zero: bool = False) -> int:
        """Optimizer updates for a training set of `num_images` (Duration → int).

        A duration above 0 that rounds to no step is refused, unless it `may_be_zero` (a warm-up).
        """
        steps_per_epoch = num_images // global_batch
        if self.value == 0:
            return 0
        require(
            steps_per_epoch > 0 or self.unit != "epochs",
            f"global batch {global_batch} is larger than the training set of {num_images} images: "
            "an epoch would have no step; lower the global batch",
        )
        if self.unit == "steps":
            steps = round(self.value)
        elif self.unit == "images":
            steps = int(self.value) // global_batch
        else:
            steps = round(self.value * steps_per_epoch)
        require(
            steps > 0 or may_be_zero,
            f"duration {self} is less than one step at a global batch of {global_batch}: the "
            "network would stay untrained; train longer, lower the global batch, or write 0 for "
            "an untrained network",
        )
        return steps

    def __str__(self) -> str:
        """Short form, `800ep`; exact, so that `parse` gives the same duration back."""
        value = int(self.value) if float(self.value).is_integer() else self.value
        return f"{value}{self.SHORT[self.unit]}"
