"""Precisions: masters are the weights as given, and losses stay near those of fp32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.gangs import finish, launched, values
from support.precision_cases import (
    RECIPE,
    batches,
    engine_losses,
    mean_error,
    start,
    torch_losses,
)
from torch import Tensor, nn

from cluster.slot_pool import SlotPool
from cluster.verdict import Cause
from mae_core.checkpoint.encoder_file import save_encoder
from mae_core.model.mae import MAE
from mae_core.model.vit import Linear, TransformerBlock
from mae_core.train.optim import pretrain_groups


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder whose every weight needs all bits of fp32, as an adopted one's do."""
    folder = tmp_path_factory.mktemp("encoder")
    state = MAE(RECIPE).encoder.state_dict()
    generator = torch.Generator().manual_seed(1)
    state = {n: v + 0.1 * torch.randn(v.shape, generator=generator) for n, v in state.items()}
    path = folder / "encoder.safetensors"
    save_encoder(path, state, RECIPE.encoder, image_size=32, num_channels=3, extra={})
    return folder


@pytest.mark.parametrize(("precision", "world"), [("bf16", 1), ("bf16", 2), ("bf16-mixed", 2)])
def test_training_starts_at_the_weights_as_they_are_given(
    pool: SlotPool, encoder_folder: Path, precision: str, world: int
) -> None:
    """Byte for byte at ZeRO 0 to 3: pretraining, contrastive, fine-tune, partly frozen."""
    payload = {"precision": precision, "folder": str(encoder_folder)}
    gang = launched(pool, "support.precision_entries:start_everything", payload, world)
    verdict = finish(pool, gang, 120)
    assert verdict.cause is Cause.SUCCESS, verdict.traceback
    assert values(gang) == [{"cases": 16, "wrong": {}}] * world


def test_losses_of_forty_steps_stay_near_those_of_fp32(gang: None) -> None:
    exact = torch_losses(autocast=False)
    assert engine_losses("fp32", 1) == pytest.approx(exact, rel=1e-6)
    assert mean_error(engine_losses("bf16", 1), exact) <= 3e-4
    mixed = engine_losses("bf16-mixed", 1)
    assert mean_error(mixed, exact) <= 3e-4
    assert mixed[:10] == pytest.approx(torch_losses(autocast=True, steps=10), rel=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16-mixed", "bf16"])
def test_no_stage_of_zero_changes_a_loss(gang: None, precision: str) -> None:
    """Alone, where nothing is summed over ranks: equal to the last bit."""
    losses = []
    for zero in (0, 1, 2, 3):
        model = MAE(RECIPE)
        engine = start(model, pretrain_groups(model, 0.05), precision, zero)  # type: ignore[arg-type]
        losses.append([float(engine.step([batch], 1e-3)) for batch in batches()[:4]])
        engine.close()
    assert losses[1:] == losses[:1] * 3


def test_mixed_keeps_norms_and_the_stream_in_fp32(gang: None) -> None:
    model = MAE(RECIPE)
    seen: dict[type[nn.Module], set[torch.dtype]] = {}

    def note(module: nn.Module, _: object, output: Tensor) -> None:
        seen.setdefault(type(module), set()).add(output.dtype)

    for part in model.modules():
        part.register_forward_hook(note)
    engine = start(model, pretrain_groups(model, 0.05), "bf16-mixed", 1)
    loss = engine.step([batches()[0]], 1e-3)
    engine.close()
    assert loss.dtype == torch.float32
    assert seen[nn.LayerNorm] == seen[TransformerBlock] == {torch.float32}
    assert seen[Linear] == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in model.parameters())
    # The module is as it was: outside an engine it works in fp32.
    seen.clear()
    model(*batches()[0])
    assert seen[Linear] == {torch.float32}
