"""Commands in messages and reports work when they are pasted."""

from __future__ import annotations

import shlex
from pathlib import Path

from click.testing import CliRunner

from orchestrator.cli.main import main
from orchestrator.plan.pasted import command
from orchestrator.plan.plan import accept, make_plan
from orchestrator.store.data_facts import Datasets
from orchestrator.store.driver import LocalStore
from orchestrator.store.records import Records
from studies.load import load_study
from studies.spec.study import override_study


def test_a_command_names_the_very_study_and_its_store(tmp_path: Path) -> None:
    records = Records(LocalStore(tmp_path / "it's a #1 & $store;"))
    assert shlex.split(command(records, "quickstart", "run"))[:3] == [
        "mae-study",
        "run",
        "quickstart",
    ]
    study = override_study(load_study("quickstart"), {"knn.k": 7})
    accept(records, make_plan(study, records, Datasets(records.store)))
    words = shlex.split(command(records, "quickstart", "plan", "--json"))
    result = CliRunner().invoke(main, words[1:])
    assert result.exit_code == 0, result.output
    assert str(tmp_path / "it's a #1 & $store;") in words[-1] and '"knn"' in result.stdout
    again = shlex.split(command(records, "quickstart", "logs", "N1/e0/s0", "knn"))
    assert "N1/e0/s0#knn has not been started yet" in CliRunner().invoke(main, again[1:]).stderr
