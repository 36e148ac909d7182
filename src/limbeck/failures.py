"""Failures of the machine, a full disk or too little memory, in one line that names what to change."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from limbeck.errors import InputError, WorkError

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_NO_SPACE, _LINE = os.strerror(errno.ENOSPC), "the disk is full"
_STAGES = {
    "encoder": "evaluate",
    "probe": "evaluate",
    "expert": "trajectories",
    "scores": "select",
    "start": "distill",
}  # of results that stages are made of
_LOWER = {
    "teacher": "lower spec.teacher.batch",
    "trajectories": "lower spec.trajectories.batch or spec.trajectories.together",
    "distill": "lower spec.distill.innerBatch, spec.distill.pairs or spec.execution.engine.memoryBudget",
    "evaluate": "lower spec.evaluate.batch",
}
_NO_MEMORY = re.compile(r"DefaultCPUAllocator|CUDA error: out of memory|CU(BLAS|DNN)_STATUS_ALLOC_FAILED")
_OTHERWISE = "use a machine with more memory, or end what else uses it"


class MachineError(WorkError):
    """The machine has too little of something; the message says what to do."""


@contextmanager
def explained(stage: str, folder: Path | None) -> Iterator[None]:
    """Inside the block a full disk or too little memory is a `MachineError`; every other error stays what it is.

    Args:
        stage: name of the stage, for the message.
        folder: where it writes; None where it writes nothing itself.

    Raises:
        MachineError: the disk is full, or the memory of the machine or of its accelerator does not suffice.
    """
    try:
        yield
    except (MachineError, InputError):
        raise
    except Exception as error:
        name = _STAGES.get(stage, stage)
        if is_full(error):
            raise MachineError(f"{name}: {full_disk(error, folder)}") from error
        if _is_out_of_memory(error):
            advice = f"{_LOWER.get(name, _OTHERWISE)}; what is finished is kept"
            raise MachineError(f"{name}: {_memory(error)}; {advice}") from error
        raise


def is_full(error: BaseException) -> bool:
    """Whether it, or what caused it, is a full disk or an exhausted quota."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.errno in _FULL:
            return True
        if isinstance(link, WorkError) and _NO_SPACE in str(link) and _LINE not in str(link):  # of another process
            return True
        link = link.__cause__
    return False


def full_disk(error: BaseException, folder: Path | None = None) -> str:
    """What is full, how much of it is free, and what to do, in one line.

    Args:
        error: what was raised; its file name tells the place where no folder does.
        folder: on the disk.
    """
    name = getattr(error, "filename2", None) or getattr(error, "filename", None)
    place = folder or (Path(str(name)).parent if name else None)
    room = ""
    with suppress(OSError):
        if place is not None:
            usage = shutil.disk_usage(place)
            room = f", {_mebibytes(usage.free)} of {_mebibytes(usage.total)} are free"
    where = f"{place}: " if place is not None else ""
    return (
        f"{where}{_LINE} ({_NO_SPACE}{room}); make room there, or set spec.output.uri to "
        "another place; the same command then continues"
    )


def _is_out_of_memory(error: Exception) -> bool:
    """By name, so that torch need not be imported."""
    names = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}
    return (
        isinstance(error, MemoryError)
        or "torch.OutOfMemoryError" in names
        or (isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None)
    )


def _memory(error: Exception) -> str:
    """What was asked for, without the allocator's advice to programmers."""
    text = " ".join(str(error).split())
    asked = re.search(r"[Tt]ried to allocate ([0-9.]+ [A-Za-z]+)", text)
    kind = "the accelerator's memory" if re.search("CUDA|CUBLAS|CUDNN", text) else "this machine's memory"
    return f"{kind} does not suffice" + (f" (tried to allocate {asked[1]})" if asked else "")


def _mebibytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
