# ruff: noqa: F811 -- a fixture that is imported is an argument too
"""A distilled set is whole, checked, a torch Dataset, and all that pre-training needs."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import limbeck as package
from limbeck.checkpoint import load_tensors
from limbeck.data.distilled import DistilledSet
from limbeck.data.pixels import PixelGrid
from limbeck.errors import InputError
from limbeck.nn.encoders import EncoderConfig, build_encoder
from limbeck.nn.enlarging import Enlarging
from limbeck.nn.pretraining import Recipe
from limbeck.store import json_digest
from limbeck.warmstart import FIELD, _form
from tests.stages.command import limbeck  # noqa: F401 - a fixture
from tests.stages.tiny import (
    finished,  # noqa: F401 - a fixture
    one_thread,  # noqa: F401 - a fixture
    run_tiny,
    write_tiny,
)

RECIPE = Recipe(rate=0.05, steps=6, batch=4, momentum=0.9, weight_decay=1e-4)


def small_set() -> DistilledSet:
    generator = torch.Generator().manual_seed(0)
    return DistilledSet(
        images=torch.randn(6, 3, 8, 8, generator=generator),
        targets=torch.randn(6, 5, generator=generator),
        mean=torch.tensor([0.4, 0.5, 0.6]),
        std=torch.tensor([0.2, 0.25, 0.3]),
        recipe=RECIPE,
        spec={"source": {"uri": "x"}},
        lineage={"source": "d"},
        evaluation={"accuracies": [], "recoveredGaps": []},
    )


@pytest.fixture
def registered(finished) -> Path:
    return Path(json.loads((finished / "runs" / "tiny" / "summary.json").read_text())["links"]["distilledSet"])


def test_what_is_saved_is_loaded(tmp_path):
    before = small_set()
    before.save(tmp_path)
    after = DistilledSet.load(tmp_path)
    for name in ("images", "targets", "mean", "std"):
        assert torch.equal(getattr(after, name), getattr(before, name)), name
    for name in ("recipe", "spec", "lineage", "evaluation"):
        assert getattr(after, name) == getattr(before, name), name
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "distilled.json",
        "distilled.safetensors",
        "preview.png",
    ]
    assert Image.open(tmp_path / "preview.png").width > 6 * 8


def test_the_file_holds_pictures_that_anyone_can_look_at(tmp_path):
    before = small_set()
    before.save(tmp_path)
    viewable = load_tensors(tmp_path / "distilled.safetensors")[0]["viewable"]
    assert viewable.dtype == torch.uint8
    pixels = (before.images * before.std.view(3, 1, 1) + before.mean.view(3, 1, 1)).clamp(0, 1)
    torch.testing.assert_close(viewable / 255, pixels, atol=0.51 / 255, rtol=0)
    assert torch.equal(viewable, before.viewable(before.images))


def whole_set(side: int = 4, shown: int = 8) -> DistilledSet:
    """A set of whole pixels, kept at `side` and seen at `shown`."""
    before = small_set()
    raw = torch.randint(0, 256, (6, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    stored = PixelGrid(before.mean, before.std).normalised(raw)
    images = Enlarging(side, shown, torch.device("cpu"))(stored)
    return replace(before, images=images, stored=stored, pixel_type="uint8")


@pytest.mark.parametrize("side", [4, 8])
def test_whole_pixels_are_saved_as_bytes_and_loaded_bit_by_bit(tmp_path, side):
    before = whole_set(side)
    before.save(tmp_path)
    saved = load_tensors(tmp_path / "distilled.safetensors")[0]
    assert saved["images"].dtype == torch.uint8
    assert {name: tuple(tensor.shape) for name, tensor in saved.items()} == {
        "images": (6, 3, side, side),
        "targets": (6, 5),
    }
    after = DistilledSet.load(tmp_path)
    assert after.pixel_type == "uint8"
    assert torch.equal(after.images, before.images)
    assert torch.equal(after.kept, before.kept)
    assert torch.equal(after.viewable(after.kept), saved["images"])
    after.save(tmp_path / "again")
    assert (tmp_path / "again" / "distilled.json").read_bytes() == (tmp_path / "distilled.json").read_bytes()


def test_the_bytes_of_a_set_are_those_of_its_file_but_for_the_head_and_the_rate(tmp_path):
    for name, made, expected in (
        ("whole", whole_set(4), 6 * (3 * 16 + 5 * 4) + 4),
        ("float", small_set(), 6 * (3 * 64 * 4 + 5 * 4) + 4),
    ):
        made.save(tmp_path / name)
        assert made.nbytes == DistilledSet.load(tmp_path / name).nbytes == expected
        tensors = load_tensors(tmp_path / name / "distilled.safetensors")[0]
        assert sum(tensors[part].nbytes for part in ("images", "targets")) == expected - 4


def rewritten(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a set's record as one that was written so would be."""
    path = folder / "distilled.json"
    record = json.loads(path.read_text())
    del record["digest"]
    change(record)
    path.write_text(json.dumps(record | {"digest": json_digest(record)}))


@pytest.mark.parametrize(("rate", "found"), [(0.0, "0"), (-0.1, "-0.1"), ("fast", "'fast'"), (None, "None")])
def test_a_set_whose_rate_trains_nothing_is_refused_where_it_is_read(tmp_path, rate, found):
    small_set().save(tmp_path)
    rewritten(tmp_path, lambda record: record["recipe"].update(rate=rate))
    with pytest.raises(InputError) as caught:
        package.load(str(tmp_path))
    assert str(caught.value) == f"{tmp_path}: the learning rate is {found}; allowed: a positive number"
    with pytest.raises(InputError, match=f"spec.distill.warmStart: models:/x/1: the learning rate is {found}; allowed"):
        _form(tmp_path, "models:/x/1", FIELD)


@pytest.mark.parametrize("rate", [0.0, -0.1, math.inf, math.nan])
def test_a_set_whose_rate_trains_nothing_pre_trains_no_encoder(rate):
    encoder = build_encoder(EncoderConfig("convnet", 8, 4, "instance", 1), 0)
    with pytest.raises(InputError, match=f"distilled.recipe.rate: the learning rate is {rate:g}; allowed: a positive"):
        package.pretrain(encoder, replace(small_set(), recipe=replace(RECIPE, rate=rate)), device="cpu")


@pytest.mark.parametrize("name", ["images", "targets"])
def test_a_set_with_numbers_that_are_not_finite_is_refused(tmp_path, name):
    before = small_set()
    values = getattr(before, name).clone()
    values.view(-1)[0] = math.nan
    replace(before, **{name: values}).save(tmp_path)
    with pytest.raises(InputError, match=f"the distilled set is damaged .its {name} are not finite"):
        package.load(str(tmp_path))


def test_a_set_of_a_later_format_is_refused(tmp_path):
    small_set().save(tmp_path)
    rewritten(tmp_path, lambda record: record.update(format=3))
    with pytest.raises(InputError, match="its format is 3, which a later limbeck wrote"):
        package.load(str(tmp_path))


def test_it_is_a_dataset_for_a_data_loader():
    distilled = small_set()
    assert len(distilled) == 6
    image, target = distilled[4]
    assert torch.equal(image, distilled.images[4])
    assert torch.equal(target, distilled.targets[4])
    batches = list(DataLoader(distilled, batch_size=4))
    assert [batch[0].shape for batch in batches] == [(4, 3, 8, 8), (2, 3, 8, 8)]
    assert torch.equal(torch.cat([batch[1] for batch in batches]), distilled.targets)
    assert len(list(distilled)) == 6  # iteration by index ends


@pytest.mark.parametrize("harm", ["altered", "truncated", "empty", "swapped"])
def test_damaged_tensors_are_refused(tmp_path, harm):
    small_set().save(tmp_path)
    path = tmp_path / "distilled.safetensors"
    content = path.read_bytes()
    if harm == "swapped":
        replace(small_set(), images=torch.zeros(6, 3, 8, 8)).save(tmp_path / "other")
        content = (tmp_path / "other" / path.name).read_bytes()
    else:
        content = {"altered": content[:-1] + b"\x99", "truncated": content[:-1], "empty": b""}[harm]
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"distilled\.safetensors is damaged \(sha256 differs\)"):
        package.load(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff\xfe", b"null", b'{"sha256": 3}'])
def test_a_damaged_record_is_refused_in_one_line(tmp_path, content):
    small_set().save(tmp_path)
    (tmp_path / "distilled.json").write_bytes(content)
    with pytest.raises(InputError, match="damaged") as caught:
        package.load(str(tmp_path))
    assert str(caught.value).startswith(f"{tmp_path}: ")


def test_a_record_whose_normalisation_was_altered_is_refused(tmp_path):
    small_set().save(tmp_path)
    path = tmp_path / "distilled.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"mean": [0.1, 0.5, 0.6]}))
    with pytest.raises(InputError, match=r"altered|damaged"):
        package.load(str(tmp_path))


@pytest.mark.parametrize("missing", ["distilled.json", "distilled.safetensors"])
def test_a_set_that_is_not_whole_is_none(tmp_path, missing):
    small_set().save(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(InputError, match=r"no distilled set is there; a folder with distilled\.json and"):
        package.load(str(tmp_path))


@pytest.mark.parametrize("where", ["nowhere", "file", "file/below", ""])
def test_where_there_is_no_set_that_is_said(tmp_path, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="no distilled set is there"):
        package.load(where)


def test_a_registered_set_is_loaded_and_pre_trains_an_encoder(registered):
    distilled = package.load(str(registered))
    assert len(distilled) == 10
    assert distilled.images.shape == (10, 3, 8, 8)
    assert distilled.spec["distill"]["size"] == 10
    assert {"source", "dataset", "teacher", "targets", "trajectories", "distill", "evaluate"} <= set(distilled.lineage)
    assert distilled.evaluation["accuracies"][0]["method"] == "distilled"
    encoders = []
    for seed in (0, 0, 1):
        encoder = build_encoder(EncoderConfig("resnet10", 8, 4, "batch"), 0)
        result = package.pretrain(encoder, distilled, seed=seed, device="cpu")
        assert result is encoder
        assert not result.training
        encoders.append(torch.cat([p.flatten() for p in result.parameters()]))
    assert torch.equal(encoders[0], encoders[1])
    assert not torch.equal(encoders[0], encoders[2])


def test_pre_training_from_a_set_in_python_is_what_the_evaluation_does(finished, registered):
    """The encoder that `limbeck.pretrain` gives has the accuracy that the run's summary reports for that seed."""
    import numpy as np

    from limbeck.data.dataset import ImageDataset
    from limbeck.evaluation.probe import fit_probes
    from limbeck.evaluation.protocol import draw_labels, held_out_split
    from limbeck.seeding import derive

    distilled = package.load(str(registered))
    summary = json.loads((finished / "runs" / "tiny" / "summary.json").read_text())
    keys = {stage["name"]: stage["key"] for stage in summary["stages"]}
    train, test = (ImageDataset.open(finished / "ingest" / keys[f"ingest digits/{part}"]) for part in ("train", "test"))
    reported = next(entry for entry in summary["accuracies"] if entry["method"] == "distilled")
    for seed, value in zip(reported["seeds"], reported["values"], strict=True):
        encoder = build_encoder(EncoderConfig("convnet", 8, 8, "instance", 1), seed, "evaluate")
        package.pretrain(encoder, distilled, seed=seed, device="cpu")
        mean, std = distilled.mean.view(3, 1, 1), distilled.std.view(3, 1, 1)
        with torch.no_grad():
            features = [encoder((torch.tensor(np.array(data.images)) / 255 - mean) / std) for data in (train, test)]
        draws = np.random.default_rng(derive(seed, "labels", "digits", repr(0.1)))
        chosen = draw_labels(train.labels, held_out_split(train.labels, 0.2, "digits")[0], 0.1, draws)
        labels = torch.tensor(train.labels[chosen])
        (probe,) = fit_probes(features[0][chosen], labels, 10, [0.01], iterations=2000, tolerance=1e-6)
        assert probe.accuracy(features[1], torch.tensor(test.labels)) == pytest.approx(value, abs=0.011)


# ---- starting from an earlier set


def test_a_run_can_start_from_an_earlier_set(tmp_path, registered):
    champion = Path(shutil.copytree(registered, tmp_path / "champion"))
    changes = {"distill.warmStart": str(champion), "distill.iterations": 4}
    summary = run_tiny(tmp_path / "out", changes)
    assert summary.succeeded
    (synthetic,) = (tmp_path / "out" / "distill").glob("*/synthetic.safetensors")
    tensors, earlier = load_tensors(synthetic)[0], package.load(str(champion))
    pixels = earlier.pixels(earlier.images)
    torch.testing.assert_close(earlier.pixels(tensors["initial_images"]), pixels, atol=1e-5, rtol=0)
    assert not torch.equal(tensors["images"], tensors["initial_images"])
    assert all(stage.reused for stage in run_tiny(tmp_path / "out", changes).stages)


def test_another_set_to_start_from_is_another_distillation(tmp_path, registered):
    """The folder is the same; what lies in it is not."""
    champion = Path(shutil.copytree(registered, tmp_path / "champion"))
    changes = {"distill.warmStart": str(champion), "distill.iterations": 2, "evaluate.tasks": []}
    first = run_tiny(tmp_path / "out", changes)
    distilled = package.load(str(champion))
    replace(distilled, images=distilled.images + 0.1).save(champion)
    second = run_tiny(tmp_path / "out", changes)
    assert [stage.name for stage in second.stages if not stage.reused] == ["distill", "evaluate", "register"]
    assert {s.name: s.digest for s in first.stages}["distill"] != {s.name: s.digest for s in second.stages}["distill"]


def test_a_start_outside_the_range_of_pixels_is_brought_into_it(tmp_path, registered):
    earlier = package.load(str(registered))
    kept = earlier.images * 3.0  # as an earlier limbeck left them, in float32
    replace(earlier, images=kept, stored=None, pixel_type="float32").save(tmp_path / "wild")
    run_tiny(
        tmp_path / "out", {"distill.warmStart": str(tmp_path / "wild"), "distill.iterations": 1, "evaluate.tasks": []}
    )
    (synthetic,) = (tmp_path / "out" / "distill").glob("*/synthetic.safetensors")
    initial = load_tensors(synthetic)[0]["initial_images"]
    assert torch.equal(earlier.viewable(initial), earlier.viewable(kept))
    assert torch.equal(PixelGrid(earlier.mean, earlier.std).normalised(earlier.viewable(kept)), initial)


def test_a_set_without_a_rate_to_start_from_is_one_line(limbeck, tmp_path, registered):
    broken = Path(shutil.copytree(registered, tmp_path / "broken"))
    rewritten(broken, lambda record: record["recipe"].update(rate=0.0))
    changes = {"distill.warmStart": str(broken), "evaluate.tasks": []}
    outcome = limbeck("run", write_tiny(tmp_path / "tiny.yaml", tmp_path / "out", changes))
    assert outcome.code == 2
    assert (
        f"spec.distill.warmStart: {broken}: the learning rate is 0; allowed: a positive number" in outcome.problems[-1]
    )
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(
    ("changes", "phrase"),
    [
        ({"distill.size": 11}, "has 10 images of 8x8 pixels; 11 of 8x8 pixels, as this spec distils"),
        ({"source.imageSize": 16}, "has 10 images of 8x8 pixels; 10 of 16x16 pixels, as this spec distils"),
    ],
)
def test_an_earlier_set_of_another_size_is_refused(limbeck, tmp_path, registered, changes, phrase):
    changes = {"distill.warmStart": str(registered), "evaluate.tasks": []} | changes
    outcome = limbeck("run", write_tiny(tmp_path / "tiny.yaml", tmp_path / "out", changes))
    assert outcome.code == 2
    assert f"spec.distill.warmStart: {registered} {phrase}" in outcome.problems[-1]
    assert outcome.problems[-1].startswith(f"{tmp_path / 'tiny.yaml'}:")
    assert not (tmp_path / "out" / "distill").exists()


@pytest.mark.parametrize("where", ["missing", "empty", "damaged", "nonsense://x/y"])
def test_an_earlier_set_that_cannot_be_read_is_refused(limbeck, tmp_path, registered, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    shutil.copytree(registered, "damaged")
    Path("damaged/distilled.safetensors").write_bytes(b"x")
    changes = {"distill.warmStart": where, "evaluate.tasks": []}
    outcome = limbeck("run", write_tiny(tmp_path / "tiny.yaml", tmp_path / "out", changes))
    assert outcome.code == 2, outcome
    assert outcome.problems[-1].startswith(f"{tmp_path / 'tiny.yaml'}:")
    assert "spec.distill.warmStart" in outcome.problems[-1]
    assert where in outcome.problems[-1]


def test_an_earlier_set_that_does_not_fit_is_found_before_any_work(limbeck, tmp_path, registered):
    """Not after the teacher and all experts have been trained."""
    changes = {"distill.warmStart": str(registered), "distill.size": 11, "evaluate.tasks": []}
    spec = write_tiny(tmp_path / "tiny.yaml", tmp_path / "out", changes)
    for command in ("validate", "run"):
        outcome = limbeck(command, spec)
        assert outcome.code == 2
        assert len(outcome.problems) == 1
    assert not (tmp_path / "out").exists()


def test_an_earlier_set_on_another_file_system_is_read(tmp_path, registered):
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in registered.iterdir():
        memory.pipe_file(f"/champion/{path.name}", path.read_bytes())
    changes = {"distill.warmStart": "memory://champion", "distill.iterations": 2, "evaluate.tasks": []}
    assert run_tiny(tmp_path / "out", changes).succeeded
