"""Find a study by its name in the catalogue, by the path of a Python file, or by resolved JSON."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from mae_core.errors import ConfigError
from studies.catalog import CATALOG
from studies.errors import StudyError, unknown
from studies.spec.codec import build
from studies.spec.study import Study, override_study


def load_study(reference: str, data: str | None = None) -> Study:
    """Return the study; raises `StudyError` with the nearest known name if there is none.

    `data` is what `--data` names. A study that is `def study(data: str | None = None)` is built for
    it (networks and recipes may differ); of any other, every stage reads it.
    """
    if reference in CATALOG:
        return _call(importlib.import_module(CATALOG[reference]), reference, data)
    path = Path(reference)
    if path.suffix in (".py", ".json"):
        if not path.is_file():
            raise StudyError(f"study file {reference!r} does not exist")
        if path.suffix == ".py":
            return _call(_import(path), reference, data)
        return _reading(_from_json(path), data)
    raise unknown("study", reference, CATALOG)


def _reading(study: Study, data: str | None) -> Study:
    return study if data is None else override_study(study, {"data.path": data})


def _from_json(path: Path) -> Study:
    try:
        plain = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise StudyError(f"study file {str(path)!r} is not JSON: {error}") from error
    if not isinstance(plain, dict):
        raise StudyError(f"study file {str(path)!r} holds no study: expected a mapping")
    kept = plain.get("study")  # as a store keeps it, beside the stages that were accepted with it
    return study_from_plain(kept if isinstance(kept, dict) else plain)


def _import(path: Path) -> ModuleType:
    # What lies beside a study file can be imported by it, and named by dotted path.
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    spec = importlib.util.spec_from_file_location(f"user_study_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (StudyError, ConfigError):
        raise
    except (Exception, SystemExit) as error:  # whatever the user's file does wrong
        raise StudyError(f"study file {str(path)!r} fails: {_where(error, path)}") from error
    return module


def _call(module: ModuleType, reference: str, data: str | None) -> Study:
    function = getattr(module, "study", None)
    if not callable(function):
        raise StudyError(f"{reference}: expected a function `def study() -> Study`")
    is_built_for_data = "data" in inspect.signature(function).parameters
    try:
        study = function(data) if is_built_for_data else function()
    except (StudyError, ConfigError):
        raise
    except (Exception, SystemExit) as error:
        raise StudyError(f"{reference}: study() fails: {_where(error, None)}") from error
    if not isinstance(study, Study):
        raise StudyError(f"{reference}: study() returned a {type(study).__name__}, not a Study")
    return study if is_built_for_data else _reading(study, data)


def _where(error: BaseException, path: Path | None) -> str:
    """The error in one line, with the place in the user's file."""
    trace, line = error.__traceback__, None
    while trace is not None:
        if path is None or trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    place = f" (line {line})" if line else ""
    # Unlike str(), this does not fail where the exception's own text does.
    text = "".join(traceback.format_exception_only(error)).strip()
    return f"{text}{place}"


def study_from_plain(plain: Mapping[str, object]) -> Study:
    """Rebuild a study; raises `StudyError` with the nearest known key for an unknown one."""
    return build(Study, plain, "study")
