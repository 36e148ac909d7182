"""The process that talks to Ray: reads a job, runs Ray Train, writes events. `python -m limbeck.fanout.driver`.

It is a process of its own because Ray ends the process it is used in when the head of the cluster goes, and because
waiting for a cluster that does not answer can then be given up. It stops when it reads `stop`, and at once when its
standard input ends, which is when the process that started it is gone.

For an address that begins with http it hands the job to the cluster, where another driver, on the head, does the same;
its events come back through the log of the Ray job.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TextIO

from limbeck.fanout.connection import connect, reason, start
from limbeck.fanout.messages import (
    STOP,
    Connected,
    Connecting,
    Ended,
    Event,
    Job,
    Progress,
    Said,
    event_line,
    read_event,
)
from limbeck.matching.groups import group_size, grouped
from limbeck.storage import Access
from limbeck.version import __version__

if TYPE_CHECKING:
    from ray.actor import ActorHandle

_LOOK_EVERY = 0.5
_PROBE_SECONDS = 20.0
_SUBMIT_SECONDS = 8.0
_FIELD = "spec.execution.ray"
_JOB_VARIABLE = "LIMBECK_FANOUT_JOB"


class _Refused(Exception):  # noqa: N818 - not a fault of the program
    """The work cannot start; the field of the spec to blame, and why."""

    def __init__(self, where: str, message: str) -> None:
        self.where = where
        super().__init__(" ".join(message.split()))


class _Work:
    """A job, whoever does it: it can be asked to stop, and its events are written."""

    def __init__(self, job: Job, out: TextIO) -> None:
        self._job, self._out = job, out
        self._stop = threading.Event()

    def stop(self) -> None:
        """Ask the workers to stop at their next safe point."""
        self._stop.set()

    def _say(self, event: Event) -> None:
        self._out.write(event_line(event))
        self._out.flush()


class Driver(_Work):
    """One job on one cluster."""

    def __init__(self, job: Job, out: TextIO) -> None:
        super().__init__(job, out)
        self._settings = job.spec.execution.ray

    def run(self) -> None:
        """Connect, check, train, and say how it ended."""
        try:
            self._connect()
            self._say(Connected())
            workers, bundle = self._ask_for_room()
            ended = self._train(workers, bundle)
        except _Refused as refusal:
            ended = Ended(error=str(refusal), where=refusal.where)
        self._say(ended)

    def _connect(self) -> None:
        self._say(Connecting())
        job = self._job
        if job.address is None:
            start(math.ceil(job.most * job.cpus), job.temporary)
            return
        try:
            connect(job.address, self._retrying)
        except ConnectionError as error:
            raise _Refused(f"{_FIELD}.address", f"{job.address}: cannot connect: {error}") from None

    def _retrying(self, why: str) -> None:
        self._say(Said(line=f"{self._job.address} does not answer yet; connecting again: {why}"))
        self._say(Connecting())

    def _ask_for_room(self) -> tuple[tuple[int, int], dict[str, float]]:
        """The fewest and the most workers, and what each reserves; on a cluster, after a look at those places."""
        import ray

        settings, total = self._settings, ray.cluster_resources()
        gpus, cards = settings.gpus_per_worker, total.get("GPU", 0.0)
        most = self._most(accelerated=cards > 0 and gpus != 0)
        if self._job.parts is not None:  # images are decoded by the CPU
            gpus = 0.0
        elif gpus is None:
            gpus = min(1.0, cards)
            if self._job.address is None:  # all the workers of this machine share its cards
                gpus = min(gpus, cards / most)
        bundle = {"CPU": self._job.cpus, **settings.resources}
        if gpus:
            bundle["GPU"] = gpus
        if settings.accelerator_type is not None:
            bundle[f"accelerator_type:{settings.accelerator_type}"] = 1e-3
        workers = self._job.workers or max(1, _room(bundle))
        workers = min(workers, most)
        fewest = min(workers, settings.min_workers or workers)
        if self._job.address is not None or set(bundle) != {"CPU"}:  # CPUs Ray was told to have, where it starts here
            self._check_places(bundle, fewest, total)
        return (fewest, workers), bundle

    def _most(self, *, accelerated: bool) -> int:
        """How many workers have something to do: experts are trained in groups, larger ones on accelerators."""
        job = self._job
        if not job.experts:
            return job.most
        return min(job.most, len(grouped(job.experts, group_size(job.spec, accelerated=accelerated))))

    def _check_places(self, bundle: dict[str, float], workers: int, total: Mapping[str, float]) -> None:
        """Reserve the workers' places for a moment: are there enough, and is limbeck there, in this version?"""
        import ray
        from ray.util.placement_group import placement_group, remove_placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        address, patience = self._job.address or "this machine", self._settings.start_timeout_seconds
        group = placement_group([dict(bundle) for _ in range(workers)], strategy="PACK")
        try:
            if not group.wait(patience):
                free = ray.available_resources()
                have = ", ".join(f"{name} {total.get(name, 0):g} ({free.get(name, 0):g} free)" for name in bundle)
                want = ", ".join(f"{name} {amount:g}" for name, amount in bundle.items())
                count = f"{workers} workers of {want} each" if workers > 1 else f"a worker of {want}"
                raise _Refused(
                    _FIELD,
                    f"{count} found no room in {address} within {patience} s, which has "
                    f"{have}; ask for less, or raise startTimeoutSeconds where it grows on demand",
                )

            def probe() -> tuple[str, str | None]:  # sent by value: limbeck may not be there
                import platform

                try:
                    from limbeck.version import __version__ as version
                except ImportError:
                    return platform.node(), None
                return platform.node(), version

            task = ray.remote(probe)
            places = [
                task.options(num_cpus=0, scheduling_strategy=PlacementGroupSchedulingStrategy(group, index)).remote()
                for index in range(workers)
            ]
            try:
                found = ray.get(places, timeout=_PROBE_SECONDS)
            except Exception as error:
                raise _Refused(_FIELD, f"{address}: a worker does not start: {error}") from None
            wrong = sorted({(node, version or "none") for node, version in found if version != __version__})
            if wrong:
                those = ", ".join(f"{version} on {node}" for node, version in wrong)
                raise _Refused(
                    f"{_FIELD}.address",
                    f"{address} has limbeck {those}, and this is limbeck {__version__}; all must be the same version",
                )
        finally:
            remove_placement_group(group)

    def _train(self, workers: tuple[int, int], bundle: dict[str, float]) -> Ended:
        import ray
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from limbeck.fanout.worker import Board, Deaths, train_loop

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        board = ray.remote(Board).options(num_cpus=0, scheduling_strategy=here).remote()
        fewest, most = workers
        gpus = bundle.get("GPU", 0.0)
        storage, path = _storage(self._job.store, Access.of(self._job.spec))
        trainer = TorchTrainer(
            train_loop,
            train_loop_config={"job": self._job.model_dump_json(), "board": board, "cpus": bundle["CPU"]},
            # NCCL wants a card a rank
            torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if gpus >= 1 else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=most if fewest == most else (fewest, most),
                use_gpu=gpus > 0,
                resources_per_worker=bundle,
            ),
            run_config=RunConfig(
                name=self._job.name,
                storage_path=path,
                storage_filesystem=storage,
                failure_config=FailureConfig(
                    max_failures=self._settings.max_failures,
                    controller_failure_limit=max(1, self._settings.max_failures),  # a group that finds no room again
                ),
                callbacks=[Deaths(board)],
            ),
        )
        each = ", ".join(f"{name} {amount:g}" for name, amount in bundle.items())
        count = f"{most} worker{'s'[: most > 1]}" if fewest == most else f"{fewest} to {most} workers"
        where = self._job.address or "this machine"
        self._say(Said(line=f"{count} on {where}, {each}{' each' if most > 1 else ''}"))
        failures: list[Exception] = []

        def fit() -> None:
            try:
                trainer.fit()
            except Exception as error:
                failures.append(error)

        thread = threading.Thread(target=fit, daemon=True)  # beside the main thread Ray leaves the signals alone
        thread.start()
        while thread.is_alive():
            thread.join(_LOOK_EVERY)
            self._look(board)
        look = self._look(board)
        stopped = self._stop.is_set()
        if failures and not stopped:
            return Ended(untrained=look.untrained, error=_cause(failures[0]))
        return Ended(untrained=look.untrained, stopped=stopped, error=look.error, where=look.where)

    def _look(self, board: ActorHandle[Any]) -> Any:
        """Pass on what the board shows."""
        import ray

        if self._stop.is_set():
            board.stop.remote()
        look = ray.get(board.look.remote())
        for line in look.lines:
            self._say(Said(line=line))
        self._say(Progress(done=look.done, note=look.note))
        return look


def _room(bundle: Mapping[str, float]) -> int:
    """How many such workers all nodes together hold."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(int(min(node.get(name, 0.0) / amount + 1e-6 for name, amount in bundle.items())) for node in nodes)


def _storage(url: str, access: Access) -> tuple[Any, str]:
    """Ray Train's own small files go to the store's folder work/ray, through the same file system as everything."""
    from fsspec.implementations.local import LocalFileSystem
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    filesystem, root = access.open(url)
    path = f"{str(root).rstrip('/')}/work/ray"
    if isinstance(filesystem, LocalFileSystem):
        return None, path
    return PyFileSystem(FSSpecHandler(filesystem)), path


def _cause(error: Exception) -> str:
    """What ended the training, in a line."""
    from limbeck.fanout.worker import first_line

    workers = getattr(error, "worker_failures", None)
    if workers:
        text = "; ".join(f"worker {rank}: {first_line(failure)}" for rank, failure in sorted(workers.items()))
        return f"the workers died too often (spec.execution.ray.maxFailures); the last time: {text}"
    return f"Ray: {first_line(error)}"


class Submission(_Work):
    """A job that is done by a driver on the cluster."""

    def run(self) -> None:
        """Submit it, and pass its events on."""
        import asyncio

        try:
            ended = asyncio.run(self._follow())
        except _Refused as refusal:
            ended = Ended(error=str(refusal), where=refusal.where)
        self._say(ended)

    async def _follow(self) -> Ended:
        self._say(Connecting())
        import asyncio

        from ray.job_submission import JobSubmissionClient

        where, address = f"{_FIELD}.address", self._job.address
        inner = self._job.model_copy(update={"address": "auto"})
        settings: dict[str, Any] = {
            "entrypoint": "python -m limbeck.fanout.driver",
            "runtime_env": {"env_vars": {_JOB_VARIABLE: inner.model_dump_json()}},
            "metadata": {"limbeck": self._job.name},
        }
        deadline = time.monotonic() + _SUBMIT_SECONDS
        while True:
            try:
                client = JobSubmissionClient(address)
                submission = client.submit_job(**settings)
                break
            except Exception as error:  # a cluster that has just started has no agent yet
                if "try again later" not in str(error) or time.monotonic() > deadline:
                    raise _Refused(where, f"{address}: cannot submit a job: {reason(error)}") from None
                await asyncio.sleep(_LOOK_EVERY)
        self._say(Connected())
        self._say(Said(line=f"job {submission} on {address}"))
        stopping = asyncio.create_task(self._pass_stop_on(client, submission))
        last, ended, rest = "", None, ""
        try:
            async for text in client.tail_job_logs(submission):
                lines = (rest + text).splitlines(keepends=True)
                rest = lines.pop() if lines and not lines[-1].endswith("\n") else ""
                for line in lines:
                    event = read_event(line)
                    if isinstance(event, Ended):
                        ended = event
                    elif event is not None:
                        self._say(event)
                    else:
                        last = line.strip() or last
                        sys.stderr.write(line)
        finally:
            stopping.cancel()
        if ended is not None:
            return ended
        if self._stop.is_set():
            return Ended(stopped=True)
        if "No module named 'limbeck'" in last:
            raise _Refused(where, f"{address}: its head has no limbeck; this is limbeck {__version__}")
        status = client.get_job_status(submission)
        return Ended(error=f"job {submission} on {address} ended as {status}: {last}")

    async def _pass_stop_on(self, client: Any, submission: str) -> None:
        import asyncio

        while not self._stop.is_set():
            await asyncio.sleep(_LOOK_EVERY)
        client.stop_job(submission)


def _obey(driver: Driver | Submission) -> None:
    """Read commands until standard input ends."""
    for line in sys.stdin:
        if line.strip() == STOP:
            driver.stop()
    os._exit(1)


def main() -> None:
    """Read the job from the first line of standard input, or as a Ray job from the environment."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever Ray prints is not an event
    text = os.environ.pop(_JOB_VARIABLE, "")
    submitted = bool(text)
    text = text or sys.stdin.readline()
    version = json.loads(text)["version"]
    if version != __version__:  # what else it says is in that version's words
        error = f"the head has limbeck {__version__}, and this is limbeck {version}; all must be the same version"
        out.write(event_line(Ended(error=error, where=f"{_FIELD}.address")))
        out.flush()
        return
    job = Job.model_validate_json(text)
    through_dashboard = (job.address or "").startswith(("http://", "https://"))
    driver: Driver | Submission = Submission(job, out) if through_dashboard else Driver(job, out)
    if submitted:
        signal.signal(signal.SIGTERM, lambda number, frame: driver.stop())
    else:
        threading.Thread(target=_obey, args=(driver,), daemon=True).start()
    driver.run()
    import ray

    ray.shutdown()


if __name__ == "__main__":
    main()
