"""The process that talks to MLflow: sends journals on, in batches, for as long as it takes, and registers on request.

`python -m limbeck.tracking.sender`. It reads a `Start`, then `Publish` lines, and writes replies.
When the input ends it sends what is left and ends; whoever started it decides how long that may take.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TextIO
from urllib.parse import unquote, urlsplit, urlunsplit

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from limbeck.redact import redact_url
from limbeck.tracking.journal import Began, Ended, Event, Points, Reader, abandoned, claimed, now
from limbeck.tracking.messages import Opened, Publish, Published, Refused, Reply, Start, Trouble
from limbeck.tracking.place import page
from limbeck.tracking.registry import Registry
from limbeck.tracking.runs import Runs

_LOOK = 0.2  # seconds between looks at the journal
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 8.0  # seconds between attempts
_MOST = 1000  # points that are sent at once

# What asking again will not change. Whatever else goes wrong may be right the next time.
_FOR_EVER = {
    "BAD_REQUEST",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "MALFORMED_REQUEST",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
}


class Sender:
    """Sends one command's journal, after those that earlier commands left behind."""

    def __init__(self, start: Start, out: TextIO) -> None:
        self._uri, self._out = start.uri, out
        self._own = Path(start.journal)
        self._client = MlflowClient(tracking_uri=start.uri, registry_uri=start.uri)
        self._troubled = False

    def run(self, requests: queue.Queue[Publish | None]) -> None:
        """Until the input has ended and everything is sent."""
        for path in abandoned(self._own.parent, self._own):
            with claimed(path) as free:
                if free:
                    reader, runs = Reader(path), self._runs(path)
                    ended = self._drain(reader, runs)
                    if not ended and runs.open:  # its process was killed
                        self._take(runs, Ended(status="FAILED"))
                    reader.remove()
        reader, runs = Reader(self._own), self._runs(self._own)
        closing, ended = False, False
        while True:
            ended = self._drain(reader, runs) or ended
            if closing:
                break
            try:
                request = requests.get(timeout=_LOOK)
            except queue.Empty:
                continue
            if request is None:
                closing = True  # and look once more
            else:
                self._drain(reader, runs)
                self._reply(self._publish(request, runs))
        if not ended and runs.open:
            self._take(runs, Ended(status="FAILED"))
        reader.remove()

    def _runs(self, journal: Path) -> Runs:
        return Runs(self._client, journal)

    def _drain(self, reader: Reader, runs: Runs) -> bool:
        """Send all that is there, points together; whether the command's end was among it."""
        ended, waiting = False, None
        while True:
            try:
                event = reader.next()
            except ValidationError:  # written by another version of limbeck
                self._reply(Refused(error=f"a line of {reader.path} cannot be read"))
                continue
            if waiting is not None and not _joins(waiting, event):
                self._take(runs, waiting)
                waiting = None
            if event is None:
                return ended
            if isinstance(event, Points):
                waiting = event if waiting is None else Points(stage=event.stage, points=waiting.points + event.points)
                continue
            self._take(runs, event)
            if isinstance(event, Began) and reader.path == self._own:
                place = f"experiments/{runs.experiment_id}/runs/{runs.run_id}"
                self._reply(Opened(run_id=runs.run_id, url=self._page(place)))
            ended = ended or isinstance(event, Ended)

    def _take(self, runs: Runs, event: Event) -> None:
        if isinstance(event, Began) or runs.knows(event):  # else MLflow has refused what it belongs to
            # Where MLflow does not let a run begin, a wrong address say, nothing of it is given up.
            own = runs.journal == self._own
            self._insist(lambda: runs.take(event), stubborn=own and isinstance(event, Began))

    def _insist(self, action: Callable[[], object], until: int | None = None, *, stubborn: bool = False) -> None:
        """Do it, again and again until it is done, refused for ever, or until a time, in milliseconds since 1970."""
        pause = _FIRST_PAUSE
        while True:
            try:
                action()
            except Exception as error:
                if not stubborn and _is_for_ever(error):
                    if until is not None:
                        raise
                    self._reply(Refused(error=_line(error)))
                    return
                if until is not None and now() > until:
                    raise
                self._trouble(_line(error))
            else:
                self._trouble(None)
                return
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _publish(self, request: Publish, runs: Runs) -> Published:
        done: list[Published] = []

        def publish() -> None:
            registry = Registry(self._uri)
            model = registry.log(request, runs.run_id, runs.experiment_id)
            runs.publish(request, model.model_id)
            registered, place = None, f"experiments/{runs.experiment_id}/models/{model.model_id}"
            if request.name is not None:
                registered = registry.register(request.name, request, model, runs.run_id)
                place = f"models/{request.name}/versions/{registered.version}"
            done.append(Published(model_id=model.model_id, url=self._page(place), registered=registered))

        if not runs.open:
            return Published(error="MLflow has refused the run")
        if now() > request.until:
            return Published(error="too late")
        try:
            self._insist(publish, request.until)
        except Exception as error:
            return Published(error=_line(error))
        return done[0]

    def _page(self, place: str) -> str | None:
        return page(redact_url(self._uri), place)

    def _trouble(self, error: str | None) -> None:
        if self._troubled != (error is not None):
            self._troubled = error is not None
            self._reply(Trouble(error=error))

    def _reply(self, reply: Reply) -> None:
        with suppress(BrokenPipeError):  # the command was killed; what it has left behind is sent all the same
            self._out.write(reply.model_dump_json() + "\n")
            self._out.flush()


def _is_for_ever(error: Exception) -> bool:
    if isinstance(error, MlflowException):
        return str(error.error_code) in _FOR_EVER
    passing = isinstance(error, OSError | SQLAlchemyError) and not isinstance(error, FileNotFoundError)
    return not passing


def _joins(waiting: Points, event: Event | None) -> bool:
    return (
        isinstance(event, Points) and event.stage == waiting.stage and len(event.points) + len(waiting.points) <= _MOST
    )


def _line(error: Exception) -> str:
    """The error in one line without credentials."""
    text = redact_url(" ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + " ..."


def _without_credentials(uri: str) -> str:
    """A server's URI without user and password, which go to MLflow's own variables: so no message can show them."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or "@" not in parts.netloc:
        return uri
    os.environ.setdefault("MLFLOW_TRACKING_USERNAME", unquote(parts.username or ""))
    os.environ.setdefault("MLFLOW_TRACKING_PASSWORD", unquote(parts.password or ""))
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def main() -> None:
    """Read the start and requests from standard input, write replies to what was standard output."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever MLflow prints is not a reply
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    start = Start.model_validate_json(sys.stdin.readline())
    start = start.model_copy(update={"uri": _without_credentials(start.uri)})
    requests: queue.Queue[Publish | None] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            requests.put(Publish.model_validate_json(line))
        requests.put(None)

    threading.Thread(target=read, daemon=True).start()
    Sender(start, out).run(requests)


if __name__ == "__main__":
    main()
