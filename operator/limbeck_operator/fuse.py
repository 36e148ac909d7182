"""Ends this process at a time, whatever its own code is doing then, or is kept from doing.

Code that looks at a clock and then acts may be stopped in between, for as long as it likes: by SIGSTOP, by a frozen
container, by a node that sleeps. A timer of the kernel goes on meanwhile, and its signal comes before the next
instruction of a thread that goes on.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

STATUS = int(signal.SIGALRM)  # exit code of a process that was ended so
_TO_A_THREAD = 4  # SIGEV_THREAD_ID


class _Event(ctypes.Structure):  # struct sigevent of Linux
    _fields_ = [
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("thread", ctypes.c_int),
        ("rest", ctypes.c_int * 11),
    ]


class _Times(ctypes.Structure):  # struct itimerspec
    _fields_ = [(name, ctypes.c_long) for name in ("again_s", "again_ns", "after_s", "after_ns")]


class Fuse:
    """A timer for each thread that lights it, at whose end the process has ended; nothing else uses SIGALRM.

    A signal to the process would do for one thread: others, woken with it, would get on a little.
    """

    def __init__(self) -> None:
        self._library = library = ctypes.CDLL(None, use_errno=True)
        self._mine = threading.local()
        # The handler is C's _exit itself: one of Python's own would wait for the main thread while others write, and
        # the default action spares the process 1 of a container. A handler's argument is its signal, hence STATUS.
        library.signal.argtypes, library.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
        library.signal(signal.SIGALRM, ctypes.cast(library._exit, ctypes.c_void_p))
        library.timer_settime.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)

    def light(self, seconds: float) -> None:
        """Have this process end after so many seconds, unless this thread puts it out before."""
        whole = int(seconds)
        self._set(_Times(after_s=whole, after_ns=max(1, int((seconds - whole) * 1e9))))

    def put_out(self) -> None:
        """Have it not end on this thread's account."""
        self._set(_Times())

    def _set(self, times: _Times) -> None:
        if not hasattr(self._mine, "timer"):
            self._mine.timer = ctypes.c_void_p()
            event = _Event(signal=signal.SIGALRM, notify=_TO_A_THREAD, thread=threading.get_native_id())
            clock = time.CLOCK_BOOTTIME
            self._check(self._library.timer_create(clock, ctypes.byref(event), ctypes.byref(self._mine.timer)))
        self._check(self._library.timer_settime(self._mine.timer, 0, ctypes.byref(times), None))

    def _check(self, answer: int) -> None:
        if answer:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


def fuse() -> Fuse | None:
    """A fuse; None where the kernel has no such timers."""
    return Fuse() if sys.platform == "linux" else None
