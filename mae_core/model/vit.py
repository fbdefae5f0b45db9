"""The ViT encoder of MAE: pre-LN blocks, fixed positions, class token (paper section 3, A.1).

Legend: N = images, L = patches, K = visible patches, T = tokens, D = width, H = heads,
P = patch_size² · channels, B = residual branches (2 per block).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mae_core.config import EncoderConfig, num_patches
from mae_core.model.patchify import patchify as patchify
from mae_core.model.patchify import unpatchify as unpatchify
from mae_core.model.positions import sincos_positions
from mae_core.model.sizes import hidden_width

NORM_EPS = 1e-6
TOKEN_STD = 0.02


class Linear(nn.Linear):
    """A linear layer whose values come from `init_weights` alone, never from the global RNG."""

    def reset_parameters(self) -> None:
        """Leave the memory as it is: `init_weights` fills it, once."""

    def forward(self, x: Tensor) -> Tensor:
        """Map the last dimension, in one matrix product whose bias is added before rounding.

        torch makes rows of a batch of tokens itself. What DeepSpeed's ZeRO-3 puts in its place does
        not: there bf16 would be rounded twice, product and sum (loss error 3.6e-4, not 1.9e-4).
        """
        rows: Tensor = super().forward(x.flatten(0, -2))
        return rows.view(*x.shape[:-1], -1)


class Attention(nn.Module):
    """Multi-head self-attention with biased q, k, v: (N, T, D) → (N, T, D)."""

    def __init__(self, width: int, num_heads: int) -> None:
        """Build `num_heads` heads of width / num_heads channels."""
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)

    def forward(self, x_NTD: Tensor) -> Tensor:
        """Mix tokens; scores are scaled by the root of the head width."""
        n, t, d = x_NTD.shape
        qkv = self.qkv(x_NTD).view(n, t, 3, self.num_heads, d // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v)
        mixed: Tensor = self.proj(out.transpose(1, 2).reshape(n, t, d))
        return mixed


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them: (N, T, D) → (N, T, D)."""

    def __init__(self, width: int, hidden: int) -> None:
        """Build with `hidden` channels between the layers."""
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

    def forward(self, x_NTD: Tensor) -> Tensor:
        """Transform each token on its own."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x_NTD)))
        return out


class TransformerBlock(nn.Module):
    """Pre-LN transformer block (arXiv 2010.11929, equations 2 and 3)."""

    def __init__(
        self, width: int, num_heads: int, mlp_ratio: float = 4.0, norm_eps: float = NORM_EPS
    ) -> None:
        """Build both branches."""
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = Mlp(width, hidden_width(width, mlp_ratio))

    def forward(self, x_NTD: Tensor, gain_N2: Tensor | None = None) -> Tensor:
        """Add both branches to the stream; `gain_N2` weighs (attention, MLP) for each image."""
        attended: Tensor = self.attn(self.norm1(x_NTD))
        if gain_N2 is not None:
            attended = attended * gain_N2[:, 0, None, None]
        x_NTD = x_NTD + attended
        transformed: Tensor = self.mlp(self.norm2(x_NTD))
        if gain_N2 is not None:
            transformed = transformed * gain_N2[:, 1, None, None]
        return x_NTD + transformed


class Encoder(nn.Module):
    """ViT over all patches of an image, or over the visible ones only."""

    def __init__(
        self,
        config: EncoderConfig,
        image_size: int,
        num_channels: int,
        drop_path: float = 0.0,
        *,
        generator: torch.Generator | None = None,
        trainable_positions: bool = False,
    ) -> None:
        """Build and initialise; `generator` (None = seed 0) is the only source of randomness.

        `trainable_positions` makes the sin-cos table a parameter that starts at its fixed value,
        as the paper's code does in fine-tuning. It is then in the state_dict; otherwise not.
        """
        super().__init__()
        self.config = config
        self.drop_path = drop_path
        patch_dim = config.patch_size**2 * num_channels
        self.num_patches = num_patches(image_size, config.patch_size)
        self.patch_embed = Linear(patch_dim, config.width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        table = sincos_positions(config.width, image_size // config.patch_size)
        if trainable_positions:
            self.positions: Tensor = nn.Parameter(table)
        else:
            self.register_buffer("positions", table, persistent=False)
        self.blocks = nn.ModuleList(
            TransformerBlock(config.width, config.num_heads, config.mlp_ratio, config.norm_eps)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        init_weights(self, generator or torch.Generator().manual_seed(0))

    def forward(
        self,
        patches_NLP: Tensor,
        ids_keep_NK: Tensor | None = None,
        drop_noise_NB: Tensor | None = None,
        hidden: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Encode patches to (N, 1 + K, D) after the final LN, in the order of `ids_keep_NK`.

        None keeps all L patches in place. `hidden`, a mask token (1, 1, D) and int64 ids (N, M),
        appends M mask tokens at those places (paper Table 1c, "encoder with [M]").
        Both public entry points come through here by a module call, because ZeRO-3 gathers a
        module's own parameters in the hooks of that call.
        """
        # DeepSpeed's bf16 casts parameters and may leave buffers in float32.
        dtype = self.patch_embed.weight.dtype
        positions_TD = self.positions.to(dtype)
        place_KD = positions_TD[1:]
        if ids_keep_NK is not None:
            patches_NLP = torch.take_along_dim(patches_NLP, ids_keep_NK.unsqueeze(-1), dim=1)
            place_KD = place_KD[ids_keep_NK]
        x_NKD = self.patch_embed(patches_NLP.to(dtype)) + place_KD
        cls_N1D = (self.cls_token + positions_TD[:1]).expand(x_NKD.shape[0], -1, -1)
        x_NTD = torch.cat([cls_N1D, x_NKD], dim=1)
        if hidden is not None:
            token_11D, ids_NM = hidden
            x_NTD = torch.cat([x_NTD, token_11D.to(dtype) + positions_TD[1:][ids_NM]], dim=1)
        gains = self._gains(drop_noise_NB, dtype)
        for block, gain_N2 in zip(self.blocks, gains, strict=True):
            x_NTD = block(x_NTD, gain_N2)
        tokens: Tensor = self.norm(x_NTD)
        return tokens

    def forward_visible(self, patches_NLP: Tensor, ids_keep_NK: Tensor) -> Tensor:
        """Encode only the visible patches (N, L, P), int64 ids (N, K) → (N, 1 + K, D)."""
        tokens: Tensor = self(patches_NLP, ids_keep_NK)
        return tokens

    def forward_features(self, images_NCHW: Tensor, drop_noise_NB: Tensor | None = None) -> Tensor:
        """Encode whole images: (N, C, H, W) → (N, 1 + L, D), class token first.

        `drop_noise_NB` (N, 2 · depth), uniform in [0, 1), turns stochastic depth on: branch b of
        an image is kept if its noise ≥ the rate of its block (linear from 0 to `drop_path`), and
        scaled by 1 / (1 − rate). Keyed noise makes it independent of ranks and order.
        """
        tokens: Tensor = self(patchify(images_NCHW, self.config.patch_size), None, drop_noise_NB)
        return tokens

    def _gains(self, noise_NB: Tensor | None, dtype: torch.dtype) -> list[Tensor | None]:
        depth = self.config.depth
        if noise_NB is None or self.drop_path == 0.0:
            return [None] * depth
        rate_B = torch.linspace(0.0, self.drop_path, depth).repeat_interleave(2).to(noise_NB)
        gain_NB = (noise_NB >= rate_B) / (1.0 - rate_B)
        return list(gain_NB.to(dtype).view(-1, depth, 2).unbind(dim=1))


@torch.no_grad()
def init_weights(module: nn.Module, generator: torch.Generator) -> None:
    """Initialise in the order of definition: xavier-uniform matrices, zero biases, LN 1 and 0.

    Parameters called `*_token` are normal with standard deviation .02 (paper A.1). Equal
    generators give equal weights; the global RNG is not touched. Meta tensors are left alone.
    """
    for part in module.modules():
        if isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Linear) and not part.weight.is_meta:
            nn.init.xavier_uniform_(part.weight, generator=generator)
            nn.init.zeros_(part.bias)
        for name, parameter in part.named_parameters(recurse=False):
            if name.endswith("_token") and not parameter.is_meta:
                nn.init.normal_(parameter, std=TOKEN_STD, generator=generator)
