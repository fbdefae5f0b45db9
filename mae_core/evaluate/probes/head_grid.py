"""Many linear heads on the same vectors, trained at once as one batched matrix product.

Every head sees the same batches and, for each layer, the same affine-free BatchNorm, so the heads
of a layer are one wide linear layer; each has its own learning rate and weight decay, and its
gradient is that of its own loss alone.
Legend: N images, S layers, H heads per layer, D feature width, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mae_core.evaluate.probes.linear_probe import NORM_EPS, Head
from mae_core.train.lr_schedule import LrSchedule
from mae_core.train.optim import LARS_TRUST

CHUNK_ROWS = 4096
"""Rows that are scored at a time."""


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """How the heads of a layer learn; the same for every layer."""

    lr_schedules: tuple[LrSchedule, ...]
    """One per head."""
    weight_decays: tuple[float, ...]
    """One per head, of the weights."""
    optimizer: Literal["sgd", "lars"]
    momentum: float


class HeadGrid:
    """S × H heads on one device; each learns as `linear_probe.Head` would alone."""

    def __init__(
        self,
        *,
        num_layers: int,
        width: int,
        num_classes: int,
        rates: HeadSettings,
        seed: int,
        device: torch.device,
    ) -> None:
        """Draw one initial head from `seed`, the same for every point of the grid."""
        self.rates, self.num_classes = rates, num_classes
        self.num_heads = len(rates.weight_decays)
        first = Head(width, num_classes, seed).linear.weight.detach()
        one_DHC = first.T[:, None, :].expand(width, self.num_heads, num_classes)
        self.weight_SDHC = one_DHC.expand(num_layers, -1, -1, -1).contiguous().to(device)
        self.bias_SHC = torch.zeros(num_layers, self.num_heads, num_classes, device=device)
        self.norm = nn.BatchNorm1d(num_layers * width, affine=False, eps=NORM_EPS).to(device)
        self._moment = (torch.zeros_like(self.weight_SDHC), torch.zeros_like(self.bias_SHC))
        self._decay_H = torch.tensor(rates.weight_decays, device=device)

    @torch.no_grad()
    def step(self, vectors_NSD: Tensor, labels_N: Tensor, step: int) -> Tensor:
        """Update every head on a whole global batch; return the losses before it, (S, H)."""
        x_SND = self._normalised(vectors_NSD, training=True)
        log_prob_SNHC = self._logits(x_SND).log_softmax(dim=-1)
        answer_NC = F.one_hot(labels_N, self.num_classes).to(log_prob_SNHC.dtype)
        loss_SH = -(log_prob_SNHC * answer_NC[None, :, None]).sum(dim=-1).mean(dim=1)
        # The gradient of a mean cross-entropy towards its scores, in closed form.
        slope_SNHC = (log_prob_SNHC.exp() - answer_NC[None, :, None]) / len(labels_N)
        weight_grad = torch.bmm(x_SND.transpose(1, 2), slope_SNHC.flatten(2))
        self._update(weight_grad.view_as(self.weight_SDHC), slope_SNHC.sum(dim=1), step)
        return loss_SH

    @torch.no_grad()
    def score(self, vectors_NSD: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
        """Accuracy in per cent and mean loss in nats of every head: float64 (S, H) each."""
        shape = self.bias_SHC.shape[:2]
        correct_SH = torch.zeros(shape, dtype=torch.float64, device=self.bias_SHC.device)
        nll_SH = torch.zeros_like(correct_SH)
        for vectors, labels in _chunks(vectors_NSD, labels_N, self.bias_SHC.device):
            scores_SNHC = self._logits(self._normalised(vectors, training=False)).double()
            own = labels[None, :, None, None].expand(*scores_SNHC.shape[:3], 1)
            picked = scores_SNHC.log_softmax(dim=-1).gather(-1, own)[..., 0]
            correct_SH += (scores_SNHC.argmax(dim=-1) == labels[None, :, None]).sum(dim=1)
            nll_SH -= picked.sum(dim=1)
        return 100 * correct_SH / len(labels_N), nll_SH / len(labels_N)

    def head(self, layer: int, number: int) -> Head:
        """One of the heads as a module of its own, on the CPU in eval mode."""
        width = self.weight_SDHC.shape[1]
        part = slice(layer * width, (layer + 1) * width)
        found = Head(width, self.num_classes, 0)
        assert self.norm.running_mean is not None and self.norm.running_var is not None
        assert self.norm.num_batches_tracked is not None
        found.load_state_dict(
            {
                "norm.running_mean": self.norm.running_mean[part],
                "norm.running_var": self.norm.running_var[part],
                "norm.num_batches_tracked": self.norm.num_batches_tracked,
                "linear.weight": self.weight_SDHC[layer, :, number].T,
                "linear.bias": self.bias_SHC[layer, number],
            }
        )
        return found.cpu().eval()

    def _normalised(self, vectors_NSD: Tensor, *, training: bool) -> Tensor:
        n, s, d = vectors_NSD.shape
        self.norm.train(training)
        x_NSD = self.norm(vectors_NSD.reshape(n, s * d)).view(n, s, d)
        x_SND: Tensor = x_NSD.transpose(0, 1)
        return x_SND

    def _logits(self, x_SND: Tensor) -> Tensor:
        """Scores of every head: (S, N, H, C)."""
        s, n, _ = x_SND.shape
        bias_S1K = self.bias_SHC.flatten(1)[:, None]
        scores_SNK = torch.baddbmm(bias_S1K, x_SND, self.weight_SDHC.flatten(2))
        return scores_SNK.view(s, n, self.num_heads, self.num_classes)

    def _update(self, weight_grad: Tensor, bias_grad: Tensor, step: int) -> None:
        """SGD with momentum, or LARS, each head at its own rate; biases have no decay."""
        decay = self._decay_H[:, None]
        weight_grad = weight_grad + decay * self.weight_SDHC
        if self.rates.optimizer == "lars":
            weight_grad = weight_grad * self._trust(weight_grad)
        lr_H = torch.tensor([s.at(step) for s in self.rates.lr_schedules])
        lr = lr_H.to(self.bias_SHC)[:, None]
        for value, moment, grad in zip(
            (self.weight_SDHC, self.bias_SHC), self._moment, (weight_grad, bias_grad), strict=True
        ):
            moment.mul_(self.rates.momentum).add_(grad)
            value.sub_(lr * moment)

    def _trust(self, update_SDHC: Tensor) -> Tensor:
        """LARS's ratio of norms of each head, 1 where one of them is 0: (S, 1, H, 1)."""
        weight = self.weight_SDHC.pow(2).sum(dim=(1, 3), keepdim=True).sqrt()
        update = update_SDHC.pow(2).sum(dim=(1, 3), keepdim=True).sqrt()
        defined = (weight > 0) & (update > 0)
        return torch.where(defined, LARS_TRUST * weight / update, 1.0)


def _chunks(
    vectors_NSD: Tensor, labels_N: Tensor, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(labels_N), CHUNK_ROWS):
        part = slice(start, start + CHUNK_ROWS)
        yield vectors_NSD[part].to(device), labels_N[part].to(device)
