"""Batches: which samples a rank sees at a step, decoded ahead of time by threads.

A step's batches depend on (seed, step) only, so training goes on from any step without state.
Threads suffice, and start at once: Pillow and torch release the interpreter lock where they work.
Legend: B images of a batch, C channels, S image size.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mae_core.config import NO_AUGMENTATION, AugmentationConfig, BatchSplit, DataConfig, require
from mae_core.data.order import SampleOrder, blocks_open
from mae_core.data.sources import Split
from mae_core.data.transforms import crop_draws, flip_draws, training_image
from mae_core.runtime import collectives

I64 = npt.NDArray[np.int64]

PREFETCH_STEPS = 2
"""Steps that are decoded while the current one trains."""
TASK_IMAGES = 8
"""Images per task of a thread: hundreds of microseconds of work at the least."""
EVAL_THREADS = 2


@dataclass(frozen=True)
class Batch:
    """Some images with their labels and keys."""

    images: Tensor
    """uint8 (B, C, S, S), on the CPU; of V views (V · B, C, S, S), view after view."""
    labels: Tensor
    """int64 (B,)."""
    index: I64
    """Sample index (B,): with `epoch` and a seed the key of all that is random about an image."""
    epoch: I64
    """Epoch that each image is seen in, (B,); 0 in evaluations."""

    def normalised(self, data: DataConfig, device: torch.device) -> Tensor:
        """The images as a network takes them: float32 on the device."""
        return normalise(self.images, data.pixel_mean, data.pixel_std, device)


class TrainLoader:
    """Augmented training batches of one rank."""

    def __init__(
        self,
        split: Split,
        data: DataConfig,
        augmentation: AugmentationConfig,
        *,
        seed: int,
        batch: BatchSplit,
        rank: int,
        threads: int,
        num_views: int = 1,
    ) -> None:
        """Raise `ConfigError` if the global batch is larger than the split or the rank wrong.

        With several views each image is decoded once, and cropped and flipped once for each.
        """
        require(0 <= rank < batch.world, f"rank {rank} in a world of {batch.world}")
        self.order = SampleOrder(len(split), seed, batch.global_batch)
        self._batch, self._rank, self._threads = batch, rank, threads
        self._reader = _Reader(split, data, augmentation, seed, num_views)
        if self.order.is_blocked:
            split.samples.keep_open(blocks_open(batch.world))

    def steps(self, start_step: int, num_steps: int) -> Generator[list[Batch], None, None]:
        """Yield this rank's micro-batches for each of the steps `start_step` .. `num_steps` − 1.

        Errors of reading threads are raised here. Closing the generator ends its threads.
        """
        requests = map(self._requests, range(start_step, num_steps))
        return _stream(self._reader, requests, self._threads)

    def probe(self, count: int) -> Batch:
        """The first `count` samples of the first step: the same on any rank of any gang."""
        epoch, positions = self.order.rank_step(0, 0, 1)
        return self._reader.read(_Request(positions[:count], epoch))

    def next_ids(self, step: int) -> I64:
        """Sample indices that this rank reads at a step: int64 (samples,)."""
        _, positions = self.order.rank_step(step, self._rank, self._batch.world)
        ids: I64 = self._reader.split.sample_index[positions]
        return ids

    def position(self, step: int) -> dict[str, int]:
        """Where the data stands after `step` steps, in images."""
        epoch, batch = divmod(step, self.order.steps_per_epoch)
        size = self.order.batch_size
        return {"images_seen": step * size, "epoch": epoch, "offset": batch * size}

    def _requests(self, step: int) -> list[_Request]:
        epoch, positions = self.order.rank_step(step, self._rank, self._batch.world)
        parts = positions.reshape(self._batch.accumulation, self._batch.micro)
        return [_Request(part, epoch) for part in parts]


def eval_batches(
    split: Split,
    data: DataConfig,
    batch_size: int,
    rank: int,
    world: int,
    *,
    threads: int = EVAL_THREADS,
) -> Iterator[Batch]:
    """Yield this rank's share of a split without augmentation, in order, the last batch partial.

    The ranks' shares are runs of neighbours; together they hold every sample exactly once.
    """
    start, end = (len(split) * r // world for r in (rank, rank + 1))
    reader = _Reader(split, data, NO_AUGMENTATION, seed=0)
    requests = (
        [_Request(np.arange(first, min(first + batch_size, end), dtype=np.int64), 0)]
        for first in range(start, end, batch_size)
    )
    for batches in _stream(reader, requests, threads):
        yield from batches


def rank_batches(split: Split, data: DataConfig, batch_size: int) -> Iterator[Batch]:
    """`eval_batches` of the rank that asks."""
    return eval_batches(split, data, batch_size, rank=collectives.rank(), world=collectives.world())


def normalise(
    images: Tensor,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Move uint8 images (B, C, H, W) to the device and return (x / 255 − mean) / std there."""
    moved = images.to(device, non_blocking=True).to(torch.float32)
    scale = torch.tensor([1 / (255 * s) for s in std], device=device).view(1, -1, 1, 1)
    shift = torch.tensor([m / s for m, s in zip(mean, std, strict=True)], device=device)
    return moved.mul_(scale).sub_(shift.view(1, -1, 1, 1)).to(dtype)


@dataclass(frozen=True)
class _Request:
    positions: I64
    epoch: int


class _Reader:
    """Turns requests into batches."""

    def __init__(
        self,
        split: Split,
        data: DataConfig,
        augmentation: AugmentationConfig,
        seed: int,
        num_views: int = 1,
    ) -> None:
        self.split, self.data, self.augmentation, self.seed = split, data, augmentation, seed
        self._views = num_views
        self._labels = torch.from_numpy(split.labels)
        first = split.pixels(np.zeros(1, dtype=np.int64)) if len(split) else None
        shape = (data.num_channels, data.image_size, data.image_size)
        is_whole = not augmentation.crops and data.evaluation_crop == 1
        self._may_index = is_whole and first is not None and first.shape[1:] == shape

    def start(self, request: _Request, pool: ThreadPoolExecutor) -> Callable[[], Batch]:
        """Begin to read in the pool; the function returned waits for the batch."""
        if self._may_index:
            return pool.submit(self.read, request).result
        batch, work = self._prepare(request)
        starts = range(0, len(request.positions), TASK_IMAGES)
        tasks = [pool.submit(work, start, start + TASK_IMAGES) for start in starts]

        def finish() -> Batch:
            for task in tasks:
                task.result()
            return batch

        return finish

    def read(self, request: _Request) -> Batch:
        """Read in this thread."""
        if self._may_index:
            batch = self._indexed(request)
            if batch is not None:
                return batch
        batch, work = self._prepare(request)
        work(0, len(request.positions))
        return batch

    def is_ready(self) -> bool:
        """True if a batch is a mere look-up, not worth a thread."""
        return self._may_index and self.split.is_decoded

    def _indexed(self, request: _Request) -> Batch | None:
        """Look up whole images; None if they turn out to have several sizes."""
        pixels = self.split.pixels(request.positions)
        if pixels is None:
            return None
        images = torch.from_numpy(pixels)
        batch = self._batch(
            request, images if self._views == 1 else images.repeat(self._views, 1, 1, 1)
        )
        if self.augmentation.flip:
            flip = torch.from_numpy(self._flips(batch))
            batch.images[flip] = batch.images[flip].flip(-1)
        return batch

    def _prepare(self, request: _Request) -> tuple[Batch, Callable[[int, int], None]]:
        """An empty batch, and what fills a range of it."""
        data, config, count = self.data, self.augmentation, len(request.positions)
        size = data.image_size
        total = count * self._views
        with torch.inference_mode(False):  # else the threads that fill it may not write to it
            images = torch.empty((total, data.num_channels, size, size), dtype=torch.uint8)
        batch = self._batch(request, images)
        flips = self._flips(batch) if config.flip else np.zeros(total, dtype=bool)
        crops = None
        if config.crops:
            crops = crop_draws(self.seed, batch.epoch, batch.index, self._views)

        def work(start: int, end: int) -> None:
            for i in range(start, min(end, count)):
                image = self.split.decode(int(request.positions[i]))
                for row in range(i, total, count):
                    crop = None if crops is None else crops[row]
                    images[row] = training_image(image, data, config, crop, bool(flips[row]))

        return batch, work

    def _flips(self, batch: Batch) -> npt.NDArray[np.bool_]:
        return flip_draws(self.seed, batch.epoch, batch.index, self._views)

    def _batch(self, request: _Request, images: Tensor) -> Batch:
        positions = request.positions
        return Batch(
            images=images,
            labels=self._labels[torch.from_numpy(positions)],
            index=self.split.sample_index[positions],
            epoch=np.full(len(positions), request.epoch, dtype=np.int64),
        )


def _stream(
    reader: _Reader, steps: Iterable[list[_Request]], threads: int
) -> Generator[list[Batch], None, None]:
    if threads == 0 or reader.is_ready():
        for requests in steps:
            yield [reader.read(request) for request in requests]
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="images")
    try:
        ahead: deque[list[Callable[[], Batch]]] = deque()
        for requests in steps:
            ahead.append([reader.start(request, pool) for request in requests])
            if len(ahead) > PREFETCH_STEPS:
                yield [finish() for finish in ahead.popleft()]
        while ahead:
            yield [finish() for finish in ahead.popleft()]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
