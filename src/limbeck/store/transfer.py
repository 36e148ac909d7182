"""Files up to a store and down from it: several at once, in pieces, going on where an earlier attempt ended."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from limbeck.errors import WorkError
from limbeck.patience import IncompleteTransferError
from limbeck.progress import Bar, Progress
from limbeck.store.files import file_digest
from limbeck.store.objects import Objects, Stat
from limbeck.store.records import DamagedResultError

PIECE = 8 * 2**20  # bytes; memory is at most this times the streams
_STREAMS_DOWN, _STREAMS_UP = 8, 4  # an upload holds a whole file of up to 100 MB in memory, in some libraries
_WORTH_A_BAR = 16 * 2**20
_UNIT = 2**20


@dataclass(frozen=True)
class Download:
    """A file that is wanted here: its name in the store, where it goes, and what it must be."""

    name: str
    target: Path
    size: int
    sha256: str

    @property
    def partial(self) -> Path:
        """Where it grows."""
        return self.target.with_name(self.target.name + ".partial")

    def is_here(self) -> bool:
        """Whether the file is here, whole."""
        target = self.target
        return target.is_file() and target.stat().st_size == self.size and file_digest(target) == self.sha256


@dataclass(frozen=True)
class Upload:
    """A file that goes to a store, with the md5 of its content in hexadecimal."""

    file: Path
    name: str
    size: int
    md5: str


@dataclass(frozen=True)
class _Piece:
    of: Download
    start: int
    end: int

    @property
    def is_last(self) -> bool:
        return self.end == self.of.size


def download(objects: Objects, files: Sequence[Download], progress: Progress, title: str) -> None:
    """Bring files here and check them; what is here already is not fetched, what is half here goes on.

    Pieces are fetched concurrently and written in order to NAME.partial.

    Raises:
        DamagedResultError: one is missing, or is not what it must be.
        WorkError: the storage does not answer, or the disk is full.
    """
    wanted = [file for file in files if not file.is_here()]
    spoilt = _fetch(objects, wanted, progress, title)
    still = _fetch(objects, spoilt, progress, title)  # once more from the start: what was half here may have been wrong
    if still:
        raise DamagedResultError(f"{objects.url(still[0].name)} is not what its manifest says (sha256 differs)")


def _fetch(objects: Objects, files: Sequence[Download], progress: Progress, title: str) -> list[Download]:
    """The files that came, but are not what they must be."""
    pieces = [piece for file in files for piece in _pieces(file)]
    spoilt: list[Download] = []
    pool = ThreadPoolExecutor(_STREAMS_DOWN, "download")
    try:
        with _bar(progress, title, sum(piece.end - piece.start for piece in pieces)) as advance:
            for piece, data in _in_order(objects, pieces, pool):
                with piece.of.partial.open("ab") as handle:
                    handle.write(data)
                advance(len(data))
                if not piece.is_last:
                    continue
                if file_digest(piece.of.partial) == piece.of.sha256:
                    piece.of.partial.replace(piece.of.target)
                else:
                    piece.of.partial.unlink()
                    spoilt.append(piece.of)
    finally:
        pool.shutdown(cancel_futures=True)
    return spoilt


def _in_order(objects: Objects, pieces: Sequence[_Piece], pool: ThreadPoolExecutor) -> Iterator[tuple[_Piece, bytes]]:
    """Each piece with its bytes, in order; no more are fetched ahead than there are streams."""
    waiting: deque[tuple[_Piece, Future[bytes]]] = deque()
    for piece in pieces:
        waiting.append((piece, pool.submit(_piece, objects, piece)))
        if len(waiting) >= _STREAMS_DOWN:
            first, future = waiting.popleft()
            yield first, future.result()
    for first, future in waiting:
        yield first, future.result()


def _pieces(file: Download) -> Iterator[_Piece]:
    """What is still to be fetched of a file; its partial file ends where that begins."""
    file.target.parent.mkdir(parents=True, exist_ok=True)
    there = file.partial.stat().st_size if file.partial.exists() else 0
    begin = min(there, max(file.size - 1, 0)) // PIECE * PIECE
    if there:
        with file.partial.open("r+b") as handle:
            handle.truncate(begin)
    for start in range(begin, max(file.size, 1), PIECE):
        yield _Piece(file, start, min(start + PIECE, file.size))


def _piece(objects: Objects, piece: _Piece) -> bytes:
    """The bytes of a piece."""
    file, url = piece.of, objects.url(piece.of.name)
    expected = piece.end - piece.start
    if file.size == 0:
        _check_size(objects, file)
        return b""

    def fetch() -> bytes:
        # one byte more at the end, for it tells a file that is too long
        data = objects.read_range(file.name, piece.start, piece.end + piece.is_last)
        if len(data) != expected:
            _check_size(objects, file)
            raise IncompleteTransferError(f"{len(data)} bytes instead of {expected}")
        return data

    try:
        return objects.patiently("reading", file.name, fetch)
    except FileNotFoundError:
        raise DamagedResultError(f"{url} is missing") from None


def _check_size(objects: Objects, file: Download) -> None:
    there, url = objects.stat(file.name), objects.url(file.name)
    if there is None:
        raise DamagedResultError(f"{url} is missing")
    if there.size != file.size:
        raise DamagedResultError(f"{url} has {there.size} bytes instead of {file.size}")


def upload(objects: Objects, files: Sequence[Upload], progress: Progress, title: str, *, anew: bool) -> None:
    """Bring files to the store; what is there already, by the store's own checksum, is not sent again.

    Args:
        objects: the store.
        files: what is to be there.
        progress: where it is shown.
        title: of the bar.
        anew: send every file, for what the store says of those there was found wrong.

    Raises:
        WorkError: the storage does not take them.
    """
    pool = ThreadPoolExecutor(_STREAMS_UP, "upload")
    try:
        with _bar(progress, title, sum(file.size for file in files)) as advance:
            waiting = [(file, pool.submit(_send, objects, file, anew)) for file in files]
            for file, future in waiting:
                future.result()
                advance(file.size)
    finally:
        pool.shutdown(cancel_futures=True)


def _send(objects: Objects, file: Upload, anew: bool) -> None:
    if not anew and is_same(objects.stat(file.name), file.file, file.size, file.md5):
        return

    def send() -> None:
        objects.put(file.file, file.name)
        there = objects.stat(file.name)
        whole = there is not None and there.size == file.size
        if there is None or not whole or (there.vouched and matches(there, file.file, file.md5) is False):
            raise IncompleteTransferError("the object is not what was sent")

    try:
        objects.patiently("writing", file.name, send)
    except FileNotFoundError as error:
        raise WorkError(f"writing {objects.url(file.name)}: {' '.join(str(error).split())}") from error


def is_same(there: Stat | None, file: Path, size: int, md5: str) -> bool:
    """Whether an object is certainly the file: of its size, and by the store's own checksum."""
    return there is not None and there.size == size and matches(there, file, md5) is True


def matches(there: Stat, file: Path | None, md5: str) -> bool | None:
    """Whether the store's checksum of an object is that of a file; None where the two cannot be compared."""
    kind, _, value = (there.checksum or "").partition(":")
    if kind == "md5":
        return value == md5
    if kind == "crc32c" and file is not None:
        ours = _crc32c(file)
        return None if ours is None else value == ours
    return None


def _crc32c(file: Path) -> str | None:
    try:
        import google_crc32c
    except ImportError:
        return None
    checksum = google_crc32c.Checksum()
    with file.open("rb") as handle:
        while block := handle.read(PIECE):
            checksum.update(block)
    return bytes(checksum.digest()).hex()


def md5_of(file: Path) -> str:
    """md5 of a file, in hexadecimal: what object stores tell of theirs."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


@contextmanager
def _bar(progress: Progress, title: str, size: int) -> Iterator[_Advance]:
    """What counts bytes, on a bar where there are many."""
    if size < _WORTH_A_BAR:
        yield _Advance(None)
        return
    with progress.bar(title, -(-size // _UNIT), "MiB") as bar:
        yield _Advance(bar)


class _Advance:
    def __init__(self, bar: Bar | None) -> None:
        self._bar, self._bytes, self._shown = bar, 0, 0

    def __call__(self, count: int) -> None:
        self._bytes += count
        whole = self._bytes // _UNIT
        if self._bar is not None and whole > self._shown:
            self._bar.advance(whole - self._shown)
            self._shown = whole
