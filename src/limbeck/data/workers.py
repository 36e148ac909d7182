"""Parts made by processes of their own, as many at once as there are cores: decoding takes turns in one process."""

from __future__ import annotations

import json
import os
import pickle
import selectors
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from limbeck.data.parts import PartJob, PartRecord
from limbeck.errors import InputError, WorkError
from limbeck.interrupt import StopRequest
from limbeck.progress import Bar, Progress

_LOOK_EVERY = 0.1  # seconds between looks at whether to stop
_TRIES = 2


def available_cores() -> int:
    """CPU cores that this process may use: by its affinity, and by the limit of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def make_in_processes(
    jobs: Iterable[PartJob], processes: int, bar: Bar, progress: Progress, stop: StopRequest
) -> Iterator[tuple[PartJob, PartRecord]]:
    """Have parts made; each is given as soon as it is.

    A part whose process ends, or fails at it, is tried once more by another one. Whatever ends this, also a kill,
    ends the processes.

    Args:
        jobs: the parts; one is taken when a process is free for it.
        processes: how many at once.
        bar: counts their images.
        progress: where it is said that a part is tried again.
        stop: looked at several times a second.

    Raises:
        InputError: the source turns out to be corrupt.
        WorkError: a part failed twice.
        Stopped: it was asked for.
    """
    waiting, again = iter(jobs), deque[_Try]()
    with selectors.DefaultSelector() as ready:
        workers: set[_Worker] = set()

        def employ(worker: _Worker | None) -> None:
            """Give the next part to a worker, or to a new one; end it where there is none."""
            task = again.popleft() if again else next((_Try(job) for job in waiting), None)
            if task is not None and worker is None:
                worker = _Worker()
                workers.add(worker)
                ready.register(worker.output, selectors.EVENT_READ, worker)
            if task is not None and worker is not None:
                worker.begin(task)
            elif worker is not None:
                dismiss(worker)

        def dismiss(worker: _Worker) -> None:
            workers.discard(worker)
            ready.unregister(worker.output)
            worker.end()

        try:
            for _ in range(processes):
                employ(None)
            while workers:
                for key, _ in ready.select(_LOOK_EVERY):
                    worker: _Worker = key.data
                    finished, failure = worker.listen(bar)
                    if finished is not None:
                        yield finished
                        employ(worker)
                    elif failure is not None:
                        dismiss(worker)
                        again.append(worker.task.after(failure, progress))
                        employ(None)
                stop.check()
        finally:
            for worker in workers:
                worker.end()


class _Try:
    """A part to be made, and how often it failed."""

    def __init__(self, job: PartJob, failures: int = 0, counted: int = 0) -> None:
        self.job = job
        self._failures, self._counted, self._told = failures, counted, 0

    def advance(self, count: int, bar: Bar) -> None:
        """Count images on the bar, unless an earlier try did."""
        self._told += count
        new = max(0, self._told - self._counted)
        self._counted += new
        if new:
            bar.advance(new)

    def after(self, failure: str, progress: Progress) -> _Try:
        """The next try.

        Raises:
            WorkError: this was the last.
        """
        first, last = int(self.job.wanted[0]), int(self.job.wanted[-1])
        if self._failures + 1 >= _TRIES:
            raise WorkError(f"{failure} (images {first} to {last}, tried {_TRIES} times)")
        progress.say(f"ingest: {failure}; images {first} to {last} are tried again")
        return _Try(self.job, self._failures + 1, self._counted)


class _Worker:
    """One process."""

    task: _Try

    def __init__(self) -> None:
        # In a group of its own, since Ctrl-C is this process's to handle. It ends when its standard input does.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "limbeck.data.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            process_group=0,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self.output = self._process.stdin, self._process.stdout
        self._heard = b""

    def begin(self, task: _Try) -> None:
        """Send it a part."""
        self.task = task
        data = pickle.dumps(task.job)
        with suppress(BrokenPipeError):  # it is gone, which is heard from its output
            for piece in (len(data).to_bytes(8, "little"), data):
                rest = memoryview(piece)
                while rest.nbytes:
                    rest = rest[self._input.write(rest) or 0 :]

    def listen(self, bar: Bar) -> tuple[tuple[PartJob, PartRecord] | None, str | None]:
        """Read what it has said: its part's record when that is finished, or what went wrong.

        Raises:
            InputError: the source is corrupt.
        """
        heard = os.read(self.output.fileno(), 2**16)
        if not heard:
            return None, self._obituary()
        *lines, self._heard = (self._heard + heard).split(b"\n")
        for line in lines:
            match json.loads(line):
                case {"advance": int(count)}:
                    self.task.advance(count, bar)
                case {"record": str(text)}:
                    return (self.task.job, PartRecord.model_validate_json(text)), None
                case {"input": [str(where), str(found), str(allowed)]}:
                    raise InputError(where, found, allowed)
                case {"work": str(failure)}:
                    return None, failure
        return None, None

    def _obituary(self) -> str:
        code = self._process.wait()
        if code == -signal.SIGKILL:
            return "a process that decodes was killed, perhaps because memory ran out"
        if code < 0:
            return f"a process that decodes was ended by {signal.Signals(-code).name}"
        return f"a process that decodes ended with exit code {code}"

    def end(self) -> None:
        """End it at once: whatever it has not finished is made again."""
        with suppress(OSError):
            self._process.kill()
        self._process.wait()
        self._input.close()
        self.output.close()
