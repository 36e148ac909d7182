"""Stage 1 of the method: images from any source become one canonical dataset of uint8 squares.

The bytes written are a pure function of the source's content and the arguments: neither the number of processes, nor
how often the work was cut, nor what was reused of an earlier dataset changes them.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import ValidationError

from limbeck.data.assembly import PartFile, write_index, write_origin, write_shards
from limbeck.data.dataset import DESCRIPTION_FILE, INDEX_FILE, ORIGIN_FILE, ImageDataset
from limbeck.data.moments import Moments
from limbeck.data.parts import Earlier, PartJob, PartRecord, make_part, part_rows, working
from limbeck.data.single_pass import make_in_one_pass
from limbeck.data.sources import Listing, Source
from limbeck.data.sources.listing import Names, Reader, digest_of_entries
from limbeck.data.workers import available_cores, make_in_processes
from limbeck.errors import InputError
from limbeck.interrupt import StopRequest
from limbeck.progress import SILENT, Bar, Progress
from limbeck.storage import scheme_of

_FEW_IMAGES = 4096  # so many are decoded sooner here than by processes, which take half a second to start
_MAX_THREADS = 8  # each may hold one decoded image of MAX_PIXELS
_AT_ONCE = 16  # parts of an earlier run that are looked for and verified at a time
_BACKLOG = 2  # finished parts that wait to be copied


class Copies(Protocol):
    """Where copies of files that lie here are kept for other machines: the store, when it is remote."""

    def keep(self, file: Path) -> None:
        """Copy a file there."""

    def fetch(self, file: Path) -> None:
        """Bring it here, where there is such a copy."""


def write_dataset(
    source: Source,
    out: Path,
    *,
    image_size: int,
    limit: int | None,
    seed: int,
    on_bad_image: Literal["fail", "skip"],
    progress: Progress = SILENT,
    stop: StopRequest | None = None,
    earlier: ImageDataset | None = None,
    copies: Copies | None = None,
) -> ImageDataset:
    """Decode a source's images into the directory `out` and open the result.

    Writes `images-N.safetensors` (of `limbeck.data.shards`), `index.parquet` (name and label of each), `dataset.json`
    (the rest), and `origin.parquet`, what the source knew of each image's content. The parts that they were put
    together from lie beside them, in files whose names begin with `.part-`: the same call finds them again when this
    one was cut, verifies them, and goes on from there.

    Args:
        source: the images.
        out: the directory, created when missing; files of the same names are overwritten.
        image_size: side of the images written, in pixels.
        limit: keep a random sample of at most this many images; None keeps all.
        seed: what the sample depends on, beside each image's own name.
        on_bad_image: whether an image that cannot be used is an error or is left out and recorded.
        progress: where to report.
        stop: looked at several times a second.
        earlier: a dataset of the same source; images whose names and checksums are what they were are copied from it.
        copies: where finished parts are kept for other machines, and looked for.

    Raises:
        InputError: the source is corrupt, an image is bad and `on_bad_image` is `fail`, or no image is left.
        WorkError: the storage failed or the disk is full.
        Stopped: it was asked for.
    """
    stop = stop or StopRequest()
    with working(f"{source.uri}: cannot be read"):
        listing = source.listing()
        fingerprint, checksums = source.fingerprint(), source.checksums()
    with working(f"{out}: cannot be written"):
        out.mkdir(parents=True, exist_ok=True)
    wanted = _sample(listing.names, limit, seed)
    reused = _unchanged(listing, checksums, wanted, earlier, image_size)
    plan = _Plan(source, listing, checksums, fingerprint, wanted, image_size, out, earlier, reused)
    if reused is not None:
        progress.say(f"ingest: {int((reused >= 0).sum()):,} of {len(wanted):,} images are those of an earlier dataset")
    records = _made(plan, progress, stop, copies)
    bad = {plan.firsts[number] + place: why for number, one in enumerate(records) for place, why in one.bad.items()}
    skipped = {listing.names[int(wanted[place])]: reason for place, reason in sorted(bad.items())}
    try:
        _refuse(skipped, len(wanted), source.uri, on_bad_image)
    except InputError:  # of no use to anyone: when the source is mended, or the images are skipped, it is another one
        plan.forget()
        raise
    moments = Moments.sum(record.moments(image_size) for record in records)
    description = {
        "count": len(wanted) - len(bad),
        "imageSize": image_size,
        "classes": list(listing.classes),
        "mean": moments.mean(),
        "std": moments.std(),
        "ignored": listing.ignored,
        "skipped": skipped,
    }
    files = [PartFile(plan.path(number), one.rows) for number, one in enumerate(records) if one.rows]
    with working(f"{out}: cannot be written"):
        write_shards(files, image_size, out)
        kept = np.delete(wanted, list(bad))
        write_index(listing, kept, out / INDEX_FILE)
        write_origin(checksums, kept, out / ORIGIN_FILE)
        text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
        (out / DESCRIPTION_FILE).write_text(text, encoding="utf-8")
    return ImageDataset.open(out)


def _sample(names: Names, limit: int | None, seed: int) -> NDArray[np.int64]:
    """The indices of at most `limit` names, ascending; which ones depends on the names and the seed alone."""
    if limit is None or limit >= len(names):
        return np.arange(len(names))
    digests = b"".join(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8] for name in names)
    drawn = np.frombuffer(digests, ">u8")
    return np.sort(np.argsort(drawn, kind="stable")[:limit])


def _unchanged(
    listing: Listing,
    checksums: pa.Array | None,
    wanted: NDArray[np.int64],
    earlier: ImageDataset | None,
    image_size: int,
) -> NDArray[np.int64] | None:
    """For each image wanted its row in the earlier dataset, -1 where it is another one; None where none is there."""
    known = None if earlier is None else earlier.checksums
    if earlier is None or known is None or checksums is None or earlier.images.shape[-1] != image_size:
        return None
    chosen = pa.array(wanted)
    rows = pc.index_in(listing.names.array.take(chosen), value_set=earlier.names.array)
    same = pc.equal(known.take(rows), checksums.take(chosen).cast(pa.binary()))
    kept = pc.if_else(pc.fill_null(same, False), rows, -1)
    found: NDArray[np.int64] = kept.cast(pa.int64()).to_numpy()
    return found if (found >= 0).any() else None


@dataclass(frozen=True, eq=False)
class _Plan:
    """What is to be made, in parts."""

    source: Source
    listing: Listing
    checksums: pa.Array | None
    fingerprint: str
    wanted: NDArray[np.int64]
    image_size: int
    out: Path
    earlier: ImageDataset | None
    reused: NDArray[np.int64] | None

    @property
    def rows(self) -> int:
        """Images in every part but the last."""
        return part_rows(self.image_size, len(self.wanted))

    @property
    def firsts(self) -> range:
        """Where each part begins among the images wanted."""
        return range(0, len(self.wanted), self.rows)

    def part(self, number: int) -> NDArray[np.int64]:
        """The indices of a part's images."""
        return self.wanted[self.firsts[number] : self.firsts[number] + self.rows]

    def path(self, number: int) -> Path:
        """A part's file."""
        return self.out / f".part-{number:05d}.safetensors"

    def inputs(self, number: int) -> str:
        """A digest of what a part is made from: of its images' names and, as far as it is known, their content."""
        chosen = pa.array(self.part(number))
        names = self.listing.names.array.take(chosen).to_pylist()
        if self.checksums is None:
            contents = [b""] * len(names)
        else:
            contents = [entry or b"" for entry in self.checksums.take(chosen).cast(pa.binary()).to_pylist()]
        whole = f"{self.image_size} {self.fingerprint if self.checksums is None or b'' in contents else ''}"
        return digest_of_entries([(whole, b""), *zip(names, contents, strict=True)])

    def job(self, number: int) -> PartJob:
        """What makes a part."""
        wanted, inputs, earlier = self.part(number), self.inputs(number), None
        if self.reused is not None and self.earlier is not None:
            rows = self.reused[self.firsts[number] : self.firsts[number] + self.rows]
            if (rows >= 0).any():
                earlier = Earlier(self.earlier.path, len(self.earlier), rows)
        reader = self.reader([number])
        return PartJob(number, self.path(number), inputs, self.source.uri, wanted, reader, self.image_size, earlier)

    def reader(self, numbers: Sequence[int]) -> Reader:
        """What reads those images of some parts that are not reused."""
        places = np.concatenate([np.arange(start, start + self.rows) for start in (self.firsts[n] for n in numbers)])
        places = places[places < len(self.wanted)]
        if self.reused is not None:
            places = places[self.reused[places] < 0]
        return self.source.reader(self.wanted[places])

    def forget(self) -> None:
        """Remove all parts."""
        for path in self.out.glob(".part-*"):
            path.unlink()


def _made(plan: _Plan, progress: Progress, stop: StopRequest, copies: Copies | None) -> list[PartRecord]:
    """The records of all parts, in order; those that an earlier run finished are found, the others are made."""
    records = _found(plan, copies)
    missing = [number for number in range(len(plan.firsts)) if number not in records]
    done = sum(len(plan.part(number)) for number in records)
    if records:
        progress.say(f"ingest: {done:,} of {len(plan.wanted):,} images were finished before")
    if missing:
        with progress.bar("ingest", len(plan.wanted), "images", done) as bar, _Copying(copies) as copying:
            for job, record in _make(plan, missing, bar, progress, stop):
                records[job.number] = record
                _write_record(job, record)
                copying.add([job.path, job.record_path] if record.rows else [job.record_path])
    return [records[number] for number in range(len(plan.firsts))]


def _make(
    plan: _Plan, missing: Sequence[int], bar: Bar, progress: Progress, stop: StopRequest
) -> Iterator[tuple[PartJob, PartRecord]]:
    cores = available_cores()
    if plan.source.single_pass:
        reader = plan.reader(missing)
        jobs = [plan.job(number) for number in missing]
        yield from make_in_one_pass(jobs, reader, min(cores, _MAX_THREADS), bar, stop)
        return
    here = scheme_of(plan.source.uri) == "memory"  # what lies in this process's memory no other process can read
    images = sum(len(plan.part(number)) for number in missing)
    if images > _FEW_IMAGES and cores > 1 and not here:
        processes = min(cores, len(missing))
        yield from make_in_processes(map(plan.job, missing), processes, bar, progress, stop)
        return

    def advance(count: int) -> None:
        bar.advance(count)
        stop.check()

    for job in map(plan.job, missing):
        stop.check()
        yield job, make_part(job, advance, min(cores, _MAX_THREADS))


def _found(plan: _Plan, copies: Copies | None) -> dict[int, PartRecord]:
    """The parts that an earlier run, here or on another machine, has finished and that are still what it says."""
    if copies is None and not any(plan.out.glob(".part-*.json")):
        return {}
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = pool.map(partial(_recover, plan, copies), range(len(plan.firsts)))
        return {number: record for number, record in enumerate(found) if record is not None}


def _recover(plan: _Plan, copies: Copies | None, number: int) -> PartRecord | None:
    path = plan.path(number)
    record_path = path.with_suffix(".json")
    if copies is not None and not record_path.exists():
        copies.fetch(record_path)
    try:
        record = PartRecord.model_validate_json(record_path.read_bytes())
    except (OSError, ValidationError):
        return None
    if record.inputs != plan.inputs(number) or record.rows + len(record.bad) != len(plan.part(number)):
        return None
    if not record.rows:
        return record
    if copies is not None and not path.exists():
        copies.fetch(path)
    try:
        with path.open("rb") as file:
            intact = hashlib.file_digest(file, "sha256").hexdigest() == record.sha256
    except OSError:
        return None
    return record if intact else None


def _write_record(job: PartJob, record: PartRecord) -> None:
    partial_path = job.record_path.with_suffix(".json.partial")
    with working(f"{job.record_path}: cannot be written"):
        partial_path.write_text(record.model_dump_json(), encoding="utf-8")
        partial_path.replace(job.record_path)


class _Copying:
    """Copies finished parts while others are made; what is not begun when all are made is left."""

    def __init__(self, copies: Copies | None) -> None:
        self._copies = copies
        self._pool = ThreadPoolExecutor(1)
        self._under_way: deque[Future[None]] = deque()

    def __enter__(self) -> _Copying:
        return self

    def __exit__(self, *raised: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def add(self, files: Sequence[Path]) -> None:
        """Have files copied, in this order; waits while too many do.

        Raises:
            WorkError: an earlier one could not be copied.
        """
        if self._copies is None:
            return
        while len(self._under_way) >= _BACKLOG:
            self._under_way.popleft().result()
        self._under_way.append(self._pool.submit(_keep, self._copies, files))


def _keep(copies: Copies, files: Sequence[Path]) -> None:
    for file in files:
        copies.keep(file)


def _refuse(skipped: Mapping[str, str], count: int, uri: str, on_bad_image: Literal["fail", "skip"]) -> None:
    if not skipped or (on_bad_image == "skip" and len(skipped) < count):
        return
    shown = ", ".join(f"{_printable(name)} ({reason})" for name, reason in list(skipped.items())[:3])
    more = ", ..." if len(skipped) > 3 else ""
    allowed = "mend or remove them, or set onBadImage: skip" if len(skipped) < count else "no image is left"
    raise InputError(uri, f"{len(skipped)} of {count} images cannot be used: {shown}{more}", allowed)


def _printable(name: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in name)
