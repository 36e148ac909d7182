"""A pre-trained encoder as a PyTorch model in MLflow, linked to the distilled set that trained it."""

from __future__ import annotations

import os

import torch
from torch import nn

from limbeck.data.distilled import DistilledSet
from limbeck.store import json_digest
from limbeck.tracking.place import require, tracking_uri


def log_encoder(
    encoder: nn.Module,
    distilled: DistilledSet,
    *,
    name: str = "encoder",
    source: str | None = None,
    experiment: str = "limbeck",
    uri: str | None = None,
) -> str:
    """Log an encoder that was pre-trained on a distilled set; no pickle, MLflow's format `pt2`.

    The run that it is logged in has the set as an input, and the encoder as its output. It is the run of
    MLFLOW_RUN_ID or the active one, where there is one, and else a new one.

    Args:
        encoder: maps normalised images f32[b, 3, s, s] to features.
        distilled: the set.
        name: of the model.
        source: the set's `models:/` URI, where it came from the registry.
        experiment: that a new run is made in.
        uri: of MLflow; by default MLFLOW_TRACKING_URI, else mlflow.db in the working directory.

    Returns:
        The model's URI, `models:/ID`.

    Raises:
        InputError: MLflow is not installed, or there is no such set.
    """
    require()
    import mlflow
    from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelInput

    from limbeck.tracking.registry import Registry

    where = tracking_uri(uri)
    mlflow.set_tracking_uri(where)
    version = Registry(where).resolve(source) if source is not None else None
    if mlflow.active_run() is None and not os.environ.get("MLFLOW_RUN_ID"):
        mlflow.set_experiment(experiment)
    active = mlflow.active_run()
    with mlflow.start_run(run_name=name, nested=active is not None) as run:
        digest = json_digest({"lineage": distilled.lineage, "spec": distilled.spec})[:32]
        data = Dataset("distilled set", digest, "local", f'{{"uri": "{source or "local"}"}}')
        models = [LoggedModelInput(version.model_id)] if version is not None else None
        mlflow.MlflowClient(where).log_inputs(
            run.info.run_id,
            datasets=[DatasetInput(data, [InputTag("mlflow.data.context", "pre-training")])],
            models=models,
        )
        device = next(encoder.parameters()).device
        example = distilled.images[:2].to(device)
        tags = {"limbeck.distilled": source} if source is not None else {}
        logged = mlflow.pytorch.log_model(
            encoder.eval(),
            name=name,
            serialization_format="pt2",
            input_example=example.cpu().numpy(),
            pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}"],
            params=distilled.recipe.wire(),
            tags=tags,
        )
    return f"models:/{logged.model_id}"
