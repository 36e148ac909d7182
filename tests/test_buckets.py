"""A whole run with everything in a bucket gives what it gives on a disk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from limbeck.storage import PLAIN
from limbeck.summary import Summary
from limbeck.tracking.registry import Registry
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
            sets[name] = Registry(server.uri).load("models:/digits@champion")
        finally:
            server.kill()
    disk, there = summaries["disk"], summaries["bucket"]
    assert [stage.digest for stage in there.stages[:-1]] == [stage.digest for stage in disk.stages[:-1]]
    assert there.accuracies == disk.accuracies
    assert torch.equal(sets["bucket"].images, sets["disk"].images)
    assert torch.equal(sets["bucket"].targets, sets["disk"].targets)
    here = load_file(next((tmp_path / "disk" / "results").glob("distill/*/synthetic.safetensors")))
    assert torch.equal(here["images"], sets["bucket"].images)
    files, root = PLAIN.open(f"{bucket}/mlflow")
    assert any(name.endswith("distilled.safetensors") for name in files.find(root))
