"""The sweep survives its driver and its journal, ends, and refuses what cannot be meant."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.sweep_bench import Bench, drive

from mae_core.errors import ConfigError
from orchestrator.drive.controller import Controller
from orchestrator.errors import StudyBusy
from orchestrator.plan.plan import Plan, make_plan
from orchestrator.store.data_facts import Datasets
from orchestrator.store.lease import hold
from orchestrator.sweep.trials import Trials, apply_winner
from studies.catalog import quickstart
from studies.errors import StudyError
from studies.load import study_from_plain
from studies.spec.cell import map_cell
from studies.spec.codec import to_plain
from studies.spec.identity import identify
from studies.spec.study import Study, override_study
from studies.spec.sweep import Choices, Range


@pytest.mark.parametrize("parallel", [1, 4, 50])
def test_the_target_is_reached_exactly(tmp_path: Path, parallel: int) -> None:
    bench = Bench(tmp_path)
    driver = bench.driver()
    drive(bench, driver, parallel=parallel)
    assert len(bench.scores()) == driver.num_finished == 6
    assert driver.running == [] and driver.problem is None
    assert driver.ask(parallel) == []
    again = bench.driver()
    assert again.is_finished and again.ask(parallel) == []


def test_failed_trials_are_made_up_for(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    driver = bench.driver()
    driver.tell(driver.ask(1)[0], None)
    drive(bench, driver)
    assert bench.trials.numbers() == list(range(7)) and sorted(bench.scores()) == list(range(1, 7))


def test_parallel_trials_differ(tmp_path: Path) -> None:
    bench = Bench(tmp_path, num_trials=20)
    driver = bench.driver()
    drive(bench, driver, until=10)
    driver.ask(8)
    drawn = [tuple(s.values()) for s in bench.settings().values()]
    assert len(set(drawn)) == len(drawn) >= 18


def test_a_new_driver_does_not_draw_the_same_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    first = bench.driver().ask(2)
    second = bench.driver().ask(4)
    assert first == [0, 1] and second == [2, 3]
    assert len({s["pretrain.mask_ratio"] for s in bench.settings().values()}) == 4


def test_killed_between_ask_and_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path)
    driver = bench.driver()
    drive(bench, driver, until=2)

    def killed(*_: object) -> bool:
        raise KeyboardInterrupt

    before = bench.settings()
    with monkeypatch.context() as patch:
        patch.setattr(bench.trials, "record", killed)
        with pytest.raises(KeyboardInterrupt):
            driver.ask(9)
    assert bench.settings() == before
    again = bench.driver()
    assert again.num_finished == 2 and not set(again.running) - set(before)
    drive(bench, again)
    assert len(bench.scores()) == 6 and before.items() <= bench.settings().items()


@pytest.mark.parametrize("is_done", [False, True])
def test_killed_between_record_and_tell(tmp_path: Path, is_done: bool) -> None:
    bench = Bench(tmp_path)
    numbers = bench.driver().ask(3)
    if is_done:
        for number in numbers:
            bench.finish(number)
    before = bench.settings()
    driver = bench.driver()
    assert driver.num_finished == (3 if is_done else 0)
    assert driver.running == ([] if is_done else numbers)
    drive(bench, driver)
    assert len(bench.settings()) == len(bench.scores()) == 6
    assert before.items() <= bench.settings().items()


def lose(bench: Bench) -> None:
    bench.journal.unlink()


def cut_in_a_line(bench: Bench) -> None:
    content = bench.journal.read_bytes()
    bench.journal.write_bytes(content[: len(content) * 2 // 3].rstrip(b"\n")[:-3])


def cut_after_a_line(bench: Bench) -> None:
    lines = bench.journal.read_bytes().splitlines(keepends=True)
    bench.journal.write_bytes(b"".join(lines[: len(lines) // 2]))


def keep_only_the_study(bench: Bench) -> None:
    lines = bench.journal.read_bytes().splitlines(keepends=True)
    bench.journal.write_bytes(b"".join(line for line in lines if b'"op_code":0' in line))


def empty(bench: Bench) -> None:
    bench.journal.write_bytes(b"")


def garble(bench: Bench) -> None:
    bench.journal.write_bytes(b"\x00\xff not json\n" * 3)


def garble_the_middle(bench: Bench) -> None:
    lines = bench.journal.read_bytes().splitlines(keepends=True)
    lines[len(lines) // 2] = b'{"op_code": "?"}\n'
    bench.journal.write_bytes(b"".join(lines))


def take_anothers(bench: Bench) -> None:
    """A journal whose trials have other settings under the same numbers."""
    other = Bench(bench.store.root / "other", seed=99)
    drive(other, other.driver(), until=4)
    text = other.journal.read_text().replace(other.trials.sweep_hash, bench.trials.sweep_hash)
    bench.journal.write_text(text)


@pytest.mark.parametrize(
    "damage",
    [
        lose,
        cut_in_a_line,
        cut_after_a_line,
        keep_only_the_study,
        empty,
        garble,
        garble_the_middle,
        take_anothers,
    ],
)
def test_a_damaged_journal_is_rebuilt(tmp_path: Path, damage: Callable[[Bench], None]) -> None:
    bench = Bench(tmp_path)
    driver = bench.driver()
    driver.tell(driver.ask(1)[0], None)  # 0 failed
    drive(bench, driver, until=3)
    bench.store.delete(f"{bench.trials.prefix}/trials/000002.json")  # a hole
    running = driver.ask(2)
    settings, scores = bench.settings(), bench.scores()
    damage(bench)
    again = bench.driver()
    assert again.num_finished == len(scores)
    assert set(running) <= set(again.running)
    assert optuna_trials(bench, known=settings) == settings
    (number,) = again.ask(len(again.running) + 1) or (max(settings) + 1,)
    assert number == max(settings) + 1
    drive(bench, again)
    assert again.num_finished == len(bench.scores()) == 6
    assert settings.items() <= bench.settings().items()
    for number, score in scores.items():
        assert bench.scores()[number] == score


def optuna_trials(bench: Bench, known: dict[int, Any]) -> dict[int, Any]:
    """What `optuna-dashboard` would read."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage = JournalStorage(JournalFileBackend(str(bench.journal)))
    study = optuna.load_study(study_name=bench.trials.sweep_hash, storage=storage)
    return {t.number: t.params for t in study.get_trials(deepcopy=False) if t.number in known}


def test_a_score_that_optuna_never_heard_counts(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    driver = bench.driver()
    (number,) = driver.ask(1)
    driver.tell(number, None)
    bench.finish(number)  # by another study, later
    assert bench.driver().num_finished == 1


def test_a_taken_number_is_noticed(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    driver = bench.driver()
    bench.trials.record(0, {"pretrain.mask_ratio": 0.5})
    with pytest.raises(StudyBusy, match="recorded by another driver"):
        driver.ask(1)


def test_a_sweep_that_only_fails_ends_and_may_try_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path, num_trials=3)
    for run in (1, 2):
        driver = bench.driver()
        while not driver.is_finished:
            assert driver.problem is None
            for number in driver.ask(1):
                driver.tell(number, None)
        assert len(bench.trials.numbers()) == 3 * run
        assert "sweep reached 0 of 3 trials" in str(driver.problem)
    drive(bench, bench.driver())
    assert len(bench.scores()) == 3


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_trial_without_its_metric_has_no_score(tmp_path: Path, value: float | None) -> None:
    bench = Bench(tmp_path, metric="top5")
    (number,) = bench.driver().ask(1)
    bench.finish(number, top5=value)
    assert bench.scores() == {} and bench.driver().running == [number]


def test_settings_impossible_together_are_skipped(tmp_path: Path) -> None:
    space = (
        Choices(key="pretrain.decoder.num_heads", values=(2, 4)),
        Choices(key="pretrain.decoder.width", values=(20, 24, 32, 36)),
        Choices(key="pretrain.encoder.num_heads", values=(2, 8)),
        Choices(key="pretrain.encoder.width", values=(12, 32)),
    )
    bench = Bench(tmp_path, space=space)
    impossible = {a.key: a.values[i] for a, i in zip(space, (0, 0, 1, 0), strict=True)}
    possible = {a.key: a.values[1] for a in space}
    bench.trials.record(0, impossible)
    bench.trials.record(1, possible)
    with pytest.raises(ConfigError):
        bench.trials.cell(0, impossible)
    assert list(bench.trials.cells()) == [1] and bench.scores() == {}
    driver = bench.driver()
    assert driver.running == [0, 1]
    driver.tell(0, None)
    assert bench.driver().running == [1]


def test_the_winner_is_the_earliest_of_the_best(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    driver = bench.driver()
    for number, top1 in zip(driver.ask(6), (1.0, 3.0, 2.0, 3.0, 3.0, 0.0), strict=True):
        bench.finish(number, top1)
    winner = bench.trials.decide(bench.scores())
    assert winner.trial == 1 and winner.settings == bench.trials.settings(1)
    assert bench.trials.decide({0: 100.0}) == winner == bench.trials.winner()


def test_more_trials_continue_the_sweep_and_decide_again(tmp_path: Path) -> None:
    small = Bench(tmp_path, num_trials=3)
    drive(small, small.driver())
    first = small.trials.decide(small.scores())
    large = small.wanting(6)
    assert large.trials.sweep_hash == small.trials.sweep_hash and large.trials.winner() is None
    driver = large.driver()
    assert driver.num_finished == 3
    drive(large, driver)
    assert large.trials.numbers() == list(range(6))
    second = large.trials.decide(large.scores())
    assert second.num_trials == 6 and second.score >= first.score
    assert small.trials.winner() == first


def test_fewer_trials_end_at_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    driver = bench.driver()
    drive(bench, driver, until=3)
    driver.ask(3)
    fewer = bench.wanting(3).driver()
    assert fewer.is_finished and fewer.running == [] and fewer.problem is None


class NoSlots:
    """A cluster that starts nothing."""

    num_slots, idle = 2, ()


def control(bench: Bench, study: Study) -> Controller:
    """Run the controller on a study that needs no slot."""
    datasets = Datasets(bench.store)

    def plan() -> Plan:
        return make_plan(study, bench.records, datasets)

    with hold(bench.store, study.name) as lease:
        controller = Controller(
            plan(),
            records=bench.records,
            datasets=datasets,
            pool=NoSlots(),  # type: ignore[arg-type]
            lease=lease,
            observers=(),
            replan=plan,
        )
        controller.run()
    return controller


def sweep_only(bench: Bench) -> Study:
    return Study(name="only", question="?", cells=(), sweep=bench.sweep)


def test_killed_between_the_last_tell_and_the_decision(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    fingerprint = Datasets(bench.store).ensure("digits").fingerprint
    bench.trials = Trials(bench.store, bench.sweep, {"digits": fingerprint})
    drive(bench, bench.driver())
    assert bench.trials.winner() is None
    controller = control(bench, sweep_only(bench))
    best = max(bench.scores().items(), key=lambda item: item[1])
    assert bench.trials.winner().trial == best[0]  # type: ignore[union-attr]
    assert controller.sweep_problem is None


def test_a_sweep_of_impossible_trials_ends_as_a_problem(tmp_path: Path) -> None:
    space = (
        Choices(key="pretrain.decoder.num_heads", values=(8,)),
        Choices(key="pretrain.decoder.width", values=(36,)),
    )
    bench = Bench(tmp_path, space=space, num_trials=2)
    Datasets(bench.store).ensure("digits")
    controller = control(bench, sweep_only(bench))
    assert "reached 0 of 2 trials" in str(controller.sweep_problem)
    assert controller.tasks == {}


AXES = [
    (Choices(key="pretrian.mask_ratio", values=(0.5,)), "did you mean 'pretrain.mask_ratio'"),
    (Choices(key="pretrain.mask_ration", values=(0.5,)), "did you mean 'mask_ratio'"),
    (Choices(key="pretrain.decoder.dept", values=(1,)), "did you mean 'depth'"),
    (Choices(key="pretrain", values=(1,)), "names no setting"),
    (Choices(key="pretrain.mask_ratio", values=(0.5, 0.97)), "'pretrain.mask_ratio' = 0.97"),
    (Choices(key="pretrain.mask_ratio", values=("high",)), "'pretrain.mask_ratio' = 'high'"),
    (Choices(key="pretrain.decoder.width", values=(32, 33)), "not divisible by its 2 heads"),
    (Range(key="pretrain.mask_ratio", low=0.5, high=0.99), "'pretrain.mask_ratio' = 0.99"),
    (Range(key="pretrain.decoder.width", low=16, high=64, step=3), "'pretrain.decoder.width' = 19"),
    (Range(key="pretrain.decoder.depth", low=1, high=8), "expected int"),
    (Choices(key="execution.world_size", values=(1, 2)), "does not change what 'linear_probe'"),
    (Choices(key="linear_probe.eval_split", values=("dev", "test")), "nothing is chosen on the"),
]


@pytest.mark.parametrize(("axis", "expected"), AXES)
def test_a_bad_axis_is_refused_at_once(axis: Choices | Range, expected: str) -> None:
    with pytest.raises(StudyError) as caught:
        replace(quickstart.sweep(), space=(axis,))
    assert expected in str(caught.value)
    assert "sweep axis" in str(caught.value) or "nothing is chosen" in str(caught.value)


def test_a_sweep_that_cannot_be_meant_is_refused() -> None:
    sweep = quickstart.sweep()
    for changes, expected in (
        ({"metric": "loss"}, "unknown metric 'loss'"),
        ({"metric": "top_1"}, "did you mean 'top1'"),
        ({"space": (sweep.space[0], sweep.space[0])}, "one axis per key"),
    ):
        with pytest.raises(StudyError, match=expected):
            replace(sweep, **changes)
    for wrong in ({"low": 0.0, "log": True}, {"step": 0.0}, {"step": 9.0}, {"low": 2.0}):
        with pytest.raises(StudyError, match="'k'"):
            Range(**({"key": "k", "low": 0.1, "high": 1.0} | wrong))
    with pytest.raises(StudyError, match="twice"):
        Choices(key="k", values=(1, 1))


def test_a_value_that_a_grid_cell_cannot_use_is_refused() -> None:
    study = quickstart.study()
    with pytest.raises(StudyError, match=r"'pretrain.mask_ratio' = 0.875 in cell N1/e0/s0"):
        data = replace(study.cells[3].stages[0].recipe.data, image_size=4)
        cell = map_cell(
            study.cells[3], lambda stage: replace(stage, recipe=replace(stage.recipe, data=data))
        )
        replace(study, cells=(cell,))


def test_settings_of_the_command_line_are_checked_with_the_axes() -> None:
    with pytest.raises(StudyError, match="'pretrain.decoder.width' = 16"):
        override_study(
            quickstart.study(),
            {"pretrain.decoder.num_heads": 32, "pretrain.decoder.width": 32},
        )


def test_the_winner_flows_into_the_grid() -> None:
    study: Study = quickstart.study()
    applied = apply_winner(study, {"pretrain.mask_ratio": 0.5, "pretrain.decoder.width": 16})
    for cell in applied.cells:
        assert not cell.uses_winner
        assert cell.pretrain is None or cell.pretrain.recipe.mask_ratio == 0.5  # type: ignore[union-attr]
    with pytest.raises(StudyError, match="cell N1/e0/s0 cannot use the sweep's winner"):
        apply_winner(study, {"pretrain.mask_ratio": 0.99})


def test_checks_are_cheap_and_survive_the_store() -> None:
    plain = to_plain(quickstart.study())
    began = time.perf_counter()
    study = study_from_plain(plain)
    assert time.perf_counter() - began < 2
    assert study == quickstart.study()
    assert study.sweep is not None and identify(study.sweep.base, {})
