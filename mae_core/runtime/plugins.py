"""Code of the user's by dotted path, `module:name`: found, digested, imported.

Light: a digest is taken without importing the module, so that `plan` stays instant.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mae_core.errors import ConfigError


def source_digest(dotted: str) -> str:
    """SHA-256 of the module's source file, hex; raises `ConfigError` if there is no such file."""
    return hashlib.sha256(_origin(dotted).read_bytes()).hexdigest()


def import_root(dotted: str) -> Path:
    """Directory to search on a rank: the one that holds the module, or its top-level package."""
    depth = dotted.partition(":")[0].count(".")
    origin = _origin(dotted)
    if origin.name == "__init__.py":
        origin = origin.parent
    return origin.parents[depth]


def allow(roots: Iterable[str], digests: Mapping[str, str]) -> None:
    """Make modules importable from `roots`; refuse (`ConfigError`) sources that have changed."""
    for root in roots:
        if root not in sys.path:
            sys.path.append(root)
    for dotted, expected in digests.items():
        if source_digest(dotted) != expected:
            raise ConfigError(f"the source of {dotted} changed since the run began: run again")


def resolve(dotted: str) -> Any:
    """Import `module:name` and return what it names; raises `ConfigError` naming what is missing.

    An exception inside the module's own code is not caught: its traceback is the user's to read.
    """
    module_name, _, name = dotted.partition(":")
    _origin(dotted)
    found: Any = importlib.import_module(module_name)
    for part in name.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"{dotted!r}: module {module_name!r} has no {name!r}")
        found = getattr(found, part)
    return found


def _origin(dotted: str) -> Path:
    module, colon, name = dotted.partition(":")
    parts = [*module.split("."), *name.split(".")]
    if not colon or not all(part.isidentifier() for part in parts):
        raise ConfigError(f"{dotted!r}: write module:name, such as my_masks:diagonal")
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{dotted!r}: module {module!r} cannot be found: {error}") from error
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise ConfigError(
            f"{dotted!r}: no Python file for module {module!r}; put it next to the study file, or "
            "on PYTHONPATH"
        )
    return Path(spec.origin)
