"""The masked autoencoder: encode the visible patches, predict the pixels of the masked ones.

Legend: N = images, L = patches, K = visible, M = L − K masked patches, T = tokens, D = decoder
width, E = encoder width, P = patch_size² · channels, Q = width of the target (P for pixels). The
decoder works in *shuffled order* (class token, visible, masked): self-attention does not see the
order of tokens, only their positions, so the paper's un-shuffle is a gather of constant positions
instead of tokens, and "predict the masked tokens only" is a slice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mae_core.config import DecoderConfig, EncoderConfig, PretrainRecipe, num_keep
from mae_core.model.flops import target_width
from mae_core.model.masking import random_masking, shuffle_order
from mae_core.model.patchify import patch_targets, patchify
from mae_core.model.positions import sincos_positions
from mae_core.model.vit import TOKEN_STD, Encoder, Linear, TransformerBlock, init_weights


class Reconstruction(NamedTuple):
    """What the decoder says about every patch, for galleries."""

    prediction_NLP: Tensor
    """(N, L, Q), float32, in the target's space: normalised per patch if `norm_pix_loss`."""
    mask_NL: Tensor
    """(N, L), float32; 1 = masked. Visible patches were never trained to be predicted."""


class Decoder(nn.Module):
    """Lightweight transformer that turns latents and mask tokens into pixels (section 3)."""

    def __init__(
        self,
        config: DecoderConfig,
        encoder: EncoderConfig,
        grid_size: int,
        num_outputs: int,
        *,
        generator: torch.Generator,
    ) -> None:
        """Build for a grid of grid_size² patches; `generator` draws the weights.

        Its LN epsilon is the encoder's, as in the paper's code and in transformers.
        """
        super().__init__()
        self.embed = Linear(encoder.width, config.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.positions: Tensor
        self.register_buffer(
            "positions", sincos_positions(config.width, grid_size), persistent=False
        )
        self.blocks = nn.ModuleList(
            TransformerBlock(config.width, config.num_heads, norm_eps=encoder.norm_eps)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, eps=encoder.norm_eps)
        self.head = Linear(config.width, num_outputs)
        init_weights(self, generator)

    def forward(self, tokens_NTE: Tensor, ids_shuffle_NL: Tensor, first: int) -> Tensor:
        """Predict the patches from token `first` on, in shuffled order: (N, 1 + L − first, Q).

        `tokens_NTE` (N, 1 + K, E) are the encoder's, class token first; where they include those
        of hidden patches, K = L and no mask token is added here.
        """
        n, num_patches = ids_shuffle_NL.shape
        x_NTD = self.embed(tokens_NTE)
        num_masked = 1 + num_patches - x_NTD.shape[1]
        masked_NMD = self.mask_token.expand(n, num_masked, -1)
        # Not x's: autocast makes that bf16, and the stream begins here, in fp32.
        positions_TD = self.positions.to(self.mask_token.dtype)
        cls_place_N1D = positions_TD[:1].expand(n, 1, -1)
        places_NTD = torch.cat([cls_place_N1D, positions_TD[1:][ids_shuffle_NL]], dim=1)
        x_NTD = torch.cat([x_NTD, masked_NMD], dim=1) + places_NTD
        for block in self.blocks:
            x_NTD = block(x_NTD)
        prediction: Tensor = self.head(self.norm(x_NTD[:, first:]))
        return prediction


class MAE(nn.Module):
    """Encoder, decoder and loss of one pretraining recipe; weights depend on its seed only.

    The encoder is initialised first: at one seed it starts the same under any decoder.
    """

    def __init__(self, recipe: PretrainRecipe) -> None:
        """Build and initialise on the CPU in float32; on the meta device, build only."""
        super().__init__()
        data, config = recipe.data, recipe.encoder
        generator = torch.Generator().manual_seed(recipe.seed)
        self.patch_size = config.patch_size
        self.norm_pix_loss = recipe.norm_pix_loss
        self.num_keep = num_keep(recipe.num_patches, recipe.mask_ratio)
        self.first = 1 if recipe.loss_on == "all" else 1 + self.num_keep
        self.encoder = Encoder(config, data.image_size, data.num_channels, generator=generator)
        grid_size = data.image_size // config.patch_size
        self.decoder = Decoder(
            recipe.decoder, config, grid_size, target_width(recipe), generator=generator
        )
        self.mask_token: nn.Parameter | None = None
        if recipe.mask_tokens_in_encoder:
            self.mask_token = nn.Parameter(torch.zeros(1, 1, config.width))
            nn.init.normal_(self.mask_token, std=TOKEN_STD, generator=generator)

    def take_positions(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Take the positions that adopted weights bring, (1 + L, D); return their other tensors."""
        rest = dict(state)
        for part, name in (
            (self.encoder, "encoder.positions"),
            (self.decoder, "decoder.positions"),
        ):
            if name in rest:
                part.positions.copy_(rest.pop(name))
        return rest

    def forward(
        self, images_NCHW: Tensor, noise_NL: Tensor, target_NL: Tensor | None = None
    ) -> Tensor:
        """Return the loss, a float32 scalar: mean over masked patches (or all, if so configured).

        `images_NCHW` are normalised floats, `noise_NL` float32 draws whose order is the mask.
        `target_NL` are targets other than pixels: floats (N, L, Q) for a squared error, int64
        codes (N, L) for a cross-entropy.
        Every image has the same number of masked patches, so one plain mean is the paper's
        (sum over masked patches of the mean over pixels) / (number of masked patches).
        """
        patches_NLP = patchify(images_NCHW, self.patch_size)
        ids_shuffle_NL = shuffle_order(noise_NL)
        prediction_NMQ = self.decoder(
            self._encode(patches_NLP, ids_shuffle_NL), ids_shuffle_NL, self.first
        ).float()
        ids_NM = ids_shuffle_NL[:, self.first - 1 :]
        if target_NL is None:
            asked_NMP = torch.take_along_dim(patches_NLP, ids_NM.unsqueeze(-1), dim=1)
            return F.mse_loss(prediction_NMQ, patch_targets(asked_NMP, self.norm_pix_loss))
        if target_NL.is_floating_point():
            asked_NMQ = torch.take_along_dim(target_NL, ids_NM.unsqueeze(-1), dim=1)
            return F.mse_loss(prediction_NMQ, asked_NMQ.float())
        codes_NM = torch.take_along_dim(target_NL, ids_NM, dim=1)
        return F.cross_entropy(prediction_NMQ.flatten(0, 1), codes_NM.flatten())

    def _encode(self, patches_NLP: Tensor, ids_shuffle_NL: Tensor) -> Tensor:
        """Encode the visible patches, and mask tokens for the hidden ones if so configured."""
        ids_keep_NK = ids_shuffle_NL[:, : self.num_keep]
        if self.mask_token is None:
            return self.encoder.forward_visible(patches_NLP, ids_keep_NK)
        hidden = (self.mask_token, ids_shuffle_NL[:, self.num_keep :])
        tokens: Tensor = self.encoder(patches_NLP, ids_keep_NK, None, hidden)
        return tokens

    @torch.no_grad()
    def reconstruct(self, images_NCHW: Tensor, noise_NL: Tensor) -> Reconstruction:
        """Predict every patch, in image order; the same arguments as `forward`."""
        _, ids_restore_NL, mask_NL = random_masking(noise_NL, self.num_keep)
        ids_shuffle_NL = shuffle_order(noise_NL)
        tokens = self._encode(patchify(images_NCHW, self.patch_size), ids_shuffle_NL)
        shuffled_NLP = self.decoder(tokens, ids_shuffle_NL, 1)
        prediction = torch.take_along_dim(shuffled_NLP, ids_restore_NL.unsqueeze(-1), dim=1)
        return Reconstruction(prediction.float(), mask_NL)
