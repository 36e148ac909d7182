"""The process that talks to MLflow, started.

It needs some seconds for MLflow's import, so a command starts it before its own slow imports, and this module has none.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from typing import TextIO

# The retries are the sender's: a run is told at once that its server is gone, and can end the sender at any time.
_MLFLOW = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


class SenderProcess:
    """`python -m limbeck.tracking.sender` for one store. It ends when its input is closed, or the command is gone."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - as long as this
        self.process = subprocess.Popen(
            [sys.executable, "-m", "limbeck.tracking.sender"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            encoding="utf-8",
            env=_MLFLOW | os.environ,
            start_new_session=True,  # Ctrl-C is for the work
        )
        os.setpriority(os.PRIO_PROCESS, self.process.pid, 19)  # the work comes first, on a machine with few cores
        with suppress(BrokenPipeError):  # it has ended, which whoever waits for it sees
            self.input.write(uri + "\n")  # not an argument: a password in it would be seen in a list of processes
            self.input.flush()

    @property
    def input(self) -> TextIO:
        """What it reads: the store's URI, already written, then messages."""
        assert self.process.stdin is not None
        return self.process.stdin  # type: ignore[return-value]  # it is text, by its encoding

    @property
    def output(self) -> TextIO:
        """Its replies."""
        assert self.process.stdout is not None
        return self.process.stdout  # type: ignore[return-value]  # likewise

    def errors(self) -> str:
        """What it has written to its standard error."""
        self._errors.seek(0)
        return self._errors.read()
