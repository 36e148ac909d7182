"""Where MLflow is, and where its pages are."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from limbeck.errors import InputError

DEFAULT = "sqlite:///mlflow.db"
VARIABLE = "MLFLOW_TRACKING_URI"


def tracking_uri(uri: str | None) -> str:
    """The store or server: what is asked for, else MLFLOW_TRACKING_URI, else mlflow.db in the working directory."""
    return uri or os.environ.get(VARIABLE) or DEFAULT


def is_installed() -> bool:
    """Whether MLflow is there."""
    return find_spec("mlflow") is not None


def require() -> None:
    """See that MLflow is there.

    Raises:
        InputError: it is not.
    """
    if not is_installed():
        raise InputError("mlflow", "it is not installed", "pip install mlflow")


def page(uri: str, place: str) -> str | None:
    """The URL of a page of MLflow's interface, in its classic view; None where `uri` is no server."""
    if not uri.startswith(("http://", "https://")):
        return None
    return f"{uri.rstrip('/')}/#/{place}?workflowType=machine_learning"  # the page's own query, after the #


def database(uri: str) -> Path | None:
    """The file of an SQLite store; None for other stores."""
    prefix = "sqlite:///"
    return Path(uri.removeprefix(prefix)) if uri.startswith(prefix) else None
