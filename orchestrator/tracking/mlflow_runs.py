"""Writes a study's runs into MLflow, so that doing it twice is the same as doing it once.

One experiment per study. Its top rows are one run per cell (a point of a curve) and the study's
own run; the stages of a cell are nested in the cell's run. The tag `level` distinguishes the three.
Ranks write journals and never talk to MLflow; the shipping process replays them with their own
timestamps.
"""

from __future__ import annotations

import getpass
import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.tracking.mlflow_database import (
    Destination,
    experiment_name,
    find_experiment,
    opened_client,
)
from orchestrator.tracking.run_values import STUDY, DataUse, Point, RunInfo, RunStatus, Table

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, Run

BATCH = 1000
"""Metrics in one request; the server's limit."""
PAGE = 200
"""Runs in one answer, so that a slow server stays within the time limit."""
PARAMS = 100
"""Params in one request; the server's limit."""
PARENT_TAG = "mlflow.parentRunId"
UPSTREAM_TAG = "upstream_run_id"
TABLES_TAG = "mlflow.loggedArtifacts"
"""Where MLflow notes which artifacts are tables."""
DIGEST_LENGTH = 32
"""Hex digits of a fingerprint that fit where MLflow shows a digest; the whole is in the profile."""
NOTE = "mlflow.note.content"
OLD_NOTE = "Views, 'cells of the grid'"
"""In what earlier versions said of an experiment: of a view that is no longer made."""
EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",
    NOTE: (
        "Filter `tags.level = 'cell' and tags.role = 'grid'` to compare the points of the curves. "
        "One run per cell: its axes as params and metrics, its final accuracies as `knn_top1`, "
        "`linear_probe_top1`, `finetune_top1` ...; what they mean is in the tags `protocol.*`. "
        "Nested in it, one run per stage: curves of the training, all settings as params, the data "
        "set. The study's run (`tags.level = 'study'`) has the report, results, checks, laws and "
        "predictions."
    ),
}
"""What the page of an experiment says; the kind opens the runs, not traces of language models."""


class RunWriter:
    """Writes runs of one study; every call is idempotent.

    After a request that failed nothing is known of what the server has: open a new one.
    """

    def __init__(self, to: Destination, progress: Callable[[], None] = lambda: None) -> None:
        self._origin, self._progress = to.origin, progress
        with opened_client(to.uri, to.artifacts) as self._client:
            self._experiment = self._get_experiment(to)
        self._progress()
        self._runs: dict[str, Run] = {}
        """By identity: what an earlier driver has made is found, not made a second time."""
        self._tags: dict[str, dict[str, str]] = {}
        """What is set, by run id."""
        self._shown: dict[str, dict[str, float]] = {}
        """Latest values of results, by run id."""
        self._described: set[str] = set()
        self.remove_doubles()
        tags = {"study": to.study, NOTE: to.question}
        self.run(
            RunInfo(
                name=to.study, level="study", identity=STUDY, tags=tags, started_ms=to.started_ms
            )
        )

    def _get_experiment(self, to: Destination) -> str:
        name = experiment_name(to.study)
        found = find_experiment(self._client, to.uri, to.study, to.artifacts)
        if found is not None:
            if OLD_NOTE in found.tags.get(NOTE, ""):
                self._client.set_experiment_tag(found.experiment_id, NOTE, EXPERIMENT_TAGS[NOTE])
            return str(found.experiment_id)
        location = to.artifacts and to.artifacts.as_uri()
        return str(
            self._client.create_experiment(name, artifact_location=location, tags=EXPERIMENT_TAGS)
        )

    def remove_doubles(self) -> None:
        """Look all runs up; of those made twice, keep the one that is in use.

        A request to make a run may time out and be applied all the same, even after the server
        was asked whether there is such a run. Runs of other stores are left alone.
        """
        found: dict[str, list[Run]] = {}
        for run in self._search():
            if run.data.tags.get("store") == self._origin and "identity" in run.data.tags:
                found.setdefault(run.data.tags["identity"], []).append(run)
        kept_for: dict[str, str] = {}
        for identity, copies in found.items():
            used = self._runs.get(identity)
            used_id = used and used.info.run_id

            def order(run: Run, used_id: str | None = used_id) -> tuple[bool, int, int, str]:
                info = run.info
                is_other = info.run_id != used_id
                return is_other, -len(run.data.metrics), info.start_time, info.run_id

            kept, *doubles = sorted(copies, key=order)
            self._runs[identity] = kept
            self._tags[kept.info.run_id] = dict(kept.data.tags)
            for double in doubles:
                self._client.delete_run(double.info.run_id)
                self._progress()
                kept_for[double.info.run_id] = kept.info.run_id
        for run_id, tags in list(self._tags.items()) if kept_for else ():
            links = {k: kept_for.get(tags.get(k, "")) for k in (PARENT_TAG, UPSTREAM_TAG)}
            self.tags(run_id, {k: v for k, v in links.items() if v is not None})

    def _search(self) -> Iterator[Run]:
        token: str | None = None
        while True:
            page = self._client.search_runs([self._experiment], max_results=PAGE, page_token=token)
            self._progress()
            yield from page
            token = page.token
            if not token:
                return

    def has(self, identity: str, run_id: str) -> bool:
        """True if that run was there when this writer was opened, or was made by it."""
        run = self._runs.get(identity)
        return run is not None and run.info.run_id == run_id

    def tag(self, run_id: str, key: str) -> str | None:
        """A tag that a run has."""
        return self._tags[run_id].get(key)

    def run(self, info: RunInfo) -> str:
        """Return the id of a run, made if it is new, nested in its parent, with params and data."""
        parent = {PARENT_TAG: self.run(info.parent)} if info.parent else {}
        run = self._runs.get(info.identity)
        if run is None:
            tags = {"level": info.level, "identity": info.identity, "store": self._origin}
            tags |= info.tags | parent
            tags |= {"mlflow.runName": info.name, "user": _user(), "mlflow.user": _user()}
            if info.upstream in self._runs:
                tags[UPSTREAM_TAG] = self._runs[info.upstream].info.run_id
            started = info.started_ms or None
            run = self._client.create_run(self._experiment, start_time=started, tags=tags)
            self._runs[info.identity], self._tags[run.info.run_id] = run, tags
            self._progress()
        run_id = str(run.info.run_id)
        self.tags(run_id, parent)
        if not parent and PARENT_TAG in self._tags[run_id]:  # all were nested in the study's run
            self._client.delete_tag(run_id, PARENT_TAG)
            del self._tags[run_id][PARENT_TAG]
        if info.identity not in self._described:
            self._describe(run, info)
            self._described.add(info.identity)
        return run_id

    def _describe(self, run: Run, info: RunInfo) -> None:
        """Add params, axes and data that a run lacks: who made it may have been cut short."""
        from mlflow.entities import Metric, Param

        axes = {k: float(v) for k, v in info.params.items() if not isinstance(v, str)}
        metrics = [Metric(k, v, 0, 0) for k, v in axes.items() if k not in run.data.metrics]
        known = run.data.params
        new = [Param(k, str(v)) for k, v in (info.settings | info.params).items() if k not in known]
        for first in range(0, max(len(new), len(metrics)), PARAMS):
            part = slice(first, first + PARAMS)
            self._client.log_batch(run.info.run_id, metrics=metrics[part], params=new[part])
            self._progress()
        inputs = getattr(run, "inputs", None)
        if info.data is not None and not (inputs and inputs.dataset_inputs):
            self._client.log_inputs(run.info.run_id, datasets=[_data_input(info.data)])
            self._progress()

    def discard(self, identity: str) -> None:
        """Delete a run that is of another history than the store's; the next call makes it anew."""
        run = self._runs.pop(identity)
        self._client.delete_run(run.info.run_id)
        self._described.discard(identity)
        self._progress()

    def results(self, run_id: str, points: Iterable[Point]) -> None:
        """Send final values, but for those that the run shows already."""
        shown = self._shown.setdefault(run_id, dict(self._by_id(run_id).data.metrics))
        news = [p for p in points if not _is_equal(shown.get(p.key), p.value)]
        self.metrics(run_id, deque(news))
        shown |= {p.key: p.value for p in news}

    def _by_id(self, run_id: str) -> Run:
        return next(r for r in self._runs.values() if r.info.run_id == run_id)

    def arrived(self, run_id: str) -> set[tuple[str, int]]:
        """Keys and steps of which a run has a value."""
        run, found = self._by_id(run_id), set()
        for key in run.data.metrics:
            found |= {(key, m.step) for m in self._client.get_metric_history(run_id, key)}
            self._progress()
        return found

    def metrics(self, run_id: str, points: deque[Point]) -> None:
        """Send points, oldest first; each batch is taken off `points` once it has arrived."""
        from mlflow.entities import Metric

        while points:
            batch = [Metric(p.key, p.value, p.timestamp_ms, p.step) for p in islice(points, BATCH)]
            self._client.log_batch(run_id, metrics=batch)
            for _ in batch:
                points.popleft()
            self._progress()

    def tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set what may vary: attempts, causes."""
        from mlflow.entities import RunTag

        known = self._tags[run_id]
        new = {k: v for k, v in tags.items() if known.get(k) != v}
        if new:
            self._client.log_batch(run_id, tags=[RunTag(k, v) for k, v in new.items()])
            known.update(new)
            self._progress()

    def set_status(self, run_id: str, status: RunStatus, ended_ms: int) -> None:
        """Say where a run stands: left alone it would run for ever."""
        if status is RunStatus.RUNNING:  # it may have failed before
            self._client.update_run(run_id, status.value)
        else:
            self._client.set_terminated(run_id, status.value, end_time=ended_ms or None)
        self._progress()

    def artifacts(self, run_id: str, directory: Path, name: str) -> None:
        """Attach a directory to a run."""
        self._client.log_artifacts(run_id, str(directory), name)
        self._progress()

    def tables(self, run_id: str, tables: tuple[Table, ...]) -> None:
        """Attach tables as `mlflow.log_table` does, each in place of an earlier one.

        `log_table` itself would add the rows to those that are there.
        """
        for table in tables:
            content = {"columns": list(table.columns), "data": [list(row) for row in table.rows]}
            self._client.log_dict(run_id, content, f"{table.name}.json")
            self._progress()
        if tables:
            names = sorted(table.name for table in tables)
            listed = [{"path": f"{name}.json", "type": "table"} for name in names]
            self.tags(run_id, {TABLES_TAG: json.dumps(listed)})


def _is_equal(shown: float | None, value: float) -> bool:
    """NaN is itself here."""
    return shown is not None and (shown == value or (math.isnan(shown) and math.isnan(value)))


def _data_input(use: DataUse) -> DatasetInput:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    path, facts = use.config.path, use.facts
    profile = facts.to_json() | {"num_classes": len(facts.class_names)}
    del profile["class_names"]  # there may be thousands
    dataset = Dataset(
        name=(Path(path).name or path).encode("utf-8", "backslashreplace").decode(),
        digest=facts.fingerprint[:DIGEST_LENGTH],
        source_type="local" if "://" not in path else path.partition("://")[0],
        source=json.dumps({"uri": path}),
        profile=json.dumps(profile),
    )
    context = "evaluation" if use.is_evaluation else "training"
    tags = {"mlflow.data.context": context} | use.cut
    return DatasetInput(dataset, [InputTag(k, str(v)) for k, v in tags.items()])


def stage_history(uri: str, study: str, science_hash: str) -> list[tuple[str, int, float]]:
    """All rows of a stage's metrics as (key, step, value): what a chart would draw."""
    with opened_client(uri) as client:
        experiment = client.get_experiment_by_name(experiment_name(study))
        if experiment is None:
            return []
        query = f"tags.identity = 'stage:{science_hash}'"
        runs = client.search_runs([experiment.experiment_id], filter_string=query)
        return [
            (key, m.step, m.value)
            for run in runs
            for key in run.data.metrics
            for m in client.get_metric_history(run.info.run_id, key)
        ]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
