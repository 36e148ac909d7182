"""The pipeline on this machine, by Kubeflow's own local runner: every stage as a task in a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import psutil

from limbeck.errors import WorkError
from limbeck.interrupt import Stopped, stop_on_signals
from limbeck.kubeflow import FAILED
from limbeck.progress import Progress
from limbeck.spec import Distillation
from limbeck.store import Store
from limbeck.tracking.place import database, tracking_uri

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_BEGINS = re.compile(r"Executing task '([^']+)'")
_ENDS = re.compile(r"Task '([^']+)' finished with status (\w+)")
_GRACE, _END_SECONDS = 30.0, 5.0  # that a stage has to save its state, and the runner to end after that
_KEPT = 200  # lines of a task


def here(distillation: Distillation) -> Distillation:
    """The spec for tasks on this machine: whole paths, and no task tried twice."""
    document = distillation.model_dump(mode="json", by_alias=True)
    spec = document["spec"]
    spec["output"]["uri"] = Store(spec["output"]["uri"]).shared_url
    if spec["tracking"]["enabled"]:
        file = database(tracking_uri(spec["tracking"]["uri"]))
        if file is not None:  # else tasks see the same variables, and a password in them goes into no spec
            spec["tracking"]["uri"] = f"sqlite:///{file.absolute()}"
    spec["execution"]["backoffLimit"] = 0
    spec["execution"]["ray"]["cluster"] = None  # there is no Kubernetes here
    return Distillation.model_validate_json(json.dumps(document))


def run_local(distillation: Distillation, progress: Progress) -> Path:
    """Run the pipeline, and say what its tasks do.

    Args:
        distillation: the spec.
        progress: where it is said.

    Returns:
        The log of everything that Kubeflow and the tasks have written.

    Raises:
        WorkError: a task failed; what it said itself.
        Stopped: by Ctrl-C or SIGTERM; what is finished is kept, and the same call does the rest.
    """
    distillation = here(distillation)
    store = Store.of(distillation.spec)
    folder = store.local_folder(f"work/pipeline/{distillation.metadata.name}")
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "pipeline.log"
    process = subprocess.Popen(  # noqa: S603 - ours
        [sys.executable, "-m", "limbeck_pipelines.local", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,  # Ctrl-C is the command's, which passes a stop on to the task at work
    )
    assert process.stdin is not None
    follower = _Follower(process, log, progress)
    try:
        with suppress(BrokenPipeError), stop_on_signals() as stop:
            process.stdin.write(distillation.model_dump_json(by_alias=True) + "\n")
            process.stdin.flush()
            while follower.is_alive():
                follower.join(0.1)
                stop.check()
    except (Stopped, KeyboardInterrupt) as how:
        with suppress(BrokenPipeError, KeyboardInterrupt):  # asked once; a second time there is no waiting
            process.stdin.close()  # the runner ends its task, see `_end_with`
            if isinstance(how, Stopped):
                follower.join(_GRACE + _END_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise Stopped from None
    code = process.wait()
    if code != 0 or follower.failed is not None:
        raise WorkError(f"{follower.failed or 'the pipeline'}; all that was written: {log}")
    return log


class _Follower(threading.Thread):
    """Copies what a pipeline writes to the log, and says which task runs; `failed` is why the first that failed did."""

    def __init__(self, process: subprocess.Popen[str], log: Path, progress: Progress) -> None:
        super().__init__(daemon=True)
        self.failed: str | None = None
        self._process, self._log, self._progress = process, log, progress
        self.start()

    def run(self) -> None:
        """Until the pipeline writes no more."""
        assert self._process.stdout is not None
        task, began = "", time.monotonic()
        said: deque[str] = deque(maxlen=_KEPT)
        with self._log.open("w", encoding="utf-8") as copy:
            for raw in self._process.stdout:
                line = _COLOUR.sub("", raw).rstrip()
                copy.write(line + "\n")
                copy.flush()
                begins, ends = _BEGINS.search(line), _ENDS.search(line)
                if begins:
                    task, began = begins[1], time.monotonic()
                    said.clear()
                elif ends:
                    self._progress.say(f"{ends[1]:<24} {time.monotonic() - began:8.1f} s  {ends[2].lower()}")
                    if ends[2] != "SUCCESS" and self.failed is None:
                        self.failed = _message(task, said)
                else:
                    said.append(line.strip())


def _message(task: str, said: deque[str]) -> str:
    """What a component says of its failure; where it was killed, what came last."""
    own = [line.removeprefix(FAILED) for line in said if line.startswith(FAILED)]
    last = [line for line in said if line]
    return own[-1] if own else f"{task} ended without a word; the last was: {last[-1] if last else 'nothing'}"


def _end_with(parent: TextIO) -> None:
    """When the command stops or is gone: have the task at work save its state, then end it and Kubeflow's runner."""
    parent.read()
    group = os.getpgrp()
    tasks = []
    for process in psutil.Process().children(recursive=True):
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getpgid(process.pid) == group:
                process.terminate()
                tasks.append(process)
    psutil.wait_procs(tasks, timeout=_GRACE)
    os.killpg(group, signal.SIGKILL)  # the runner has begun the next task by now


def main() -> None:
    """In a process of its own: Kubeflow's runner has its state in globals, and prints what it likes."""
    from kfp import local

    from limbeck_pipelines.distillation import build

    distillation = Distillation.model_validate_json(sys.stdin.readline())
    threading.Thread(target=_end_with, args=(sys.stdin,), daemon=True).start()
    runner = local.SubprocessRunner(use_venv=False)
    local.init(runner=runner, pipeline_root=sys.argv[1], raise_on_error=True)
    build(distillation, here=True)()


if __name__ == "__main__":
    main()
