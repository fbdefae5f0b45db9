"""The one file that knows Optuna: ask for settings, tell scores, survive being killed.

A trial is an ordinary cell; its truth is in the store (`trials.py`). Optuna's journal beside it
is what the sampler and `optuna-dashboard` read, and it is rebuilt from the store when lost.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

from orchestrator.trials import Trials
from studies.spec import Choices, Sweep

JOURNAL = "optuna-journal.log"
MAX_ASKED_PER_TRIAL = 2
"""Trials that may be asked for per trial wanted, so that a sweep that only fails ends."""


class SweepDriver:
    """Optuna's side of a sweep: at most one driver at a time asks and tells."""

    def __init__(self, trials: Trials) -> None:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self._optuna, self._trials = optuna, trials
        self.sweep: Sweep = trials.sweep
        path = trials.path(JOURNAL)
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        _drop_stale_lock(path)
        sampler = optuna.samplers.TPESampler(
            seed=self.sweep.seed + len(trials.numbers()),
            # Trials that run in parallel are taken for bad, so that workers spread out.
            constant_liar=True,
            n_startup_trials=max(4, self.sweep.num_trials // 3),
        )
        self._study = optuna.create_study(
            study_name=trials.sweep_hash,
            storage=JournalStorage(JournalFileBackend(str(path))),
            direction="maximize",
            sampler=sampler,
            load_if_exists=True,
        )
        self._running: set[int] = set()
        if is_new:
            self._rebuild()
        self._reconcile()

    @property
    def num_finished(self) -> int:
        """Trials with a score."""
        return len(self._in_state(self._optuna.trial.TrialState.COMPLETE))

    @property
    def is_finished(self) -> bool:
        """True once the wanted number of trials has a score, or the asking limit is reached."""
        return self.num_finished >= self.sweep.num_trials or (
            not self._running and self._num_asked() >= self._limit
        )

    @property
    def running(self) -> list[int]:
        """Trials that were asked for and have no score yet."""
        return sorted(self._running)

    def ask(self, num_parallel: int) -> list[int]:
        """Ask for trials until `num_parallel` run or no more are needed; return the new ones."""
        asked = []
        while (
            len(self._running) < num_parallel
            and self.num_finished + len(self._running) < self.sweep.num_trials
            and self._num_asked() < self._limit
        ):
            trial = self._study.ask()
            settings = {axis.key: self._suggest(trial, axis) for axis in self.sweep.space}
            self._trials.record(trial.number, settings)
            self._running.add(trial.number)
            asked.append(trial.number)
        return asked

    def tell(self, number: int, score: float | None) -> None:
        """Report a score; None for a trial that failed."""
        state = self._optuna.trial.TrialState
        if score is None:
            self._study.tell(number, state=state.FAIL, skip_if_finished=True)
        else:
            self._study.tell(number, score, skip_if_finished=True)
        self._running.discard(number)

    @property
    def _limit(self) -> int:
        return self.sweep.num_trials * MAX_ASKED_PER_TRIAL

    def _num_asked(self) -> int:
        return len(self._study.get_trials(deepcopy=False))

    def _in_state(self, state: Any) -> list[Any]:
        return self._study.get_trials(deepcopy=False, states=(state,))  # type: ignore[no-any-return]

    def _suggest(self, trial: Any, axis: Any) -> Any:
        if isinstance(axis, Choices):
            return trial.suggest_categorical(axis.key, list(axis.values))
        return trial.suggest_float(axis.key, axis.low, axis.high, step=axis.step, log=axis.log)

    def _reconcile(self) -> None:
        """A trial that was running goes on; one that was asked for but never recorded is failed."""
        for trial in self._in_state(self._optuna.trial.TrialState.RUNNING):
            if self._trials.settings(trial.number) is None:
                self.tell(trial.number, None)
            else:
                self._running.add(trial.number)

    def _rebuild(self) -> None:
        """Fill a new journal with the trials that the store knows, under their numbers."""
        numbers = self._trials.numbers()
        state = self._optuna.trial.TrialState
        for number in range(max(numbers) + 1 if numbers else 0):
            settings = self._trials.settings(number)
            if settings is None:  # a hole keeps the numbering
                self._study.add_trial(self._optuna.trial.create_trial(state=state.FAIL))
                continue
            self._study.enqueue_trial(settings)
            trial = self._study.ask()
            for axis in self.sweep.space:
                self._suggest(trial, axis)


def _drop_stale_lock(path: Path) -> None:
    """Remove the lock that a killed driver left; the study's lease excludes a living one."""
    for lock in path.parent.glob(f"{path.name}.lock*"):
        lock.unlink(missing_ok=True)
