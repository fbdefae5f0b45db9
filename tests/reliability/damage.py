"""Damage records and files of a store at random, many times: do `verify` and every use find it?"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from figures import Section, arguments
from support.store_damage import BYTES
from support.whole_store import encoder_key, kept_keys, whole_store

from orchestrator.errors import DamagedRecord
from orchestrator.plan.plan import make_plan
from orchestrator.plan.rows import make_rows
from orchestrator.report.compare_sides import compare, read_sides
from orchestrator.report.goodput import study_goodput
from orchestrator.store.data_facts import Datasets
from orchestrator.store.driver import SEAL, LocalStore
from orchestrator.store.generations import generations
from orchestrator.store.records import Records
from orchestrator.tracking.registered_models import register
from orchestrator.verify.compare import verify
from orchestrator.weights.export import find_file
from studies.load import load_study
from studies.result_row import ResultRow

SIDES = ("/attempts/", "/ends/", "/decisions/", "/superseded/")


@dataclass(frozen=True)
class Target:
    """Records or files of one sort, and what reads them."""

    name: str
    keys: list[str]
    use: Callable[[Path, Records, str], bool]
    """Read it as a command does; True if it was refused or passed over with a note."""


def main() -> int:
    """Damage each sort `--count` times; the store is made whole again in between."""
    options = arguments(__doc__, count=100)
    section = Section("damage", "Damaged records and files of a store", options.seed)
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        records = whole_store(folder)
        before = results(folder, records)
        for target in targets(records):
            measure(section, folder, target, before, draw, options.count)
        sound(section, folder)
        throughput(section, folder)
    return section.finish(options.json)


def targets(records: Records) -> list[Target]:
    """What a store holds, by what reads it."""
    keys = kept_keys(records)
    of_two = {f"stages/{h[:2]}/{h}" for h in stages_of_two(records)}
    mine = [k for k in keys if "/".join(k.split("/")[:3]) in of_two]
    done = [k for k in mine if k.endswith("/done.json")]
    shown = [k for k in mine if k.endswith(".parquet") and is_present(records, k)]
    sides = [k for k in mine if any(s in k for s in SIDES) and k.endswith(".json")]
    sides += [k for k in keys if k.startswith("studies/two/resolved/")]
    return [
        Target("completion record", done, uses_rows),
        Target("predictions", shown, uses_predictions),
        Target("side record (attempt, end, decision, archived result, state)", sides, uses_history),
        Target("registered encoder", [encoder_key(records)], registers),
        Target("adopted encoder", [k for k in keys if k.startswith("adopted/")], exports),
    ]


def stages_of_two(records: Records) -> set[str]:
    """Science hashes of the study that has results of images."""
    found = records.known_stages()
    return {h for h in found if (done := records.done(h)) and "predictions.parquet" in done.outputs}


def is_present(records: Records, key: str) -> bool:
    """Tell whether a file is of a stage's present result, not of an archived one."""
    done = records.done(key.split("/")[2])
    return done is not None and f"{done.attempt:06d}" == key.split("/")[4]


def measure(
    section: Section,
    folder: Path,
    target: Target,
    before: list[ResultRow],
    draw: random.Random,
    count: int,
) -> None:
    """Damage, verify, use, and make whole again."""
    kinds: Counter[str] = Counter()
    found = used = intact = 0
    while sum(kinds.values()) < count:
        key = draw.choice(target.keys)
        path, kind = folder / "store" / key, draw.choice([*BYTES, "edited", "exchanged"])
        whole = path.read_bytes()
        damaged = damage(kind, whole, path, draw)
        if damaged is None or damaged == whole:
            continue
        path.write_bytes(damaged)
        kinds[kind] += 1
        found += key in {d.key for d in verify(quiet(folder)).damages}
        records = quiet(folder)
        used += target.use(folder, records, key)
        if target.use is uses_history:
            intact += results(folder, quiet(folder)) == before
        path.write_bytes(whole)
    num = sum(kinds.values())
    shown = ", ".join(f"{n} {k}" for k, n in sorted(kinds.items()))
    section.figure(f"{target.name}: damages", f"{num}: {shown}")
    section.figure(f"{target.name}: found by verify", f"{found} of {num}", "all", found == num)
    passed = "passed over with a note" if target.use is uses_history else "refused before use"
    section.figure(f"{target.name}: {passed}", f"{used} of {num}", "all", used == num)
    if target.use is uses_history:
        section.figure(
            f"{target.name}: all results as before", f"{intact} of {num}", "all", intact == num
        )


def damage(kind: str, whole: bytes, path: Path, draw: random.Random) -> bytes | None:
    """Content after the damage; None where there is no such damage."""
    if kind in BYTES:
        return BYTES[kind](whole, draw)
    if path.suffix != ".json":
        return None
    if kind == "edited":  # a number or text of it, as with an editor
        plain = json.loads(whole)
        name = draw.choice([key for key in plain if key != SEAL])
        old = plain[name]
        plain[name] = old + 1 if type(old) in (int, float) else {"top1": 99.9}
        return json.dumps(plain, sort_keys=True, indent=1).encode()
    others = [p for p in path.parent.parent.parent.glob(f"*/*/{path.name}") if p != path]
    return draw.choice(others).read_bytes() if others else None


def quiet(folder: Path) -> Records:
    """The store, opened anew."""
    return Records(LocalStore(folder / "store"), lambda text: None)


def results(folder: Path, records: Records) -> list[ResultRow]:
    """Rows of the report of the study `two`."""
    study = load_study(str(folder / "two.py"))
    return make_rows(make_plan(study, records, Datasets(records.store)), records)


def uses_rows(folder: Path, records: Records, key: str) -> bool:
    """As `report`, `plan`, `status` and `run` do."""
    return is_refused(lambda: results(folder, records))


def uses_predictions(folder: Path, records: Records, key: str) -> bool:
    """As `compare` does."""

    def read() -> None:
        study = load_study(str(folder / "two.py"))
        plan = make_plan(study, records, Datasets(records.store))
        # One seed: the interval is over images then, which are read.
        sides = read_sides([":a/s0", ":b/s0"], records, lambda name: plan)
        others = read_sides([":a/s1", ":b/s1"], records, lambda name: plan)
        compare(*sides, records)
        compare(*others, records)

    return is_refused(read)


def uses_history(folder: Path, records: Records, key: str) -> bool:
    """As `status`, `logs` and tracking do."""
    study = load_study(str(folder / "two.py"))
    plan = make_plan(study, records, Datasets(records.store))
    for planned in plan.stages:
        generations(records, planned.identity.science_hash)
    study_goodput(plan, records)
    return key in records.passed_over


def registers(folder: Path, records: Records, key: str) -> bool:
    """As `mlflow register` and `mlflow rebuild` do."""
    cell = next(c.address for c in load_study("quickstart").cells if c.pretrain)
    return is_refused(lambda: register(records, f"quickstart/{cell}"))


def exports(folder: Path, records: Records, key: str) -> bool:
    """As `export` and `run` do with the encoder, its decoder and its record."""
    return is_refused(lambda: find_file("mae_t", records))


def is_refused(read: Callable[[], object]) -> bool:
    """True if what was damaged was found; another error would be a defect."""
    try:
        read()
    except DamagedRecord:
        return True
    return False


def sound(section: Section, folder: Path) -> None:
    """False alarms: a whole store, verified again and again."""
    alarms = sum(bool(verify(quiet(folder)).damages) for _ in range(100))
    section.figure("false alarms in 100 verifications of a whole store", alarms, "0", alarms == 0)


def throughput(section: Section, folder: Path) -> None:
    """Time for records; files go at the speed of SHA-256."""
    began = time.perf_counter()
    found = verify(quiet(folder))
    took = time.perf_counter() - began
    section.figure("time per record and small file", f"{1e3 * took / found.num_records:.2f} ms")


if __name__ == "__main__":
    sys.exit(main())
