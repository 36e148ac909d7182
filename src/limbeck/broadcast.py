"""A run says over HTTP where it stands, to whoever asks: the operator asks the pods of its Jobs."""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Literal

from limbeck.errors import InputError
from limbeck.standing import PATH, StageStanding, Standing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from limbeck.evaluation.comparison import Champion
    from limbeck.progress import Bar
    from limbeck.spec import Distillation
    from limbeck.stages.task import Workshop
    from limbeck.store import Identity, Result
    from limbeck.summary import Summary
    from limbeck.tracking.messages import Published
    from limbeck.tracking.recorder import Recorder

_MOST_FIGURES = 32


@dataclass(frozen=True)
class _Work:
    """The piece of work under way."""

    done: int
    total: int
    counted: int  # of it, since `started`
    started: float

    def percentage(self) -> int:
        return min(100, 100 * self.done // max(1, self.total))

    def seconds_left(self) -> int | None:
        """By the rate so far."""
        elapsed = time.monotonic() - self.started
        return round((self.total - self.done) * elapsed / self.counted) if self.counted else None


class Broadcast:
    """Answers `GET /status` from a thread of its own, with a `Standing`.

    To a run it is the recorder, and to its stages what shows figures and progress; all of it is passed on to those that
    were there before.
    """

    def __init__(self, address: str) -> None:
        """Begin to answer.

        Args:
            address: HOST:PORT to listen on.

        Raises:
            InputError: it is no address.
            OSError: it cannot be listened on.
        """
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65535:
            raise InputError("--status", address, "HOST:PORT, such as 127.0.0.1:8081")
        self._run = ""
        self._stages: dict[str, StageStanding] = {}
        self._label: str | None = None
        self._work: _Work | None = None
        self._metrics: dict[str, float] = {}
        self._updated = datetime.now(UTC)
        self._recorder: Recorder | None = None
        self._shop: Workshop | None = None
        self._opened = False
        self._server = _server(host.strip("[]"), int(port), self)
        threading.Thread(target=self._server.serve_forever, daemon=True, name="status").start()

    @property
    def address(self) -> str:
        """Where it listens, as HOST:PORT."""
        host, port = self._server.server_address[:2]
        return f"{host!s}:{port}"

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()

    def around(self, recorder: Recorder, shop: Workshop) -> tuple[Recorder, Workshop]:
        """The recorder and the workshop to run with, so that this sees what happens."""
        self._recorder, self._shop = recorder, shop
        return self, replace(shop, live=self, progress=self)

    def standing(self) -> Standing:
        """Where the run stands now."""
        work, recorder = self._work, self._recorder
        links = recorder.links(wait=False) if recorder is not None and self._opened else {}
        return Standing(
            run=self._run,
            stage=self._label,
            percentage=None if work is None else work.percentage(),
            estimated_remaining_seconds=None if work is None else work.seconds_left(),
            metrics=self._metrics,
            last_updated_time=self._updated.strftime("%Y-%m-%dT%H:%M:%SZ"),
            stages=list(self._stages.values()),
            links=links,
        )

    def _seen(self) -> None:
        self._updated = datetime.now(UTC)

    # Recorder

    @property
    def _inner(self) -> Recorder:
        assert self._recorder is not None
        return self._recorder

    @contextmanager
    def run(self, distillation: Distillation, sources: Mapping[str, str]) -> Iterator[None]:
        """See `Recorder.run`."""
        from limbeck.preflight import source_settings
        from limbeck.stages.graph import STAGES

        self._run = distillation.metadata.name
        labels = [f"ingest {settings.label}" for settings in source_settings(distillation.spec).values()]
        labels += [stage.name for stage in STAGES]
        self._stages = {label: StageStanding(name=label, state="Pending") for label in labels}
        self._seen()
        with self._inner.run(distillation, sources):
            self._opened = True
            yield

    @contextmanager
    def stage(self, label: str, identity: Identity) -> Iterator[None]:
        """See `Recorder.stage`."""
        self._label, self._work, self._metrics = label, None, {}
        self._turn(label, "Running")
        try:
            with self._inner.stage(label, identity):
                yield
        except BaseException:
            self._turn(label, "Failed")
            raise
        self._label, self._work, self._metrics = None, None, {}

    def _turn(self, label: str, state: Literal["Running", "Failed"]) -> None:
        self._stages = {**self._stages, label: StageStanding(name=label, state=state)}
        self._seen()

    def made(self, name: str, label: str, result: Result, *, reused: bool) -> None:
        """See `Recorder.made`."""
        self._inner.made(name, label, result, reused=reused)
        seconds = round(result.manifest.made.seconds, 1)
        done = StageStanding(name=label, state="Complete", seconds=seconds, reused=reused)
        self._stages = {**self._stages, label: done}
        self._seen()

    def found(self, name: str, result: Result) -> None:
        """See `Recorder.found`."""
        self._inner.found(name, result)

    def publish(self, result: Result, champion: Champion | None = None) -> Published | None:
        """See `Recorder.publish`."""
        return self._inner.publish(result, champion)

    def finished(self, summary: Summary, report: str) -> None:
        """See `Recorder.finished`."""
        self._inner.finished(summary, report)

    def links(self, *, wait: bool = True) -> dict[str, str]:
        """See `Recorder.links`."""
        return self._inner.links(wait=wait)

    # Live

    @property
    def _outer(self) -> Workshop:
        assert self._shop is not None
        return self._shop

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        """See `Live.figures`."""
        self._outer.live.figures(step, values)
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self._metrics = dict(list({**self._metrics, **finite}.items())[-_MOST_FIGURES:])
        self._seen()

    def picture(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        """See `Live.picture`."""
        self._outer.live.picture(step, name, pixels)

    # Progress

    def say(self, line: str) -> None:
        """See `Progress.say`."""
        self._outer.progress.say(line)

    @contextmanager
    def bar(self, title: str, total: int, unit: str, done: int = 0) -> Iterator[Bar]:
        """See `Progress.bar`."""
        owner = self
        with self._outer.progress.bar(title, total, unit, done) as bar:
            self._work = _Work(done, total, 0, time.monotonic())
            self._seen()

            class _Counting:
                def advance(self, steps: int = 1, note: str = "") -> None:
                    bar.advance(steps, note)
                    work = owner._work
                    if work is not None:
                        owner._work = replace(work, done=work.done + steps, counted=work.counted + steps)
                    owner._seen()

            yield _Counting()


def _server(host: str, port: int, broadcast: Broadcast) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        timeout = 5.0  # seconds for a request to arrive

        def do_GET(self) -> None:
            if self.path != PATH:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            body = broadcast.standing().model_dump_json(by_alias=True, exclude_none=True).encode()
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    return Server((host, port), Handler)
