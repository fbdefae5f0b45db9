"""The checksum of parameters: the same however they are divided, another if anything differs."""

from __future__ import annotations

import pytest
import torch

from mae_core.checkpoint.weights_checksum import combine, partial_sums


def digest(tensors: list[torch.Tensor], cuts: int) -> str:
    """Divide each tensor into runs of neighbours, one per rank, as ZeRO-3 does."""
    parts = []
    for rank in range(cuts):
        slices = []
        for number, tensor in enumerate(tensors):
            size = -(-tensor.numel() // cuts)
            slices.append(
                (
                    number,
                    tensor.reshape(-1)[rank * size : (rank + 1) * size],
                    min(rank * size, tensor.numel()),
                )
            )
        parts.append(partial_sums(slices))
    return combine(parts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_it_does_not_depend_on_the_division(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = (1, 7, 1023, 1024, 1025, 5000)
    tensors = [torch.randn(n, generator=generator).to(dtype) for n in sizes]
    digests = {digest(tensors, cuts) for cuts in (1, 2, 3, 4, 7)}
    assert len(digests) == 1


def test_it_sees_every_kind_of_change() -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(3000, generator=generator) for _ in range(3)]
    before = digest(tensors, 2)
    changed = [t.clone() for t in tensors]
    changed[1][2999] = torch.nextafter(changed[1][2999], torch.tensor(9.0))
    swapped = [tensors[1], tensors[0], tensors[2]]
    moved = [tensors[0].roll(1024), *tensors[1:]]
    zeroed = [tensors[0], tensors[1], torch.zeros_like(tensors[2])]
    digests = [digest(t, 2) for t in (changed, swapped, moved, zeroed)]
    assert before not in digests and len(set(digests)) == 4
