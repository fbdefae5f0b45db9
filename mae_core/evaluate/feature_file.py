"""Features of a whole data set as one Parquet file, encoded once for every probe of an encoder.

Columns: `split` (text), `sample_index` and `label` int64, and a fixed-size list of float32 for each
layer. Batches are dealt to the ranks whole and written in order, so that any number of ranks
leaves the same bytes. Legend: N images of a batch, D feature width.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from mae_core.checkpoint.encoder_file import check_fits, load_encoder
from mae_core.config import ENCODER_FILE, FEATURES_FILE, Execution, FeaturesRecipe, require
from mae_core.data.loader import eval_batches
from mae_core.data.sources import ImageData, Split
from mae_core.errors import CheckpointError
from mae_core.evaluate.features import BATCH_SIZE, Features, layer_tokens, pool
from mae_core.model.vit import Encoder
from mae_core.runtime import collectives
from mae_core.runtime.context import RunContext
from mae_core.runtime.metrics import Metrics
from mae_core.train.loop import Stopped

ROW_GROUP_ROWS = 4 * BATCH_SIZE
"""A few megabytes: what is held before it is written, and what a reader must read at least."""

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Part:
    """One batch of a split, encoded."""

    sample_index: I64
    labels: I64
    vectors: tuple[F32, ...]
    """(N, D) for each layer."""


def column(layer: int | None) -> str:
    """Name of the column that holds a layer, blocks counted from 1; None = the encoder's last."""
    return "last" if layer is None else f"layer_{layer}"


def run_features(
    recipe: FeaturesRecipe, execution: Execution, ctx: RunContext, data: ImageData
) -> Metrics:
    """Encode train, dev and test, each image once without augmentation; rank 0 writes the file.

    Raises:
        ConfigError: no encoder, one that does not fit the data, or one of fewer blocks.
        Stopped: a stop was requested.
    """
    path = ctx.required(ENCODER_FILE, "a features stage needs the encoder of a parent stage")
    encoder = load_encoder(path).to(collectives.device()).requires_grad_(False)
    check_fits(encoder, recipe.data)
    layers: tuple[int | None, ...] = recipe.layers or (None,)
    depth = encoder.config.depth
    for layer in recipe.layers:
        require(layer <= depth, f"layer {layer} of an encoder with {depth} blocks")
    writer = None
    if ctx.rank == 0:
        writer = _Writer(ctx.output_dir / FEATURES_FILE, layers, encoder.config.width)
    counts: dict[str, float | str | None] = {}
    for name in data.names:
        split = data.split(name)
        counts[f"num_{name}_images"] = len(split)
        _encode_split(encoder, recipe, split, writer, ctx)
    size = writer.close() if writer else None
    counts["feature_width"], counts["num_layers"] = encoder.config.width, len(layers)
    counts["num_bytes"] = collectives.broadcast_object(size)
    return Metrics(values=counts)


def read_features(path: Path, split: Split, layer: int | None) -> Features:
    """Vectors of the images of `split` as the file keeps them, in the order of the split.

    Raises:
        CheckpointError: the file is damaged, lacks the layer, or is of other images.
    """
    name = column(layer)
    try:
        file = pq.ParquetFile(path)
        kept = file.schema_arrow.names
        if name not in kept:
            raise CheckpointError(f"{path}: has no column {name!r} among {', '.join(kept)}")
        table = pq.read_table(
            path, columns=["sample_index", "label", name], filters=[("split", "=", split.name)]
        ).combine_chunks()
    except (OSError, pa.ArrowException) as error:
        raise CheckpointError(f"{path}: not a readable file of features ({error})") from error
    index = table["sample_index"].to_numpy()
    rows = np.searchsorted(index, split.sample_index)
    found = rows[rows < len(index)]
    same = len(found) == len(split) and bool((index[found] == split.sample_index).all())
    if not same or not bool((table["label"].to_numpy()[found] == split.labels).all()):
        raise CheckpointError(
            f"{path}: holds other images of split {split.name!r} than the data set: its stage "
            "must see the same data"
        )
    vectors_ND = _matrix(table[name])
    is_whole = len(rows) == len(index)
    return Features(
        vectors=vectors_ND if is_whole else vectors_ND[rows],
        labels=split.labels,
        sample_index=split.sample_index,
    )


def rank_share(split: Split) -> Split:
    """This rank's images of a split, a run of neighbours; the shares hold each image once."""
    start, end = (
        len(split) * r // collectives.world() for r in (collectives.rank(), collectives.rank() + 1)
    )
    return Split(split.name, split.samples, split.sample_index[start:end])


def _encode_split(
    encoder: Encoder, recipe: FeaturesRecipe, split: Split, writer: _Writer | None, ctx: RunContext
) -> None:
    """Encode in rounds of one batch per rank; rank 0 writes each round in order."""
    num_batches = -(-len(split) // BATCH_SIZE)
    parts = _encoded(encoder, recipe, _batches_of_rank(split, num_batches))
    for first in range(0, num_batches, collectives.world()):
        has_batch = first + collectives.rank() < num_batches
        gathered = collectives.gather_object(next(parts) if has_batch else None)
        for part in gathered or ():
            if part is not None and writer is not None:
                writer.add(split.name, part)
        if collectives.any_rank(ctx.should_stop())[0]:
            raise Stopped("stopped on request while encoding; run again to encode from the start")
    if writer is not None:
        writer.flush()  # a row group never holds two splits


def _batches_of_rank(split: Split, num_batches: int) -> Split:
    """The images of every world-th batch; only the split's last batch may be smaller."""
    mine = [
        split.sample_index[number * BATCH_SIZE : (number + 1) * BATCH_SIZE]
        for number in range(collectives.rank(), num_batches, collectives.world())
    ]
    index = np.concatenate(mine) if mine else split.sample_index[:0]
    return Split(split.name, split.samples, index)


@torch.inference_mode()
def _encoded(encoder: Encoder, recipe: FeaturesRecipe, split: Split) -> Iterator[_Part]:
    layers: Sequence[int | None] = recipe.layers or (None,)
    encoder.eval()
    for batch in eval_batches(split, recipe.data, BATCH_SIZE, rank=0, world=1):
        images = batch.normalised(recipe.data, collectives.device())
        tokens = layer_tokens(encoder, images, layers)
        vectors = tuple(pool(t_NLD, recipe.features).float().cpu().numpy() for t_NLD in tokens)
        yield _Part(batch.index, batch.labels.numpy(), vectors)


class _Writer:
    """Writes parts to a temporary name, in row groups of one size whatever the parts' size."""

    def __init__(self, path: Path, layers: Sequence[int | None], width: int) -> None:
        vector: pa.DataType = pa.list_(pa.float32(), width)
        fields: list[tuple[str, pa.DataType]] = [
            ("split", pa.string()),
            ("sample_index", pa.int64()),
            ("label", pa.int64()),
            *((column(layer), vector) for layer in layers),
        ]
        self._schema = pa.schema(fields)
        self._path, self._width = path, width
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        # Vectors are as random as noise: neither dictionaries nor compression make them smaller.
        self._writer = pq.ParquetWriter(
            self._temporary, self._schema, compression="none", use_dictionary=False
        )
        self._pending: list[pa.Table] = []
        self._rows = 0

    def add(self, split: str, part: _Part) -> None:
        """Append a batch."""
        columns: list[pa.Array[Any]] = [
            pa.array([split] * len(part.labels)),
            pa.array(part.sample_index),
            pa.array(part.labels),
        ]
        for vectors_ND in part.vectors:
            flat = pa.array(np.ascontiguousarray(vectors_ND).reshape(-1))
            columns.append(pa.FixedSizeListArray.from_arrays(flat, self._width))
        self._pending.append(pa.table(columns, schema=self._schema))
        self._rows += len(part.labels)
        if self._rows >= ROW_GROUP_ROWS:  # a multiple of the batch size: never more than it
            self.flush()

    def flush(self) -> None:
        """Write what is pending as a row group."""
        if self._pending:
            table = pa.concat_tables(self._pending).combine_chunks()
            self._writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
        self._pending, self._rows = [], 0

    def close(self) -> int:
        """Give the file its name; return its size in bytes."""
        self.flush()
        self._writer.close()
        os.replace(self._temporary, self._path)
        return self._path.stat().st_size


def _matrix(chunked: Any) -> F32:
    """A column of fixed-size lists as float32 (N, D), copied: torch wants writable memory."""
    chunks = [np.asarray(chunk.flatten()) for chunk in chunked.chunks]
    whole: F32 = np.concatenate(chunks)
    return whole.reshape(-1, chunked.type.list_size)
