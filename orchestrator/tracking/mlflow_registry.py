"""Trained networks as registered MLflow models, traced and without pickles.

The other file that knows MLflow: `tracking` writes runs, this one models. A model is saved as
`torch.export` does (MLflow's `pt2`): whoever loads it needs torch and MLflow and none of our code,
and nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mae_core.config import DataConfig
from orchestrator.errors import TrackingError
from orchestrator.tracking.mlflow_runs import experiment_name, opened_client

EXAMPLES = 2
"""Images of the example: of a single one the batch would be fixed at one."""


def save_model(model: Any, data: DataConfig, folder: Path) -> None:
    """Save a module that takes pixels (N, C, S, S) float32 in 0..1, with its signature."""
    import mlflow.pytorch
    import numpy as np
    import torch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    side = data.image_size
    shape = (EXAMPLES, data.num_channels, side, side)
    example = np.random.default_rng(0).random(shape, dtype=np.float32)
    with torch.inference_mode():
        width = model(torch.from_numpy(example)).shape[1]
    kind = np.dtype(np.float32)
    signature = ModelSignature(
        inputs=Schema([TensorSpec(kind, (-1, *shape[1:]))]),
        outputs=Schema([TensorSpec(kind, (-1, width))]),
    )
    quiet = contextlib.redirect_stderr(io.StringIO())
    with warnings.catch_warnings(), quiet, contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        mlflow.pytorch.save_model(
            model,
            str(folder),
            signature=signature,
            input_example=example,
            pip_requirements=["mlflow", f"torch=={torch.__version__.partition('+')[0]}", "numpy"],
            serialization_format="pt2",
        )


def register_version(
    uri: str, study: str, identity: str, name: str, tags: Mapping[str, str], model: Any,
    data: DataConfig,
) -> int:  # fmt: skip
    """Make a version of model `name` from the run with that identity; return its number.

    The very same network under the same name is one version, however often it is registered.

    Raises:
        TrackingError: the run is not at `uri`, or the server has no registry or refuses.
    """
    from mlflow.exceptions import MlflowException

    with opened_client(uri) as client:
        try:
            run = _run(client, uri, study, identity)
            with contextlib.suppress(MlflowException):  # it is there
                client.create_registered_model(name)
            for version in client.search_model_versions(f"name = '{name}'"):
                if tags.items() <= dict(version.tags).items():
                    return int(version.version)
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch) / "model"
                save_model(model, data, folder)
                place = f"model-{tags['features']}"
                client.log_artifacts(run.info.run_id, str(folder), place)
            made = client.create_model_version(
                name,
                f"{run.info.artifact_uri}/{place}",
                run_id=run.info.run_id,
                tags=dict(tags),
            )
        except MlflowException as error:
            raise TrackingError(
                f"model {name!r} cannot be registered: {str(error).splitlines()[0]}"
            ) from error
    return int(made.version)


def _run(client: Any, uri: str, study: str, identity: str) -> Any:
    experiment = client.get_experiment_by_name(experiment_name(study))
    found = (
        []
        if experiment is None
        else client.search_runs(
            [experiment.experiment_id], filter_string=f"tags.identity = '{identity}'"
        )
    )
    if not found:
        raise TrackingError(
            f"the run that trained it is not at {uri}: run the study again with this address, or "
            "`mae-study mlflow rebuild`"
        )
    return found[0]
