"""MoCo v3: an encoder learns to find an image's other view among a whole batch (arXiv 2104.02057).

What depends on the whole global batch (BatchNorm, negatives) is computed on the whole of it, on
every rank alike, from the features of all images; only the encoders' work is shared out. So a
step takes two passes (gradient caching, arXiv 2101.06983): `mae_core.pretrain.contrastive` encodes,
`contrast` returns the loss and its gradients towards features and heads, and `MoCo.forward` is a
scalar with just these gradients, micro-batch by micro-batch. Encoders without dropout make that
exact.
Legend: V = 2 views, N images of a global batch, B of a micro-batch, D encoder width, O output
width. Images of several views stand view after view: (V · B, C, H, W).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mae_core.config import ContrastiveRecipe
from mae_core.config.pretraining import NUM_VIEWS
from mae_core.data.loader import normalise
from mae_core.model.vit import Encoder, Linear

PROJECTOR_LAYERS, PREDICTOR_LAYERS = 3, 2
BATCH_NORM_EPS = 1e-5
Part = TypeVar("Part", bound=nn.Module)


class BatchNorm(nn.Module):
    """Normalise over the batch: (N, D) → (N, D); in eval mode scale and shift only.

    It keeps no running statistics: the heads are thrown away after training, and so there is no
    state that micro-batches or ranks could disagree about.
    """

    def __init__(self, width: int, *, affine: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width)) if affine else None
        self.bias = nn.Parameter(torch.zeros(width)) if affine else None

    def forward(self, x_ND: Tensor) -> Tensor:
        """Normalise with the statistics of this batch."""
        if self.training:
            return F.batch_norm(
                x_ND, None, None, self.weight, self.bias, training=True, eps=BATCH_NORM_EPS
            )
        if self.weight is None or self.bias is None:
            return x_ND
        return x_ND * self.weight + self.bias


def make_head(
    num_layers: int, inputs: int, hidden: int, outputs: int, generator: torch.Generator
) -> nn.Sequential:
    """MLP with BatchNorm after every layer, ReLU between layers; the last norm has no affine."""
    layers: list[nn.Module] = []
    for number in range(num_layers):
        last = number == num_layers - 1
        width_in, width_out = inputs if number == 0 else hidden, outputs if last else hidden
        linear = Linear(width_in, width_out, bias=False)
        bound = 1 / math.sqrt(width_in)
        nn.init.uniform_(linear.weight, -bound, bound, generator=generator)
        layers += [linear, BatchNorm(width_out, affine=not last)]
        if not last:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


class MoCo(nn.Module):
    """The encoder with its heads, and the momentum copies that make the keys.

    The copies' weights are buffers: the engine saves buffers with the module, keeps them in fp32
    where it trains in bf16, and neither divides nor updates them.
    """

    def __init__(self, recipe: ContrastiveRecipe) -> None:
        """Build and initialise on the CPU in float32; weights depend on the recipe's seed only."""
        super().__init__()
        data, config = recipe.data, recipe.encoder
        generator = torch.Generator().manual_seed(recipe.seed)
        self.pixel_mean, self.pixel_std = data.pixel_mean, data.pixel_std
        self.temperature, self.precision = recipe.temperature, recipe.precision
        self.encoder = Encoder(config, data.image_size, data.num_channels, generator=generator)
        self.encoder.patch_embed.requires_grad_(recipe.train_patch_embed)
        hidden, width = recipe.head_width, recipe.output_width
        self.projector = make_head(PROJECTOR_LAYERS, config.width, hidden, width, generator)
        self.predictor = make_head(PREDICTOR_LAYERS, width, hidden, width, generator)
        self.momentum_encoder = _as_buffers(copy.deepcopy(self.encoder))
        self.momentum_projector = _as_buffers(copy.deepcopy(self.projector))

    def forward(self, views: Tensor, *cached: Tensor) -> Tensor:
        """Return the loss of a step, a float32 scalar.

        Args:
            views: uint8 images (V · B, C, H, W), or their features (V, B, D) with the graph that
                made them.
            cached: the loss of the whole step (scalar), its gradient towards the features
                (V, B, D) and towards each of `head_parameters`, all float32. The value returned
                is that loss; its gradients are the cached ones, carried on into the encoder.
                Without them (a probe) it is the loss of these images on their own.
        """
        features_VBD = views if views.is_floating_point() else self.encode(views)
        if not cached:
            keys = [self.momentum_projector(f) for f in self.encode_keys(views)]
            queries = [self.predictor(self.projector(f.to(self._dtype))) for f in features_VBD]
            return symmetric_loss(queries, keys, self.temperature)
        loss, feature_gradient, *head_gradients = cached
        carrier = (features_VBD * feature_gradient).sum()
        for parameter, gradient in zip(self.head_parameters(), head_gradients, strict=True):
            carrier = carrier + (parameter.float() * gradient).sum()
        return loss + (carrier - carrier.detach())

    def encode(self, views: Tensor) -> Tensor:
        """Class tokens of uint8 images (V · B, C, H, W): float32 (V, B, D)."""
        with torch.autocast(views.device.type, torch.bfloat16, self.precision == "bf16-mixed"):
            return self._class_tokens(self.encoder, views)

    @torch.no_grad()
    def encode_keys(self, views: Tensor) -> Tensor:
        """As `encode`, by the momentum encoder; its weights are fp32 in every precision."""
        with torch.autocast(views.device.type, torch.bfloat16, self.precision != "fp32"):
            return self._class_tokens(self.momentum_encoder, views)

    @torch.no_grad()
    def follow(self, momentum: float, weights: Mapping[str, Tensor]) -> None:
        """Move the momentum copies: θ_k ← m · θ_k + (1 − m) · θ_q, with θ_q by parameter name."""
        copies = {"encoder.": self.momentum_encoder, "projector.": self.momentum_projector}
        for prefix, copied in copies.items():
            for name, buffer in copied.named_buffers():
                if prefix + name in weights:  # positions are a buffer of both
                    buffer.lerp_(weights[prefix + name].to(buffer), 1 - momentum)

    def head_parameters(self) -> list[nn.Parameter]:
        """Parameters of projector and predictor."""
        return [*self.projector.parameters(), *self.predictor.parameters()]

    @property
    def _dtype(self) -> torch.dtype:
        return self.encoder.patch_embed.weight.dtype

    def _class_tokens(self, encoder: Encoder, views: Tensor) -> Tensor:
        images = normalise(views, self.pixel_mean, self.pixel_std, views.device)
        tokens = encoder.forward_features(images)[:, 0].float()
        return tokens.view(NUM_VIEWS, -1, tokens.shape[1])


def _as_buffers(module: Part) -> Part:
    """Turn a module's parameters into buffers of the same names."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            del part._parameters[name]
            part.register_buffer(name, parameter.detach().clone())
    return module


@dataclass(frozen=True)
class Contrast:
    """What a whole global batch says."""

    loss: Tensor
    """float32 scalar."""
    feature_gradient_VND: Tensor
    """Of the loss towards the encoder's features, float32."""
    head_gradients: tuple[Tensor, ...]
    """Of the loss towards each of `MoCo.head_parameters`, float32."""


def contrast(model: MoCo, features_VND: Tensor, key_features_VND: Tensor) -> Contrast:
    """Compute a step's loss from the features of all its images, and where it points.

    The heads work in float32 whatever the encoder's precision. The engine's weights are read, not
    touched: their gradients go through its own backward (`MoCo.forward`).
    """
    with torch.enable_grad():
        features = features_VND.detach().requires_grad_()
        projector, predictor = (_detached(head) for head in (model.projector, model.predictor))
        with torch.no_grad():
            keys = [model.momentum_projector(f) for f in key_features_VND]
        project, predict = model.projector, model.predictor
        queries = [
            torch.func.functional_call(
                predict, predictor, torch.func.functional_call(project, projector, f)
            )
            for f in features
        ]
        loss = symmetric_loss(queries, keys, model.temperature)
        weights = [*projector.values(), *predictor.values()]
        gradient, *head_gradients = torch.autograd.grad(loss, [features, *weights])
    return Contrast(loss.detach(), gradient, tuple(head_gradients))


def _detached(module: nn.Module) -> dict[str, Tensor]:
    """Parameters by name as float32 leaves of a graph of their own."""
    return {n: p.detach().float().requires_grad_() for n, p in module.named_parameters()}


def symmetric_loss(queries: list[Tensor], keys: list[Tensor], temperature: float) -> Tensor:
    """Each view's queries against the other view's keys (MoCo v3, Algorithm 1): a scalar."""
    first, second = (
        info_nce(q_NO, k_NO, temperature) for q_NO, k_NO in zip(queries, keys[::-1], strict=True)
    )
    return first + second


def info_nce(queries_NO: Tensor, keys_NO: Tensor, temperature: float) -> Tensor:
    """Mean of −log softmax of a query's own key among all N, times 2 · temperature.

    Similarities are cosines over the temperature (MoCo v3, equation 1; the factor is of its
    Algorithm 1).
    """
    with torch.autocast(queries_NO.device.type, enabled=False):
        queries, keys = F.normalize(queries_NO.float(), dim=1), F.normalize(keys_NO.float(), dim=1)
        own = torch.arange(len(queries), device=queries.device)
        return F.cross_entropy(queries @ keys.T / temperature, own) * (2 * temperature)


def momentum_at(step: int, num_steps: int, start: float) -> float:
    """Momentum of update `step` (from 0): from `start` to 1 along half a cosine."""
    return 1 - (1 - start) * 0.5 * (1 + math.cos(math.pi * step / num_steps))
