"""Stage 1, ingest: images from anywhere into one canonical dataset of uint8 arrays, memory-mapped."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from functools import partial

from limbeck.data.dataset import ImageDataset
from limbeck.data.ingest import write_dataset
from limbeck.data.sources import Source
from limbeck.errors import InputError, WorkError
from limbeck.spec import OnBadImage
from limbeck.stages.graph import INGEST_VERSION
from limbeck.stages.task import StageTask
from limbeck.store import DamagedResultError, Result, Store, json_digest


def ingest(task: StageTask, source: Source, limit: int | None, on_bad_image: OnBadImage) -> None:
    """Write the canonical dataset of `source` (the spec's own, or an evaluation task's) into the task's folder."""
    image_size, fanout = task.spec.source.image_size, task.shop.fanout
    earlier, dataset = _earlier(task.shop.store, source, image_size) or (None, None)
    write_dataset(
        source,
        task.out,
        image_size=image_size,
        limit=limit,
        seed=task.spec.seed,
        on_bad_image=on_bad_image,
        progress=task.shop.progress,
        stop=task.shop.stop,
        earlier=dataset,
        copies=task.shop.store,
        elsewhere=None if fanout is None else partial(fanout.parts, task, earlier=earlier),
    )


def remember(store: Store, source: Source, image_size: int, result: Result) -> None:
    """Leave a hint in the store: when the source has changed, what it still holds is copied from this result."""
    with suppress(OSError, WorkError):  # what is lost with it is time
        store.write_text(_hint(source, image_size), json.dumps({"key": result.manifest.key}) + "\n")


def _earlier(store: Store, source: Source, image_size: int) -> tuple[Result, ImageDataset] | None:
    """The dataset that was last made of a source, where it is there, whole, and made as one is made now."""
    with suppress(OSError, ValueError, KeyError, TypeError, InputError, WorkError, DamagedResultError):
        key = json.loads(store.read_text(_hint(source, image_size)) or "{}")["key"]
        result = store.find("ingest", key) if re.fullmatch("[0-9a-f]{32}", key) else None
        if result is not None and result.manifest.version == INGEST_VERSION:
            return result, ImageDataset.open(result.path)
    return None


def _hint(source: Source, image_size: int) -> str:
    place = json_digest({"uri": source.uri, "format": source.format, "imageSize": image_size})
    return f"ingest/latest/{place[:32]}.json"
