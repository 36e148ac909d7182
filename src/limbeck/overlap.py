"""Images that a test set shares with the data beside it: a probe is not scored on what it was fitted on.

Images are compared by content, as ingest writes them: equal pixels at the dataset's size. Some natural datasets hold a
few images twice, so that only from `REFUSED` of the test images on a task is refused; CIFAR-100 has 10 of its 10,000
test images among its training images, CIFAR-10 and scikit-learn's digits have none.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from limbeck.data.dataset import ImageDataset
from limbeck.data.shards import ShardedImages
from limbeck.errors import InputError
from limbeck.spec import DistillationSpec

REFUSED = 0.01  # share of the test images
_MOST = 8 * 2**30  # bytes of a dataset that is compared: half a minute on one core
_BLOCK = 2**24  # bytes that are read at once
_THREADS = 8


def check_overlap(spec: DistillationSpec, datasets: Mapping[str, ImageDataset]) -> list[str]:
    """Look for test images among the training images of their task, and among the images to distil.

    Args:
        spec: names the tasks.
        datasets: by the names of `preflight.source_settings`.

    Returns:
        A line for each overlap that is allowed, and for each dataset that is too large to be compared.

    Raises:
        InputError: a share of `REFUSED` or more of a task's test images are among its training images, and the task
            has no allowOverlap.
    """
    known: dict[Path, NDArray[np.uint64] | None] = {}

    def digests(name: str) -> NDArray[np.uint64] | None:
        dataset = datasets[name]
        if dataset.path not in known:
            known[dataset.path] = row_digests(dataset.images) if dataset.images.nbytes <= _MOST else None
        return known[dataset.path]

    notes = []
    for index, task in enumerate(spec.evaluate.tasks):
        test = digests(f"test:{task.name}")
        for name, place in ((f"train:{task.name}", "its training images"), ("dataset", "the images to distil")):
            other = digests(name)
            if test is None or other is None:
                most = f"a dataset of more than {_MOST >> 30} GiB is not compared"
                notes.append(f"task {task.name}: its test images were not looked for among {place}: {most}")
                continue
            shared = int(np.isin(test, other).sum())
            found = f"{shared:,} of {len(test):,} test images ({shared / len(test):.2%}) are among {place}"
            if name != "dataset" and shared >= REFUSED * len(test) and not task.allow_overlap:
                allowed = f"less than {REFUSED:.0%}: name other images, or set allowOverlap: true for this task"
                raise InputError(f"spec.evaluate.tasks[{index}].test", f"task {task.name}: {found}", allowed)
            if shared:
                notes.append(f"task {task.name}: {found}")
    return notes


def row_digests(images: ShardedImages) -> NDArray[np.uint64]:
    """A digest of each image's pixels, u64[n]; blocks of them are read and hashed side by side."""
    count = len(images)
    rows = max(1, _BLOCK // (images.nbytes // count))

    def block(first: int) -> NDArray[np.uint64]:
        found = images[first : min(first + rows, count)]
        each = (hashlib.blake2b(row.data, digest_size=8).digest() for row in found.reshape(len(found), -1))
        return np.frombuffer(b"".join(each), np.uint64)

    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        return np.concatenate(list(pool.map(block, range(0, count, rows))))
