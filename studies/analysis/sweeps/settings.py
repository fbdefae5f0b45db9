"""Settings of a sweep in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def short(key: str) -> str:
    """A dotted setting without its stage: `pretrain.decoder.depth` is `decoder depth`."""
    return " ".join(key.split(".")[1:] or [key]).replace("_", " ")


def settings_text(settings: Mapping[str, Any]) -> str:
    """`mask ratio 0.75, decoder depth 4`."""
    return ", ".join(
        f"{short(k)} {v:.4g}" if isinstance(v, float) else f"{short(k)} {v}"
        for k, v in settings.items()
    )
