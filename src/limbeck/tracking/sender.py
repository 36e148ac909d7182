"""The process that talks to MLflow: sends journals on, in batches, for as long as it takes, and registers on request.

`python -m limbeck.tracking.sender`. It reads MLflow's URI, `Send`, then `Publish` lines, and writes replies.
When the input ends it sends what is left and ends; whoever started it decides how long that may take.
"""

from __future__ import annotations

import logging
import math
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from mlflow.exceptions import MlflowException
from pydantic import ValidationError

from limbeck.errors import InputError, WorkError
from limbeck.redact import redact_url
from limbeck.tracking.journal import Began, Ended, Event, Points, Reader, claimed, key_of, now, others
from limbeck.tracking.messages import Kept, Opened, Publish, Published, Refused, Reply, Send, Trouble
from limbeck.tracking.place import page, without_credentials
from limbeck.tracking.registry import Registry
from limbeck.tracking.runs import Runs

_LOOK = 0.2  # seconds between looks at the journal
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 8.0  # seconds between attempts
_MOST = 1000  # points that are sent at once
_REFUSALS = 8  # failures of one request, while MLflow answers others, until it is left out
_EARLIER_SECONDS = 15.0  # for what earlier commands have left, when MLflow does not take it
_NEIGHBOUR_SECONDS = 30.0  # for the sender of a killed command to finish with the same run
_ALONE_SECONDS = 90.0  # for what is left when the command is gone and MLflow does not take it

# What asking again will not change. Whatever else goes wrong may be right the next time.
_FOR_EVER = {
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "MALFORMED_REQUEST",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
}
_OUR_FAULT = (ValueError, TypeError, KeyError, FileNotFoundError, InputError, WorkError)


class _GivenUpError(Exception):
    """What MLflow does not take was tried for long enough."""


class Sender:
    """Sends one command's journal, after those that earlier commands left behind."""

    def __init__(self, uri: str, journal: Path, out: TextIO) -> None:
        self._uri, self._own, self._out = uri, journal, out
        self._troubled = False
        self._refused: set[str] = set()
        self._earlier_until = self._alone_until = math.inf  # time.monotonic()

    def run(self, requests: queue.Queue[Publish | None]) -> None:
        """Until the input has ended and everything is sent, or until that has taken too long."""
        reader = Reader(self._own, hold=True)
        self._insist(self._connect, stubborn=True)
        self._send_earlier()
        self._earlier_until = math.inf
        runs = Runs(self._client, self._own, live=True)
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
        if not ended:
            self._cut_off(runs)
        reader.remove()

    def leave_alone(self) -> None:
        """The command waits no longer, or is gone: what MLflow does not take will be left, after a while."""
        self._alone_until = time.monotonic() + _ALONE_SECONDS

    def _connect(self) -> None:
        self._client = MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)
        self._registry = Registry(self._uri)

    def _send_earlier(self) -> None:
        """Send what other commands have left; where MLflow does not take it, it is left for the next command."""
        self._earlier_until = time.monotonic() + _EARLIER_SECONDS
        wait_until = time.monotonic() + _NEIGHBOUR_SECONDS
        own_key = key_of(self._own)
        for path in others(self._own.parent, self._own):
            same_run = own_key is not None and key_of(path) == own_key
            while True:
                with claimed(path) as free:
                    if free:
                        self._send_one(path)
                    wait = not free and same_run and path.exists() and time.monotonic() < wait_until
                if not wait:
                    break
                time.sleep(_LOOK)

    def _send_one(self, path: Path) -> None:
        reader, runs = Reader(path), Runs(self._client, path, live=False)
        try:
            ended = self._drain(reader, runs)
            if not ended:
                self._cut_off(runs)
        except _GivenUpError as error:
            self._reply(Kept(error=str(error)))
            self._troubled = False
            return
        if runs.open:
            reader.remove()
        else:
            self._reply(
                Kept(error=f"{reader.set_aside()} is no run that MLflow takes, or this version of limbeck reads")
            )

    def _cut_off(self, runs: Runs) -> None:
        """The command was killed: say so of its run, unless that goes on in another command."""
        later = (path for path in others(runs.journal.parent, runs.journal) if path > runs.journal)
        if runs.open and not any(key_of(path) == runs.key for path in later):
            self._take(runs, Ended(status="FAILED"))

    def _drain(self, reader: Reader, runs: Runs) -> bool:
        """Send all that is there, points together; whether the command's end was among it."""
        ended, waiting = False, None
        while True:
            try:
                event = reader.next()
            except ValidationError:  # written by another version of limbeck
                self._refuse(f"a line of {reader.path} cannot be read")
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
            self._insist(lambda: runs.take(event), stubborn=isinstance(event, Began) and runs.journal == self._own)

    def _insist(self, action: Callable[[], object], until: int | None = None, *, stubborn: bool = False) -> None:
        """Do it, again and again until it is done, refused, or until a time, in milliseconds since 1970.

        What is refused is left out; with `until` the error is raised instead; nothing `stubborn` is refused.

        Raises:
            _GivenUpError: it has taken longer than anybody waits.
        """
        pause, refusals = _FIRST_PAUSE, 0
        while True:
            try:
                action()
            except Exception as error:
                refusals = refusals + 1 if not stubborn and self._answers() else 0
                if not stubborn and (_is_for_ever(error) or refusals >= _REFUSALS):
                    if until is not None:
                        raise
                    self._refuse(_line(error))
                    return
                if until is not None and now() > until:
                    raise
                if time.monotonic() > min(self._earlier_until, self._alone_until):
                    raise _GivenUpError(_line(error)) from error
                self._trouble(_line(error))
            else:
                self._trouble(None)
                return
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _answers(self) -> bool:
        """Whether MLflow answers another question: then what it does not take is to blame."""
        try:
            self._client.search_experiments(max_results=1)
        except Exception:
            return False
        return True

    def _publish(self, request: Publish, runs: Runs) -> Published:
        done: list[Published] = []

        def publish() -> None:
            model = self._registry.log(request, runs.run_id, runs.experiment_id)
            runs.publish(request, model.model_id)
            done.append(self._registered(request, model, runs))

        if not runs.open:
            return Published(error="MLflow has refused the run")
        if now() > request.until:
            return Published(error="too late")
        try:
            self._insist(publish, request.until)
        except Exception as error:
            return Published(error=_line(error))
        return done[0]

    def _registered(self, request: Publish, model: LoggedModel, runs: Runs) -> Published:
        """Register a logged set where a name is given."""
        if request.name is None:
            place = f"experiments/{runs.experiment_id}/models/{model.model_id}"
            return Published(model_id=model.model_id, url=self._page(place))
        registered, first = self._registry.register(request.name, request, model, runs.run_id)
        url = self._page(f"models/{request.name}/versions/{registered.version}")
        return Published(model_id=model.model_id, url=url, registered=registered, evaluate_first=first)

    def _page(self, place: str) -> str | None:
        return page(redact_url(self._uri), place)

    def _refuse(self, error: str) -> None:
        self._trouble(None)
        if error not in self._refused:
            self._refused.add(error)
            self._reply(Refused(error=error))

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
    return isinstance(error, _OUR_FAULT)


def _joins(waiting: Points, event: Event | None) -> bool:
    return (
        isinstance(event, Points) and event.stage == waiting.stage and len(event.points) + len(waiting.points) <= _MOST
    )


def _line(error: Exception) -> str:
    """The error in one line without credentials."""
    text = redact_url(" ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + " ..."


def main() -> int:
    """Read the URI and messages from standard input, write replies to what was standard output."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever MLflow prints is not a reply
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    lines = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - until the end
    uri, variables = without_credentials(lines.readline().rstrip("\n"))
    os.environ.update(variables)  # so no message can show them
    line = lines.readline()
    if not line:
        return 0  # the command has ended before there was anything to send
    requests: queue.Queue[Publish | None] = queue.Queue()
    sender = Sender(uri, Path(Send.model_validate_json(line).journal), out)

    def read() -> None:
        try:
            for line in lines:
                requests.put(Publish.model_validate_json(line))
        finally:
            sender.leave_alone()
            requests.put(None)

    threading.Thread(target=read, daemon=True).start()
    try:
        sender.run(requests)
    except Exception as error:  # a traceback could show the URI, and what is in it
        sys.stderr.write(f"{type(error).__name__}: {_line(error)}\n")
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # the command waits for this, and tearing down what MLflow has imported takes half a second
