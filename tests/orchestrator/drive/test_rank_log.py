"""What a rank leaves in its log, and in what state it leaves its process, when it fails early."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, os, sys
from cluster.ranks.actor import RankControl
from orchestrator.rank.entry import run_stage
from mae_core.runtime import collectives
from mae_core.train.deepspeed_engine import join_gang

if __name__ == "__main__":
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    join_gang()
    try:
        run_stage(json.loads(sys.argv[1]), RankControl(0, 1, lambda: False))
    except Exception as error:
        print(type(error).__name__, collectives.is_initialised())
"""


@pytest.mark.slow
def test_a_payload_that_cannot_be_read_is_in_the_log(tmp_path: Path) -> None:
    payload = {"directory": str(tmp_path), "capture": True, "recipe": {"kind": "no such kind"}}
    for plain in (payload | {"extensions": {}}, payload | {"directory": None}):
        script = [sys.executable, "-c", SCRIPT, json.dumps(plain)]
        done = subprocess.run(script, capture_output=True, text=True, check=True)
        name, is_initialised = done.stdout.split()[-2:]
        assert is_initialised == "False"
        assert plain["directory"] is None or name == "StudyError"
    log = (tmp_path / "rank0.log").read_text()
    assert "Traceback" in log and "no such kind" in log
