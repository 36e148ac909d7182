"""Stage 1 of the method: images from any source become one canonical dataset of uint8 squares.

The bytes written are a pure function of the source's content and the arguments: neither the number of processes, nor
how often the work was cut, nor what was reused of an earlier dataset changes them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from limbeck.copies import Copies
from limbeck.data.assembly import PartFile, write_index, write_origin, write_shards
from limbeck.data.dataset import DESCRIPTION_FILE, INDEX_FILE, ORIGIN_FILE, ImageDataset
from limbeck.data.finished import Copying, files_of, recover, write_record
from limbeck.data.moments import Moments
from limbeck.data.parts import PartJob, PartRecord, make_part, working
from limbeck.data.plan import Plan
from limbeck.data.single_pass import make_in_one_pass
from limbeck.data.sources import Source
from limbeck.data.workers import available_cores, make_in_processes
from limbeck.errors import InputError
from limbeck.interrupt import StopRequest
from limbeck.progress import SILENT, Bar, Progress
from limbeck.storage import scheme_of

_FEW_IMAGES = 4096  # so many are decoded sooner here than by processes, which take half a second to start
_MAX_THREADS = 8  # each may hold one decoded image of MAX_PIXELS
_AT_ONCE = 16  # parts of an earlier run that are looked for and verified at a time

Elsewhere = Callable[[Plan, Sequence[int]], None]
"""Has parts made by other machines where that pays, which leave them, with their records, where `recover` looks."""


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
    elsewhere: Elsewhere | None = None,
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
        elsewhere: asked to have parts made; those that it leaves are made here.

    Raises:
        InputError: the source is corrupt, an image is bad and `on_bad_image` is `fail`, or no image is left.
        WorkError: the storage failed or the disk is full.
        Stopped: it was asked for.
    """
    stop = stop or StopRequest()
    plan = Plan.of(source, out, image_size=image_size, limit=limit, seed=seed, earlier=earlier)
    listing, wanted = plan.listing, plan.wanted
    with working(f"{out}: cannot be written"):
        out.mkdir(parents=True, exist_ok=True)
    if plan.reused is not None:
        reused = int((plan.reused >= 0).sum())
        progress.say(f"ingest: {reused:,} of {len(wanted):,} images are those of an earlier dataset")
    records = _made(plan, progress, stop, copies, elsewhere)
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
        write_origin(plan.checksums, kept, out / ORIGIN_FILE)
        text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
        (out / DESCRIPTION_FILE).write_text(text, encoding="utf-8")
    return ImageDataset.open(out)


def _made(
    plan: Plan, progress: Progress, stop: StopRequest, copies: Copies | None, elsewhere: Elsewhere | None
) -> list[PartRecord]:
    """The records of all parts, in order; those that an earlier run finished are found, the others are made."""
    records = _found(plan, plan.numbers, copies)
    missing = [number for number in plan.numbers if number not in records]
    if records:
        progress.say(f"ingest: {plan.images(list(records)):,} of {len(plan.wanted):,} images were finished before")
    if missing and elsewhere is not None:
        for number in missing:
            plan.record_path(number).unlink(missing_ok=True)  # what it says is not so
        elsewhere(plan, missing)
        records |= _found(plan, missing, copies)
        missing = [number for number in missing if number not in records]
    if missing:
        done, keep = plan.images(list(records)), None if copies is None else copies.keep
        with progress.bar("ingest", len(plan.wanted), "images", done) as bar, Copying(keep) as copying:
            for job, record in _make(plan, missing, bar, progress, stop):
                records[job.number] = record
                write_record(job, record)
                copying.add(files_of(job, record))
    return [records[number] for number in plan.numbers]


def _make(
    plan: Plan, missing: Sequence[int], bar: Bar, progress: Progress, stop: StopRequest
) -> Iterator[tuple[PartJob, PartRecord]]:
    cores = available_cores()
    if plan.source.single_pass:
        reader = plan.reader(missing)
        jobs = [plan.job(number) for number in missing]
        yield from make_in_one_pass(jobs, reader, min(cores, _MAX_THREADS), bar, stop)
        return
    here = scheme_of(plan.source.uri) == "memory"  # what lies in this process's memory no other process can read
    if plan.images(missing) > _FEW_IMAGES and cores > 1 and not here:
        processes = min(cores, len(missing))
        yield from make_in_processes(map(plan.job, missing), processes, bar, progress, stop)
        return

    def advance(count: int) -> None:
        bar.advance(count)
        stop.check()

    for job in map(plan.job, missing):
        stop.check()
        yield job, make_part(job, advance, min(cores, _MAX_THREADS))


def _found(plan: Plan, numbers: Sequence[int], copies: Copies | None) -> dict[int, PartRecord]:
    """Those of some parts that other processes, here or on other machines, have finished."""
    if copies is None and not any(plan.out.glob(".part-*.json")):
        return {}
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = pool.map(partial(recover, plan, copies), numbers)
        return {number: record for number, record in zip(numbers, found, strict=True) if record is not None}


def _refuse(skipped: Mapping[str, str], count: int, uri: str, on_bad_image: Literal["fail", "skip"]) -> None:
    if not skipped or (on_bad_image == "skip" and len(skipped) < count):
        return
    shown = ", ".join(f"{_printable(name)} ({reason})" for name, reason in list(skipped.items())[:3])
    more = ", ..." if len(skipped) > 3 else ""
    allowed = "mend or remove them, or set onBadImage: skip" if len(skipped) < count else "no image is left"
    raise InputError(uri, f"{len(skipped)} of {count} images cannot be used: {shown}{more}", allowed)


def _printable(name: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in name)
