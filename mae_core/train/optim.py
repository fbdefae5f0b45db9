"""Parameter groups and optimizers: AdamW, SGD, and LARS for linear probes (Tables 8 to 10)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from mae_core.config import OptimizerConfig
from mae_core.errors import ConfigError
from mae_core.model.vit import Encoder

LARS_TRUST = 0.001
"""Trust coefficient η of LARS (You et al. 2017)."""


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that are treated alike."""

    params: list[nn.Parameter]
    weight_decay: float
    lr_scale: float = 1.0
    """`set_lr` multiplies the learning rate by it."""
    name: str = ""


def pretrain_groups(module: nn.Module, weight_decay: float) -> list[ParamGroup]:
    """Group trainable parameters: biases and other 1-D ones get no decay, all else does.

    Class and mask token are 3-D and do get decay, as in the paper's pretraining code.
    """
    decayed: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    for parameter in module.parameters():
        if parameter.requires_grad:
            (exempt if parameter.ndim <= 1 else decayed).append(parameter)
    groups = (
        ParamGroup(decayed, weight_decay, 1.0, "decay"),
        ParamGroup(exempt, 0.0, 1.0, "no_decay"),
    )
    return [group for group in groups if group.params]


def layer_decay_groups(
    module: nn.Module, weight_decay: float, layer_decay: float, depth: int
) -> list[ParamGroup]:
    """Group an `Encoder` and its head by layer; level i is scaled by decay^(depth + 1 − i).

    Level 0 holds patch embedding, class token and positions, level i + 1 block i; the final
    norm and everything outside the encoder (level depth + 1) have scale 1 (BEiT, arXiv
    2106.08254; paper Table 9). 1-D parameters, class token and positions get no weight decay, as
    in the paper's fine-tuning code. Raises `ConfigError` without exactly one encoder of `depth`.
    """
    encoders = [part for part in module.modules() if isinstance(part, Encoder)]
    if len(encoders) != 1 or len(encoders[0].blocks) != depth:
        found = [len(part.blocks) for part in encoders]
        raise ConfigError(f"layer decay over {depth} blocks: found encoders of depths {found}")
    encoder = encoders[0]
    level_of = {id(p): level for level, p in _levels(encoder)}
    exempt = {id(encoder.cls_token), id(encoder.positions)}
    grouped: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for parameter in module.parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and id(parameter) not in exempt
            level = level_of.get(id(parameter), depth + 1)
            grouped.setdefault((level, decays), []).append(parameter)
    return [
        ParamGroup(
            grouped[level, decays],
            weight_decay if decays else 0.0,
            layer_decay ** (depth + 1 - level),
            f"layer_{level}_{'decay' if decays else 'no_decay'}",
        )
        for level, decays in sorted(grouped)
    ]


def build_optimizer(
    config: OptimizerConfig, groups: list[ParamGroup], lr: float
) -> torch.optim.Optimizer:
    """Build the optimizer that `config` names over `groups`, each at lr · lr_scale."""
    optimizer: torch.optim.Optimizer
    plain = [dict(vars(group)) for group in groups]
    if config.name == "adamw":
        fused = all(_can_fuse(p) for group in groups for p in group.params)
        optimizer = torch.optim.AdamW(plain, lr=lr, betas=config.betas, fused=fused)
    elif config.name == "sgd":
        optimizer = torch.optim.SGD(plain, lr=lr, momentum=config.momentum)
    else:
        optimizer = Lars(plain, lr=lr, momentum=config.momentum)
    set_lr(optimizer, lr)
    return optimizer


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set every group's learning rate to lr · its `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


class Lars(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling with momentum (You et al. 2017, arXiv 1708.03888).

    For a matrix w with gradient g: u = g + decay · w, u ← trust · ‖w‖ / ‖u‖ · u, and
    v ← momentum · v + u, w ← w − lr · v. 1-D parameters have neither decay nor adaptation.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = LARS_TRUST,
    ) -> None:
        """Take parameters or groups; the trust coefficient is You et al.'s η."""
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
        }
        super().__init__(params, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient; returns the closure's loss, if any."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: Tensor, group: Mapping[str, float]) -> None:
        update = parameter.grad
        assert update is not None
        if parameter.ndim > 1:
            update = update.add(parameter, alpha=group["weight_decay"])
            update = update * _trust(parameter, update, group["trust_coefficient"])
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].mul_(group["momentum"]).add_(update)
        parameter.add_(state["momentum"], alpha=-group["lr"])


def _trust(parameter: Tensor, update: Tensor, coefficient: float) -> Tensor:
    # Without a norm on either side there is no ratio; 1 leaves the plain gradient step.
    weight_norm, update_norm = parameter.norm(), update.norm()
    defined = (weight_norm > 0) & (update_norm > 0)
    return torch.where(defined, coefficient * weight_norm / update_norm, 1.0)


def _levels(encoder: Encoder) -> Iterator[tuple[int, Tensor]]:
    for parameter in (encoder.cls_token, encoder.positions, *encoder.patch_embed.parameters()):
        yield 0, parameter
    for index, block in enumerate(encoder.blocks):
        for parameter in block.parameters():
            yield index + 1, parameter


def _can_fuse(parameter: Tensor) -> bool:
    return parameter.is_floating_point() and parameter.device.type in ("cpu", "cuda")
