"""Trained networks as registered MLflow models, traced and without pickles.

A model is saved as `torch.export` does (MLflow's `pt2`): whoever loads it needs torch and MLflow
and none of our code, and nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mae_core.config import DataConfig
from orchestrator.errors import TrackingError
from orchestrator.tracking.mlflow_database import find_experiment, opened_client
from orchestrator.tracking.uri import without_credentials

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import RunInfo
    from torch.nn import Module

EXAMPLES = 2
"""Images of the example: of a single one the batch would be fixed at one."""


def save_model(model: Module, data: DataConfig, folder: Path) -> None:
    """Save a module that takes pixels (N, C, S, S) float32 in 0..1, with its signature."""
    import mlflow.pytorch
    import numpy as np
    import torch
    from mlflow.models import infer_signature

    shape = (EXAMPLES, data.num_channels, data.image_size, data.image_size)
    example = np.random.default_rng(0).random(shape, dtype=np.float32)
    with torch.inference_mode():
        output = model(torch.from_numpy(example)).numpy()
    quiet = contextlib.redirect_stderr(io.StringIO())
    with warnings.catch_warnings(), quiet, contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        mlflow.pytorch.save_model(
            model,
            str(folder),
            signature=infer_signature(example, output),
            input_example=example,
            pip_requirements=["mlflow", f"torch=={torch.__version__.partition('+')[0]}", "numpy"],
            serialization_format="pt2",
        )


def register_version(
    uri: str,
    *,
    study: str,
    identity: str,
    name: str,
    tags: Mapping[str, str],
    model: Module,
    data: DataConfig,
) -> int:
    """Make a version of model `name` from the run with that identity; return its number.

    The very same network under the same name is one version, however often it is registered.

    Raises:
        TrackingError: the run is not at `uri`, or the server has no registry or refuses.
    """
    from mlflow.exceptions import MlflowException

    with opened_client(uri) as client:
        try:
            run = _find_run(client, uri, study, identity)
            with contextlib.suppress(MlflowException):  # it is there
                client.create_registered_model(name)
            for version in client.search_model_versions(f"name = '{name}'"):
                if tags.items() <= dict(version.tags).items():
                    return int(version.version)
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch) / "model"
                save_model(model, data, folder)
                place = f"model-{tags['features']}"
                client.log_artifacts(run.run_id, str(folder), place)
            made = client.create_model_version(
                name, f"{run.artifact_uri}/{place}", run_id=run.run_id, tags=dict(tags)
            )
        except MlflowException as error:
            raise TrackingError(
                f"model {name!r} cannot be registered: {str(error).splitlines()[0]}"
            ) from error
    return int(made.version)


def _find_run(client: MlflowClient, uri: str, study: str, identity: str) -> RunInfo:
    experiment = find_experiment(client, uri, study)
    query = f"tags.identity = '{identity}'"
    ids = [experiment.experiment_id] if experiment else []
    found = client.search_runs(ids, filter_string=query) if ids else []
    if not found:
        raise TrackingError(
            f"the run that trained it is not at {without_credentials(uri)}: run the study again "
            "with this address, or `mae-study mlflow rebuild`"
        )
    return found[0].info
