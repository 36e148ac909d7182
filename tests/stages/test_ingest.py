"""The stage ingest: what the store remembers of a source is not read again when it changes."""

import json
from pathlib import Path

import pytest

from limbeck.data.dataset import ImageDataset
from limbeck.runner import Run
from tests.data.making import encoded, noise, write_tree
from tests.stages.tiny import Lines, distillation, workshop


def write_pictures(root: Path, seeds: dict[str, int]) -> Path:
    return write_tree(root, {name: encoded(noise(seed)) for name, seed in seeds.items()})


@pytest.fixture
def tree(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return write_pictures(tmp_path / "tree", {f"{index:02d}.png": index for index in range(30)})


def ingest(tree: Path, output: Path, changes: dict[str, object] | None = None) -> tuple[dict[str, bytes], list[str]]:
    """The files of the source's dataset, and what was said of reuse."""
    progress = Lines()
    changes = {"source.uri": str(tree), "source.limit": None, **(changes or {})}
    result = Run(distillation(output, changes), workshop(output, progress)).stage("ingest")
    assert ImageDataset.open(result.path).names[0] == "00.png"
    said = [line for line in progress.lines if "earlier dataset" in line and " of 3" in line]
    return {path.name: path.read_bytes() for path in result.path.iterdir() if path.name != "manifest.json"}, said


def change(tree: Path) -> None:
    write_pictures(tree, {"07.png": 100, "30.png": 101})
    (tree / "20.png").unlink()


def test_a_source_that_has_changed_is_read_where_it_has(tmp_path, tree):
    ingest(tree, tmp_path / "out")
    change(tree)
    files, said = ingest(tree, tmp_path / "out")
    assert said == ["ingest: 28 of 30 images are those of an earlier dataset"]
    assert files == ingest(tree, tmp_path / "fresh")[0]


def test_the_last_dataset_is_the_one_that_is_reused(tmp_path, tree):
    ingest(tree, tmp_path / "out")
    change(tree)
    ingest(tree, tmp_path / "out")
    write_pictures(tree, {"31.png": 102})
    _, said = ingest(tree, tmp_path / "out")
    assert said == ["ingest: 30 of 31 images are those of an earlier dataset"]


def test_settings_other_than_the_size_do_not_keep_images_from_being_reused(tmp_path, tree):
    ingest(tree, tmp_path / "out")
    _, said = ingest(tree, tmp_path / "out", {"source.onBadImage": "skip"})
    assert said == ["ingest: 30 of 30 images are those of an earlier dataset"]
    assert ingest(tree, tmp_path / "out", {"source.imageSize": 16})[1] == []


@pytest.mark.parametrize(
    "fault", ["no hint", "no JSON", "a path", "another key", "a damaged dataset", "another version"]
)
def test_a_hint_that_is_wrong_means_that_nothing_is_reused(tmp_path, tree, fault):
    out = tmp_path / "out"
    ingest(tree, out)
    (hint,) = (path for path in (out / "ingest" / "latest").iterdir() if _is_of(path, out, 30))
    result = out / "ingest" / json.loads(hint.read_text())["key"]
    match fault:
        case "no hint":
            hint.unlink()
        case "no JSON":
            hint.write_text("x")
        case "a path":
            hint.write_text(json.dumps({"key": f"../ingest/{result.name}"}))
        case "another key":
            hint.write_text(json.dumps({"key": "0" * 32}))
        case "a damaged dataset":
            shard = result / "images-00000.safetensors"
            shard.write_bytes(shard.read_bytes()[:-1] + b"x")
        case _:
            manifest = json.loads((result / "manifest.json").read_text())
            (result / "manifest.json").write_text(json.dumps(manifest | {"version": 1}))
    change(tree)
    files, said = ingest(tree, out)
    assert said == []
    assert files == ingest(tree, tmp_path / "fresh")[0]


def _is_of(hint: Path, output: Path, count: int) -> bool:
    return len(ImageDataset.open(output / "ingest" / json.loads(hint.read_text())["key"])) == count
