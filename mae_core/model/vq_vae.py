"""A small discrete auto-encoder: every patch of an image becomes one of V codes (Table 1d).

Convolutions bring the image down to one vector per patch; its nearest entry of a code book of
unit vectors is the code (VQ-VAE, arXiv 1711.00937; low-dimensional normalised codes: ViT-VQGAN,
arXiv 2110.04627). Choosing the nearest needs no noise, so training is a function of the images.
Legend: N images, C channels, S image size, G = S / patch, L = G², D width, E code width, V codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mae_core.config import TokenizerRecipe

COMMITMENT = 0.25
"""Weight that keeps vectors near their codes (VQ-VAE, equation 3: beta)."""


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Shape of a tokenizer."""

    image_size: int
    num_channels: int
    patch_size: int
    vocabulary: int
    width: int
    code_dim: int

    @classmethod
    def of(cls, recipe: TokenizerRecipe) -> TokenizerConfig:
        """Shape that a recipe trains."""
        return cls(
            image_size=recipe.data.image_size,
            num_channels=recipe.data.num_channels,
            patch_size=recipe.patch_size,
            vocabulary=recipe.vocabulary,
            width=recipe.width,
            code_dim=recipe.code_dim,
        )


class Tokenizer(nn.Module):
    """Encoder, code book and decoder; its forward is the training loss."""

    def __init__(self, config: TokenizerConfig, generator: torch.Generator | None = None) -> None:
        """Build and initialise from `generator` (None = seed 0)."""
        super().__init__()
        self.config = config
        halvings = config.patch_size.bit_length() - 1
        width, channels, code = config.width, config.num_channels, config.code_dim
        down: list[nn.Module] = []
        for level in range(halvings):
            down += [nn.Conv2d(width if level else channels, width, 4, 2, 1), nn.GELU()]
        self.encoder = nn.Sequential(*down, nn.Conv2d(width, width, 3, 1, 1), nn.GELU())
        self.to_code = nn.Conv2d(width, code, 1)
        self.codes = nn.Parameter(torch.zeros(config.vocabulary, code))
        up: list[nn.Module] = [nn.Conv2d(code, width, 3, 1, 1), nn.GELU()]
        for level in range(halvings):
            last = level + 1 == halvings
            up += [nn.ConvTranspose2d(width, channels if last else width, 4, 2, 1)]
            up += [] if last else [nn.GELU()]
        self.decoder = nn.Sequential(*up)
        self._init(generator or torch.Generator().manual_seed(0))

    @torch.no_grad()
    def _init(self, generator: torch.Generator) -> None:
        for part in self.modules():
            if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(part.weight, nonlinearity="relu", generator=generator)
                assert part.bias is not None
                nn.init.zeros_(part.bias)
        nn.init.normal_(self.codes, generator=generator)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Return reconstruction error + code-book and commitment terms, a float32 scalar."""
        vectors_NLE = self.vectors(images_NCHW)
        codes_VE = F.normalize(self.codes, dim=-1)
        nearest_NLE = codes_VE[_nearest(vectors_NLE, codes_VE)]
        # Straight through: the decoder's gradient reaches the encoder as if nothing was chosen.
        passed_NLE = vectors_NLE + (nearest_NLE - vectors_NLE).detach()
        reconstruction = self._decode(passed_NLE)
        error = F.mse_loss(reconstruction.float(), images_NCHW.float())
        book = F.mse_loss(nearest_NLE.float(), vectors_NLE.detach().float())
        commitment = F.mse_loss(vectors_NLE.float(), nearest_NLE.detach().float())
        # Unit vectors differ by at most 2 in all; the sum over E puts that on the pixels' scale.
        return error + self.config.code_dim * (book + COMMITMENT * commitment)

    def vectors(self, images_NCHW: Tensor) -> Tensor:
        """One unit vector per patch: (N, C, S, S) → (N, L, E)."""
        weight = self.to_code.weight
        grid_NEGG = self.to_code(self.encoder(images_NCHW.to(weight.dtype)))
        return F.normalize(grid_NEGG.flatten(2).transpose(1, 2), dim=-1)

    def tokenize(self, images_NCHW: Tensor) -> Tensor:
        """The code of every patch: normalised images → int64 (N, L)."""
        return _nearest(self.vectors(images_NCHW), F.normalize(self.codes, dim=-1))

    def pixels_of(self, codes_NL: Tensor) -> Tensor:
        """Normalised pixels of codes: int64 (N, L) → (N, C, S, S)."""
        return self._decode(F.normalize(self.codes, dim=-1)[codes_NL])

    def _decode(self, vectors_NLE: Tensor) -> Tensor:
        n, length, code = vectors_NLE.shape
        side = round(length**0.5)
        grid = vectors_NLE.transpose(1, 2).reshape(n, code, side, side)
        pixels: Tensor = self.decoder(grid)
        return pixels


def _nearest(vectors_NLE: Tensor, codes_VE: Tensor) -> Tensor:
    """Index of the most similar code, the first of equals: int64 (N, L).

    In fp32 always: in bf16 thousands of codes would be equally similar.
    """
    with torch.autocast(vectors_NLE.device.type, enabled=False):
        return (vectors_NLE.detach().float() @ codes_VE.detach().float().T).argmax(dim=-1)


@torch.no_grad()
def start_codes(tokenizer: Tokenizer, images_NCHW: Tensor, choice_V: Tensor) -> None:
    """Start the code book at vectors of real patches, so that no code starts out of reach.

    `choice_V` are numbers in [0, 1), one per code, that pick its patch. With fewer patches than
    codes some codes start equal and part in training.
    """
    vectors_ME = tokenizer.vectors(images_NCHW).flatten(0, 1)
    tokenizer.codes.copy_(vectors_ME[(choice_V * len(vectors_ME)).long()])
