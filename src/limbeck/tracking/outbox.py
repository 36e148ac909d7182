"""The command's side of the process that talks to MLflow: tells it, hears it, and gives up on it in the end."""

from __future__ import annotations

import queue
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from limbeck.interrupt import StopRequest
from limbeck.progress import Progress
from limbeck.redact import redact_url
from limbeck.tracking.journal import Event, Journal, Picture, now
from limbeck.tracking.messages import REPLIES, Kept, Opened, Publish, Published, Refused, Send, Trouble
from limbeck.tracking.process import SenderProcess

_OPENING_SECONDS = 20.0  # for the first answer, at the end of a run that was shorter than that
_REGISTER_SECONDS = 90.0  # for registering, while MLflow does not answer
_LOG_SECONDS = 15.0  # for logging the set without registering it, likewise
_PUBLISH_SECONDS = 600.0  # for either, while it does
_CLOSING_SECONDS = 60.0  # for what is left, while MLflow answers
_TROUBLED_SECONDS = 5.0  # likewise, while it does not
_LOOK = 0.1


class Outbox:
    """The journal, and the process that sends it. Nothing here waits for MLflow but `publish` and `close`.

    Nothing that goes wrong with either, a full disk say, stops the work.
    """

    def __init__(self, sender: SenderProcess, folder: Path, progress: Progress, stop: StopRequest) -> None:
        self._progress, self._stop = progress, stop
        self._journal = Journal(folder)
        self._whole = True  # the journal has every event
        self._published: queue.Queue[Published] = queue.Queue()
        self._opened: Opened | None = None
        self._trouble: str | None = None
        self._sender = sender
        self._ask(Send(journal=str(self._journal.path)).model_dump_json())
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def write(self, event: Event) -> None:
        """Have an event sent, now or later."""
        if not self._whole:
            return
        try:
            self._journal.write(event)
        except OSError as error:
            self._broken(error)

    def picture(self, stage: str, name: str, step: int, pixels: NDArray[np.uint8]) -> None:
        """Have a picture sent, uint8[height, width, 3]."""
        if not self._whole:
            return
        file = self._journal.picture_file(f"{name}-{step}")
        try:
            Image.fromarray(pixels).save(file)
        except OSError as error:
            self._broken(error)
        else:
            self.write(Picture(stage=stage, name=name, step=step, file=file.name))

    def _broken(self, error: OSError) -> None:
        self._whole = False
        self._progress.say(f"what happens from now on is not tracked: {error}")

    def opened(self, *, wait: bool = True) -> Opened | None:
        """The run as MLflow knows it; None when it has not answered yet, or with `wait`, within a while."""
        deadline = time.monotonic() + (_OPENING_SECONDS if wait else 0.0)
        while self._opened is None and self._trouble is None and self._alive() and time.monotonic() < deadline:
            time.sleep(_LOOK)
        return self._opened

    def publish(self, request: Publish) -> Published:
        """Have the distilled set logged and registered, and wait for that, through some retries.

        Raises:
            Stopped: a stop was asked for.
        """
        patience = _LOG_SECONDS if request.name is None else _REGISTER_SECONDS
        started = quiet_since = time.monotonic()
        self._ask(request.model_copy(update={"until": now() + round(1000 * _PUBLISH_SECONDS)}).model_dump_json())
        while self._alive():
            try:
                return self._published.get(timeout=_LOOK)
            except queue.Empty:
                self._stop.check()
            moment = time.monotonic()
            if self._trouble is None:
                quiet_since = moment
            if moment - quiet_since > patience or moment - started > _PUBLISH_SECONDS:
                return Published(error=self._trouble or f"MLflow took longer than {_PUBLISH_SECONDS:g} s")
        try:
            return self._published.get_nowait()
        except queue.Empty:
            return Published(error=f"the process that talks to MLflow has ended: {self._last_words()}")

    def close(self) -> None:
        """Wait for what is left to be sent, but not for ever; what is not sent stays for the next command."""
        started = time.monotonic()
        with suppress(BrokenPipeError):  # it has ended before
            self._sender.input.close()
        while self._alive():
            patience = _CLOSING_SECONDS if self._trouble is None else _TROUBLED_SECONDS
            if time.monotonic() - started > patience:
                self._sender.process.kill()
            try:
                self._sender.process.wait(_LOOK)
            except subprocess.TimeoutExpired:
                continue
        self._listener.join(1.0)
        with suppress(OSError):  # told when it was written
            self._journal.close()
        if self._journal.path.exists():
            why = self._trouble or self._last_words()
            self._progress.say(
                f"not all of this run is in MLflow at {redact_url(self._sender.uri)} ({why}); "
                "the rest is kept, and the next command on this output sends it"
            )

    def _ask(self, line: str) -> None:
        with suppress(BrokenPipeError):  # it has ended; whoever waits for an answer sees that
            self._sender.input.write(line + "\n")
            self._sender.input.flush()

    def _alive(self) -> bool:
        return self._sender.process.poll() is None

    def _listen(self) -> None:
        for line in self._sender.output:
            try:
                reply = REPLIES.validate_json(line)
            except ValidationError:
                continue
            match reply:
                case Opened():
                    self._opened = reply
                    if reply.url is not None:
                        self._progress.say(f"tracked at {reply.url}")
                case Published():
                    self._published.put(reply)
                case Refused():
                    self._progress.say(f"MLflow refuses something, which is left out: {reply.error}")
                case Kept():
                    self._progress.say(f"what an earlier command has left is still not in MLflow: {reply.error}")
                case Trouble(error=None):
                    self._trouble = None
                    self._progress.say("MLflow takes what it is sent again")
                case Trouble():
                    self._trouble = reply.error
                    self._progress.say(f"MLflow does not take what it is sent; work goes on meanwhile ({reply.error})")

    def _last_words(self) -> str:
        lines = self._sender.errors().strip().splitlines()
        return redact_url(lines[-1]) if lines else "it was too slow"
