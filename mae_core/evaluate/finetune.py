"""End-to-end fine-tuning of an encoder with a linear head as a stage (paper Table 9, A.1)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mae_core.config import CLASSIFIER_FILE, ENCODER_FILE, Execution, FinetuneRecipe
from mae_core.data.sources import ImageData, Split
from mae_core.evaluate.classifier import Classifier, build_classifier, evaluate, save_classifier
from mae_core.evaluate.features import labelled_split
from mae_core.evaluate.finetune_inputs import FinetuneInputs
from mae_core.evaluate.scores import finish
from mae_core.model.ema import WeightAverage
from mae_core.runtime.context import RunContext
from mae_core.runtime.metrics import Metrics
from mae_core.train.job import make_job, training_details
from mae_core.train.loop import TrainJob, train
from mae_core.train.optim import layer_decay_groups


def run_finetune(
    recipe: FinetuneRecipe, execution: Execution, ctx: RunContext, data: ImageData
) -> Metrics:
    """Fine-tune a parent's encoder, or train one from scratch; evaluate; save the classifier.

    Raises:
        ConfigError: no encoder to start from; sizes that do not fit; a batch that does not split
            over the ranks.
        NumericsError: the loss became non-finite.
        Stopped: a stop was requested; a checkpoint is committed.
    """
    encoder_path = ctx.input(ENCODER_FILE)
    split = labelled_split(recipe, data)
    model = build_classifier(recipe, encoder_path, num_classes=len(split.class_names))
    if recipe.ema_decay is not None:
        model.average = WeightAverage(model, recipe.ema_decay)
    job = _job(recipe, execution, model, split)
    result = train(job, execution, ctx)
    learned = result.state
    if model.average is not None:
        model.average.follow(learned)
        learned = model.average.state()
    # A fresh module: DeepSpeed leaves the trained one in bf16 or in pieces.
    trained = build_classifier(recipe, encoder_path, num_classes=len(split.class_names))
    trained.load_state_dict(learned, strict=False)
    if ctx.rank == 0:
        save_classifier(ctx.output_dir / CLASSIFIER_FILE, recipe, trained, split.class_names)
    local = evaluate(trained, recipe, data.split(recipe.eval_split))
    scores = finish(local, split.class_names, ctx)
    ctx.log_metrics(job.num_steps, {"top1": scores.top1, "eval_loss": scores.loss})
    details = {"micro_batch": job.batch.micro, "accumulation": job.batch.accumulation}
    return scores.metrics(
        num_train_images=len(split), details=details | training_details(result, job)
    )


def _job(recipe: FinetuneRecipe, execution: Execution, model: Classifier, split: Split) -> TrainJob:
    depth = model.encoder.config.depth
    inputs = FinetuneInputs(recipe, 2 * depth, len(split.class_names))

    def follow(_: int, weights: Mapping[str, Tensor]) -> None:
        assert model.average is not None
        model.average.follow(weights)

    groups = layer_decay_groups(model, recipe.optimizer.weight_decay, recipe.layer_decay, depth)
    return make_job(
        recipe,
        execution,
        model,
        split,
        prepare=inputs.one,
        prepare_step=inputs.step,
        follow=None if model.average is None else follow,
        param_groups=groups,
    )
