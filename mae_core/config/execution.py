"""How a stage is computed: nothing here changes a result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mae_core.config.base import require, require_no_secret


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a stage is computed. Never part of its identity."""

    world_size: int = 1
    """Ranks of the gang."""
    micro_batch: int | None = None
    """Images per rank per forward; None = the largest divisor of global/world up to 256."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage."""
    loader_threads: int = 2
    """Threads that decode images on each rank; 0 = in the training thread."""
    checkpoint_every_s: float = 600.0
    """Seconds between checkpoints inside a pretraining or fine-tuning."""
    checkpoint_every_steps: int | None = None
    """Steps between checkpoints, instead of seconds."""
    record_state: bool = False
    """Save after the last step too, and leave its digests with the outputs (`state.json`)."""
    min_world_size: int | None = None
    """Elastic: the gang may shrink to any size from this on that divides the global batch."""
    on_numerics: Literal["stop", "rollback"] = "rollback"
    """After a loss that is not finite, or a spike: give up, or go back to an older checkpoint."""
    numerics_retries: int = 2
    """Rollbacks at most; the k-th failure skips the k newest checkpoints."""
    spike_factor: float | None = None
    """A loss above this multiple of the running median is a numerical failure; None = never."""
    keep_checkpoints: int = 2
    """Newest checkpoints to keep of a stage that is not done."""
    grace_s: float = 30.0
    """Seconds for a last checkpoint after a stop request."""
    snapshot: Literal["background", "blocking"] = "background"
    """Write checkpoints in the background from a copy, or while training waits."""
    monitor_every_steps: int | None = None
    """Steps between looks at a pretraining's features (k-NN on dev, effective rank, held-out
    loss); for people's eyes, never a curve point."""
    checkpoint_uri: str | None = None
    """Directory for checkpoints, any URI of `pyarrow.fs`; None = in the store."""

    def __post_init__(self) -> None:
        world, low, spike = self.world_size, self.min_world_size, self.spike_factor
        every, uri = self.checkpoint_every_steps, self.checkpoint_uri
        require(world >= 1, f"world size {world}: must be ≥ 1")
        require(self.zero_stage in (0, 1, 2, 3), f"ZeRO stage {self.zero_stage}: use 0, 1, 2 or 3")
        for name in ("loader_threads", "numerics_retries", "grace_s"):
            require(getattr(self, name) >= 0, f"{name} {getattr(self, name)}: must be ≥ 0")
        require(self.keep_checkpoints >= 1, "keep_checkpoints must be ≥ 1")
        require(self.checkpoint_every_s > 0, "checkpoint_every_s must be > 0")
        require(every is None or every >= 1, f"checkpoint_every_steps {every}: must be ≥ 1")
        watch = self.monitor_every_steps
        require(watch is None or watch >= 1, f"monitor_every_steps {watch}: must be ≥ 1")
        require(low is None or 1 <= low <= world, f"min_world_size {low}: must be 1 to {world}")
        require(self.on_numerics in ("stop", "rollback"), "on_numerics: use stop or rollback")
        require(spike is None or spike > 1, f"spike_factor {spike}: must be > 1, or none")
        require(self.snapshot in ("background", "blocking"), "snapshot: use background or blocking")
        require_no_secret(uri, "checkpoint_uri")
        require(uri is None or "://" in uri, f"checkpoint_uri {uri!r}: must be a URI, like s3://…")


@dataclass(frozen=True)
class BatchSplit:
    """micro × accumulation × world = global, exactly."""

    micro: int
    accumulation: int
    world: int

    @property
    def global_batch(self) -> int:
        """Images per optimizer update."""
        return self.micro * self.accumulation * self.world


MAX_AUTO_MICRO_BATCH = 256


def split_batch(global_batch: int, execution: Execution) -> BatchSplit:
    """Split a global batch over the ranks; raises `ConfigError` if it does not divide exactly."""
    world, micro = execution.world_size, execution.micro_batch
    per_rank, rest = divmod(global_batch, world)
    require(
        rest == 0,
        f"global batch {global_batch} is not divisible by a world size of {world}: "
        "micro × accumulation × world must equal the global batch exactly",
    )
    if micro is None:
        fits = range(1, min(per_rank, MAX_AUTO_MICRO_BATCH) + 1)
        micro = max(n for n in fits if per_rank % n == 0)
    require(
        micro >= 1 and per_rank % micro == 0,
        f"global batch {global_batch} ≠ micro-batch {micro} × accumulation × world {world}: "
        f"choose a micro-batch that divides {per_rank}",
    )
    return BatchSplit(micro, per_rank // micro, world)
