"""The command's side of a fan-out: starts the driver, shows its progress, and outlives it. Never imports Ray."""

from __future__ import annotations

import os
import queue
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from limbeck.data.dataset import ImageDataset
from limbeck.data.plan import Plan
from limbeck.errors import InputError, WorkError
from limbeck.fanout.messages import (
    FOLDER_MARK,
    STOP,
    TOKEN_ADVICE,
    Connected,
    Connecting,
    Ended,
    Event,
    Job,
    Made,
    Parts,
    Place,
    Progress,
    Said,
    ranges_of,
    read_event,
)
from limbeck.interrupt import Stopped, StopRequest
from limbeck.matching.experts import expert_steps
from limbeck.matching.groups import group_size, grouped
from limbeck.progress import Bar
from limbeck.progress import Progress as Display
from limbeck.spec import DistillationSpec
from limbeck.stages.task import StageTask, Untrained
from limbeck.storage import REMOTE, scheme_of
from limbeck.store import Identity, Result, Store
from limbeck.threads import expert_threads
from limbeck.version import __version__

_ADDRESS_FIELD = "spec.execution.ray.address"
_ADDRESSES = "ray://HOST:PORT, HOST:PORT, http://HOST:PORT or auto"
_KNOCK_SECONDS = 5.0
_REACTION_SECONDS = 10.0  # of whatever listens there
# how HTTP/2 begins: Ray's ports speak it, its dashboard refuses it, and one that wants TLS hangs up
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_START_SECONDS = 60.0  # of the driver
_CONNECT_SECONDS = 90.0  # to a cluster that listens and reacts: its head may be busy, and ray:// starts a process there
_LOCAL_SECONDS = 180.0  # of a Ray on this machine, which may be busy
_STOP_SECONDS = 60.0
_END_SECONDS = 15.0
# so many are ingested sooner by workers: of a Ray that is started for it, and of a cluster that runs
_ENOUGH_IMAGES_HERE, _ENOUGH_IMAGES_THERE = 50_000, 10_000
_MARK = "LIMBECK_FANOUT"  # in the environment of everything that is started here


class RayFanout:
    """Fans out over Ray: on a cluster, or on this machine for as long as it takes.

    Args:
        spec: its execution.ray says where, and how many.
        workers: how many, whatever the spec says.
        store: results and logs; the workers must see it too.
        progress: told what workers say; how far they are, all as one bar, goes to the task's own.
        stop: passed on to the workers.

    Raises:
        InputError: Ray is not installed, nothing listens at the address, or nothing can share the store.
    """

    def __init__(
        self, spec: DistillationSpec, workers: int | None, store: Store, progress: Display, stop: StopRequest
    ) -> None:
        self._address = spec.execution.ray.address
        self._workers = workers or spec.execution.ray.workers
        self._store, self._progress, self._stop = store, progress, stop
        if find_spec("ray") is None:
            raise InputError("ray", "not installed", "pip install 'limbeck[ray]'")
        if store.shared_url.startswith("memory:"):
            raise InputError("spec.output.uri", f"{store.url}: no other process sees it", "a folder or a bucket")
        if self._address is not None:
            _knock(self._address)

    def parts(self, task: StageTask, plan: Plan, missing: Sequence[int], earlier: Result | None) -> None:
        """See `limbeck.stages.task.Fanout`."""
        if not self._pays(plan, missing):
            return
        mark = task.out / FOLDER_MARK
        mark.write_text(secrets.token_hex(16))
        self._store.keep(mark)
        parts = Parts(
            uri=plan.source.uri,
            format=plan.source.format,
            fingerprint=plan.fingerprint,
            limit=plan.limit,
            ranges=ranges_of(missing),
            folder=self._store.name_of(task.out),
            mark=mark.read_text(),
        )
        inputs = {} if earlier is None or plan.reused is None else {"earlier": earlier}
        job = self._job(task, "ingest", inputs=inputs, most=len(missing), parts=parts)
        total = len(plan.wanted)
        with task.shop.progress.bar("ingest", total, "images", total - plan.images(missing)) as bar:
            self._run(job, bar)

    def _pays(self, plan: Plan, missing: Sequence[int]) -> bool:
        """Whether workers make these parts sooner, or at all."""
        scheme = scheme_of(plan.source.uri)
        if plan.source.single_pass or scheme == "memory":
            return False
        if self._address is None:
            return plan.unread(missing) >= _ENOUGH_IMAGES_HERE
        # elsewhere than in a bucket they may not see it, and would have to read it all to know that it is the same
        return scheme in REMOTE and plan.unread(missing) >= _ENOUGH_IMAGES_THERE

    def experts(self, task: StageTask, indices: Sequence[int]) -> list[Untrained]:
        """See `limbeck.stages.task.Fanout`."""
        spec = task.spec
        images = len(ImageDataset.open(task.inputs["dataset"].path))
        each = expert_steps(images, spec.trajectories.batch, spec.expert_epochs)
        most = len(grouped(indices, group_size(spec, accelerated=False)))  # the driver sees whether there are GPUs
        job = self._job(task, "trajectories", most=most, experts=list(indices))
        total, done = spec.trajectories.experts * each, (spec.trajectories.experts - len(indices)) * each
        with task.shop.progress.bar("trajectories", total, "steps", done) as bar:
            ended = self._run(job, bar)
        return [Untrained(entry.index, entry.cause) for entry in ended.untrained]

    def distill(self, task: StageTask, identity: Identity) -> None:
        """See `limbeck.stages.task.Fanout`."""
        settings = task.spec.distill
        made = Made(
            stage=identity.stage,
            version=identity.version,
            section=dict(identity.section),
            inputs=dict(identity.inputs),
        )
        job = self._job(task, "distill", most=settings.pairs, result=made)
        with task.shop.progress.bar("distill", settings.iterations, "iterations") as bar:
            self._run(job, bar)

    def _job(
        self,
        task: StageTask,
        name: str,
        *,
        most: int,
        inputs: Mapping[str, Result] | None = None,
        experts: Sequence[int] = (),
        result: Made | None = None,
        parts: Parts | None = None,
    ) -> Job:
        places = {
            label: Place(stage=found.manifest.stage, key=found.manifest.key, digest=found.digest)
            for label, found in (task.inputs if inputs is None else inputs).items()
        }
        return Job(
            spec=task.spec,
            store=self._store.shared_url,
            folder=str(Path.cwd()),
            inputs=places,
            experts=list(experts),
            result=result,
            parts=parts,
            name=name,
            version=__version__,
            address=self._address,
            temporary="",
            workers=self._workers,
            most=most if self._workers is None else min(most, self._workers),
            cpus=task.spec.execution.ray.cpus_per_worker or float(expert_threads(task.spec)),
        )

    def _run(self, job: Job, bar: Bar) -> Ended:
        """Run the job; what went wrong as a whole is raised.

        Raises:
            InputError: the cluster does not answer, has no room, or is of another version.
            WorkError: the workers failed, or Ray went away.
            Stopped: a stop was asked for.
        """
        with self._store.appended(f"{job.log}/ray.log") as log, _driver(job, log) as driver:
            ended = self._follow(driver, job, bar)
            self._store.remove(f"work/ray/{job.name}")
        where = f"{self._store.url.rstrip('/')}/{job.log}"
        if ended is None:
            raise WorkError(
                f"{job.name}: Ray went away (exit code {driver.process.returncode}), perhaps with the "
                f"cluster's head; what is finished is kept, and the same command goes on from there. Logs: {where}"
            )
        if ended.stopped:
            raise Stopped
        if ended.where is not None:
            raise InputError(ended.where, ended.error or "")
        if ended.error is not None:
            raise WorkError(f"{job.name}: {ended.error}. Logs: {where}")
        return ended

    def _follow(self, driver: _Driver, job: Job, bar: Bar) -> Ended | None:
        """Show events until the last; None when the driver ends without one."""
        shown, asked, connected, patience = 0, False, False, _START_SECONDS
        deadline = time.monotonic() + patience
        while True:
            if self._stop.requested and not asked:
                asked = True
                driver.send(STOP)
                deadline = time.monotonic() + _STOP_SECONDS
            event = driver.next_event(0.25)
            if isinstance(event, Ended | None) and (event is not None or driver.ended):
                return event
            match event:
                case Connecting() if not asked:
                    patience = _LOCAL_SECONDS if job.address is None else _CONNECT_SECONDS
                    deadline = time.monotonic() + patience
                case Connected():
                    connected = True
                    deadline = deadline if asked else float("inf")
                case Said():
                    self._progress.say(f"{job.name}: {event.line}")
                case Progress():
                    bar.advance(max(0, event.done - shown), event.note)
                    shown = max(shown, event.done)
            if not connected and job.address is not None and driver.wrote("InvalidAuthToken"):  # Ray tries for ever
                raise InputError(_ADDRESS_FIELD, f"{job.address}: {TOKEN_ADVICE}")
            if time.monotonic() > deadline:
                if asked:
                    return Ended(stopped=True)
                raise InputError(
                    _ADDRESS_FIELD if job.address else "ray",
                    f"{job.address or 'Ray on this machine'} gave no answer within {patience:.0f} s",
                    "a running cluster" if job.address else "a machine that is less busy",
                )


class _Driver:
    """The driver process, and the events that it writes."""

    def __init__(self, process: subprocess.Popen[str], log: Path, written: int) -> None:
        self.process = process
        self._log, self._written = log, written
        self._events: queue.Queue[Event | None] = queue.Queue()
        self.ended = False
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event = read_event(line)
            if event is not None:
                self._events.put(event)
        self._events.put(None)

    def next_event(self, timeout: float) -> Event | None:
        """The next event; None when there is none yet, or, with `ended` set, when there will be none."""
        try:
            event = self._events.get(timeout=timeout)
        except queue.Empty:
            return None
        self.ended |= event is None
        return event

    def wrote(self, word: str) -> bool:
        """Whether its log, or Ray's in it, has the word."""
        return word.encode() in self._log.read_bytes()[self._written :]

    def send(self, line: str) -> None:
        """Write a line to the driver, if it still reads."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()


@contextmanager
def _driver(job: Job, log: Path) -> Iterator[_Driver]:
    """A driver at work; at the end nothing that was started here is left, and no folder of Ray's."""
    mark = secrets.token_hex(16)
    # sockets lie in it, whose paths may have 107 characters at most
    folder = Path(tempfile.mkdtemp(prefix="lb", dir="/tmp" if Path("/tmp").is_dir() else None))  # noqa: S108
    try:
        with log.open("a") as output:
            written = output.tell()
            process = subprocess.Popen(
                [sys.executable, "-m", "limbeck.fanout.driver"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
                env=_environment(os.environ, mark, local=job.address is None),
                start_new_session=True,  # Ctrl-C is the command's, which passes it on
            )
        driver = _Driver(process, log, written)
        try:
            driver.send(job.model_copy(update={"temporary": str(folder)}).model_dump_json())
            yield driver
            _close(process)
        finally:
            process.kill()
            process.wait()
            _kill_marked(mark)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _close(process: subprocess.Popen[str]) -> None:
    """Let a driver that is through end by itself."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(_END_SECONDS)


def _environment(outer: Mapping[str, str], mark: str, *, local: bool) -> dict[str, str]:
    """The driver's environment: Ray as this needs it, unless the user has said otherwise."""
    environment = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "RAY_TRAIN_METRICS_ENABLED": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        **outer,
        _MARK: mark,
    }
    if local:
        environment.pop("RAY_ADDRESS", None)
        # a token of its own: nobody else on this machine may use it, and none is left in the home folder
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        environment.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        environment.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "15")  # nobody will start this head again
    elif "RAY_AUTH_TOKEN" in outer or "RAY_AUTH_TOKEN_PATH" in outer:
        environment.setdefault("RAY_AUTH_MODE", "token")
    return environment


def _kill_marked(mark: str) -> None:
    """Kill what is left of a Ray that was started here: workers outlive a raylet that was killed, for a while."""
    needle = f"{_MARK}={mark}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if needle in (folder / "environ").read_bytes():
                os.kill(int(folder.name), signal.SIGKILL)
        except OSError:  # gone, or another user's
            continue


def _place_of(address: str) -> tuple[str, int] | None:
    """Host and port of an address; None for auto.

    Raises:
        InputError: it is no address.
    """
    if address == "auto":
        return None
    parts = urlsplit(address if "://" in address else f"ray://{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if parts.scheme not in ("ray", "http", "https") or not host or not port:
        raise InputError(_ADDRESS_FIELD, repr(address), _ADDRESSES)
    return host, port


def _knock(address: str) -> None:
    """See that something listens there, and reacts: Ray itself would wait for it for minutes.

    Raises:
        InputError: nothing does.
    """
    place = _place_of(address)
    if place is None:
        return
    allowed = "a running Ray cluster"
    try:
        with socket.create_connection(place, _KNOCK_SECONDS) as connection:
            connection.settimeout(_REACTION_SECONDS)
            connection.sendall(_HELLO)
            with suppress(ConnectionError):  # hanging up is a reaction too
                connection.recv(1)
    except TimeoutError:
        raise InputError(_ADDRESS_FIELD, f"{address} gave no answer", allowed) from None
    except OSError as error:
        raise InputError(_ADDRESS_FIELD, f"{address}: {error.strerror or error}", allowed) from None
