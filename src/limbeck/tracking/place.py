"""Where MLflow is, and where its pages are."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from limbeck.errors import InputError
from limbeck.redact import redact_url

DEFAULT = "sqlite:///mlflow.db"
VARIABLE = "MLFLOW_TRACKING_URI"
_SQLITE = "sqlite:///"


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


def identity_of(uri: str) -> str:
    """What is equal for two URIs of one store: absolute, and without credentials, which change."""
    file = database(uri)
    return f"{_SQLITE}{file.absolute()}" if file is not None else redact_url(uri)


def without_credentials(uri: str) -> tuple[str, dict[str, str]]:
    """A server's URI without user and password, and the variables of MLflow that say them instead.

    A user without a password is a token.
    """
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or "@" not in parts.netloc:
        return uri, {}
    bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if not password:
        return bare, {"MLFLOW_TRACKING_TOKEN": user}
    return bare, {"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": password}


def database(uri: str) -> Path | None:
    """The file of an SQLite store; None for other stores."""
    return Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else None
