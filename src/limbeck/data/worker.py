"""A process that makes parts for the one that started it: `python -m limbeck.data.worker`.

Jobs come in on standard input, each a pickle behind its length in 8 bytes; what becomes of them goes out on standard
output, a line of JSON each. When standard input ends, which is when the other process is gone, it ends at once.
"""

from __future__ import annotations

import json
import os
import pickle
import threading
import time
from queue import SimpleQueue
from typing import Any

_REPORT_EVERY = 0.1  # seconds


def _receive(jobs: SimpleQueue[bytes]) -> None:
    while size := _read(8):
        jobs.put(_read(int.from_bytes(size, "little")))
    os._exit(0)


def _read(size: int) -> bytes:
    """So many bytes of standard input, fewer at its end; not by `sys.stdin`, whose lock outlives the thread."""
    pieces = []
    while size and (piece := os.read(0, min(size, 2**20))):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


class _Answers:
    """The other process's end: nobody else writes there, whatever a library prints."""

    def __init__(self) -> None:
        self._descriptor = os.dup(1)
        os.dup2(2, 1)
        self._counted, self._sent = 0, 0.0

    def send(self, **answer: Any) -> None:
        rest = memoryview((json.dumps(answer) + "\n").encode())
        while rest.nbytes:
            rest = rest[os.write(self._descriptor, rest) :]

    def advance(self, count: int) -> None:
        """Count images, and tell the other process every now and then."""
        self._counted += count
        if time.monotonic() - self._sent >= _REPORT_EVERY:
            self.flush()

    def flush(self) -> None:
        self.send(advance=self._counted)
        self._counted, self._sent = 0, time.monotonic()


def main() -> None:
    """Make parts until there are no more."""
    answers = _Answers()
    jobs: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_receive, args=(jobs,), daemon=True).start()

    from limbeck.data.parts import PartJob, make_part
    from limbeck.errors import InputError, WorkError

    while True:
        data = jobs.get()
        try:
            job: PartJob = pickle.loads(data)  # noqa: S301 -- from the process that started this one
            record = make_part(job, answers.advance)
        except InputError as error:
            answers.send(input=[error.where, error.found, error.allowed])
        except WorkError as error:
            answers.send(work=str(error))
        except Exception as error:
            answers.send(work=f"{type(error).__name__}: {' '.join(str(error).split())}")
        else:
            answers.flush()
            answers.send(record=record.model_dump_json())


if __name__ == "__main__":
    main()
