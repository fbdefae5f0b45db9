"""Training a tokenizer as a stage: images in, `tokenizer.safetensors` out."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch

from mae_core.checkpoint.tensor_file import expect_format, load_state, read_tensors, write_tensors
from mae_core.config import TOKENIZER_FILE, Execution, TokenizerRecipe
from mae_core.data.augmented import network_input
from mae_core.data.loader import Batch, TrainLoader, rank_batches
from mae_core.data.sources import ImageData
from mae_core.errors import CheckpointError, ConfigError
from mae_core.model.vq_vae import Tokenizer, TokenizerConfig, start_codes
from mae_core.runtime import collectives
from mae_core.runtime.context import RunContext
from mae_core.runtime.keyed_random import Stream, uniform
from mae_core.runtime.metrics import Metrics
from mae_core.train.job import make_job, training_metrics
from mae_core.train.loop import train

FORMAT = "mae-study-tokenizer-1"

START_IMAGES = 64
"""Images whose patches the code book starts at."""
USAGE_IMAGES = 2048
"""Training images on which the use of the code book is counted."""


def run_tokenizer(
    recipe: TokenizerRecipe, execution: Execution, ctx: RunContext, data: ImageData
) -> Metrics:
    """Train, save, and count how much of the code book is used.

    Raises:
        ConfigError: the batch does not split over the ranks.
        NumericsError: the loss became non-finite.
        Stopped: a stop was requested; a checkpoint is committed.
    """
    config = TokenizerConfig.of(recipe)
    module = Tokenizer(config, torch.Generator().manual_seed(recipe.seed))
    split = data.split("train")

    def prepare(micro_batch: Batch, device: torch.device) -> tuple[torch.Tensor, ...]:
        images = network_input(micro_batch, recipe.data, recipe.augmentation, recipe.seed, device)
        return (images,)

    job = make_job(recipe, execution, module, split, prepare=prepare)
    _start(recipe, module, job.loader)
    result = train(job, execution, ctx)
    trained = Tokenizer(config)
    trained.load_state_dict(result.state)
    usage = _usage(recipe, trained.eval(), data)
    if collectives.rank() == 0:
        save_tokenizer(ctx.output_dir / TOKENIZER_FILE, trained)
    collectives.barrier()
    return training_metrics(result, job, len(split), **usage)


def _start(recipe: TokenizerRecipe, module: Tokenizer, loader: TrainLoader) -> None:
    """Start the code book from the first images of the first step, the same on every rank."""
    images = loader.probe(START_IMAGES).normalised(recipe.data, torch.device("cpu"))
    place = torch.arange(recipe.vocabulary).numpy()
    choice = uniform(recipe.seed, Stream.CODE_INIT, 0, place)[:, 0]
    start_codes(module, images, torch.from_numpy(choice))


@torch.inference_mode()
def _usage(recipe: TokenizerRecipe, tokenizer: Tokenizer, data: ImageData) -> dict[str, float]:
    """Codes in use and their perplexity, exp(entropy), on some training images."""
    split = data.split("train").sample(USAGE_IMAGES, recipe.seed)
    device = collectives.device()
    tokenizer.to(device)
    counts = torch.zeros(recipe.vocabulary, dtype=torch.float64, device=device)
    for batch in rank_batches(split, recipe.data, 256):
        codes = tokenizer.tokenize(batch.normalised(recipe.data, device)).flatten()
        counts += torch.bincount(codes, minlength=recipe.vocabulary)
    share = collectives.all_reduce_sum(counts).cpu()
    tokenizer.cpu()
    share = share / share.sum()
    entropy = -(share[share > 0] * share[share > 0].log()).sum()
    return {"codes_used": int((share > 0).sum()), "code_perplexity": float(entropy.exp())}


def save_tokenizer(path: Path, tokenizer: Tokenizer) -> None:
    """Write weights and shape as one safetensors file."""
    described = {"format": FORMAT, "config": json.dumps(asdict(tokenizer.config), sort_keys=True)}
    write_tensors(path, tokenizer.state_dict(), described)


def load_tokenizer(path: Path) -> Tokenizer:
    """Build the tokenizer of a file, on the CPU in eval mode.

    Raises:
        CheckpointError: the file is damaged or of another kind.
    """
    state, metadata = read_tensors(path)
    expect_format(path, metadata, FORMAT)
    try:
        config = TokenizerConfig(**json.loads(metadata["config"]))
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise CheckpointError(f"{path}: metadata describes no tokenizer: {error}") from error
    tokenizer = Tokenizer(config)
    load_state(tokenizer, state, path)
    return tokenizer.eval()
