"""Settings of a sweep: the chosen ones, and how they are said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class ChosenSetting:
    """What a sweep decided on."""

    settings: Mapping[str, object]
    """Dotted key -> value: `pretrain.mask_ratio` -> 0.75."""
    score: float | None = None
    objective: str = "score"
    """For people: `linear_probe.top1 on dev`."""
    trial: int | None = None
    num_trials: int | None = None
    decided_at: str = ""
    rule: str | None = None
    """How several protocols decided; None of one."""
    values: Mapping[str, float] = field(default_factory=dict)
    """By protocol, where several decided."""

    @property
    def text(self) -> str:
        """`mask ratio 0.75, decoder depth 4; linear_probe.top1 on dev 82.6, trial 11 of 12`."""
        text = settings_text(self.settings)
        if self.score is not None:
            text += f"; {self.objective} {self.score:.4g}"
        return text if self.trial is None else f"{text}, trial {self.trial} of {self.num_trials}"

    def of_pretraining(self, path: str) -> object:
        """Value of a setting by its key without the stage: `decoder.depth`; None if not chosen."""
        return {key.partition(".")[2]: value for key, value in self.settings.items()}.get(path)


def short(key: str) -> str:
    """A dotted setting without its stage: `pretrain.decoder.depth` is `decoder depth`."""
    return " ".join(key.split(".")[1:] or [key]).replace("_", " ")


def settings_text(settings: Mapping[str, object]) -> str:
    """`mask ratio 0.75, decoder depth 4`."""
    return ", ".join(
        f"{short(k)} {v:.4g}" if isinstance(v, float) else f"{short(k)} {v}"
        for k, v in settings.items()
    )
