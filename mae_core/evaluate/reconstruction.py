"""Reconstruction loss on held-out images at a reference mask ratio, and galleries at several.

Legend: N images of a batch, L patches, M masked patches, P values of a patch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from mae_core.checkpoint.encoder_file import check_fits, read_encoder
from mae_core.checkpoint.tensor_file import load_state, read_tensors
from mae_core.config import (
    DECODER_FILE,
    ENCODER_FILE,
    DecoderConfig,
    Execution,
    PretrainRecipe,
    ReconstructionRecipe,
)
from mae_core.config.inference import check_pixels, gallery_file
from mae_core.data.loader import rank_batches
from mae_core.data.sources import ImageData, Split
from mae_core.errors import CheckpointError, DataError
from mae_core.evaluate.features import BATCH_SIZE
from mae_core.evaluate.gallery import make_gallery
from mae_core.evaluate.scores import write_table
from mae_core.model.mae import MAE
from mae_core.model.masking import mask_noise
from mae_core.model.patchify import VARIANCE_EPS, patch_targets, patchify
from mae_core.runtime import collectives
from mae_core.runtime.context import RunContext
from mae_core.runtime.inputs import Parent
from mae_core.runtime.metrics import Metrics

FILE_NAME = "reconstruction.parquet"


@dataclass(frozen=True)
class _Losses:
    """Mean squared error of each image."""

    sample_index: npt.NDArray[np.int64]
    loss: npt.NDArray[np.float64]


def run_reconstruction(
    recipe: ReconstructionRecipe, execution: Execution, ctx: RunContext, data: ImageData
) -> Metrics:
    """Score every image of the split once, each under one fixed mask; write the galleries.

    Raises:
        ConfigError: no decoder, one that predicts no pixels, images or ratios that do not fit.
        CheckpointError: the files do not belong together.
    """
    source, state = load_pretraining(recipe, ctx)
    module = MAE(source)
    load_state(module, module.take_positions(state), ctx.output_dir)
    split = data.split(recipe.eval_split)
    gathered = collectives.all_gather_object(
        _concatenate(list(_losses(recipe, source, module, split)))
    )
    every = _concatenate(gathered)
    if len(every.loss) == 0:
        raise DataError(f"no image to reconstruct: the {recipe.eval_split} split is empty")
    loss = float(every.loss.mean())
    if ctx.rank == 0:
        columns = {"sample_index": every.sample_index, "loss": every.loss}
        write_table(ctx.output_dir / FILE_NAME, pa.table(columns))
        _write_galleries(recipe, source, state, data, ctx.output_dir)
    ctx.log_metrics(0, {"loss": loss})
    spread = float(every.loss.std(ddof=1)) if len(every.loss) > 1 else None
    return Metrics(
        values={"loss": loss, "loss_sd": spread, "num_images": len(every.loss)},
        details={
            "mask_ratio": recipe.mask_ratio,
            "num_visible": module.num_keep,
            "patch_size": source.encoder.patch_size,
            "trained_on": "normalised pixels" if source.norm_pix_loss else "raw pixels",
        },
    )


def load_pretraining(
    recipe: ReconstructionRecipe, ctx: RunContext
) -> tuple[PretrainRecipe, dict[str, Tensor]]:
    """The network of the parents as a pretraining at the reference ratio, and its weights."""
    encoder_path, decoder_path = (
        ctx.required(file, f"a reconstruction needs a parent that leaves {file}")
        for file in (ENCODER_FILE, DECODER_FILE)
    )
    encoder = read_encoder(encoder_path)
    tensors, metadata = read_tensors(decoder_path)
    parent = next(p for p in ctx.parents if DECODER_FILE in p.files)
    decoder, norm_pix_loss = _decoder_facts(parent, metadata, decoder_path)
    recipe.check_ratios(encoder.config.patch_size)
    source = PretrainRecipe(
        data=replace(recipe.data, image_size=encoder.image_size),
        encoder=encoder.config,
        decoder=decoder,
        mask_ratio=recipe.mask_ratio,
        norm_pix_loss=norm_pix_loss,
        mask_tokens_in_encoder="mask_token" in tensors,
        seed=recipe.mask_seed,
    )
    check_fits(MAE(source).encoder, recipe.data)
    state = {f"encoder.{name}": value for name, value in encoder.state.items()}
    return source, state | tensors


def _decoder_facts(
    parent: Parent, metadata: Mapping[str, str], path: Path
) -> tuple[DecoderConfig, bool]:
    """Shape and `norm_pix_loss` of a decoder: as its file says, else as its stage was asked to."""
    said = {name: json.loads(text) for name, text in metadata.items()} if metadata else {}
    facts: dict[str, Any] = {**parent.recipe, **said}
    missing = [name for name in ("decoder", "norm_pix_loss") if facts.get(name) is None]
    if missing:
        raise CheckpointError(
            f"{path}: it does not give the {' and '.join(missing)} of this network; evaluate a "
            "pretraining of a study, or adopt the checkpoint with its decoder"
        )
    check_pixels(facts.get("target", "pixels"), facts.get("objective", "mae"))
    return DecoderConfig(**facts["decoder"]), bool(facts["norm_pix_loss"])


@torch.inference_mode()
def image_losses(module: MAE, images_NCHW: Tensor, noise_NL: Tensor) -> Tensor:
    """Mean squared error over the masked patches of each image, float64 (N,).

    The target is normalised per patch. Predictions of raw pixels are mapped to it by the true
    patch's mean and deviation, (x̂ − μ) / √(σ² + 1e-6).
    """
    patches_NLP = patchify(images_NCHW, module.patch_size).float()
    prediction_NLP, mask_NL = module.reconstruct(images_NCHW, noise_NL)
    if not module.norm_pix_loss:
        mean = patches_NLP.mean(dim=-1, keepdim=True)
        variance = patches_NLP.var(dim=-1, keepdim=True, unbiased=True)
        prediction_NLP = (prediction_NLP - mean) / (variance + VARIANCE_EPS).sqrt()
    error_NLP = (prediction_NLP - patch_targets(patches_NLP, True)).double().square()
    masked_NL = mask_NL.double()
    return (error_NLP.mean(dim=-1) * masked_NL).sum(dim=1) / masked_NL.sum(dim=1)


def _losses(
    recipe: ReconstructionRecipe, source: PretrainRecipe, module: MAE, split: Split
) -> Iterator[_Losses]:
    """This rank's share of the images."""
    device = collectives.device()
    module.to(device).eval()
    for batch in rank_batches(split, recipe.data, BATCH_SIZE):
        images = batch.normalised(recipe.data, device)
        noise = mask_noise(recipe.mask_seed, 0, batch.index, source.num_patches).to(device)
        yield _Losses(batch.index, image_losses(module, images, noise).cpu().numpy())


def _concatenate(parts: list[_Losses]) -> _Losses:
    """Join parts in sample order."""
    if not parts:
        return _Losses(np.zeros(0, np.int64), np.zeros(0))
    index = np.concatenate([part.sample_index for part in parts])
    order = np.argsort(index, kind="stable")
    return _Losses(index[order], np.concatenate([part.loss for part in parts])[order])


def _write_galleries(
    recipe: ReconstructionRecipe,
    source: PretrainRecipe,
    state: Mapping[str, Tensor],
    data: ImageData,
    directory: Path,
) -> None:
    for ratio in recipe.gallery_ratios:
        arrays = make_gallery(replace(source, mask_ratio=ratio), state, data, None)
        np.savez_compressed(directory / gallery_file(ratio), **arrays)  # type: ignore[arg-type]
