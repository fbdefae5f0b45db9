"""Attentive probe: a learned query attends to the tokens of a frozen encoder, then a linear layer.

Nothing in it depends on the batch, so ranks and micro-batches do not show. The encoder is not part
of what is trained: each micro-batch is encoded as it is prepared.
Legend: N images, T tokens (class token first), D width, H heads, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mae_core.checkpoint.encoder_file import check_fits, load_encoder
from mae_core.checkpoint.tensor_file import write_tensors
from mae_core.config import ENCODER_FILE, AttentiveProbeRecipe, Execution
from mae_core.data.loader import Batch, rank_batches
from mae_core.data.sources import ImageData, Split
from mae_core.evaluate.features import BATCH_SIZE, labelled_split, layer_tokens
from mae_core.evaluate.scores import Predictions, concatenate, finish, predict
from mae_core.model.vit import NORM_EPS, Encoder, Linear, init_weights
from mae_core.runtime import collectives
from mae_core.runtime.context import RunContext
from mae_core.runtime.metrics import Metrics
from mae_core.train.job import make_job, training_details
from mae_core.train.loop import train

FILE_NAME = "attentive.safetensors"
FORMAT = "mae-study-attentive-head-1"


class AttentiveHead(nn.Module):
    """LN, cross-attention of one learned query, projection, LN, linear; forward is the loss."""

    def __init__(
        self, width: int, num_heads: int, num_classes: int, generator: torch.Generator
    ) -> None:
        """Build and initialise; the query is normal with deviation .02."""
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.query_token = nn.Parameter(torch.zeros(1, 1, width))
        self.key_value = Linear(width, 2 * width)
        self.proj = Linear(width, width)
        self.head_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.head = Linear(width, num_classes)
        init_weights(self, generator)

    def logits(self, tokens_NTD: Tensor) -> Tensor:
        """Score classes: (N, T, D) → float32 (N, C)."""
        n, t, d = tokens_NTD.shape
        key_value = self.key_value(self.norm(tokens_NTD))
        key_value = key_value.view(n, t, 2, self.num_heads, d // self.num_heads)
        key, value = key_value.permute(2, 0, 3, 1, 4).unbind(0)
        query = self.query_token.view(1, self.num_heads, 1, -1).expand(n, -1, -1, -1)
        pooled_ND = F.scaled_dot_product_attention(query, key, value).reshape(n, d)
        scores: Tensor = self.head(self.head_norm(self.proj(pooled_ND)))
        return scores.float()

    def forward(self, tokens_NTD: Tensor, labels_N: Tensor) -> Tensor:
        """Mean cross-entropy, a scalar in nats."""
        return F.cross_entropy(self.logits(tokens_NTD), labels_N)


class FrozenTokens:
    """Turns batches into the tokens of a frozen encoder: eval mode, no gradient, no mask."""

    def __init__(self, recipe: AttentiveProbeRecipe, encoder: Encoder) -> None:
        """Take over `encoder`; raises `ConfigError` if it does not fit recipe or data."""
        check_fits(encoder, recipe.data)
        recipe.check_encoder(encoder.config)
        self.recipe = recipe
        self.encoder = encoder.to(collectives.device()).eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
        """Tokens (N, T, D) and labels (N,), on the device."""
        images = batch.normalised(self.recipe.data, device)
        (tokens_NTD,) = layer_tokens(self.encoder, images, (self.recipe.layer,))
        return tokens_NTD, batch.labels.to(device)


def run_attentive_probe(
    recipe: AttentiveProbeRecipe, execution: Execution, ctx: RunContext, data: ImageData
) -> Metrics:
    """Train the head on a parent's frozen encoder, evaluate it, save it.

    Raises:
        ConfigError: no encoder, one that does not fit; a batch that does not split over the ranks.
        NumericsError: the loss became non-finite.
        Stopped: a stop was requested; a checkpoint is committed.
    """
    path = ctx.required(ENCODER_FILE, "an attentive probe needs the encoder of a parent stage")
    tokens = FrozenTokens(recipe, load_encoder(path))
    split = labelled_split(recipe, data)
    untrained = build_head(recipe, tokens.encoder, len(split.class_names))
    job = make_job(recipe, execution, untrained, split, prepare=tokens)
    result = train(job, execution, ctx)
    head = build_head(recipe, tokens.encoder, len(split.class_names))
    head.load_state_dict(result.state)
    scores = finish(_evaluate(head, tokens, data.split(recipe.eval_split)), split.class_names, ctx)
    if ctx.rank == 0:
        metadata = {"format": FORMAT, "layer": str(recipe.layer or "last")}
        write_tensors(ctx.output_dir / FILE_NAME, head.state_dict(), metadata)
    ctx.log_metrics(job.num_steps, {"top1": scores.top1, "eval_loss": scores.loss})
    return scores.metrics(num_train_images=len(split), details=training_details(result, job))


def build_head(recipe: AttentiveProbeRecipe, encoder: Encoder, num_classes: int) -> AttentiveHead:
    """The head before its first step; its draws come from `recipe.seed` alone."""
    generator = torch.Generator().manual_seed(recipe.seed)
    return AttentiveHead(encoder.config.width, recipe.num_heads, num_classes, generator)


@torch.inference_mode()
def _evaluate(head: AttentiveHead, tokens: FrozenTokens, split: Split) -> Predictions:
    """Predict this rank's share of a split, without augmentation."""
    head.to(collectives.device()).eval()
    return concatenate(list(_predicted(head, tokens, split)))


def _predicted(head: AttentiveHead, tokens: FrozenTokens, split: Split) -> Iterator[Predictions]:
    for batch in rank_batches(split, tokens.recipe.data, BATCH_SIZE):
        tokens_NTD, _ = tokens(batch, collectives.device())
        log_prob_NC = head.logits(tokens_NTD).double().log_softmax(dim=1)
        yield predict(batch.index, batch.labels.numpy(), log_prob_NC.cpu().numpy())
