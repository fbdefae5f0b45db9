"""Named encoder sizes as data, light to import: the paper's, a finer ladder, and a small family.

`Ti S B L H` are the usual ViT sizes with the paper's patch sizes (arXiv 2111.06377 section 4 and
2010.11929 Table 1; Ti and S: DeiT, arXiv 2012.12877 Table 1). `XS M MB BL LH` lie between them, so
that a scaling curve has ten sizes at one patch size. `N1..N4` are for images of 8 to 32 pixels.
"""

from __future__ import annotations

import difflib
from dataclasses import replace

from mae_core.config import EncoderConfig
from mae_core.errors import ConfigError


def _size(name: str, width: int, depth: int, num_heads: int, patch_size: int) -> EncoderConfig:
    return EncoderConfig(
        width=width, depth=depth, num_heads=num_heads, patch_size=patch_size, name=name
    )


ENCODERS: dict[str, EncoderConfig] = {
    size.name: size
    for size in (
        # Small images; two heads keep the per-head work large enough for a CPU.
        _size("N1", 16, 2, 2, 2),
        _size("N2", 24, 2, 2, 2),
        _size("N3", 32, 2, 2, 2),
        _size("N4", 48, 2, 2, 2),
        # Heads are 64 wide except in H (80), as published.
        _size("Ti", 192, 12, 3, 16),
        _size("XS", 256, 12, 4, 16),
        _size("S", 384, 12, 6, 16),
        _size("M", 512, 12, 8, 16),
        _size("MB", 640, 12, 10, 16),
        _size("B", 768, 12, 12, 16),
        _size("BL", 896, 18, 14, 16),
        _size("L", 1024, 24, 16, 16),
        _size("LH", 1152, 28, 18, 16),
        _size("H", 1280, 32, 16, 14),
    )
}
"""All named sizes, smallest first."""


def encoder(name: str, *, patch_size: int | None = None) -> EncoderConfig:
    """Return the encoder called `name`, with the paper's patch size unless one is given (pixels).

    Raises `ConfigError` for an unknown name and names the nearest known one.
    """
    if name not in ENCODERS:
        raise ConfigError(_unknown(name))
    size = ENCODERS[name]
    return size if patch_size is None else replace(size, patch_size=patch_size)


def hidden_width(width: int, mlp_ratio: float = 4.0) -> int:
    """Return the hidden width of a block's MLP; 4 × width in the paper, encoder and decoder."""
    return int(width * mlp_ratio)


def _unknown(name: str) -> str:
    by_lower_case = {known.lower(): known for known in ENCODERS}
    near = difflib.get_close_matches(name.lower(), by_lower_case, n=1, cutoff=0.0)
    hint = f"did you mean {by_lower_case[near[0]]!r}? " if near else ""
    return f"unknown encoder size {name!r}: {hint}Known sizes: {', '.join(ENCODERS)}"
