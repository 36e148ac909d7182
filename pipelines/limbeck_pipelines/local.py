"""The pipeline on this machine, by Kubeflow's own local runner: every stage as a task in a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

from limbeck.errors import WorkError
from limbeck.interrupt import Stopped
from limbeck.progress import Progress
from limbeck.spec import Distillation
from limbeck.store import Store
from limbeck.tracking.place import database, tracking_uri

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_BEGINS = re.compile(r"Executing task '([^']+)'")
_ENDS = re.compile(r"Task '([^']+)' finished with status (\w+)")
_GRACE = 30.0  # seconds that a stage has to save its state
_KEPT = 200  # lines of a task


def here(distillation: Distillation) -> Distillation:
    """The spec for tasks on this machine: whole paths, and no task tried twice."""
    document = distillation.model_dump(mode="json", by_alias=True)
    spec = document["spec"]
    if "://" not in spec["output"]["uri"]:
        spec["output"]["uri"] = str(Path(spec["output"]["uri"]).absolute())
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
    store = Store(distillation.spec.output.uri)
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
        start_new_session=True,  # a stop goes to the task alone, not to Kubeflow's runner first
    )
    assert process.stdin is not None
    process.stdin.write(distillation.model_dump_json(by_alias=True))
    process.stdin.close()
    previous = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        failed = _follow(process, log, progress)
    except KeyboardInterrupt:
        _stop(process)
        raise Stopped from None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if process.wait() != 0 or failed is not None:
        raise WorkError(f"{failed or 'the pipeline'}; all that was written: {log}")
    return log


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _follow(process: subprocess.Popen[str], log: Path, progress: Progress) -> str | None:
    """Copy what is written to the log, and say which task runs; what the first that failed has said last."""
    assert process.stdout is not None
    task, began, failed = "", time.monotonic(), None
    said: deque[str] = deque(maxlen=_KEPT)
    with log.open("w", encoding="utf-8") as copy:
        for raw in process.stdout:
            line = _COLOUR.sub("", raw).rstrip()
            copy.write(line + "\n")
            copy.flush()
            begins, ends = _BEGINS.search(line), _ENDS.search(line)
            if begins:
                task, began = begins[1], time.monotonic()
                said.clear()
            elif ends:
                progress.say(f"{ends[1]:<24} {time.monotonic() - began:8.1f} s  {ends[2].lower()}")
                if ends[2] != "SUCCESS" and failed is None:
                    failed = _message(task, said)
            else:
                said.append(line.strip())
    return failed


def _message(task: str, said: deque[str]) -> str:
    """A component's own last words begin with its stage's name; else the last line."""
    stage = task.rstrip("-0123456789")
    own = [line for line in said if line.startswith(f"{stage}") and ": " in line]
    last = [line for line in said if line]
    return own[-1] if own else f"{task}: {last[-1] if last else 'failed'}"


def _stop(process: subprocess.Popen[str]) -> None:
    """Ask the task at work to save its state, then end everything."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def main() -> None:
    """In a process of its own: Kubeflow's runner has its state in globals, and prints what it likes."""
    from kfp import local

    from limbeck_pipelines.distillation import build

    signal.signal(signal.SIGTERM, lambda number, frame: None)  # the task at work stops; this sees that it has failed
    distillation = Distillation.model_validate_json(sys.stdin.read())
    runner = local.SubprocessRunner(use_venv=False)
    local.init(runner=runner, pipeline_root=sys.argv[1], raise_on_error=True)
    build(distillation, here=True)()


if __name__ == "__main__":
    main()
