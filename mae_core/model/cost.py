"""What a stage costs before it has run, by its recipe: parameters, steps, images and FLOPs."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

from mae_core.config import (
    AdoptedRecipe,
    BasisRecipe,
    BatchSplit,
    BestOfRecipe,
    ContrastiveRecipe,
    Duration,
    EncoderConfig,
    EvalRecipe,
    EvalSplit,
    Execution,
    FeatureProbeRecipe,
    FeaturesRecipe,
    FinetuneRecipe,
    InferenceRecipe,
    LinearProbeRecipe,
    PretrainRecipe,
    Recipe,
    ReconstructionRecipe,
    TokenizerRecipe,
    Training,
    require,
    split_batch,
)
from mae_core.model.flops import (
    FlopCount,
    contrastive_flops_per_image,
    contrastive_params,
    encoder_forward_flops,
    encoder_params,
    eval_flops_per_image,
    pretrain_flops_per_image,
    pretrain_params,
    reconstruction_flops_per_image,
    tokenizer_flops_per_image,
    tokenizer_params,
)


@dataclass(frozen=True)
class DataSize:
    """Counts that costs depend on."""

    num_train: int
    """0 = unknown: the data have not been read yet, and the study does not say what it expects."""
    num_eval: int
    num_classes: int
    is_measured: bool = True
    """False if these are the study's own expectation."""
    num_dev: int = 0
    num_test: int = 0
    smallest_class: int | None = None
    """Training images of the class that has fewest, at most; None = unknown."""


@dataclass(frozen=True)
class Cost:
    """Of one stage."""

    encoder_params: int | None = None
    total_params: int | None = None
    """Encoder + decoder, for a pretraining."""
    flops_per_image: FlopCount | None = None
    """Training on one image."""
    steps: int | None = None
    """None if there are none (k-NN), or if they depend on data that has not been read yet."""
    is_known: bool = True
    """False if the number of training images is unknown: what follows is a lower bound."""
    images: int = 0
    """Images pushed through the network, training and evaluation."""
    flops: float = 0.0
    """Executed, the whole stage."""
    algorithmic_flops: float = 0.0
    """By the reference count, the whole stage: the x-axis of curves."""
    split: BatchSplit | None = None
    world_size: int = 1
    on_gpu: bool = False
    """Assumed of a cell with a stage in bf16 or bf16-mixed, for the time only."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a cost depends on beside the recipe."""

    execution: Execution
    size: DataSize
    encoder: EncoderConfig | None = None
    """What images are encoded with; None if they are not."""
    pretrain: PretrainRecipe | None = None
    """The network of which encoder and decoder are read."""
    on_gpu: bool = False

    def cost(
        self, images: int, per_image: FlopCount, *, params: int | None, is_known: bool
    ) -> Cost:
        """Cost of putting so many images through a network once."""
        return Cost(
            encoder_params=params,
            flops_per_image=per_image,
            is_known=is_known,
            images=images,
            flops=float(images) * per_image.executed,
            algorithmic_flops=float(images) * per_image.algorithmic,
            world_size=self.execution.world_size,
            on_gpu=self.on_gpu,
        )


@functools.singledispatch
def stage_cost(recipe: Recipe, at: Setting) -> Cost:
    """Cost of a stage; each kind registers its own below.

    Raises:
        ConfigError: a run would refuse it, as far as the counts are known.
    """
    raise NotImplementedError(recipe.KIND)


@stage_cost.register
def _pretrain_cost(recipe: PretrainRecipe, at: Setting) -> Cost:
    split, steps = _steps(recipe, recipe.training, at)
    _check_monitor(at)
    return _trained(
        recipe, at, split, steps, pretrain_params(recipe), pretrain_flops_per_image(recipe)
    )


@stage_cost.register
def _contrastive_cost(recipe: ContrastiveRecipe, at: Setting) -> Cost:
    split, steps = _steps(recipe, recipe.training, at)
    _check_monitor(at)
    per_image = contrastive_flops_per_image(recipe, split)
    return _trained(recipe, at, split, steps, contrastive_params(recipe), per_image)


@stage_cost.register
def _tokenizer_cost(recipe: TokenizerRecipe, at: Setting) -> Cost:
    split, steps = _steps(recipe, recipe.training, at)
    return _trained(
        recipe, at, split, steps, tokenizer_params(recipe), tokenizer_flops_per_image(recipe)
    )


def _steps(recipe: Recipe, training: Training, at: Setting) -> tuple[BatchSplit, int | None]:
    require(
        not at.size.num_train or training.global_batch <= at.size.num_train,
        f"global batch {training.global_batch} is larger than the training set of "
        f"{at.size.num_train} images: lower {recipe.KIND}.global_batch",
    )
    split = split_batch(training.global_batch, at.execution)
    return split, _num_steps(training.duration, at.size.num_train, training.global_batch)


def _trained(
    recipe: Recipe,
    at: Setting,
    split: BatchSplit,
    steps: int | None,
    total_params: int,
    per_image: FlopCount,
) -> Cost:
    images, encoder = (steps or 0) * split.global_batch, recipe.new_encoder
    params = encoder_params(encoder, recipe.data.num_channels) if encoder else None
    cost = at.cost(images, per_image, params=params, is_known=steps is not None)
    return dataclasses.replace(cost, total_params=total_params, steps=steps, split=split)


@stage_cost.register
def _adopted_cost(recipe: AdoptedRecipe, at: Setting) -> Cost:
    params = encoder_params(recipe.encoder, recipe.data.num_channels)
    return Cost(encoder_params=params, total_params=params, on_gpu=at.on_gpu)


@stage_cost.register
def _basis_cost(recipe: BasisRecipe, at: Setting) -> Cost:
    images, world = min(recipe.num_images, at.size.num_train), at.execution.world_size
    if images:
        recipe.check_images(images)
    return Cost(images=images, is_known=images > 0, world_size=world, on_gpu=at.on_gpu)


@stage_cost.register
def _features_cost(recipe: FeaturesRecipe, at: Setting) -> Cost:
    """One forward pass of every image of every split."""
    data, size = recipe.data, at.size
    forward, params = 0, None
    if at.encoder is not None:
        forward = encoder_forward_flops(at.encoder, data.image_size, data.num_channels)
        params = encoder_params(at.encoder, data.num_channels)
    return at.cost(
        size.num_train + size.num_dev + size.num_test,
        FlopCount(forward, forward),
        params=params,
        is_known=size.num_train > 0,
    )


@stage_cost.register
def _reconstruction_cost(recipe: ReconstructionRecipe, at: Setting) -> Cost:
    """One forward pass through encoder and decoder of every image that is scored."""
    forward = FlopCount(0, 0)
    if at.pretrain is not None:
        forward = reconstruction_flops_per_image(recipe, at.pretrain)
    _check_scored(recipe.eval_split, at.size)
    return at.cost(at.size.num_eval, forward, params=None, is_known=at.size.num_eval > 0)


@stage_cost.register
def _eval_cost(recipe: EvalRecipe, at: Setting) -> Cost:
    size = at.size
    labelled = size.num_train if recipe.num_labels is None else recipe.num_labels
    _check_eval(recipe, labelled, size)
    passes = _passes(recipe, labelled, at.execution)
    images = int(passes.trained / max(labelled, 1) * labelled) + size.num_eval
    plain = Cost(
        steps=passes.steps,
        is_known=labelled > 0,
        images=images,
        split=passes.split,
        world_size=at.execution.world_size,
        on_gpu=at.on_gpu,
    )
    if at.encoder is None:
        return plain
    flops = eval_flops_per_image(recipe, at.encoder, size.num_classes)
    evaluated = size.num_eval * flops.eval_image.executed
    return dataclasses.replace(
        plain,
        encoder_params=encoder_params(at.encoder, recipe.data.num_channels),
        flops_per_image=flops.train_image,
        flops=float(passes.encoded) * flops.train_image.executed + evaluated,
        algorithmic_flops=float(passes.trained) * flops.train_image.algorithmic + evaluated,
    )


@dataclass(frozen=True)
class _Passes:
    """What an evaluation trains on."""

    trained: int
    """Images, each as often as it is seen."""
    encoded: int
    """Of these, how many are encoded."""
    steps: int | None = None
    split: BatchSplit | None = None
    """None for a probe whose features are encoded once."""


@functools.singledispatch
def _passes(recipe: EvalRecipe, labelled: int, execution: Execution) -> _Passes:
    """In steps where the recipe has them; else each labelled image once."""
    if recipe.training is None:
        return _Passes(labelled, labelled)
    steps, batch = _eval_steps(recipe.training, labelled)
    trained, split = (steps or 0) * batch, split_batch(batch, execution)
    if isinstance(recipe, FinetuneRecipe):
        recipe.check_split(split)
    return _Passes(trained, trained, steps, split)


@_passes.register(BestOfRecipe)
@_passes.register(InferenceRecipe)
def _no_passes(recipe: EvalRecipe, labelled: int, execution: Execution) -> _Passes:
    return _Passes(0, 0)


@_passes.register
def _linear_probe_passes(recipe: LinearProbeRecipe, labelled: int, execution: Execution) -> _Passes:
    steps, batch = _probe_steps(recipe.training, labelled)
    trained = (steps or 0) * batch
    if recipe.encodes_once:
        return _Passes(trained, labelled, steps)
    return _Passes(trained, trained, steps, split_batch(batch, execution))


@_passes.register
def _feature_probe_passes(
    recipe: FeatureProbeRecipe, labelled: int, execution: Execution
) -> _Passes:
    steps, batch = _probe_steps(recipe.training, labelled)
    return _Passes((steps or 0) * batch, (steps or 0) * batch, steps)


def _probe_steps(training: Training, labelled: int) -> tuple[int | None, int]:
    steps, batch = _eval_steps(training, labelled)
    require(batch >= 2, "a batch of one image: BatchNorm needs at least two")
    return steps, batch


def _eval_steps(training: Training, labelled: int) -> tuple[int | None, int]:
    """Steps and batch, as a run has them (`effective_batch`): a small labelled set is one."""
    batch = min(training.global_batch, labelled) if labelled else training.global_batch
    return _num_steps(training.duration, labelled, batch), batch


def _num_steps(duration: Duration, num_images: int, global_batch: int) -> int | None:
    """Steps, None where they depend on an unknown number of images (0)."""
    if not num_images and duration.unit == "epochs" and duration.value > 0:
        return None
    return duration.num_steps(num_images=num_images, global_batch=global_batch)


def _check_eval(recipe: EvalRecipe, labelled: int, size: DataSize) -> None:
    """Refuse what the run would refuse, as far as the counts are known."""
    recipe.check_labels(labelled, size.num_train, size.num_classes)
    each = (recipe.num_labels or 0) // max(size.num_classes, 1)
    require(
        size.smallest_class is None or each <= size.smallest_class,
        f"{recipe.num_labels} class-balanced labels need {each} images of every class, and one has "
        f"{size.smallest_class}: ask for fewer labels",
    )
    require(
        size.num_dev > 0 or not size.is_measured or not recipe.selects_on_dev,
        "it chooses on dev, which has no image: set data.dev_fraction",
    )
    _check_scored(recipe.eval_split, size)


def _check_monitor(at: Setting) -> None:
    require(
        at.execution.monitor_every_steps is None or at.size.num_dev > 0 or not at.size.is_measured,
        "execution.monitor_every_steps looks at dev, which has no image: set data.dev_fraction",
    )


def _check_scored(eval_split: EvalSplit, size: DataSize) -> None:
    require(
        size.num_eval > 0 or not size.is_measured,
        f"it is scored on {eval_split}, which has no image: "
        + ("set data.dev_fraction" if eval_split == "dev" else "add a test split"),
    )
