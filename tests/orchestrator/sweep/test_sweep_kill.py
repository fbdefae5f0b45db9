"""A sweep whose driver is killed by SIGKILL ends with exactly its target (reliability run: 20)."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from reliability.sweeps import judge, trial_files, write_study
from support.command import mae_study

TRIALS = 4


@pytest.mark.usefixtures("clean_machine")
def test_a_killed_sweep_is_finished_by_the_same_command(tmp_path: Path) -> None:
    study, store = write_study(tmp_path, TRIALS), tmp_path / "store"
    command = ("run", str(study), "--store", str(store), "--no-report", "--quiet")
    driver = subprocess.Popen([sys.executable, "-m", "orchestrator.cli.main", *command])
    deadline = time.monotonic() + 150
    while len(trial_files(store)) < 2 and time.monotonic() < deadline:
        assert driver.poll() is None, "it ended before it had two trials"
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    before = {p.name: json.loads(p.read_text()) for p in trial_files(store)}
    assert len(before) >= 2
    done = mae_study(*command)
    assert done.returncode == 0, done.stderr
    found = judge(store, before, TRIALS, is_killed=True, finished=True)
    assert found.exact and found.kept and found.once and found.decided
