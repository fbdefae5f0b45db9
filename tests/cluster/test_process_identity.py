"""A process is known by boot, namespace, number and start; elsewhere nobody can say."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import psutil
import pytest

from cluster.process_identity import ProcessIdentity


def test_this_process_runs_and_is_seen() -> None:
    me = ProcessIdentity.of_this_process()
    assert me.is_visible and me.is_running is True


def test_a_number_used_again_is_another_process() -> None:
    me = ProcessIdentity.of_this_process()
    assert replace(me, started=me.started - 100).is_running is False


def test_a_dead_process_is_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    identity = ProcessIdentity.of(child.pid)
    assert identity.is_running is True
    child.communicate(b"\n", timeout=30)
    assert identity.is_running is False
    with pytest.raises(psutil.NoSuchProcess):
        ProcessIdentity.of(child.pid)


def test_nobody_can_say_of_another_boot_or_namespace() -> None:
    me = ProcessIdentity.of_this_process()
    for other in (
        replace(me, boot_id="another"),
        replace(me, pid_namespace="pid:[1]"),
        replace(me, boot_id="", pid_namespace=""),
    ):
        assert not other.is_visible and other.is_running is None


def test_a_corrected_clock_changes_no_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    me = ProcessIdentity.of_this_process()
    boot_time = psutil.boot_time()
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: boot_time + 3600)
    assert ProcessIdentity.of_this_process() == me and me.is_running is True
