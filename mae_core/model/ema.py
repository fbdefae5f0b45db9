"""Exponential moving average of weights (paper Table 11: 0.9999 in training from scratch).

The averages are buffers beside the network: the engine saves buffers with it, keeps them in
float32 where it trains in bf16, and neither divides nor updates them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class WeightAverage(nn.Module):
    """Average of another module's parameters; starts at their values."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        """Copy the parameters that `module` has now; 0 < decay < 1."""
        super().__init__()
        self.decay = decay
        self._names = [name for name, _ in module.named_parameters()]
        for number, (_, parameter) in enumerate(module.named_parameters()):
            self.register_buffer(f"average_{number}", parameter.detach().float().clone())

    @torch.no_grad()
    def follow(self, parameters: Mapping[str, Tensor]) -> None:
        """Take one step: a ← decay · a + (1 − decay) · w, for the parameters by name."""
        for name, average in zip(self._names, self.buffers(), strict=True):
            average.lerp_(parameters[name].detach().to(average), 1 - self.decay)

    def state(self) -> dict[str, Tensor]:
        """The averages by the parameters' names: float32 on the CPU."""
        pairs = zip(self._names, self.buffers(), strict=True)
        return {name: average.float().cpu().clone() for name, average in pairs}
