"""glibc's malloc, where that is the allocator: how it keeps what is freed. Elsewhere nothing happens."""

from __future__ import annotations

import ctypes
import sys

_M_ARENA_MAX, _M_MMAP_MAX, _M_TRIM_THRESHOLD = -8, -4, -1  # malloc.h
_ARENAS = 2


def keep_all() -> None:
    """Have what is freed kept for what is needed next, however large."""
    _call("mallopt", _M_MMAP_MAX, 0)
    _call("mallopt", _M_TRIM_THRESHOLD, 2**31 - 1)


def give_back() -> None:
    """Give what is freed and kept back to the system."""
    _call("malloc_trim", 0)


def share_arenas() -> None:
    """Have a process of many threads keep less: by default each thread keeps what it has freed for itself."""
    _call("mallopt", _M_ARENA_MAX, _ARENAS)


def _call(function: str, *arguments: int) -> None:
    if sys.platform != "linux":
        return
    try:
        call = getattr(ctypes.CDLL("libc.so.6"), function)
    except (OSError, AttributeError):
        return
    call(*arguments)
