"""Mean corruption error (mCE): how much worse than a baseline a model takes corruptions.

CE of a family = sum of the model's top-1 errors over the five severities, over the same sum of the
baseline; mCE = mean of CE over the families, in per cent (arXiv 1903.12261, section 4). The
baseline of published ImageNet-C figures is AlexNet; other data needs another; records name it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mae_core.config.inference import FAMILIES, SEVERITIES
from mae_core.errors import ConfigError


def _expect_families(given: Mapping[str, object], what: str) -> None:
    missing = [family for family in FAMILIES if family not in given]
    unknown = [family for family in given if family not in FAMILIES]
    if missing or unknown:
        raise ConfigError(
            f"{what}: missing {missing or 'nothing'}, unknown {unknown or 'nothing'}; the mean "
            f"is over all {len(FAMILIES)} families"
        )


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """The model that corruption errors are divided by."""

    name: str
    """For records: which model, from where."""
    mean_error: Mapping[str, float]
    """Top-1 error of each family in 0..1, mean over the five severities."""

    def __post_init__(self) -> None:
        _expect_families(self.mean_error, f"baseline {self.name!r}")
        for family, error in self.mean_error.items():
            if not 0 < error <= 1:
                raise ConfigError(f"baseline error {error} of {family}: use a share in (0, 1]")


ALEXNET = Baseline(
    name="AlexNet on ImageNet-C (Hendrycks & Dietterich 2019)",
    mean_error={
        "gaussian_noise": 0.886428,
        "shot_noise": 0.894468,
        "impulse_noise": 0.922640,
        "defocus_blur": 0.819880,
        "glass_blur": 0.826268,
        "motion_blur": 0.785948,
        "zoom_blur": 0.798360,
        "snow": 0.866816,
        "frost": 0.826572,
        "fog": 0.819324,
        "brightness": 0.564592,
        "contrast": 0.853204,
        "elastic_transform": 0.646056,
        "pixelate": 0.717840,
        "jpeg_compression": 0.606500,
    },
)


@dataclass(frozen=True, kw_only=True)
class CorruptionError:
    """Errors of a model under all corruptions, in per cent."""

    mce: float
    """Mean over the families of `ce`; 100 = as bad as the baseline."""
    ce: Mapping[str, float]
    """Error of each family over the baseline's."""
    mean_error: float
    """Plain mean of the error over families and severities, as reported on CIFAR-10-C."""
    baseline: str
    """Name of the baseline."""


def mean_corruption_error(
    errors: Mapping[str, Sequence[float]], baseline: Baseline
) -> CorruptionError:
    """Relate top-1 errors in 0..1, five per family in order of severity, to a baseline.

    Raises:
        ConfigError: a family is missing or unknown, has not five errors, or one is no share.
    """
    means = family_means(errors)
    ce = {family: 100 * means[family] / baseline.mean_error[family] for family in FAMILIES}
    return CorruptionError(
        mce=sum(ce.values()) / len(ce),
        ce=ce,
        mean_error=100 * sum(means.values()) / len(means),
        baseline=baseline.name,
    )


def family_means(errors: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Mean error of each family over the severities: a `Baseline`'s `mean_error`.

    Raises:
        ConfigError: as `mean_corruption_error`.
    """
    _expect_families(errors, "corruption errors")
    for family, values in errors.items():
        if len(values) != len(SEVERITIES):
            raise ConfigError(f"{len(values)} errors of {family}: give one for each severity, 1..5")
        if not all(0 <= value <= 1 for value in values):
            raise ConfigError(f"errors {list(values)} of {family}: give shares in 0..1")
    return {family: sum(errors[family]) / len(SEVERITIES) for family in FAMILIES}
