"""Result rows of a made-up study, and checks of the page made of them."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from typing import Any

import pytest

from studies.analysis.report.meta import ReportFiles, ReportMeta
from studies.analysis.sweeps.settings import ChosenSetting
from studies.result_row import ResultRow

PROTOCOLS = {
    "knn": "k-NN k=20 mean tokens",
    "linear_probe": "linear probe 100 epochs, all labels",
    "finetune": "fine-tune 50 epochs, all labels",
}


CHOSEN = {"pretrain.mask_ratio": 0.75, "pretrain.decoder.depth": 4, "pretrain.decoder.width": 256}
PARAMS = {"Ti": 1_800_000, "S": 7_100_000, "M": 21_300_000}


def evaluated(cell: str, kind: str, top1: float | None, **more: Any) -> ResultRow:
    base: dict[str, Any] = {
        "study": "demo",
        "cell": cell,
        "stage": kind,
        "kind": kind,
        "top1": top1,
        "role": "grid",
        "protocol": PROTOCOLS.get(kind, ""),
        "science_hash": f"{cell}:{kind}",
        "seconds": 40.0,
        "world_size": 2,
        "eval_split": "test",
    }
    return ResultRow(**{**base, **more})


def grid_rows(
    sizes: tuple[str, ...] = ("Ti", "S", "M"),
    epochs: tuple[float, ...] = (0, 25, 100, 400),
    seeds: tuple[int, ...] = (0, 1, 2),
) -> list[ResultRow]:
    """Accuracy rises by 5 points per doubling of 1 + epochs / 25; seeds shift all by 0.2."""
    rows = []
    for rank, size in enumerate(sizes):
        for duration in epochs:
            for seed in seeds:
                cell = f"{size}/e{duration:g}/s{seed}"
                where: dict[str, Any] = {
                    "size": size,
                    "encoder_params": PARAMS[size],
                    "seed": seed,
                    "epochs": float(duration),
                    "duration": f"{duration:g}ep",
                    "role": "grid" if duration else "untrained",
                    "pretrain_flops": 2e9 * PARAMS[size] * duration or None,
                }
                if duration:
                    spent = {"seconds": 30.0 * duration * (rank + 1), "loss": 0.4}
                    rows.append(evaluated(cell, "pretrain", None, **where, **spent))
                gain = 5 * math.log2(1 + duration / 25) * (1 + 0.15 * rank)
                wiggle = 0.2 * seed + 0.3 * math.sin(7 * seed + duration + rank)
                for step, kind in enumerate(PROTOCOLS):
                    value = 22 + 9 * step + gain + wiggle
                    rows.append(evaluated(cell, kind, value, **where))
    return rows


def meta(**more: Any) -> ReportMeta:
    base: dict[str, Any] = {
        "study": "demo",
        "question": "Does a longer pretraining help every size?",
        "command": "mae-study report demo",
        "created_at": "2030-01-01T00:00:00Z",
        "objective": "knn",
        "missing": [("M/e400/s2", "finetune", "preempted, not yet resumed")],
        "sweep_winner": ChosenSetting(settings=CHOSEN),
        "notes": ("Equal epochs, not equal compute.",),
        "provenance": {"commit": "0123abc", "torch": "2.8"},
    }
    return ReportMeta(**{**base, **more})


class Page(HTMLParser):
    """Balance of elements, ids, and whatever an address attribute would load."""

    void = {"meta", "br", "input", "link", "img", "hr"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.cells: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.open += [] if tag in self.void else [tag]
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "action", "data", "srcset"):
                self.loads.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.void:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check_page(files: ReportFiles) -> tuple[Page, str]:
    text = files.html.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert all(load.startswith(("#", "data:image/png;base64,")) for load in page.loads)
    assert {load[1:] for load in page.loads if load.startswith("#")} <= set(page.ids)
    assert "@import" not in text and "url(http" not in text
    json.loads(files.summary.read_text(), parse_constant=lambda c: pytest.fail(c))
    return page, text
