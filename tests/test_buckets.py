"""A whole run with everything in a bucket gives what it gives on a disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sklearn.datasets import load_digits

from limbeck.storage import PLAIN
from limbeck.summary import Summary
from tests.buckets import google
from tests.data.making import encoded
from tests.stages.tiny import one_thread  # noqa: F401 - a fixture
from tests.tracking.conftest import MlflowServer
from tests.tracking.tracked import run_tracked

IMAGES = 240


@pytest.fixture(scope="module")
def pictures() -> dict[str, bytes]:
    """The first handwritten digits, as PNG files in class folders of a training and a test split."""
    found = load_digits()
    files = {}
    for place in range(IMAGES):
        split = "test" if place % 4 == 3 else "train"
        pixels = (found.images[place] * 15).astype("uint8")
        files[f"{split}/{found.target[place]}/{place:04d}.png"] = encoded(pixels)
    return files


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with google() as url:
        yield url


def run(pictures: dict[str, bytes], place: str, mlflow: str) -> Summary:
    files, root = PLAIN.open(f"{place}/pictures")
    for name, content in pictures.items():
        files.makedirs(f"{root}/{name}".rpartition("/")[0], exist_ok=True)
        files.pipe_file(f"{root}/{name}", content)
    train, test = ({"uri": f"{place}/pictures#{split}"} for split in ("train", "test"))
    changes: dict[str, Any] = {
        "source": {**train, "imageSize": 8},
        "evaluate.tasks": [{"name": "digits", "train": train, "test": test}],
        "evaluate.labelFractions": [0.5],
        "registry.name": "digits",
    }
    return run_tracked(f"{place}/results", mlflow, changes)


def test_source_results_and_artifacts_in_a_bucket_give_the_bytes_that_they_give_on_a_disk(
    pictures, bucket, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    summaries, sets = {}, {}
    for name, place, artifacts in (
        ("disk", str(tmp_path / "disk"), None),
        ("bucket", f"{bucket}/whole", f"{bucket}/mlflow"),
    ):
        (tmp_path / name).mkdir()
        server = MlflowServer(tmp_path / name, artifacts)
        server.start()
        try:
            summaries[name] = run(pictures, place, server.uri)
            (version,) = server.client.search_model_versions("name='digits'")
            sets[name] = Path(server.client.download_artifacts(version.run_id, "")) if False else version
        finally:
            server.kill()
    disk, there = summaries["disk"], summaries["bucket"]
    assert [stage.digest for stage in there.stages[:-1]] == [stage.digest for stage in disk.stages[:-1]]
    assert there.accuracies == disk.accuracies
