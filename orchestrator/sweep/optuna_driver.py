"""The one file that knows Optuna: ask for settings, tell scores, survive being killed.

A trial is an ordinary cell; its truth is in the store (`trials.py`). Optuna's journal beside it
is what the sampler and `optuna-dashboard` read. Whatever it lacks is filled in from the store, and
a journal that says something else than the store is thrown away.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.errors import StudyBusy
from orchestrator.store.records import Records
from orchestrator.sweep.trials import Trials, Values
from studies.spec.sweep import Choices, SearchAxis, Settings, Sweep, combinations

JOURNAL = "optuna-journal.log"
TRANSFERRED = "transferred"
"""Source of a trial whose settings won at the size before."""
MIN_FOR_IMPORTANCE = 8
"""Finished trials from which on a share of the variance is more than an accident."""


class SweepDriver:
    """Optuna's side of a sweep: at most one driver at a time asks for trials and reports scores.

    A driver gives up after as many failed trials as the sweep wants finished ones; the next
    command has a driver of its own and may fail as often again.

    Args:
        transferred: settings to try first, if no trial has had them.
    """

    def __init__(
        self, trials: Trials, records: Records, transferred: Settings | None = None
    ) -> None:
        self._optuna = optuna = _quiet_optuna()
        self._trials, self._transferred = trials, transferred
        self._states = optuna.trial.TrialState
        self.sweep: Sweep = trials.sweep
        self._space = {axis.key: _distribution(axis) for axis in self.sweep.space}
        self._running: set[int] = set()
        self._num_failed = 0
        known = {n: s for n in trials.numbers() if (s := trials.settings(n)) is not None}
        self._asked = dict(known)
        self._grid = combinations(self.sweep) if self.sweep.sampler == "grid" else ()
        scores = trials.values(records)
        path = trials.path(JOURNAL)
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_stale_lock(path)
        if not self._open_existing(path, known, scores):
            path.unlink(missing_ok=True)
            self._study = self._open(path)
        self._catch_up(known, scores)
        self._drop_superfluous()

    @property
    def num_finished(self) -> int:
        """Trials with a score."""
        return sum(t.state is self._states.COMPLETE for t in self._all())

    @property
    def is_finished(self) -> bool:
        """True once the wanted number of trials has a score, or too many of them failed."""
        return self.num_finished >= self.sweep.num_trials or (
            not self._running and self._has_given_up
        )

    @property
    def problem(self) -> str | None:
        """Why there will be no winner, None if there may be one."""
        if not self.is_finished or self.num_finished >= self.sweep.num_trials:
            return None
        return (
            f"sweep reached {self.num_finished} of {self.sweep.num_trials} trials: "
            f"{self._num_failed} failed in this run; the same command tries others"
        )

    @property
    def running(self) -> list[int]:
        """Trials that were asked for and have no score yet."""
        return sorted(self._running)

    def ask(self, num_parallel: int) -> list[int]:
        """Ask for trials until `num_parallel` run or no more are needed; return the new ones.

        Raises `StudyBusy` if another driver asks for trials of the same sweep.
        """
        asked = []
        while (
            len(self._running) < num_parallel
            and self.num_finished + len(self._running) < self.sweep.num_trials
            and not self._has_given_up
        ):
            due, source = self._due()
            if due is None and self._grid:  # the last of them are running
                break
            if due is not None:
                self._study.enqueue_trial(due)
            trial = self._study.ask(fixed_distributions=self._space)
            if not self._trials.record(trial.number, dict(trial.params), source):
                raise StudyBusy(
                    f"trial {trial.number} of the sweep was recorded by another driver: a study "
                    "with the same sweep is running; wait for it, then run the same command"
                )
            self._asked[trial.number] = dict(trial.params)
            self._running.add(trial.number)
            asked.append(trial.number)
        return asked

    def tell(self, number: int, score: float | Values | None) -> None:
        """Report a score, or one per protocol; None for a trial that failed."""
        if score is None:
            self._fail(number)
            self._num_failed += 1
        else:
            values = list(score) if isinstance(score, tuple) else [score]
            self._study.tell(number, values, skip_if_finished=True)
            self._running.discard(number)

    @property
    def _has_given_up(self) -> bool:
        return self._num_failed >= self.sweep.num_trials

    def _all(self) -> list[Any]:
        """Optuna's trials, by number."""
        return self._study.get_trials(deepcopy=False)  # type: ignore[no-any-return]

    def _fail(self, number: int) -> None:
        self._study.tell(number, state=self._states.FAIL, skip_if_finished=True)
        self._running.discard(number)

    def _due(self) -> tuple[Settings | None, str]:
        """Settings that come next whatever the sampler says, and their source."""
        if self._transferred is not None and self._transferred not in self._asked.values():
            return dict(self._transferred), TRANSFERRED
        return (self._next_of_grid() if self._grid else None), ""

    def _next_of_grid(self) -> Settings | None:
        """The combination that was tried least often, if it has no score and does not run."""
        failed = {t.number for t in self._all() if t.state is self._states.FAIL}
        open_ = [s for n, s in self._asked.items() if n not in failed]
        tried = [self._asked[n] for n in failed if n in self._asked]
        free = [settings for settings in self._grid if settings not in open_]
        return min(free, key=tried.count, default=None)

    def _sampler(self) -> Any:
        # Another seed for another driver: the same one would draw the same trials again.
        seed = self.sweep.seed + len(self._trials.numbers())
        first = max(4, self.sweep.num_trials // 3)
        kinds = self._optuna.samplers
        if self.sweep.sampler == "tpe":
            # Trials that run in parallel are taken for bad, so that workers spread out.
            return kinds.TPESampler(seed=seed, constant_liar=True, n_startup_trials=first)
        if self.sweep.sampler == "gp":
            return kinds.GPSampler(seed=seed, n_startup_trials=first)
        return kinds.RandomSampler(seed=seed)

    def _open(self, path: Path) -> Any:
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        return self._optuna.create_study(
            study_name=self._trials.sweep_hash,
            storage=JournalStorage(JournalFileBackend(str(path))),
            directions=["maximize"] * len(self.sweep.protocols),
            sampler=self._sampler(),
            load_if_exists=True,
        )

    def _open_existing(
        self, path: Path, known: dict[int, Settings], scores: dict[int, Values]
    ) -> bool:
        """Open the journal; False if there is none, it is damaged or it contradicts the store."""
        # Optuna appends to half a line without noticing, which spoils the next one as well.
        if not path.exists() or not path.read_bytes().endswith(b"\n"):
            return False
        try:
            self._study = self._open(path)
            return all(self._agrees(t, known.get(t.number), scores) for t in self._all())
        except Exception:  # whatever is wrong with it: nothing is lost with the journal
            logging.getLogger(__name__).warning("%s is damaged: rebuilding it", path)
            return False

    def _agrees(self, trial: Any, settings: Settings | None, scores: dict[int, Values]) -> bool:
        """Whether Optuna's trial is the store's, or one that was never recorded."""
        score = scores.get(trial.number)
        if trial.state is self._states.WAITING:  # killed before it was asked for
            return False
        if settings is None:
            return trial.state is not self._states.COMPLETE
        if trial.params != settings:
            return False
        if trial.state is self._states.COMPLETE:
            return bool(trial.values == list(score or ()))
        return score is None or not trial.state.is_finished()

    def _catch_up(self, known: dict[int, Settings], scores: dict[int, Values]) -> None:
        """Bring Optuna to what the store knows, number by number."""
        for trial in self._all():
            if trial.state.is_finished():
                continue
            if trial.number not in known:  # killed before it was recorded
                self._fail(trial.number)
            elif trial.number in scores:  # killed before it was told
                self.tell(trial.number, scores[trial.number])
            else:
                self._running.add(trial.number)
        for number in range(len(self._all()), max(known, default=-1) + 1):
            self._study.add_trial(self._frozen(known.get(number), scores.get(number)))
            if number in known and number not in scores:
                self._running.add(number)

    def _frozen(self, settings: Settings | None, score: Values | None) -> Any:
        create = self._optuna.trial.create_trial
        if settings is None:  # a hole keeps the numbering
            return create(state=self._states.FAIL)
        state = self._states.RUNNING if score is None else self._states.COMPLETE
        return create(
            state=state,
            values=None if score is None else list(score),
            params=settings,
            distributions=self._space,
        )

    def _drop_superfluous(self) -> None:
        """Fail the latest trials beyond those wanted.

        A new journal takes trials that had failed for running ones; `num_trials` may be lower.
        """
        needed = max(0, self.sweep.num_trials - self.num_finished)
        for number in self.running[needed:]:
            self._fail(number)


def importance(trials: Trials, values: Mapping[int, Values]) -> dict[str, float]:
    """Share of the variance of the sweep's objective that each setting explains, largest first.

    Functional ANOVA on a random forest (Hutter et al. 2014), over finished trials. Empty where
    they are too few, or one setting was varied, or all scores are equal.
    """
    axes = trials.sweep.space
    known = {n: s for n in values if (s := trials.settings(n)) is not None}
    at = trials.sweep.protocols.index(trials.sweep.objective)
    is_flat = len({values[n][at] for n in known}) < 2
    if len(known) < MIN_FOR_IMPORTANCE or len(axes) < 2 or is_flat:
        return {}
    optuna = _quiet_optuna()
    space = {axis.key: _distribution(axis) for axis in axes}
    study = optuna.create_study(direction="maximize")
    create = optuna.trial.create_trial
    for number, settings in known.items():
        study.add_trial(create(value=values[number][at], params=settings, distributions=space))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=trials.sweep.seed)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {str(key): float(value) for key, value in found.items()}


def _quiet_optuna() -> Any:
    import optuna

    optuna.logging.set_verbosity(logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


def _distribution(axis: SearchAxis) -> Any:
    from optuna import distributions

    if isinstance(axis, Choices):
        return distributions.CategoricalDistribution(list(axis.values))
    return distributions.FloatDistribution(axis.low, axis.high, step=axis.step, log=axis.log)


def _drop_stale_lock(path: Path) -> None:
    """Remove the lock that a killed driver left; the study's lease excludes a living one."""
    for lock in path.parent.glob(f"{path.name}.lock*"):
        lock.unlink(missing_ok=True)
