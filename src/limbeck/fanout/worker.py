"""What a Ray worker does: its share of the parts of a dataset, of the experts, or of every iteration of distill."""

from __future__ import annotations

import logging
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.train import UserCallback

from limbeck.errors import InputError, WorkError
from limbeck.failures import explained
from limbeck.fanout.messages import Failure, Job
from limbeck.interrupt import Stopped, StopRequest
from limbeck.progress import Bar
from limbeck.redact import RedactedFormatter
from limbeck.store import Identity, Result, Store

_EVERY = 0.5  # seconds between reports to the board
_LOCK_PATIENCE = 120.0  # seconds; a worker of a group that just died may hold a result's lock for a while

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Look:
    """What the board shows."""

    done: int
    note: str
    lines: list[str]
    untrained: list[Failure]
    error: str | None
    where: str | None


@dataclass
class Board:
    """An actor beside the driver: workers write on it how far they are, and read from it whether to stop."""

    _done: dict[int, int] = field(default_factory=dict)
    _note: str = ""
    _lines: list[str] = field(default_factory=list)
    _said: set[str] = field(default_factory=set)
    _untrained: dict[int, list[Failure]] = field(default_factory=dict)
    _error: str | None = None
    _where: str | None = None
    _stop: bool = False

    def begin(self, rank: int, ranks: int) -> None:
        """A worker starts; those of a larger group before it count no more."""
        self._done = {other: done for other, done in self._done.items() if other < ranks and other != rank}
        self._untrained.pop(rank, None)

    def report(self, rank: int, done: int, note: str) -> bool:
        """A worker has done so much; whether it shall stop."""
        self._done[rank] = done
        self._note = note or self._note
        return self._stop

    def finish(self, rank: int, untrained: list[Failure], error: str | None, where: str | None) -> None:
        """A worker is through its share."""
        self._untrained[rank] = untrained
        if self._error is None:
            self._error, self._where = error, where

    def say(self, line: str) -> None:
        """A line for the user; what several workers say is said once."""
        if line not in self._said:
            self._said.add(line)
            self._lines.append(line)

    def died(self, causes: Mapping[int, str]) -> None:
        """Workers died, and the group starts again."""
        text = "; ".join(f"worker {rank}: {cause}" for rank, cause in sorted(causes.items()))
        self._lines.append(f"the group of workers starts again ({text or 'no cause was given'})")

    def stop(self) -> None:
        """All shall stop at their next safe point."""
        self._stop = True

    def look(self) -> Look:
        """Everything; lines are shown once."""
        lines, self._lines = self._lines, []
        failures = sorted((entry for entries in self._untrained.values() for entry in entries), key=lambda e: e.index)
        return Look(sum(self._done.values()), self._note, lines, failures, self._error, self._where)


class Deaths(UserCallback):  # type: ignore[misc]  # Ray is untyped here
    """Runs in Ray Train's controller: tells the board when workers died."""

    def __init__(self, board: ActorHandle[Any]) -> None:
        self._board = board

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """See `ray.train.UserCallback`."""
        self._board.died.remote({rank: first_line(error) for rank, error in worker_exceptions.items()})


def first_line(error: BaseException) -> str:
    """The first line of an exception's message that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def train_loop(config: dict[str, Any]) -> None:
    """One worker's part; `ray.train.report`, a barrier, is called once, at the end."""
    job, board = Job.model_validate_json(config["job"]), config["board"]
    context = ray.train.get_context()
    rank, ranks = context.get_world_rank(), context.get_world_size()
    stop = StopRequest()
    reporter = _Reporter(board, rank, stop)
    ray.get(board.begin.remote(rank, ranks))
    untrained: list[Failure] = []
    error = where = None
    if Path(job.folder).is_dir():  # Ray has changed it
        os.chdir(job.folder)
    store = Store.of(job.spec, url=job.store)
    with _log_file(store, f"{job.log}/worker-{rank}.log"):
        try:
            untrained = _work(job, store, reporter, rank, ranks, config["cpus"])
        except Stopped:
            log.info("stopped")
        except InputError as fault:
            log.exception("the input is wrong")
            error, where = f"{fault.found}; {fault.allowed}" if fault.allowed else fault.found, fault.where
        except WorkError as failure:
            log.exception("failed")
            error = str(failure)
    if error is not None and job.parts is not None:
        board.stop.remote()  # without this part there is no dataset; what the others have finished is kept
    ray.get(board.finish.remote(rank, untrained, error, where))
    ray.train.report({})


def _work(job: Job, store: Store, reporter: _Reporter, rank: int, ranks: int, cpus: float) -> list[Failure]:
    import torch
    from ray.train.torch import get_device

    from limbeck.data.workers import available_cores
    from limbeck.fanout.parts import make_parts
    from limbeck.matching.groups import group_size, share
    from limbeck.memory import keep_freed_memory
    from limbeck.ranks import anyone
    from limbeck.stages.distill import distill
    from limbeck.stages.task import StageTask, Workshop, make_deterministic
    from limbeck.stages.trajectories import ExpertMaker
    from limbeck.version import __version__

    make_deterministic()
    keep_freed_memory()
    device = get_device()
    torch.set_num_threads(max(1, int(cpus)))
    log.info(
        "limbeck %s, torch %s, %s, pid %d, rank %d of %d, on %s",
        *(__version__, torch.__version__, platform.node(), os.getpid(), rank, ranks, device),
    )
    shop = Workshop(store, device, reporter, reporter.stop, patience=_LOCK_PATIENCE)
    inputs = {name: _input(shop.store, place.stage, place.key, place.digest) for name, place in job.inputs.items()}
    if job.parts is not None:
        # the workers of this machine have all of it, as the command's own processes would
        processes = max(int(cpus), available_cores() // ranks if job.address is None else 1)
        earlier = inputs.get("earlier")
        make_parts(job.parts, job.parts.numbers[rank::ranks], job.spec, earlier, processes, shop, reporter.tell)
        return []
    if job.result is None:
        maker = ExpertMaker(StageTask(job.spec, shop, inputs, Path()))
        together = group_size(job.spec, accelerated=device.type == "cuda")
        untrained = maker.make(share(job.experts, together, rank, ranks))
        return [Failure(index=entry.index, cause=entry.cause) for entry in untrained]
    made = job.result
    identity = Identity(made.stage, made.version, made.section, made.inputs)
    if anyone(rank == 0 and shop.find(identity) is not None, device):
        return []
    if rank:
        reporter.silence()
        with tempfile.TemporaryDirectory() as folder, explained("distill", Path(folder)):
            distill(StageTask(job.spec, shop, inputs, Path(folder)))
        return []

    def fill(folder: Path) -> list[str]:
        distill(StageTask(job.spec, shop, inputs, folder))
        return []

    if shop.make(identity, fill)[1]:
        raise RuntimeError("another process made it meanwhile; the other workers must not wait")
    return []


def _input(store: Store, stage: str, key: str, digest: str) -> Result:
    result = store.find(stage, key)
    if result is None or result.digest != digest:
        raise WorkError(
            f"a worker on {platform.node()} does not see {store.location(stage, key)}; "
            "spec.output.uri must be a bucket, or a folder that all workers share"
        )
    return result


class _Reporter:
    """A worker's `Progress`: bars go to the board, lines to the log."""

    def __init__(self, board: ActorHandle[Any], rank: int, stop: StopRequest) -> None:
        self.stop = stop
        self._board, self._rank = board, rank
        self._silent, self._done, self._note = False, 0, ""
        self._sent = 0.0
        self._answer: ray.ObjectRef[bool] | None = None

    def silence(self) -> None:
        """Count nothing any more: another worker reports for all."""
        self._silent = True

    def say(self, line: str) -> None:
        """See `Progress.say`."""
        log.info(line)

    def tell(self, line: str) -> None:
        """Say something to the user, once for all workers that say it."""
        log.info(line)
        self._board.say.remote(line)

    @contextmanager
    def bar(self, title: str, total: int, unit: str, done: int = 0) -> Iterator[Bar]:
        """See `Progress.bar`."""
        self._done = done
        self._send()
        yield self
        self._send()

    def advance(self, steps: int = 1, note: str = "") -> None:
        """See `Bar.advance`."""
        self._done += steps
        self._note = note
        if time.monotonic() - self._sent >= _EVERY:
            self._send()

    def _send(self) -> None:
        self._sent = time.monotonic()
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            try:
                self.stop.requested |= ray.get(self._answer)
            except RayError:  # the board is gone, and the driver with it: what is saved now, the next run goes on from
                self.stop.requested = True
        self._answer = self._board.report.remote(self._rank, 0 if self._silent else self._done, self._note)


@contextmanager
def _log_file(store: Store, name: str) -> Iterator[None]:
    """Inside the block, what limbeck logs goes to a file of the store as well."""
    with store.appended(name) as path:
        handler = logging.FileHandler(path)
        handler.setFormatter(RedactedFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger = logging.getLogger("limbeck")
        level = logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
            handler.close()
