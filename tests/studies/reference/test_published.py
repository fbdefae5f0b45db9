"""The table of published numbers: complete, sourced, and found by table, kind and place."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mae_core.config import RECIPES
from studies.errors import StudyError
from studies.reference import published, published_set, select


def test_every_row_says_where_it_is_from() -> None:
    rows = published()
    assert len(rows) == 418
    assert all(r.source and r.table for r in rows)
    linked = [r for r in rows if r.link.startswith("https://")]
    assert len(rows) - len(linked) == 2  # a fork whose repository is not named
    assert all(0 < r.value <= 100 for r in rows if r.metric == "top1")


def test_numbers_of_the_paper() -> None:
    """Spot checks, one per table, against arXiv 2111.06377."""

    def one(name: str, kind: str, **at: float | str) -> float:
        (row,) = select(sets=(f"MAE paper, {name}",), kind=kind, **at)
        return row.value

    assert one("Fig 5", "finetune", mask_ratio=0.6) == 85.0
    assert one("Fig 5", "linear_probe", mask_ratio=0.1) == 54.6
    assert one("Table 1a", "linear_probe", decoder_depth=1) == 65.5
    assert one("Table 1b", "finetune", decoder_width=1024) == 84.3
    assert one("Table 1c", "linear_probe", mask_tokens="encoder and decoder") == 59.6
    assert one("Table 1d", "finetune", target="principal components") == 84.6
    assert one("Table 1e", "linear_probe", augmentation="none") == 65.7
    assert one("Table 1f", "finetune", mask_sampling="block", mask_ratio=0.75) == 82.8
    assert one("Fig 7", "linear_probe", duration=1600) == 75.1
    assert one("Fig 9", "partial_finetune", tuned_blocks=0.5, objective="MAE") == 79.1
    assert one("Fig 9", "partial_finetune", tuned_blocks=4, objective="MoCo v3") == 81.6
    assert one("Table 3 / Fig 8", "finetune", size="H@448") == 87.8
    assert one("Table 3 / Fig 8", "scratch", size="B") == 82.3
    assert one("Table 12", "linear_probe", size="L", objective="MAE") == 75.8
    assert one("Table 6", "finetune", size="B", dataset="iNat2018") == 75.4
    assert one("Table 13", "shift", size="L", dataset="IN-A", objective="MAE") == 57.1


def test_what_was_not_read_in_its_source_is_not_given_unless_asked() -> None:
    assert not select(sets=("MAE paper, Fig 8",))
    assert len(select(sets=("MAE paper, Fig 8",), verified=False)) == 4


def test_kinds_are_ours() -> None:
    assert {r.kind for r in published()} - {""} <= set(RECIPES)


def test_an_unknown_set_names_the_nearest() -> None:
    with pytest.raises(StudyError, match="did you mean 'MAE paper, Fig 5'"):
        published_set("MAE paper, Fig. 5")


def test_the_table_is_read_without_anything_heavy() -> None:
    heavy = "numpy pandas pyarrow torch matplotlib".split()
    code = (
        "import sys; from studies.reference import published; published(); "
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
