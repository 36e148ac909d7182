"""A registered set as something that a spec names: asked about once, and every mistake in a line about that field.

MLflow is imported when it is asked.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from limbeck.errors import InputError, WorkError
from limbeck.redact import redact_url
from limbeck.tracking.place import database, require, tracking_uri, without_credentials

if TYPE_CHECKING:
    from limbeck.tracking.registry import Registry, Version

# A server that is gone is told in seconds: work has not begun, and MLflow's own patience is minutes.
_VARIABLES = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


@contextmanager
def opened(uri: str | None, field: str | None = None) -> Iterator[Registry]:
    """The registry of an MLflow; what MLflow says inside the block is said in a line.

    Args:
        uri: what is asked for, as in `tracking_uri`.
        field: of a spec, which the line is about; its MLflow is given up after seconds, and no file is made for it.

    Raises:
        InputError: MLflow is not installed, or has never been used there.
        WorkError: it does not do what it is asked.
    """
    require()
    where, credentials = without_credentials(tracking_uri(uri))
    file = database(where)
    if field is not None and file is not None and not file.exists():
        raise InputError(field, f"nothing was tracked in {file} yet", "spec.tracking.uri, or MLFLOW_TRACKING_URI")
    with _environment({**({} if field is None else _VARIABLES | os.environ), **credentials}):
        import logging

        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        from limbeck.tracking.registry import Registry

        logging.getLogger("mlflow").setLevel(logging.ERROR)
        try:
            yield Registry(where)
        except (MlflowException, SQLAlchemyError, OSError) as error:
            message = redact_url(" ".join(str(error).split()))
            about = "" if field is None else f"{field}: "
            raise WorkError(f"{about}MLflow at {redact_url(where)}: {message[:300]}") from None


class RegisteredSet:
    """What a `models:/` URI means, from the first question on; nothing is asked before.

    Args:
        uri: `models:/NAME/VERSION`, or with an alias.
        tracking: MLflow, as in `spec.tracking.uri`.
        field: of the spec, which mistakes are about.
    """

    def __init__(self, uri: str, tracking: str | None, field: str) -> None:
        self.uri, self.field = uri, field
        self._tracking = tracking

    @property
    def number(self) -> int:
        """Its version.

        Raises:
            InputError: there is none.
            WorkError: MLflow does not say.
        """
        return self._version.number

    @property
    def digest(self) -> str:
        """The checksum of its checksums, which the registry vouches for; equal ones are equal files.

        Raises:
            InputError: there is no such version, or limbeck has not registered it.
            WorkError: MLflow does not say.
        """
        found = self._version.checksum
        if found is None:
            raise InputError(self.field, f"{self.uri} has no checksums", "a version that limbeck registered")
        return found

    def pull(self, folder: Path) -> Path:
        """Its files in a new folder, every checksum verified.

        Raises:
            InputError: there is no such version, or it is damaged.
            WorkError: MLflow does not give it.
        """
        with self._asked() as registry:
            return registry.pull(self._version, folder)

    @cached_property
    def _version(self) -> Version:
        with self._asked() as registry:
            return registry.resolve(self.uri)

    @contextmanager
    def _asked(self) -> Iterator[Registry]:
        try:
            with opened(self._tracking, self.field) as registry:
                yield registry
        except InputError as error:
            if error.where == self.field:
                raise
            found = error.found if error.where == self.uri else f"{error.where}: {error.found}"
            raise InputError(self.field, f"{self.uri}: {found}", error.allowed) from None


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Inside the block these variables are set."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
