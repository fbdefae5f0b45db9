"""The global random generators of a process.

Our code does not draw from them (see `keyed`); what a study brings along may. So they begin each
training at a known state, whatever the process has done before, and are saved with it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def seed_generators(seed: int) -> None:
    """Put every global generator to a known state."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def rng_state() -> dict[str, object]:
    """State of every generator of this process, of types that a restricted reader builds."""
    kind, words, position, has_gauss, gauss = np.random.get_state(legacy=True)
    integer_words = torch.from_numpy(np.asarray(words).astype(np.int64))
    version, integers, next_gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": [str(kind), integer_words, int(position), int(has_gauss), float(gauss)],
        "python": [version, list(integers), next_gauss],
    }


def restore_rng(state: Mapping[str, Any]) -> None:
    """Put the generators back."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    kind, words, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, words.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, integers, next_gauss = state["python"]
    random.setstate((version, tuple(integers), next_gauss))
