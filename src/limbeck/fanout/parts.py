"""A worker's share of an ingest: parts made by number, and handed over through the store. Knows nothing of Ray."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from limbeck.data.dataset import ImageDataset
from limbeck.data.finished import Copying, files_of, record_of, write_record
from limbeck.data.plan import Plan
from limbeck.data.sources import open_source
from limbeck.data.workers import make_in_processes
from limbeck.errors import InputError, WorkError
from limbeck.failures import explained
from limbeck.fanout.messages import FOLDER_MARK, Parts
from limbeck.spec import DistillationSpec
from limbeck.stages.task import Workshop
from limbeck.storage import Access
from limbeck.store import Result, Store

log = logging.getLogger(__name__)


def make_parts(
    parts: Parts,
    numbers: Sequence[int],
    spec: DistillationSpec,
    earlier: Result | None,
    processes: int,
    shop: Workshop,
    tell: Callable[[str], None],
) -> None:
    """Make some of the parts, those that nobody has handed over yet; where the source cannot be opened here, none.

    Args:
        parts: what is to be made.
        numbers: which of it.
        spec: its settings.
        earlier: a dataset that images are reused from.
        processes: that decode.
        shop: the store that they go to, whom to tell how far it is, and whether to stop.
        tell: told why none is made.

    Raises:
        InputError: the source turns out to be corrupt.
        WorkError: the source has changed, the store is not the one that the command sees, or either fails.
        Stopped: it was asked for.
    """
    store = shop.store
    with _folder(store, parts) as (folder, deliver), explained("ingest", folder):
        try:
            plan = Plan.of(
                open_source(parts.uri, parts.format, Access.of(spec)),
                folder,
                image_size=spec.source.image_size,
                limit=parts.limit,
                seed=spec.seed,
                earlier=None if earlier is None else ImageDataset.open(earlier.path),
            )
        except InputError as error:
            tell(f"a worker on {platform.node()} cannot open the source ({error}); its parts are made by this command")
            return
        if plan.fingerprint != parts.fingerprint:
            raise WorkError(f"{parts.uri} has changed since this run began; start a new run")
        missing = [number for number in numbers if not _is_handed_over(plan, number, parts, store)]
        log.info("%d of %d parts to make", len(missing), len(numbers))
        if not missing:
            return
        total, done = plan.images(numbers), plan.images(numbers) - plan.images(missing)
        with shop.progress.bar("ingest", total, "images", done) as bar, Copying(deliver) as copying:
            jobs = map(plan.job, missing)
            for job, record in make_in_processes(jobs, min(processes, len(missing)), bar, shop.progress, shop.stop):
                write_record(job, record)
                copying.add(files_of(job, record))
                log.info("part %d is done", job.number)
            copying.finish()


@contextmanager
def _folder(store: Store, parts: Parts) -> Iterator[tuple[Path, Callable[[Path], None]]]:
    """Where parts are made, and what hands a file over: in the command's own folder that is where it lies already.

    Raises:
        WorkError: the store is another one than the command's.
    """
    if store.read_text(f"{parts.folder}/{FOLDER_MARK}") != parts.mark:
        raise WorkError(
            f"a worker on {platform.node()} does not see what the command writes to {store.url}/{parts.folder}; "
            "spec.output.uri must be a bucket, or a folder that all workers share"
        )
    folder = store.local_folder(parts.folder)
    mark = folder / FOLDER_MARK
    if mark.exists() and mark.read_text() == parts.mark:
        yield folder, store.keep
        return
    folder.mkdir(parents=True, exist_ok=True)
    yield folder, partial(_send, store)  # other workers of this machine may be at work in it, too


def _send(store: Store, file: Path) -> None:
    """Hand a file over and remove it, for on this machine nobody needs it."""
    store.keep(file)
    file.unlink()


def _is_handed_over(plan: Plan, number: int, parts: Parts, store: Store) -> bool:
    """Whether the store has a part's record, which comes last; whether all is what it says, the command sees."""
    text = store.read_text(f"{parts.folder}/{plan.record_path(number).name}")
    return record_of(plan, number, text) is not None
