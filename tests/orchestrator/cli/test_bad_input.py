"""Bad input through the real command: one message, a documented exit code, no traceback."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from support.command import mae_study, tiny_study
from support.finished_study import fill
from support.make_data import png, write_parquet, write_set, write_tree

from mae_core.config import Duration
from mae_core.data.importers import import_any
from mae_core.errors import ConfigError
from orchestrator.cli.main import main
from orchestrator.errors import EXIT_CODES
from orchestrator.store.attempts import AttemptEnd, AttemptStart
from orchestrator.store.driver import LocalStore
from orchestrator.store.lease import hold
from orchestrator.store.records import Records

ODD_STUDY = """
from studies.catalog import quickstart as base
from studies.spec import Study
def study():
    return Study(name="odd", question="[/why] [bold] :x:?", cells=(base.pixels(0),))
"""


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def refused(code: int, *arguments: object) -> str:
    """Run the command in this process; return its message after checking its manners."""
    result = invoke(*arguments)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code and code in EXIT_CODES, result.output
    assert "Traceback" not in result.output
    assert result.stderr.startswith(("mae-study: ", "Usage: ", "Error: "))
    return result.stderr


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def plain(*arguments: object) -> Any:
    """Run a verb with --json and return what it printed."""
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(result.stdout, parse_constant=refuse)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("plan", "quikstart"), "did you mean 'quickstart'?"),
        (("plan", "absent.py"), "study file 'absent.py' does not exist"),
        (("paln", "quickstart"), "did you mean 'plan'?"),
        (("logs", "quickstart", "pixels/s9"), "did you mean"),
        (("debug", "quickstart", "pixels/s0", "kn"), "did you mean 'knn'?"),
        (("debug", "quickstart", "pixels/s0", "knn", "--encoder", "x"), "reads no encoder"),
        (("debug", "quickstart", "N1/e0/s0", "knn", "--encoder", "x"), "--encoder x: no such file"),
        (("debug", "quickstart", "N1/e0/s0", "knn"), "name one with --encoder"),
    ],
)
def test_unknown_names(arguments: tuple[str, ...], expected: str, store: Path) -> None:
    where = ("--store", store) if arguments[0] != "paln" else ()
    assert expected in refused(2, *arguments, *where)
    assert not (store / "stages").exists()


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("pretrain.mask_ration=0.5", "did you mean 'mask_ratio'?"),
        ("pretain.mask_ratio=0.5", "did you mean"),
        ("pretrain.global_batch=100000", "larger than the training set of"),
        ("execution.world_size=3", "not divisible by a world size of 3"),
        ("execution.micro_batch=7", "micro-batch 7"),
        ("finetune_100.execution.world_size=3", "#finetune_100: global batch"),
        ("data.image_size=9", "image size 9 is not divisible by the patch size 2"),
        ("pretrain.encoder.num_heads=7", "not divisible by its 7 heads"),
        ("pretrain.mask_ratio=1.0", "at least one must stay visible"),
        ("pretrain.mask_ratio=0.0", "one must be masked"),
        ("pretrain.duration=100img", "duration 100img is less than one step"),
        ("knn.k=5000", "#knn: k = 5000 is more than the"),
        ("linear_100.num_labels=5", "5 labels for 10 classes"),
        ("linear_100.num_labels=5000", "5000 labels are more than"),
        ("linear_probe.global_batch=1", "BatchNorm needs at least two"),
        ("data.dev_fraction=0.99999", "nothing is left to train on"),
        ("data.dev_fraction=0", "scored on dev, which has no image: set data.dev_fraction"),
        ("knn.data.image_size=16", "knn: the encoder takes images of 8 px, and these have 16 px"),
        ("linear_probe.data.image_size=9", "image size 9 is not divisible by the patch size 2"),
        ("finetune.data.image_size=9", "image size 9 is not divisible by the patch size 2"),
        ("pretrain.encoder.patch_size=1", "a patch of one value cannot be normalised"),
        ('data={"path":"digits","num_channels":2,"pixel_mean":[0,0],"pixel_std":[1,1]}', "3 (RGB)"),
        ("pretrain.optimizer.betas=[0.9,1.0]", "must be in [0, 1)"),
        ("pretrain.lr_schedule.min_lr=-1", "min_lr -1.0: must be a number ≥ 0"),
        ("data.pixel_std=[0.0]", "each must be > 0"),
    ],
)
def test_settings_that_cannot_run_are_refused_by_the_plan(
    setting: str, expected: str, store: Path
) -> None:
    for verb in ("plan", "run"):
        message = refused(2, verb, "quickstart", "--store", store, "--set", setting)
        assert expected in message
    assert not (store / "studies").exists()


def test_the_plan_splits_the_batch_that_the_run_uses(store: Path) -> None:
    """50 labels: fine-tuning's batch is 50, which 2 divides and the recipe's 100 need not be."""
    options = ("--store", store, "--set", "finetune_100.num_labels=50")
    two = (*options, "--set", "finetune_100.execution.world_size=2")
    stages = plain("plan", "quickstart", *two)["stages"]
    tuned = [s for s in stages if s["kind"] == "finetune"]
    batches = {s["micro_batch"] * s["accumulation"] * s["world_size"] for s in tuned}
    assert tuned and max(batches) <= 50
    crops = ("--set", "linear_probe.augmentation.crop_scale=[0.5,1.0]")
    seven = ("--set", "linear_probe.execution.world_size=7")
    assert "linear_probe: global batch" in refused(
        2, "plan", "quickstart", *options, *crops, *seven
    )
    assert plain("plan", "quickstart", *options, *seven)["stages"]


def bad_data(folder: Path, kind: str) -> Path:
    """Make unusable data of a kind and return its path."""
    images = [png(i) for i in range(20)]
    labels = [i % 3 for i in range(20)]
    folder.mkdir()
    file = folder / "train.parquet"
    makers: dict[str, Callable[[], object]] = {
        "missing": folder.rmdir,
        "no files": lambda: None,
        "empty file": file.touch,
        "truncated": lambda: file.write_bytes(
            write_parquet(folder / "x.tmp", images, labels).read_bytes()[:-50]
        ),
        "wrong columns": lambda: pq.write_table(pa.table({"img": [1], "lab": [2]}), file),
        "no rows": lambda: write_parquet(file, [], []),
        "label out of range": lambda: write_parquet(file, images, [*labels[:-1], 3]),
        "label beyond reason": lambda: write_parquet(file, images, [10**15] * 20, classes=None),
        "no label": lambda: write_parquet(file, images, [*labels[:-1], None]),
        "bad images": lambda: write_parquet(file, [None, b"junk", *images[2:]], labels),
        "loop": lambda: (write_set(folder), (folder / "again").symlink_to(folder)),
        "dangling": lambda: (write_set(folder), (folder / "train-9.parquet").symlink_to("none")),
        "one image": lambda: write_parquet(file, images[:1], [0]),
    }
    makers[kind]()
    return folder


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("missing", "nothing found; check the path"),
        ("no files", "no Parquet file in this folder"),
        ("empty file", "the file is empty (0 bytes)"),
        ("truncated", "not a readable Parquet file"),
        ("wrong columns", "columns are img: int64, lab: int64; expected image: struct"),
        ("no rows", "no rows; an empty split cannot be used"),
        ("label out of range", "1 labels of split train are outside 0..2, the first is 3 in"),
        ("label beyond reason", f"label {10**15} is out of range without class names"),
        ("no label", "1 rows have no label; fill or remove them"),
        ("bad images", "2 null or undecodable images, the first: "),
        ("loop", "are one file (a symbolic link, or a loop of them)"),
        ("dangling", "a link to nothing"),
        ("one image", "nothing is left to train on of 1 images"),
    ],
)
def test_unusable_data(kind: str, expected: str, store: Path, tmp_path: Path) -> None:
    path = bad_data(tmp_path / "data", kind)
    message = refused(2, "run", "small/images", "--store", store, "--data", path)
    assert expected in message and str(path) in message
    assert not (store / "studies").exists() and not (store / "stages").exists()
    if kind not in ("bad images", "one image"):
        assert expected in refused(2, "data", "inspect", path)
    else:
        found = plain("data", "inspect", path)
        assert found["bad_images"] == len(found["problems"]) == (2 if kind == "bad images" else 0)


def test_data_that_nobody_has_read_is_planned_with_question_marks(
    store: Path, tmp_path: Path
) -> None:
    unknown = ("--store", store, "--data", tmp_path / "[/nothing]")
    shown = invoke("plan", "quickstart", *unknown)
    assert (
        shown.exit_code == 0 and "[/nothing]" in shown.stdout and "does not exist" in shown.stdout
    )
    assert "?" in shown.stdout and "unknown until the data is read" in shown.stdout
    stages = plain("plan", "quickstart", *unknown)["stages"]
    steps = {s["steps"] for s in stages if s["kind"] == "pretrain" and "/e0/" not in s["cell"]}
    assert steps == {None} and {s["seconds"] for s in stages if s["steps"] is None} >= {None}
    assert invoke("status", "quickstart", *unknown).exit_code == 0
    assert "has not been started yet" in refused(2, "logs", "quickstart", "pixels/s0", *unknown)


def test_importers_say_what_is_wrong_and_leave_nothing(tmp_path: Path) -> None:
    tree, file, empty = write_tree(tmp_path / "tree"), tmp_path / "file", tmp_path / "empty"
    file.write_text("x")
    empty.mkdir()
    loop = write_tree(tmp_path / "loop")
    (loop / "cat" / "again").symlink_to(loop)
    before = sorted(p.name for p in tmp_path.iterdir())
    for source, destination, expected in (
        (file, "out", "neither a folder of images nor a CIFAR archive"),
        (empty, "out", "no class folders (0 images lie directly in it)"),
        (tmp_path / "absent", "out", "nothing found"),
        (loop, "out", "a symbolic link to a folder above it; remove the loop"),
        (tree, "file", "not an empty folder; name a new one"),
        (tree, "file/deeper/out", "cannot be written (Not a directory)"),
        (tree, "/proc/no/out", "cannot be written"),
        (tree, "s3://bucket/out", "import writes to a local folder"),
    ):
        where = destination if ":" in destination else tmp_path / destination
        assert expected in refused(2, "data", "import", source, where)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def fail_with(number: int, path: str | None = None) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> Any:
        raise OSError(number, os.strerror(number), path)

    return fail


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_full_destination_of_an_import(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = write_tree(tmp_path / "tree")
    monkeypatch.setattr(pq.ParquetWriter, "write_table", fail_with(number))
    message = refused(2, "data", "import", tree, tmp_path / "deep" / "out")
    assert f"deep/out: cannot be written ({os.strerror(number)})" in message
    assert [p.name for p in tmp_path.iterdir()] == ["tree"]


def test_unreadable_sources_of_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = write_tree(tmp_path / "tree")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail_with(errno.EACCES, "tree/cat/1.png"))
        message = refused(2, "data", "import", tree, tmp_path / "out")
        assert "tree/cat/1.png: cannot be read (Permission denied)" in message
    monkeypatch.setattr(Path, "iterdir", fail_with(errno.EACCES, "tree/cat"))
    assert "tree/cat: cannot be read" in refused(2, "data", "import", tree, tmp_path / "out")
    assert os.listdir(tmp_path) == ["tree"]


def test_what_an_import_left_out_is_shown(tmp_path: Path) -> None:
    tree, out = write_tree(tmp_path / "tree", classes=("[x]", "dog")), tmp_path / "out"
    (tree / "[x]" / "[b]roken.png").write_bytes(b"junk")
    shown = invoke("data", "import", tree, out)
    assert shown.exit_code == 0
    assert "1 files cannot be decoded and were left out:" in shown.stdout
    assert "[x]/[b]roken.png: 4 bytes that are not an image" in shown.stdout
    found = plain("data", "inspect", out)
    assert found["left_out_by_import"] == 1 and "[b]roken" in found["first_left_out"][0]
    assert "[b]roken" in invoke("data", "inspect", out).stdout
    assert plain("data", "import", tree, tmp_path / "again")["left_out"] == 1


@pytest.mark.parametrize("verb", ["plan", "status", "run", "report", "mlflow"])
@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_file_in_place_of_the_store(verb: str, below: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    study = () if verb == "mlflow" else ("quickstart",)
    message = refused(8, verb, *study, "--store", file / below)
    assert str(file) in message and "--store" in message
    assert file.read_text() == "precious"


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "quickstart"),
        ("report", "quickstart"),
        ("debug", "quickstart", "N1/e0/s0", "pretrain"),
    ],
)
def test_a_store_that_cannot_be_made(arguments: tuple[str, ...]) -> None:
    assert "/proc/no/store" in refused(8, *arguments, "--store", "/proc/no/store")


def test_outputs_that_cannot_be_written(store: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    out = ("--store", store, "--out", file)
    assert f"--out {file}: cannot be written" in refused(2, "report", "quickstart", *out)
    stage = ("N1/e0/s0", "pretrain")
    assert f"--out {file}: cannot be written" in refused(2, "debug", "quickstart", *stage, *out)


def test_a_store_that_is_full_or_forbidden(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    LocalStore(store).create("stages/ab/abcd/identity.json", b"{}")
    data = write_set(tmp_path / "data", num_train=300)
    run = ("run", "small/images", "--store", store, "--data", data)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail_with(errno.ENOSPC))
        assert f"store {store} is full: free some space" in refused(8, *run)
        patch.setattr(os, "listdir", fail_with(errno.EACCES, f"{store}/stages"))
        message = refused(8, "status", "quickstart", "--store", store)
        assert f"Permission denied at {store}/stages" in message
    monkeypatch.setattr(Path, "mkdir", fail_with(errno.EROFS, f"{store}/reports"))
    assert f"{store}/reports" in refused(8, "report", "quickstart", "--store", store)
    kept = [p for p in store.rglob("*") if p.is_file()]
    assert [p.name for p in kept] == ["identity.json"], "no half-written record stays"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS])
def test_any_full_or_forbidden_place_is_named(
    number: int, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "orchestrator.report.study_report.write_report", fail_with(number, "/some/place")
    )
    message = refused(8, "report", "quickstart", "--store", store)
    assert message.splitlines()[-1].startswith("mae-study: /some/place: ")


def test_a_defect_keeps_its_traceback(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.report.study_report.write_report", fail_with(errno.EBADF))
    result = invoke("report", "quickstart", "--store", store)
    assert result.exit_code == 1 and isinstance(result.exception, OSError)


def test_foreign_texts_are_printed_as_they_are(store: Path, tmp_path: Path) -> None:
    """A message of gloo is no markup: `[/pytorch/…]` once raised an error of its own."""
    study = tmp_path / "odd.py"
    study.write_text(ODD_STUDY)
    where = (study, "--store", store)
    stage = plain("plan", *where)["stages"][0]
    records = Records(LocalStore(store))
    number = records.begin_attempt(stage["science_hash"], AttemptStart())
    message = "[/pytorch/third_party/gloo/pair.cc:525] Connection closed :x:"
    traceback = "[/bold]\n" + "x" * 300
    end = AttemptEnd(cause="rank died", message=message, traceback=traceback)
    records.end_attempt(stage["science_hash"], number, end)
    assert message in invoke("status", *where).stdout
    logs = invoke("logs", *where, stage["cell"], stage["stage"])
    assert message in logs.stdout and "x" * 300 in logs.stdout and logs.exit_code == 0
    assert "[/why] [bold] :x:?" in invoke("plan", *where, "--all").stdout


@pytest.mark.parametrize("verb", ["list", "plan", "status"])
def test_json_is_all_that_is_printed(verb: str, store: Path) -> None:
    assert plain(verb, *(() if verb == "list" else ("quickstart", "--store", store)))


def test_a_second_driver_is_refused(store: Path, tmp_path: Path) -> None:
    study = tiny_study(tmp_path)
    with hold(LocalStore(store), "tiny"):
        message = refused(5, "run", study, "--store", store)
    assert str(os.getpid()) in message and "wait for it or stop it" in message


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("http://127.0.0.1:port", "malformed"),
        ("ftp://host/runs", "use http://host:port"),
        ("http://203.0.113.5:5000", "no credentials"),
        ("sqlite:////proc/none/x.db", "cannot be used"),
    ],
)
def test_a_tracking_uri_that_no_waiting_mends(
    uri: str, expected: str, store: Path, tmp_path: Path
) -> None:
    done = mae_study("run", str(tiny_study(tmp_path)), "--store", str(store), "--tracking-uri", uri)
    said = " ".join(done.stderr.split())
    assert done.returncode == 7 and expected in said and "Traceback" not in done.stderr
    assert not list(store.glob("stages/*/*/attempts/*"))


def test_more_than_the_cluster_has(store: Path, tmp_path: Path) -> None:
    """Both at once: each starts a Ray to be told so."""
    study = tiny_study(tmp_path)
    too_many = [
        (("--slots", "64"), "64 ranks of 1 CPU and 0 GPU were asked for"),
        (("--set", "pretrain.execution.world_size=64"), "64 ranks of 1 CPU and 0 GPU"),
    ]

    def run(number: int) -> subprocess.CompletedProcess[str]:
        where = ("--store", str(store / str(number)), "--cpus", "2")
        return mae_study("run", str(study), *where, *too_many[number][0])

    with ThreadPoolExecutor() as threads:
        for number, done in enumerate(threads.map(run, range(len(too_many)))):
            assert done.returncode == 6, done.stderr
            assert too_many[number][1] in done.stderr
            assert "lower execution.world_size or --slots" in done.stderr
            assert "Traceback" not in done.stderr
    assert not list(store.glob("*/stages/*/*/attempts/*"))


@pytest.mark.parametrize("empty", [("--store", ""), ("--store=",), ("--address", "")])
def test_the_value_of_an_unset_variable_is_no_default(
    empty: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be the working directory, or an embedded Ray on the login node."""
    monkeypatch.chdir(tmp_path)
    option = empty[0].rstrip("=")
    assert f"the value of {option} is empty: a variable" in refused(2, "run", "quickstart", *empty)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("world", ["8", "two", ""])
def test_ranks_that_another_launcher_announces_are_refused(
    store: Path, world: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv("WORLD_SIZE", world)
    said = refused(2, "debug", "quickstart", "N1/e0/s0", "pretrain", "--store", store)
    assert f"WORLD_SIZE is {world!r}, and torchrun did not start this process" in said


def test_debug_prints_json_alone_and_finds_the_debugged_parent(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"WORLD_SIZE": "1", "MASTER_ADDR": "10.1.2.3", "RANK": "3"}.items():
        monkeypatch.setenv(name, value)  # a site's profile; the process is alone all the same
    stage = ("debug", str(tiny_study(tmp_path)), "N1/e0/s0")
    first = mae_study(*stage, "pretrain", "--store", str(store), "--json")
    assert first.returncode == 0, first.stderr
    encoder = Path(json.loads(first.stdout)["directory"]) / "outputs" / "encoder.safetensors"
    assert encoder.exists()
    found = mae_study(*stage, "knn", "--store", str(store), "--json")
    assert found.returncode == 0, found.stderr
    named = mae_study(
        *stage, "knn", "--store", str(tmp_path / "other"), "--json", "--encoder", str(encoder)
    )
    assert json.loads(named.stdout)["metrics"] == json.loads(found.stdout)["metrics"]


def test_debug_of_bad_data_has_no_traceback(store: Path, tmp_path: Path) -> None:
    import_any(write_tree(tmp_path / "tree", 100), tmp_path / "out")
    file = next((tmp_path / "out").glob("train*"))
    content = bytearray(file.read_bytes())
    content[1000:3000] = b"\xff" * 2000  # the same size: the sidecar still fits
    file.write_bytes(content)
    done = mae_study(
        "debug",
        "small/images",
        "w64/e0/s0",
        "pretrain",
        "--store",
        str(store),
        "--data",
        str(tmp_path / "out"),
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.splitlines()[-1].startswith("mae-study: ")


def test_a_duration_that_rounds_to_nothing_is_refused() -> None:
    sizes = {"num_images": 1000, "global_batch": 256}
    for duration in (Duration.images(100), Duration.epochs(0.1), Duration.steps(0.4)):
        with pytest.raises(ConfigError, match="less than one step"):
            duration.num_steps(**sizes)
        assert duration.num_steps(**sizes, may_be_zero=True) == 0
    assert Duration.images(0).num_steps(**sizes) == 0


def test_status_tells_what_has_changed_from_what_was_never_run(tmp_path: Path) -> None:
    study, store = fill(tmp_path, 2, 0.1)
    where = (study, "--store", store)
    assert "changed" not in invoke("status", *where).stdout
    assert plain("status", *where)["changed"] == []
    other = (*where, "--set", "knn.k=3")
    assert "4 stages have changed since they were run" in invoke("status", *other).stdout
    assert len(plain("status", *other)["changed"]) == 4
