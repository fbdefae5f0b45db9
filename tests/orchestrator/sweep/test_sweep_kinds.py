"""Several protocols, other samplers, a search per size with transfer, the winner at other seeds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.sweep_bench import CONTINUOUS, Bench, drive

from mae_core.model import sizes
from orchestrator.cli.show_plan import plan_json
from orchestrator.drive.controller import Controller
from orchestrator.plan.plan import Plan, SweepPlan, make_plan
from orchestrator.report.searches import searches
from orchestrator.store.data_facts import Datasets
from orchestrator.store.driver import LocalStore
from orchestrator.store.lease import hold
from orchestrator.store.records import Records
from orchestrator.sweep.optuna_driver import TRANSFERRED, SweepDriver, importance
from orchestrator.sweep.trials import Trials
from studies.analysis.report.sweep_text import sweep_texts
from studies.catalog import quickstart
from studies.errors import StudyError
from studies.load import study_from_plain
from studies.spec.checks import check_study
from studies.spec.codec import to_plain
from studies.spec.search import mean_ranks, pareto_front
from studies.spec.study import Study
from studies.spec.sweep import Choices, Range, Sweep, combinations

ROOT = Path(__file__).resolve().parents[3]
RATIO = "pretrain.mask_ratio"
SMALL = (
    Choices(key=RATIO, values=(0.5, 0.625, 0.75)),
    Choices(key="pretrain.decoder.depth", values=(1, 2)),
)
BOTH = ("knn", "linear_probe")


def two_protocols() -> Sweep:
    sweep = quickstart.sweep()
    stages = (
        sweep.base.stages[0],
        *quickstart.evaluations(quickstart.SWEEP_SEED, features="mean", split="dev")[:2],
    )
    return replace(sweep, base=replace(sweep.base, stages=stages), objectives=BOTH, num_trials=6)


def sized(num_trials: int = 4, **more: Any) -> Sweep:
    encoders = tuple(sizes.encoder(n) for n in ("N1", "N2"))
    return replace(
        quickstart.sweep(), sizes=encoders, num_trials=num_trials, space=CONTINUOUS, **more
    )


def test_the_identity_of_a_sweep_is_what_it_was(tmp_path: Path) -> None:
    """Fields at their default leave old sweeps where they are, and so do those of the decision."""
    bench = Bench(tmp_path)
    assert bench.trials.sweep_hash == "9fa449c51fbb4bb0af03"
    same = ({"transfer": False}, {"repeat_seeds": (7, 8)}, {"num_trials": 9})
    assert {Bench(tmp_path, **c).trials.sweep_hash for c in same} == {bench.trials.sweep_hash}
    assert Bench(tmp_path, sampler="random").trials.sweep_hash != bench.trials.sweep_hash


def test_several_protocols_are_one_search_with_a_front(tmp_path: Path) -> None:
    bench = Bench(tmp_path, **{f: getattr(two_protocols(), f) for f in ("base", "objectives")})
    driver = bench.driver()
    values = ((90.0, 50.0), (80.0, 70.0), (70.0, 60.0), (85.0, 65.0), (60.0, 90.0), (90.0, 40.0))
    for number, pair in zip(driver.ask(6), values, strict=True):
        driver.tell(number, bench.finish_all(number, pair))
    assert bench.trials.values(bench.records) == dict(enumerate(values))
    winner = bench.trials.decide(bench.trials.values(bench.records))
    assert winner.trial == 4 and winner.score == 90.0  # by linear_probe, the objective
    assert [p.trial for p in winner.front] == [0, 1, 3, 4]
    assert winner.front[0].values == {"knn": 90.0, "linear_probe": 50.0}
    bench.journal.unlink()
    again = bench.driver()
    assert again.is_finished and again.num_finished == 6
    by_rank = Trials(bench.store, replace(bench.sweep, rule="mean_rank"), {"digits": "f"})
    assert by_rank.sweep_hash == bench.trials.sweep_hash and by_rank.winner() is None
    assert by_rank.decide(by_rank.values(bench.records)).trial == 1  # 3 ranks alike
    assert bench.trials.winner() == winner


def test_the_winner_is_on_the_front_where_its_own_protocol_ties(tmp_path: Path) -> None:
    bench = Bench(tmp_path, **{f: getattr(two_protocols(), f) for f in ("base", "objectives")})
    driver = bench.driver()
    values = ((50.0, 80.0), (60.0, 80.0), (60.0, 80.0), (70.0, 70.0), (1.0, 1.0), (2.0, 2.0))
    for number, pair in zip(driver.ask(6), values, strict=True):
        driver.tell(number, bench.finish_all(number, pair))
    winner = bench.trials.decide(bench.trials.values(bench.records))
    assert winner.trial == 1 and [p.trial for p in winner.front] == [1, 2, 3]


def test_a_trial_counts_when_every_protocol_has_scored_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path, **{f: getattr(two_protocols(), f) for f in ("base", "objectives")})
    (number,) = bench.driver().ask(1)
    bench.finish(number)  # the objective alone
    assert bench.trials.values(bench.records) == {} and bench.driver().running == [number]


def test_the_front_and_the_ranks() -> None:
    values = {0: (1.0, 3.0), 1: (2.0, 2.0), 2: (1.0, 2.0), 3: (3.0, 1.0), 4: (2.0, 2.0)}
    assert pareto_front(values) == [0, 1, 3, 4]
    assert mean_ranks(values) == {0: 2.75, 1: 2.75, 2: 3.75, 3: 3.0, 4: 2.75}
    assert pareto_front({}) == [] and mean_ranks({}) == {}


@pytest.mark.parametrize("sampler", ["gp", "random"])
def test_other_samplers_reach_the_target_and_survive_a_lost_journal(
    tmp_path: Path, sampler: str
) -> None:
    bench = Bench(tmp_path, sampler=sampler, num_trials=7)
    drive(bench, bench.driver(), until=5)  # beyond the first, random ones
    before = bench.settings()
    bench.journal.unlink()
    driver = bench.driver()
    drive(bench, driver)
    assert driver.num_finished == len(bench.scores()) == 7
    assert before.items() <= bench.settings().items()
    assert len({tuple(s.values()) for s in bench.settings().values()}) == 7


def test_a_grid_tries_every_combination_once_whatever_happens(tmp_path: Path) -> None:
    bench = Bench(tmp_path, sampler="grid", space=SMALL, num_trials=6)
    driver = bench.driver()
    driver.tell(driver.ask(1)[0], None)  # 0 failed: it is tried again at the end
    drive(bench, driver, until=2)
    bench.journal.unlink()
    again = bench.driver()
    assert again.ask(99) and again.ask(99) == []  # as many as are needed, and no more
    drive(bench, again)
    finished = [tuple(bench.settings()[n].values()) for n in bench.scores()]
    assert len(finished) == len(set(finished)) == 6
    assert bench.driver().is_finished


def test_a_grid_is_tried_in_an_order_drawn_by_the_seed() -> None:
    grid = replace(quickstart.sweep(), sampler="grid")
    assert combinations(grid) == combinations(grid)
    assert combinations(grid) != combinations(replace(grid, seed=1))
    stepped = (Range(key=RATIO, low=0.5, high=0.9, step=0.1),)
    found = combinations(replace(grid, space=stepped, num_trials=5))
    assert sorted(s[RATIO] for s in found) == [0.5, 0.6, 0.7, 0.8, 0.9]


def search(part: SweepPlan, records: Records, best: float) -> dict[str, Any]:
    """Run one size to its decision; a trial's score falls with the distance from `best`."""
    driver = SweepDriver(part.trials, records, part.transferred)
    bench = Bench(records.store.root)  # type: ignore[attr-defined]
    bench.trials, bench.records = part.trials, records
    while not driver.is_finished:
        driver.ask(2)
        for number in driver.running:
            ratio = (part.trials.settings(number) or {})[RATIO]
            driver.tell(number, bench.finish(number, 90 - 100 * abs(ratio - best)))
    return part.trials.decide(part.trials.values(records))


def plan_of(study: Study, store: Path) -> tuple[Plan, Records]:
    local = LocalStore(store)
    datasets = Datasets(local)
    datasets.ensure("digits")
    return make_plan(study, Records(local), datasets), Records(local)


def sized_study(**more: Any) -> Study:
    cells = tuple(quickstart.cell(n, 40, 0) for n in ("N1", "N2"))
    return Study(name="sized", question="?", cells=cells, sweep=sized(**more))


def test_a_winner_per_size_flows_into_its_cells_and_is_tried_first_at_the_next(
    tmp_path: Path,
) -> None:
    study = sized_study(repeat_seeds=(11, 12, 13))
    plan, records = plan_of(study, tmp_path)
    assert [s.label for s in plan.sweeps] == ["N1", "N2"] and plan.num_missing_trials == 8
    assert all(c.uses_winner for c in plan.study.cells)
    first = search(plan.sweeps[0], records, best=0.6)
    plan, records = plan_of(study, tmp_path)
    assert [c.uses_winner for c in plan.study.cells] == [False, True]
    assert plan.num_missing_trials == 4 and plan.sweeps[1].transferred == first.settings
    second = search(plan.sweeps[1], records, best=0.8)
    trials = plan.sweeps[1].trials
    assert trials.settings(0) == first.settings and trials.source(0) == TRANSFERRED
    assert [trials.source(n) for n in (1, 2, 3)] == ["", "", ""]
    plan, records = plan_of(study, tmp_path)
    ratios = [c.pretrain.recipe.mask_ratio for c in plan.study.cells]  # type: ignore[union-attr]
    assert ratios == [first.settings[RATIO], second.settings[RATIO]]
    again = {s.cell.address for s in plan.work if s.cell.role == "repeat"}
    assert len(again) == 6 and f"sweep/N1/t{first.trial:03d}/s11" in again
    seeds = {s.stage.recipe.seed for s in plan.work if s.cell.address.endswith("/s11")}
    assert seeds == {11}
    text = " ".join(sweep_texts(searches(plan, records)))
    assert "N2: the setting that won at the size before is number" in text
    shown = plan_json(plan)
    assert shown["sweep"] is None and [s["size"] for s in shown["sweeps"]] == ["N1", "N2"]


def test_a_kill_between_two_sizes_transfers_once(tmp_path: Path) -> None:
    study = sized_study()
    plan, records = plan_of(study, tmp_path)
    first = search(plan.sweeps[0], records, best=0.6)
    for _ in range(3):  # three drivers, two of them killed after they asked
        plan, records = plan_of(study, tmp_path)
        part = plan.sweeps[1]
        SweepDriver(part.trials, records, part.transferred).ask(2)
    trials = plan.sweeps[1].trials
    moved = [n for n in trials.numbers() if trials.settings(n) == first.settings]
    assert moved == [0] and trials.numbers() == [0, 1]
    alone, _ = plan_of(replace(study, sweep=sized(transfer=False)), tmp_path)
    assert alone.sweeps[1].transferred is None


class NoSlots:
    """A cluster that starts nothing."""

    num_slots, num_ready, idle = 2, 2, ()

    def wait(self, gangs: Any, timeout_s: float) -> None:
        """Nothing to wait for."""


def test_the_controller_decides_one_size_after_the_other(tmp_path: Path) -> None:
    """All trials are done and no decision was made: killed twice at the worst moment."""
    study = replace(sized_study(), cells=())
    plan, records = plan_of(study, tmp_path)
    for part in plan.sweeps:
        drive_only(part, records)
    local = LocalStore(tmp_path)
    datasets = Datasets(local)
    with hold(local, study.name) as lease:
        controller = Controller(
            plan,
            records=records,
            datasets=datasets,
            pool=NoSlots(),  # type: ignore[arg-type]
            lease=lease,
            observers=(),
            replan=lambda: make_plan(study, records, datasets),
        )
        assert controller.run()
    assert controller.sweep_problem is None
    plan, _ = plan_of(study, tmp_path)
    assert all(part.winner is not None for part in plan.sweeps) and not plan.has_work


def drive_only(part: SweepPlan, records: Records) -> None:
    bench = Bench(records.store.root)  # type: ignore[attr-defined]
    bench.trials, bench.records = part.trials, records
    drive(bench, SweepDriver(part.trials, records))


def test_importance_names_the_setting_that_matters(tmp_path: Path) -> None:
    bench = Bench(tmp_path, sampler="random", num_trials=20)
    drive(bench, bench.driver())  # the score is the mask ratio
    found = importance(bench.trials, bench.trials.values(bench.records))
    assert next(iter(found)) == RATIO and found[RATIO] > 0.7
    assert sum(found.values()) == pytest.approx(1.0)
    few = dict(list(bench.trials.values(bench.records).items())[:5])
    assert importance(bench.trials, few) == {}


BAD: list[tuple[dict[str, Any], str]] = [
    ({"objectives": ("linear_probe",)}, "two protocols or more"),
    ({"objectives": ("knn", "knn2")}, "is none of knn, knn2"),
    ({"objectives": ("linear_probe", "pretrain")}, "name an evaluation"),
    ({"rule": "mean_rank"}, "name `objectives`"),
    ({"sampler": "grid", "num_trials": 17}, "16 possible combinations has no 17 trials"),
    ({"sampler": "grid", "space": CONTINUOUS}, "a grid needs a step"),
    ({"sizes": (sizes.encoder("N1"), sizes.encoder("N1"))}, "each size once"),
    ({"repeat_seeds": (1, 1)}, "use each once"),
    ({"repeat_seeds": (quickstart.SWEEP_SEED,)}, "none of the trials' own"),
    ({"sizes": (replace(sizes.encoder("N1"), patch_size=3),)}, "cannot have the size N1"),
]


@pytest.mark.parametrize(("changes", "expected"), BAD, ids=[e for _, e in BAD])
def test_what_cannot_be_meant_is_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(StudyError, match=expected):
        replace(quickstart.sweep(), **changes)


def test_a_cell_of_a_size_that_is_not_searched_has_no_winner() -> None:
    with pytest.raises(StudyError, match="has the encoder N3; the sweep searches N1, N2"):
        Study(name="s", question="?", cells=(quickstart.cell("N3", 40, 0),), sweep=sized())


def test_a_study_with_every_field_survives_the_store() -> None:
    study = replace(sized_study(), sweep=sized(sampler="gp", repeat_seeds=(7,), transfer=False))
    assert study_from_plain(to_plain(study)) == study


def test_the_example_of_the_document_is_a_study_without_objections() -> None:
    blocks = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8").split("```")
    names: dict[str, Any] = {}
    exec(next(b for b in blocks if b.startswith("python")).removeprefix("python"), names)
    study = names["study"]()
    assert len(study.sweep.sizes) == 3 and study.sweep.protocols == ("knn", "linear_probe")
    assert not {"sweep-seed", "sweep-budget"} & {f.code for f in check_study(study)}


def test_a_journal_with_a_trial_that_was_never_asked_for_is_rebuilt(tmp_path: Path) -> None:
    """Killed between queueing a transferred setting and asking for it."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    bench = Bench(tmp_path)
    drive(bench, bench.driver(), until=2)
    before = bench.settings()
    storage = JournalStorage(JournalFileBackend(str(bench.journal)))
    study = optuna.load_study(study_name=bench.trials.sweep_hash, storage=storage)
    study.enqueue_trial({RATIO: 0.55})
    driver = bench.driver()
    drive(bench, driver)
    assert driver.num_finished == len(bench.scores()) == len(bench.settings()) == 6
    assert before.items() <= bench.settings().items()
    assert 0.55 not in [s[RATIO] for s in bench.settings().values()]


def test_checks_know_what_a_sweep_may_hide() -> None:
    quick = quickstart.study()
    codes = {f.code: f for f in check_study(quick)}
    assert codes["sweep-budget"].level == "note" and "N1, N2, N4" in codes["sweep-budget"].message
    assert "sweep-seed" not in codes
    shared = replace(quick, cells=(*quick.cells, quickstart.cell("N1", 40, quickstart.SWEEP_SEED)))
    assert {f.code: f for f in check_study(shared)}["sweep-seed"].level == "warning"
    uneven = (
        quickstart.cell("N1", 40, 0),
        replace(quickstart.cell("N3", 40, 0), uses_winner=False),
    )
    found = {f.code: f for f in check_study(replace(quick, cells=uneven, sweep=sized()))}
    assert found["sweep-budget"].level == "warning"
    assert "sweep-budget" not in {f.code for f in check_study(sized_study())}
