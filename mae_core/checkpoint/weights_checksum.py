"""A checksum of parameters that does not depend on how they are divided over ranks.

ZeRO-3 gives each rank a slice of every tensor, another world size gives other slices, and a
cryptographic digest of the whole would need all of it in one place. So each element's bits are
summed, weighted by its tensor and by its row of 1,024 elements, modulo 2^64: sums of slices add
up to the sum of the whole. It finds what goes wrong by accident, such as a shard that was not
loaded; damage on disk is found by SHA-256 before.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

ROW = 1024
MODULUS = 1 << 64
_INTEGER = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
Sums = tuple[int, int]


def partial_sums(slices: Iterable[tuple[int, Tensor, int]]) -> Sums:
    """Sum slices of parameters: (number of the parameter, flat slice, where the slice begins)."""
    plain = weighted = 0
    for number, values, offset in slices:
        bits = values.detach().reshape(-1).view(_INTEGER[values.element_size()])
        ordinal = 2 * number + 1
        total, by_row = _sums(bits, offset)
        plain += ordinal * total
        weighted += ordinal * by_row
    return plain % MODULUS, weighted % MODULUS


def combine(parts: Iterable[Sums]) -> str:
    """Add up the sums of all ranks: 32 hexadecimal digits."""
    pairs = list(parts)
    totals = (sum(pair[i] for pair in pairs) % MODULUS for i in (0, 1))
    return "".join(f"{total:016x}" for total in totals)


def _sums(bits: Tensor, offset: int) -> tuple[int, int]:
    """Σ bits, and Σ over rows of (row + 1) · the row's bits, rows counted from the tensor's start.

    One pass over the memory, which is what it costs.
    """
    head = min(-offset % ROW, bits.numel())
    rows = (bits.numel() - head) // ROW
    first = (offset + head) // ROW
    body = bits[head : head + rows * ROW].view(rows, ROW).sum(dim=1, dtype=torch.int64)
    weights = torch.arange(first + 1, first + rows + 1, device=bits.device)
    before = int(bits[:head].sum(dtype=torch.int64))
    after = int(bits[head + rows * ROW :].sum(dtype=torch.int64))
    plain = before + int(body.sum()) + after
    by_row = (offset // ROW + 1) * before + int((body * weights).sum())
    return plain, by_row + (first + rows + 1) * after
