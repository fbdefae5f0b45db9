"""Facts of a data set, known without reading its images: counts, classes, fingerprint.

Facts are computed once, at import or by `run`; `plan` only looks them up.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from mae_core.config import DataConfig
from mae_core.data.facts import DataFacts, Progress, dev_size, find_facts, split_sizes, subset_size
from mae_core.errors import DataError
from mae_core.model.cost import DataSize
from orchestrator.errors import DamagedRecord
from orchestrator.store.driver import Store
from orchestrator.store.known_keys import build_known
from studies.spec.identity import UNKNOWN_DATA
from studies.spec.study import Study

UNPLANNED = DataSize(num_train=0, num_eval=0, num_classes=0, is_measured=False)


class Datasets:
    """Facts of the data sets of a study, by path."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, DataFacts | None] = {}

    def facts(self, path: str) -> DataFacts | None:
        """Facts if they are known: embedded, beside the files, or from an earlier scan."""
        if path not in self._known:
            self._known[path] = find_facts(path) or self._remembered(path)
        return self._known[path]

    def ensure(self, path: str, on_progress: Progress | None = None) -> DataFacts:
        """Facts, by a scan of every image if need be; raises `DataError` for unusable data."""
        found = self.facts(path)
        if found is not None:
            return found
        from mae_core.data.scan import scan

        found = scan(path, on_progress=on_progress)
        keep(self._store, self._key(path), found)
        self._known[path] = found
        return found

    def fingerprint(self, path: str) -> str:
        """Fingerprint of the samples at `path`, or `UNKNOWN_DATA`."""
        facts = self.facts(path)
        return facts.fingerprint if facts else UNKNOWN_DATA

    def size(self, config: DataConfig, eval_split: str = "test") -> DataSize:
        """Counts for planning: from facts, else what the study expects.

        Raises:
            DataError: the data is known and leaves nothing to train on.
        """
        facts = self.facts(config.path)
        if facts is None:
            images, classes = config.expected_images or 0, config.expected_classes or 0
            images -= dev_size(images, config.dev_fraction)
            images = subset_size(images, config.train_fraction)
            return replace(UNPLANNED, num_train=images, num_classes=classes)
        counts = split_sizes(facts, config)
        if counts["train"] < 1:
            raise DataError(
                f"{config.path}: nothing is left to train on of {facts.num_train} images; "
                f"lower data.dev_fraction ({config.dev_fraction}) or add images"
            )
        return DataSize(
            counts["train"],
            counts[eval_split],
            len(facts.class_names),
            num_dev=counts["dev"],
            num_test=counts["test"],
            smallest_class=facts.smallest_class,
        )

    def _remembered(self, path: str) -> DataFacts | None:
        return read_facts(self._store, self._key(path))

    def _key(self, path: str) -> str:
        name = hashlib.sha256(f"{path}|{_signature(path)}".encode()).hexdigest()[:24]
        return f"datasets/{name}.json"


def read_facts(store: Store, key: str) -> DataFacts | None:
    """Facts that the store keeps; None if it has none, or damaged ones: a scan finds them again."""
    try:
        plain = store.read_json(key)
        return None if plain is None else build_known(DataFacts, plain, f"record {key}")
    except DamagedRecord as error:
        store.note(f"{error}; it is passed over: `run` reads the images again")
    return None


def keep(store: Store, key: str, facts: DataFacts) -> None:
    """Keep facts, in place of damaged ones."""
    if not store.create_json(key, facts.to_json()) and read_facts(store, key) is None:
        store.set_apart([key])
        store.create_json(key, facts.to_json())


def data_paths(study: Study) -> list[str]:
    """Paths of all data sets that the study names."""
    return list(dict.fromkeys(s.recipe.data.path for s in study.all_stages()))


def _signature(path: str) -> str:
    """Changes when local files change; a remote store is trusted by its address."""
    local = Path(path)
    if "://" in path or not local.exists():
        return ""
    files = sorted(local.rglob("*.parquet")) if local.is_dir() else [local]
    return repr([_stat(file) for file in files])


def _stat(file: Path) -> tuple[str, int, int]:
    try:
        stat = file.stat()
    except OSError:  # a broken link: the scan refuses it by name
        return str(file), -1, -1
    return str(file), stat.st_size, stat.st_mtime_ns
