"""What the stages of a cell cost before they have run: FLOPs by their recipes, and seconds."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from mae_core.config import DECODER_FILE, ENCODER_FILE, FEATURES_FILE, PretrainRecipe
from mae_core.errors import ConfigError
from mae_core.model.cost import Cost, DataSize, Setting, stage_cost
from studies.spec.cell import Cell, Stage

GPU_FLOPS_PER_S = 125e12
"""Assumed per GPU in bf16 until this store has measurements: 40 % of an A100's peak."""
CPU_FLOPS_PER_S = 40e9
"""Assumed per core in fp32 until this store has measurements."""
STEP_OVERHEAD_S = 0.008
STAGE_OVERHEAD_S = 0.4


def cost_of(cell: Cell, stage: Stage, size: DataSize) -> Cost:
    """Cost of `stage`; raises `ConfigError`, which names the stage, for what a run would refuse."""
    start = cell.pretrain.recipe if cell.pretrain else None
    encodes = start is not None and not _reads_features(cell, stage)
    is_whole = isinstance(start, PretrainRecipe) and DECODER_FILE in stage.recipe.needs
    setting = Setting(
        execution=stage.execution,
        size=size,
        encoder=start.new_encoder if start and encodes else None,
        pretrain=start if isinstance(start, PretrainRecipe) and is_whole else None,
        on_gpu=any(
            s.recipe.training and s.recipe.training.precision != "fp32" for s in cell.stages
        ),
    )
    try:
        stage.recipe.check_execution(stage.execution)
        stage.recipe.data.check_channels()
        return _cost(stage.recipe, setting)
    except ConfigError as error:
        raise ConfigError(f"{cell.address}#{stage.name}: {error}") from error


_cost = functools.lru_cache(maxsize=65536)(stage_cost)


def _reads_features(cell: Cell, stage: Stage) -> bool:
    """It reads kept features in place of an encoder: nothing is encoded."""
    if stage.recipe.INSTEAD.get(ENCODER_FILE) != FEATURES_FILE:
        return False
    return any(FEATURES_FILE in cell.stage(parent).recipe.YIELDS for parent in stage.parents)


@dataclass(frozen=True)
class TimedStage:
    """A finished stage, as evidence for the next one's time."""

    kind: str
    cost: Cost
    seconds: float


class Rates:
    """Seconds a stage takes: by what finished here, else by stated assumptions."""

    def __init__(self, samples: Iterable[TimedStage]) -> None:
        ratios: dict[str, list[float]] = {}
        for s in samples:
            if not s.cost.is_known:
                continue
            ratios.setdefault(s.kind, []).append(s.seconds / _assumed_seconds(s.cost))
        self._factor = {kind: statistics.median(values) for kind, values in ratios.items()}

    @property
    def is_measured(self) -> bool:
        """True once finished stages correct the assumptions."""
        return bool(self._factor)

    def seconds(self, kind: str, cost: Cost) -> float:
        """Wall-clock seconds on an idle gang."""
        return _assumed_seconds(cost) * self._factor.get(kind, 1.0)


def _assumed_seconds(cost: Cost) -> float:
    speed = GPU_FLOPS_PER_S if cost.on_gpu else CPU_FLOPS_PER_S
    compute = cost.flops / (speed * cost.world_size)
    overhead = 0.0 if cost.on_gpu else STEP_OVERHEAD_S
    return STAGE_OVERHEAD_S + compute + (cost.steps or 0) * overhead
