import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from limbeck.data.dataset import ImageDataset
from limbeck.data.decode import BadImage
from limbeck.data.ingest import write_dataset
from limbeck.data.sources import open_source
from limbeck.errors import InputError, WorkError
from tests.data.making import encoded, noise, six_images, write_tar, write_tree, write_zip

SIX = six_images()
WRITTEN = ["dataset.json", "images-00000.safetensors", "index.parquet", "origin.parquet"]


def ingest(uri: object, out: Path, **changed: object) -> ImageDataset:
    options = {"image_size": 8, "limit": None, "seed": 0, "on_bad_image": "fail"} | changed
    return write_dataset(open_source(str(uri)), out, **options)


def files_of(out: Path) -> dict[str, bytes]:
    """The dataset's own: what begins with a dot is working state, which the store leaves behind."""
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if not path.name.startswith(".")}


@pytest.fixture
def tree(tmp_path) -> Path:
    return write_tree(tmp_path / "tree", SIX)


def test_a_dataset_holds_the_images_in_the_order_of_their_names(tmp_path, tree):
    dataset = ingest(tree, tmp_path / "out")
    assert len(dataset) == 6
    assert dataset.names == tuple(sorted(SIX))
    assert dataset.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.classes == ("cat", "dog")
    assert dataset.images[:].dtype == np.uint8
    expected = [noise(seed).transpose(2, 0, 1) for seed in range(6)]
    assert (np.asarray(dataset.images) == np.stack(expected)).all()
    assert dataset.skipped == {}


def test_nothing_but_its_files_is_written(tmp_path, tree):
    ingest(tree, tmp_path / "out")
    assert sorted(files_of(tmp_path / "out")) == WRITTEN


def test_the_images_are_aligned_and_readable_by_the_safetensors_library(tmp_path, tree):
    dataset = ingest(tree, tmp_path / "out")
    path = tmp_path / "out" / "images-00000.safetensors"
    with safe_open(path, "np") as file:
        assert list(file.keys()) == ["images"]
        assert (file.get_tensor("images") == dataset.images).all()
    assert (8 + int.from_bytes(path.read_bytes()[:8], "little")) % 64 == 0


def test_the_images_cannot_be_changed(tmp_path, tree):
    with pytest.raises(TypeError, match="item assignment"):
        ingest(tree, tmp_path / "out").images[0] = 0


def test_the_description_is_complete(tmp_path, tree):
    (tree / "README").write_text("x")
    ingest(tree, tmp_path / "out")
    description = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert description["count"] == 6
    assert description["imageSize"] == 8
    assert description["ignored"] == 1
    assert description["classes"] == ["cat", "dog"]
    assert description["skipped"] == {}
    index = pq.read_table(tmp_path / "out" / "index.parquet")
    assert [str(field.type) for field in index.schema] == ["string", "int64"]


def test_a_source_without_labels_gives_a_dataset_without_labels(tmp_path):
    np.save(tmp_path / "x.npy", np.stack([noise(i) for i in range(5)]))
    dataset = ingest(tmp_path / "x.npy", tmp_path / "out")
    assert (dataset.labels, dataset.classes) == (None, ())
    assert pq.read_table(tmp_path / "out" / "index.parquet")["label"].null_count == 5


@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(0, 255), st.integers(0, 255))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mean_and_deviation_are_exact(tmp_path, seed, count, low, high):
    rng = np.random.default_rng(seed)
    images = rng.integers(min(low, high), max(low, high) + 1, (count, 6, 6, 3), np.uint8)
    np.save(tmp_path / "x.npy", images)
    dataset = ingest(tmp_path / "x.npy", tmp_path / "out", image_size=6)
    scaled = images.astype(np.float64) / 255
    assert dataset.mean.dtype == dataset.std.dtype == np.float32
    np.testing.assert_allclose(dataset.mean, scaled.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(dataset.std, np.maximum(scaled.std((0, 1, 2)), 1 / 255), rtol=1e-6)


def test_a_constant_channel_has_a_deviation_to_divide_by(tmp_path):
    np.save(tmp_path / "x.npy", np.full((3, 4, 4, 3), 255, np.uint8))
    dataset = ingest(tmp_path / "x.npy", tmp_path / "out", image_size=4)
    assert dataset.mean.tolist() == [1, 1, 1]
    assert (dataset.std == np.float32(1 / 255)).all()


# --- the same bytes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"limit": 4, "seed": 7}, {"image_size": 5}])
def test_ingesting_twice_writes_the_same_bytes(tmp_path, tree, options):
    for out in ("a", "b"):
        ingest(tree, tmp_path / out, **options)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_ingesting_over_an_older_dataset_leaves_no_trace_of_it(tmp_path, tree):
    ingest(tree, tmp_path / "a")
    ingest(tree, tmp_path / "b", image_size=16)
    ingest(tree, tmp_path / "b")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_a_tree_a_zip_and_a_tar_of_the_same_images_give_the_same_tensor_and_index(tmp_path, tree):
    shuffled = dict(sorted(SIX.items(), reverse=True))
    uris = [tree, write_zip(tmp_path / "x.zip", shuffled), write_tar(tmp_path / "x.tar.gz", shuffled)]
    written = []
    for number, uri in enumerate(uris):
        ingest(uri, tmp_path / str(number), limit=5, seed=3)
        written.append(files_of(tmp_path / str(number)))
    images = [files["images-00000.safetensors"] for files in written]
    assert images[0] == images[1] == images[2]
    # what a source knows of its images' content differs: sha256, CRC-32, ...
    tables = [pq.read_table(tmp_path / str(number) / "index.parquet", columns=["name", "label"]) for number in range(3)]
    assert tables[0] == tables[1] == tables[2]


# --- limit ------------------------------------------------------------------------------------------------


def test_a_limit_keeps_a_sample_that_depends_on_names_and_seed_alone(tmp_path):
    files = {f"{i:03d}.png": SIX["cat/0.png"] for i in range(60)}
    whole = ingest(write_tree(tmp_path / "t", files), tmp_path / "0", limit=20, seed=1)
    again = ingest(write_zip(tmp_path / "x.zip", files), tmp_path / "1", limit=20, seed=1)
    other = ingest(tmp_path / "t", tmp_path / "2", limit=20, seed=2)
    fewer = ingest(tmp_path / "t", tmp_path / "3", limit=10, seed=1)
    assert len(whole) == 20
    assert list(whole.names) == sorted(whole.names)
    assert whole.names == again.names
    assert whole.names != other.names
    assert set(fewer.names) < set(whole.names)


def test_a_limit_beyond_the_source_keeps_all(tmp_path, tree):
    assert len(ingest(tree, tmp_path / "out", limit=100)) == 6


def test_classes_are_those_of_the_whole_source_whatever_the_sample(tmp_path, tree):
    dataset = ingest(tree, tmp_path / "out", limit=1)
    assert dataset.classes == ("cat", "dog")


# --- bad images -------------------------------------------------------------------------------------------


@pytest.fixture
def spoilt(tmp_path) -> Path:
    """Ten images, of which four are bad."""
    files = {f"{i}.png": encoded(noise(i)) for i in range(10)}
    files |= {"1.png": b"", "4.png": files["4.png"][:80], "7.png": b"text", "9.png": b"GIF89a"}
    return write_zip(tmp_path / "spoilt.zip", files)


def test_bad_images_fail_with_the_first_three_and_the_count_of_all_and_leave_nothing(tmp_path, spoilt):
    with pytest.raises(InputError) as caught:
        ingest(spoilt, tmp_path / "out")
    message = str(caught.value)
    assert message.startswith(f"{spoilt}: 4 of 10 images cannot be used: 1.png (is empty), 4.png (cannot be decoded")
    assert "7.png (is not a readable JPEG or PNG image), ...; mend or remove them" in message
    assert "9.png" not in message
    assert "\n" not in message
    assert list((tmp_path / "out").iterdir()) == []


def test_bad_images_are_skipped_and_recorded(tmp_path, spoilt):
    dataset = ingest(spoilt, tmp_path / "out", on_bad_image="skip")
    assert dataset.names == ("0.png", "2.png", "3.png", "5.png", "6.png", "8.png")
    assert (np.asarray(dataset.images) == [noise(i).transpose(2, 0, 1) for i in (0, 2, 3, 5, 6, 8)]).all()
    assert list(dataset.skipped) == ["1.png", "4.png", "7.png", "9.png"]
    assert dataset.skipped["1.png"] == "is empty"
    assert sorted(files_of(tmp_path / "out")) == WRITTEN


def test_skipping_gives_the_same_tensor_as_a_source_without_the_bad_images(tmp_path, spoilt):
    good = {f"{i}.png": encoded(noise(i)) for i in (0, 2, 3, 5, 6, 8)}
    ingest(spoilt, tmp_path / "a", on_bad_image="skip")
    ingest(write_zip(tmp_path / "good.zip", good), tmp_path / "b")
    for file in ("images-00000.safetensors", "index.parquet"):
        assert files_of(tmp_path / "a")[file] == files_of(tmp_path / "b")[file]
    a, b = (ImageDataset.open(tmp_path / out) for out in ("a", "b"))
    assert (a.mean == b.mean).all()
    assert (a.std == b.std).all()


@pytest.mark.parametrize("on_bad_image", ["fail", "skip"])
def test_a_source_of_bad_images_only_is_refused(tmp_path, on_bad_image):
    path = write_zip(tmp_path / "x.zip", {"a.png": b"", "b.png": b""})
    with pytest.raises(InputError, match=r"2 of 2 images cannot be used: a\.png \(is empty\)"):
        ingest(path, tmp_path / "out", on_bad_image=on_bad_image)


def test_a_name_that_would_disturb_a_terminal_is_printed_harmlessly(tmp_path):
    path = write_zip(tmp_path / "x.zip", {"\x1b[31mred\n.png": b"", "a.png": SIX["cat/0.png"]})
    with pytest.raises(InputError) as caught:
        ingest(path, tmp_path / "out")
    assert str(caught.value).isprintable()


def test_an_image_that_a_source_fails_to_deliver_is_a_bad_image(tmp_path):
    source = open_source(str(write_zip(tmp_path / "x.zip", SIX)))
    reader = source.reader
    source.reader = lambda wanted: reader(wanted[1:])
    dataset = write_dataset(source, tmp_path / "out", image_size=8, limit=None, seed=0, on_bad_image="skip")
    assert dataset.skipped == {"cat/0.png": "disappeared while the source was read"}


# --- failures ---------------------------------------------------------------------------------------------


def test_a_storage_that_fails_is_not_the_users_fault(tmp_path):
    source = open_source(str(write_zip(tmp_path / "x.zip", SIX)))

    def failing(wanted: object) -> Iterator[tuple[int, BadImage]]:
        yield 0, BadImage("x")
        raise ConnectionResetError(104, "Connection reset by peer")

    source.reader = failing
    with pytest.raises(WorkError, match="cannot be read: Connection reset by peer"):
        write_dataset(source, tmp_path / "out", image_size=8, limit=None, seed=0, on_bad_image="skip")
    assert files_of(tmp_path / "out") == {}


def test_a_place_that_cannot_be_written_is_an_error_of_one_line(tmp_path, tree):
    (tmp_path / "file").write_text("x")
    with pytest.raises(WorkError, match="cannot be written"):
        ingest(tree, tmp_path / "file" / "out")


@pytest.mark.parametrize("file", ["dataset.json", "images-00000.safetensors", "index.parquet"])
def test_a_dataset_with_a_missing_or_damaged_file_is_refused(tmp_path, tree, file):
    out = tmp_path / "out"
    ingest(tree, out)
    for damage in (lambda path: path.write_bytes(path.read_bytes()[:50]), Path.unlink):
        damage(out / file)
        with pytest.raises(InputError) as caught:
            ImageDataset.open(out)
        assert "\n" not in str(caught.value)


def test_files_of_two_datasets_do_not_mix(tmp_path, tree):
    ingest(tree, tmp_path / "a")
    ingest(tree, tmp_path / "b", limit=3)
    (tmp_path / "a" / "index.parquet").write_bytes((tmp_path / "b" / "index.parquet").read_bytes())
    with pytest.raises(InputError, match="do not belong together"):
        ImageDataset.open(tmp_path / "a")


def test_progress_counts_every_image_once(tmp_path, spoilt):
    counted = []

    class Counting:
        @contextmanager
        def bar(self, title: str, total: int, unit: str, done: int = 0) -> Iterator["Counting"]:
            counted.append(total)
            yield self

        def advance(self, steps: int = 1, note: str = "") -> None:
            counted.append(-steps)

    ingest(spoilt, tmp_path / "out", on_bad_image="skip", progress=Counting())
    assert sum(counted) == 0
    assert counted[0] == 10


# --- real images ------------------------------------------------------------------------------------------


@pytest.mark.skipif(
    "LIMBECK_TEST_DATA" not in os.environ, reason="LIMBECK_TEST_DATA does not name a folder of CIFAR-10 zips"
)
def test_cifar_10_as_a_zip_of_jpegs(tmp_path):
    uri = Path(os.environ["LIMBECK_TEST_DATA"]) / "cifar10-test.zip"
    dataset = ingest(uri, tmp_path / "out", image_size=32, limit=500)
    assert dataset.images.shape == (500, 3, 32, 32)
    assert len(dataset.classes) == 10
    assert np.bincount(dataset.labels, minlength=10).min() > 20
    # The means and deviations that the field quotes for CIFAR-10.
    np.testing.assert_allclose(dataset.mean, [0.491, 0.482, 0.447], atol=0.03)
    np.testing.assert_allclose(dataset.std, [0.247, 0.243, 0.262], atol=0.03)
