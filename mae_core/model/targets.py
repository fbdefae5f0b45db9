"""Targets other than pixels: principal components, a tokenizer's codes, custom ones (Table 1d).

They are made from whole images outside the network, because what makes them is not trained.
Legend: N images, C channels, H, W pixels, L patches, P values of a patch, Q width of a target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mae_core.model.patchify import patchify
from mae_core.model.vq_vae import Tokenizer


class Target(Protocol):
    """What a decoder predicts; a custom one is `make(recipe) -> Target`, named by dotted path."""

    dim: int
    """Width Q of the decoder's head: of the floats, or number of codes."""

    def __call__(self, images_NCHW: Tensor) -> Tensor:
        """Normalised images on the device → floats (N, L, Q), or int64 codes (N, L)."""
        ...

    def to_patches(self, prediction_NLQ: Tensor) -> Tensor | None:
        """Turn predictions into normalised pixels (N, L, P) for a gallery; None if none exist."""
        ...


class PrincipalComponents:
    """Leading coefficients of each patch in a stored basis; not whitened."""

    def __init__(self, basis: Basis, patch_size: int, dim: int) -> None:
        self.basis, self.patch_size, self.dim = basis, patch_size, dim

    def __call__(self, images_NCHW: Tensor) -> Tensor:
        """Project the patches: float32 (N, L, Q)."""
        centred = patchify(images_NCHW, self.patch_size) - self.basis.mean.to(images_NCHW.device)
        return centred @ self.basis.components[: self.dim].to(images_NCHW.device).T

    def to_patches(self, prediction_NLQ: Tensor) -> Tensor:
        """Combine the components: float32 (N, L, P)."""
        components = self.basis.components[: self.dim].to(prediction_NLQ.device)
        return prediction_NLQ @ components + self.basis.mean.to(prediction_NLQ.device)


class Codes:
    """The code that a frozen tokenizer gives each patch."""

    def __init__(self, tokenizer: Tokenizer, device: torch.device) -> None:
        self.tokenizer = tokenizer.to(device).eval().requires_grad_(False)
        self.dim = tokenizer.config.vocabulary

    @torch.inference_mode()
    def __call__(self, images_NCHW: Tensor) -> Tensor:
        """Tokenize: int64 (N, L)."""
        return self.tokenizer.tokenize(images_NCHW)

    @torch.inference_mode()
    def to_patches(self, prediction_NLQ: Tensor) -> Tensor:
        """Decode the likeliest codes: float32 (N, L, P)."""
        codes_NL = prediction_NLQ.argmax(dim=-1).to(next(self.tokenizer.parameters()).device)
        pixels = self.tokenizer.pixels_of(codes_NL)
        return patchify(pixels, self.tokenizer.config.patch_size).to(prediction_NLQ.device)


@dataclass(frozen=True)
class Basis:
    """A mean patch and orthonormal directions, in the space of normalised pixels."""

    mean: Tensor
    """float32 (P,)."""
    components: Tensor
    """float32 (K, P), by falling variance; the largest entry of each is positive."""
    explained: Tensor
    """Share of the patches' variance along each, float32 (K,)."""
