"""Test images are not among the training images, unless the spec allows it; a few that a dataset holds twice may be."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from limbeck import overlap
from limbeck.data.dataset import ImageDataset
from limbeck.data.ingest import write_dataset
from limbeck.data.shards import ShardedImages
from limbeck.data.sources import open_source
from limbeck.errors import InputError
from limbeck.overlap import check_overlap, row_digests
from limbeck.runner import Run
from limbeck.runs import read_summary
from limbeck.spec import DistillationSpec, Task
from limbeck.storage import Access
from tests.stages.tiny import Lines, distillation, run_tiny, workshop

PIXELS = np.random.default_rng(0).integers(0, 256, (500, 3, 8, 8), np.uint8)


def dataset(name: str, images: np.ndarray[Any, Any]) -> ImageDataset:
    one = np.ones(3, np.float32)
    return ImageDataset(Path(name), ShardedImages([images]), None, (), one, one, {})


def notes(train: slice, test: slice, source: slice = slice(0, 0), **task: Any) -> list[str]:
    named = {"name": "t", "train": {"uri": "a"}, "test": {"uri": "b"}} | task
    spec = DistillationSpec.model_validate({"source": {"uri": "s"}, "evaluate": {"tasks": [named]}})
    datasets = {
        "dataset": dataset("source", PIXELS[source] if source.stop else 255 - PIXELS[:2]),
        "train:t": dataset("train", PIXELS[train]),
        "test:t": dataset("test", PIXELS[test]),
    }
    return check_overlap(spec, datasets)


def test_equal_digests_are_equal_images_whatever_the_blocks(monkeypatch):
    images = PIXELS.copy()
    images[70, 2, 7, 7] ^= 1
    whole = row_digests(ShardedImages([PIXELS]))
    assert len(set(whole.tolist())) == 500
    assert np.flatnonzero(whole != row_digests(ShardedImages([images]))).tolist() == [70]
    monkeypatch.setattr(overlap, "_BLOCK", 192 * 7)
    assert np.array_equal(row_digests(ShardedImages([PIXELS[:300], PIXELS[300:]])), whole)


def test_from_a_hundredth_of_the_test_images_on_a_task_is_refused():
    assert notes(slice(0, 200), slice(200, 500)) == []
    assert notes(slice(0, 202), slice(200, 500)) == [
        "task t: 2 of 300 test images (0.67%) are among its training images"
    ]
    with pytest.raises(InputError) as refused:
        notes(slice(0, 203), slice(200, 500))
    assert str(refused.value) == (
        "spec.evaluate.tasks[0].test: task t: 3 of 300 test images (1.00%) are among its training images; "
        "less than 1%: name other images, or set allowOverlap: true for this task"
    )


def test_what_is_allowed_is_noted():
    (note,) = notes(slice(0, 300), slice(200, 500), allowOverlap=True)
    assert note == "task t: 100 of 300 test images (33.33%) are among its training images"


def test_test_images_among_the_source_are_noted_and_training_images_are_not():
    assert notes(slice(0, 200), slice(200, 500), slice(0, 200)) == []
    (note,) = notes(slice(0, 200), slice(200, 500), slice(0, 500))
    assert note == "task t: 300 of 300 test images (100.00%) are among the images to distil"


def test_what_is_too_large_to_be_compared_is_noted(monkeypatch):
    monkeypatch.setattr(overlap, "_MOST", 192 * 300)
    assert notes(slice(0, 200), slice(200, 500), slice(0, 300)) == [
        "task t: 100 of 300 test images (33.33%) are among the images to distil"
    ]
    (note,) = notes(slice(0, 200), slice(200, 500), slice(0, 301))
    assert note.startswith("task t: its test images were not looked for among the images to distil: ")


def test_fifty_thousand_images_of_3_kb_are_hashed_in_about_a_second():
    images = ShardedImages([np.zeros((50_000, 3, 32, 32), np.uint8)])
    started = time.perf_counter()
    row_digests(images)
    assert time.perf_counter() - started < 5.0  # 0.6 s on one idle core


def test_the_same_place_for_train_and_test_is_refused_with_the_spec_unless_allowed():
    place = {"uri": "sklearn:digits", "limit": 100}
    with pytest.raises(ValidationError, match=r"test: found 'sklearn:digits', as train; allowed: other images"):
        Task.model_validate({"name": "t", "train": place, "test": place})
    assert Task.model_validate({"name": "t", "train": place, "test": place, "allowOverlap": True}).allow_overlap
    Task.model_validate({"name": "t", "train": place, "test": place | {"limit": 99}})


@pytest.mark.parametrize("size", [8, 16])
def test_no_digit_of_scikit_learn_s_test_is_among_its_training_images(tmp_path, size):
    digests = []
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        source = open_source(f"sklearn:digits#{part}", "auto", Access())
        write_dataset(source, tmp_path / part, image_size=size, limit=None, seed=0, on_bad_image="fail")
        digests.append(row_digests(ImageDataset.open(tmp_path / part).images))
    assert not np.isin(digests[1], digests[0]).any()


def test_a_run_whose_test_images_are_training_images_fails_after_ingest(tmp_path):
    changes = {
        "evaluate.tasks": [{"name": "t", "train": {"uri": "sklearn:digits"}, "test": {"uri": "sklearn:digits#test"}}]
    }
    with pytest.raises(InputError, match=r"tasks\[0\]\.test: task t: 360 of 360 test images .* among its training"):
        run_tiny(tmp_path, changes)
    assert not (tmp_path / "teacher").exists()


def test_a_run_notes_test_images_among_its_source_and_keeps_the_note_in_its_summary(tmp_path):
    lines, changes = Lines(), {"source.uri": "sklearn:digits", "source.limit": None, "evaluate.seeds": [0]}
    shop = workshop(tmp_path, progress=lines)
    summary = Run(distillation(tmp_path, changes), shop).all()
    assert summary.overlaps == ["task digits: 100 of 100 test images (100.00%) are among the images to distil"]
    assert f"note: {summary.overlaps[0]}" in lines.lines
    assert read_summary(shop.store, None).overlaps == summary.overlaps
