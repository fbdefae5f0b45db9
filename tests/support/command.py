"""The command as a user runs it, on a study of seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from mae_core.config import ENCODER_FILE
from mae_core.runtime.inputs import Parent

TINY_STUDY = '''
"""A study of seconds: 2-rank gangs, every kind of stage, a sweep."""
from dataclasses import replace

from mae_core.model import sizes
from mae_core.config import *
from studies.catalog import quickstart as base
from studies.spec import Cell, Choices, Stage, Study, Sweep

TWO = Execution(world_size=2, zero_stage=2, loader_threads=0, checkpoint_every_s=CHECKPOINT_S)


def cell(epochs, seed):
    pretrain = base.pretrain("N1", epochs, seed)
    pretrain = replace(pretrain, execution=TWO)
    warmup = LrScheduleConfig(warmup=Duration.epochs(1))
    quick = [replace(s, recipe=replace(s.recipe, duration=Duration.epochs(5), lr_schedule=warmup))
             if hasattr(s.recipe, "duration") else s
             for s in base.evaluations(seed, features="mean")]
    quick[1] = replace(quick[1], execution=TWO)
    tune = base.finetune(seed)
    tune = replace(tune, recipe=replace(tune.recipe, duration=Duration.epochs(2)), execution=TWO)
    return Cell(address=f"N1/e{epochs}/s{seed}", stages=(pretrain, *quick, tune), uses_winner=True)


def study():
    sweep = base.sweep()
    stages = tuple(replace(s, recipe=replace(s.recipe, duration=Duration.epochs(2)))
                   for s in sweep.base.stages)
    sweep = replace(sweep, base=replace(sweep.base, stages=stages), num_trials=3)
    return Study(name="tiny", question="does it run?", sweep=sweep,
                 cells=(base.pixels(0), cell(0, 0), cell(EPOCHS, 0)))
'''


def tiny_study(folder: Path, *, epochs: int = 4, checkpoint_s: float = 600.0) -> Path:
    """Write the tiny study and return its path."""
    path = folder / "tiny.py"
    text = TINY_STUDY.replace("EPOCHS", str(epochs))
    path.write_text(text.replace("CHECKPOINT_S", str(checkpoint_s)))
    return path


def encoder_parent(path: Path) -> tuple[Parent, ...]:
    """Parents of an evaluation: a pretraining that left the encoder of this file."""
    return (Parent(name="pretrain", kind="pretrain", files={ENCODER_FILE: path}),)


def mae_study(
    *arguments: str, timeout: float = 200, **options: object
) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does."""
    command = [sys.executable, "-m", "orchestrator.cli.main", *arguments]
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        command, capture_output=True, text=True, timeout=timeout, check=False, **options
    )
