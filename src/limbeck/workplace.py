"""What a process needs to work on a spec: the workshop, and who records what happens in it.

Light until it is used: `SenderProcess` is to be started before torch is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from limbeck.errors import InputError

if TYPE_CHECKING:
    from limbeck.progress import Progress
    from limbeck.spec import DistillationSpec
    from limbeck.stages.task import Workshop
    from limbeck.tracking.process import SenderProcess
    from limbeck.tracking.recorder import Recorder


def start_sender(spec: DistillationSpec, note: Callable[[str], None]) -> SenderProcess | None:
    """The process that talks to MLflow, where the run is tracked: started first, it is ready when the work begins.

    Raises:
        InputError: the spec names a server, and MLflow is not installed.
    """
    from limbeck.tracking.place import is_installed, tracking_uri

    if not spec.tracking.enabled:
        return None
    if not is_installed():
        if spec.tracking.uri is not None:
            raise InputError(
                "spec.tracking.uri", "mlflow is not installed", "pip install mlflow, or tracking.enabled: false"
            )
        note("note: mlflow is not installed, so the run is not tracked")
        return None
    from limbeck.tracking.process import SenderProcess

    return SenderProcess(tracking_uri(spec.tracking.uri))


@contextmanager
def workshop(
    spec: DistillationSpec, workers: int | None = None, progress: Progress | None = None
) -> Iterator[Workshop]:
    """Everything that work on this machine needs; signals stop it inside the block.

    Args:
        spec: what is worked on.
        workers: Ray workers, where they are asked for beside the spec.
        progress: where it is shown; by default on the terminal.
    """
    from limbeck.interrupt import stop_on_signals
    from limbeck.memory import keep_freed_memory
    from limbeck.progress import TerminalProgress
    from limbeck.stages.task import Workshop, make_deterministic, pick_device
    from limbeck.store import Store

    with stop_on_signals() as stop:
        make_deterministic()
        keep_freed_memory()
        shown = progress or TerminalProgress()
        shop = Workshop(Store.of(spec, shown), pick_device(), shown, stop)
        if workers is not None or spec.execution.ray.address is not None:
            shop = with_workers(shop, spec, workers)
        yield shop


def with_workers(shop: Workshop, spec: DistillationSpec, workers: int | None = None) -> Workshop:
    """The workshop, with Ray workers for the stages that can use them.

    Raises:
        InputError: Ray is not installed, or its address is none where it could be.
    """
    from dataclasses import replace

    from limbeck.fanout.supervisor import RayFanout

    return replace(shop, fanout=RayFanout(spec, workers, shop.store, shop.progress, shop.stop))


def recorded(
    sender: SenderProcess | None, shop: Workshop, command: str, *, stage_alone: bool
) -> tuple[Recorder, Workshop]:
    """Who records the run, and the workshop whose stages it sees."""
    from limbeck.tracking.recorder import UNRECORDED, Recording

    if sender is None:
        return UNRECORDED, shop
    recording = Recording(sender, shop, command, stage_alone=stage_alone)
    return recording, recording.workshop
