"""Stores that are private or a team's, and what must never lie in any: real runs, every file."""

from __future__ import annotations

import os
import secrets
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest
from support.mlflow_servers import Server
from support.strangers import IS_ROOT, STRANGER, open_folder

from mae_core.config import DataConfig, Execution
from mae_core.errors import ConfigError

STUDY = """
from dataclasses import replace

from mae_core.config import Duration, Execution
from studies.catalog import quickstart
from studies.spec import Cell, Study


def study():
    stage = quickstart.pretrain("N1", 10, 0)
    recipe = replace(stage.recipe, duration=Duration.steps(STEPS), global_batch=32)
    execution = Execution(loader_threads=0, checkpoint_every_steps=10)
    knn = quickstart.evaluations(0, features="mean")[0]
    stage = replace(stage, recipe=recipe, execution=execution)
    return Study(name="shared", question="?", cells=(Cell(address="one", stages=(stage, knn)),))
"""
SECRETS = {
    name: f"planted-{secrets.token_hex(8)}"
    for name in (
        "AWS_SECRET_ACCESS_KEY",
        "HF_TOKEN",
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_TRACKING_TOKEN",
        "WANDB_API_KEY",
    )
}
GROUP = "daemon"
AS_COLLEAGUE = (
    *("setpriv", "--reuid", str(STRANGER), "--regid", GROUP, "--clear-groups"),
    # To read the interpreter, wherever it is; it gives no right to write anything.
    *("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"),
)

pytestmark = pytest.mark.usefixtures("clean_machine")


def arguments(folder: Path, *more: str, steps: int = 20) -> list[str]:
    (folder / "study.py").write_text(STUDY.replace("STEPS", str(steps)))
    program = [sys.executable, "-m", "orchestrator.cli.main", "run", str(folder / "study.py")]
    return [*program, "--store", str(folder / "store"), "--slots", "1", "--cpus", "1", *more]


def environment(folder: Path, extra: Mapping[str, str]) -> dict[str, str]:
    home = folder / "home"
    home.mkdir(exist_ok=True)
    home.chmod(0o777)
    # A name or a folder of root's is no use to a colleague.
    own = {"HOME": str(home), "TMPDIR": "/tmp", "MPLCONFIGDIR": str(home), "USER": "somebody"}
    return os.environ | own | {"GIT_CONFIG_GLOBAL": os.devnull} | extra


def modes(root: Path) -> dict[str, list[str]]:
    """Files by kind and mode: `d 700`, `f 600`."""
    found: dict[str, list[str]] = {}
    for path in (root, *root.rglob("*")):
        kind = "d" if path.is_dir() else "f"
        name = f"{kind} {stat.S_IMODE(path.lstat().st_mode):o}"
        found.setdefault(name, []).append(str(path.relative_to(root)))
    return found


def holders(root: Path, words: list[str]) -> list[str]:
    """Files that hold one of the words."""
    files = [p for p in root.rglob("*") if p.is_file()]
    assert files
    return [
        f"{word} in {path}"
        for path in files
        for word in words
        if word.encode() in path.read_bytes()
    ]


def test_a_private_store_is_so_to_the_last_file_and_no_store_holds_a_secret(
    tmp_path: Path,
) -> None:
    extra = environment(tmp_path, SECRETS)
    words = [*SECRETS.values(), "planted-in-uri"]
    command = arguments(tmp_path, "--private")
    run = subprocess.Popen(command, env=extra, stdout=subprocess.PIPE, text=True)
    words.append(ray_token(run))
    output, _ = run.communicate(timeout=150)
    assert run.returncode == 0, output
    store = tmp_path / "store"
    assert set(modes(store)) == {"d 700", "f 600"}, modes(store)
    assert {"reports", "stages", "studies", "tracking"} <= {p.name for p in store.iterdir()}

    server = Server(tmp_path / "server")
    server.folder.mkdir()
    server.start()
    try:
        uri = server.uri.replace("://", "://somebody:planted-in-uri@")
        done = subprocess.run([*command, "--tracking-uri", uri], env=extra, capture_output=True)
    finally:
        server.kill()
    assert done.returncode == 0, done.stderr
    assert holders(store, words) == [] and holders(server.folder, words) == []
    assert set(modes(store)) == {"d 700", "f 600"}, modes(store)
    assert "planted-in-uri" not in (done.stdout + done.stderr).decode()
    (store / "control").write_text(f"x{words[0]}x")
    assert len(holders(store, words)) == 1


def ray_token(run: subprocess.Popen[str]) -> str:
    """What the embedded Ray of a command is guarded by."""
    while run.poll() is None:
        for child in psutil.Process(run.pid).children():
            try:
                if token := child.environ().get("RAY_AUTH_TOKEN"):
                    return token
            except psutil.Error:
                continue
    raise AssertionError(f"it has ended without Ray: {run.communicate()[0]}")


@pytest.fixture
def reachable() -> Iterator[Path]:
    with open_folder() as folder:
        yield folder


@pytest.mark.skipif(not IS_ROOT, reason="playing a colleague takes root")
def test_a_colleague_goes_on_in_a_team_s_store_and_in_no_other(reachable: Path) -> None:
    extra = environment(reachable, {})
    open_to_all = reachable / "plain"
    open_to_all.mkdir()
    command = arguments(reachable, "--team", GROUP)
    subprocess.run(command, env=extra, check=True, timeout=150)
    store = reachable / "store"
    assert set(modes(store)) == {"d 2770", "f 660"}, modes(store)

    longer = [*AS_COLLEAGUE, *arguments(reachable, "--accept-changes", steps=30)]
    done = subprocess.run(longer, env=extra, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(modes(store)) == {"d 2770", "f 660"}, modes(store)
    owners = {p.stat().st_uid for p in store.rglob("*")}
    assert owners == {os.getuid(), STRANGER}
    assert {p.stat().st_gid for p in store.rglob("*")} == {store.stat().st_gid}

    elsewhere = [open_to_all.as_posix() if a == str(store) else a for a in longer]
    refused = subprocess.run(elsewhere, env=extra, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 8, refused.stdout + refused.stderr


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIA:hidden@bucket/x",
        "s3://AKIA:hid/den@bucket/x",
        "abfs://:hidden@account/x",
        "abfs://box@account/x?client_secret=hidden",
    ],
)
def test_a_secret_in_a_uri_of_a_study_is_refused_and_not_repeated(uri: str) -> None:
    for make in (lambda: Execution(checkpoint_uri=uri), lambda: DataConfig(path=uri)):
        with pytest.raises(ConfigError, match="by the environment") as caught:
            make()
        assert "hid" not in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    ["s3://bucket/x?region=eu", "abfs://box@account.dfs/x", "hdfs://me@host:9000/a@b"],
)
def test_other_uris_are_taken(uri: str) -> None:
    assert DataConfig(path=uri).path == uri
