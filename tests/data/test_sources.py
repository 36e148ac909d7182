import json
import os
import pickle
import random
import tracemalloc
import zipfile
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest

from limbeck.data.decode import BadImage, decode
from limbeck.data.sources import FORMATS, Source, open_source
from tests.data.making import (
    cifar10_files,
    cifar_batch,
    encoded,
    noise,
    six_images,
    write_parquet,
    write_tar,
    write_tree,
    write_zip,
)

SIX = six_images()
PIXELS = {name: decode(content, 8) for name, content in SIX.items()}


def everything(source: Source) -> dict[str, object]:
    listing = source.listing()
    return {listing.names[index]: content for index, content in source.read(range(listing.count))}


def pixels(source: Source, size: int = 8) -> list[np.ndarray]:
    found = everything(source)
    return [decode(found[name], size) for name in source.listing().names]


def labelled(source: Source) -> list[str | None]:
    listing = source.listing()
    if listing.labels is None:
        return [None] * listing.count
    return [listing.classes[label] if label >= 0 else None for label in listing.labels]


# --- every format -----------------------------------------------------------------------------------------


def as_tree(root: Path) -> str:
    return str(write_tree(root / "tree", SIX))


def as_zip(root: Path) -> str:
    return str(write_zip(root / "x.zip", SIX))


def as_tar(suffix: str):
    return lambda root: str(write_tar(root / f"x{suffix}", SIX))


def stacked() -> np.ndarray:
    return np.stack([PIXELS[name].transpose(1, 2, 0) for name in sorted(SIX)])


def as_npy(root: Path) -> str:
    np.save(root / "x.npy", stacked())
    return str(root / "x.npy")


def as_npz(root: Path) -> str:
    np.savez_compressed(root / "x.npz", images=stacked(), labels=np.array([0, 0, 0, 1, 1, 1]))
    return str(root / "x.npz")


def as_parquet(root: Path) -> str:
    images = [SIX[name] for name in sorted(SIX)]
    return str(write_parquet(root / "x.parquet", images, ["cat"] * 3 + ["dog"] * 3, row_group_size=2))


def as_parquet_directory(root: Path) -> str:
    images = [SIX[name] for name in sorted(SIX)]
    for part in range(3):
        here = slice(2 * part, 2 * part + 2)
        labels = [0, 0, 0, 1, 1, 1][here]
        write_parquet(root / "hf" / f"train-0000{part}-of-00003.parquet", images[here], labels)
    return str(root / "hf#train")


KEPT = {
    "images": as_tree,
    "zip": as_zip,
    "tar": as_tar(".tar"),
    "tar.gz": as_tar(".tar.gz"),
    "tgz": as_tar(".tgz"),
    "tar.bz2": as_tar(".tar.bz2"),
    "tar.xz": as_tar(".tar.xz"),
    "npy": as_npy,
    "npz": as_npz,
    "parquet": as_parquet,
    "parquet directory": as_parquet_directory,
}


@pytest.mark.parametrize("form", KEPT)
def test_the_same_images_are_read_whatever_they_are_kept_in(tmp_path, form):
    source = open_source(KEPT[form](tmp_path))
    assert source.format in FORMATS[1:]
    listing = source.listing()
    assert listing.count == len(listing.names) == len(set(listing.names)) == 6
    assert list(listing.names) == sorted(listing.names)
    for found, name in zip(pixels(source), sorted(SIX), strict=True):
        assert (found == PIXELS[name]).all()
    if form != "npy":
        assert listing.labels.dtype == np.int64
        assert listing.labels.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("form", KEPT)
def test_only_what_is_wanted_is_read_and_each_once(tmp_path, form):
    source = open_source(KEPT[form](tmp_path))
    found = dict(source.read([4, 1]))
    assert sorted(found) == [1, 4]
    for index, content in found.items():
        assert (decode(content, 8) == PIXELS[sorted(SIX)[index]]).all()
    assert list(source.read([])) == []


@pytest.mark.parametrize("form", KEPT)
def test_the_fingerprint_is_a_sha256_that_stays(tmp_path, form):
    uri = KEPT[form](tmp_path)
    first, second = open_source(uri), open_source(uri)
    assert first.fingerprint() == first.fingerprint() == second.fingerprint()
    assert len(bytes.fromhex(first.fingerprint())) == 32


@pytest.mark.parametrize("form", ["zip", "tar.gz", "npy", "npz", "parquet", "parquet directory", "images"])
def test_any_fsspec_url_will_do(tmp_path, form):
    local = KEPT[form](tmp_path)
    memory = fsspec.filesystem("memory")
    path, _, _ = local.partition("#")
    memory.put(path, f"/limbeck{path}", recursive=True)
    try:
        for uri in (f"memory://limbeck{local}", f"file://{local}"):
            source = open_source(uri)
            assert [image.tobytes() for image in pixels(source)] == [PIXELS[n].tobytes() for n in sorted(SIX)]
            assert source.fingerprint() == open_source(local).fingerprint()
    finally:
        memory.rm("/limbeck", recursive=True)


def test_a_relative_path_is_relative_to_the_working_directory(tmp_path, monkeypatch):
    as_tree(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert open_source("tree").listing().count == open_source("./tree/").listing().count == 6


# --- trees and archives -----------------------------------------------------------------------------------


def test_other_files_are_ignored_and_counted(tmp_path):
    others = {
        "README.md": b"",
        ".DS_Store": b"",
        "cat/.hidden.png": b"",
        ".cache/x.png": b"",
        "cat/notes": b"",
    }
    files = {**SIX, **others}
    listings = [
        open_source(str(uri)).listing()
        for uri in (
            write_tree(tmp_path / "t", files),
            write_zip(tmp_path / "x.zip", files),
            write_tar(tmp_path / "x.tar", files),
        )
    ]
    for listing in listings:
        assert (listing.count, listing.ignored) == (6, 5)
        assert listing.classes == ("cat", "dog")


def test_suffixes_count_in_any_case(tmp_path):
    tree = write_tree(tmp_path / "t", {"a.JPG": b"", "b.Jpeg": b"", "c.PnG": b"", "d.gif": b"", "e": b""})
    listing = open_source(str(tree)).listing()
    assert (listing.names, listing.ignored) == (["a.JPG", "b.Jpeg", "c.PnG"], 2)


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["b/1.png", "a/2.png"], ["a", "b"]),
        (["b/x/1.png", "a/y/2.png"], ["a", "b"]),
        (["1.png", "2.png"], [None, None]),
        (["1.png", "a/2.png"], [None, None]),
        (["a/1.png", "b/c/2.png"], [None, None]),
    ],
)
def test_the_class_is_the_first_folder_when_all_images_are_equally_deep(tmp_path, names, labels):
    files = dict.fromkeys(names, b"")
    assert labelled(open_source(str(write_tree(tmp_path / "t", files)))) == labels
    assert labelled(open_source(str(write_zip(tmp_path / "x.zip", files)))) == labels


@pytest.mark.parametrize("form", ["tree", "zip", "tar"])
def test_a_split_is_a_folder_at_the_top_and_names_begin_there(tmp_path, form):
    files = {f"{split}/{name}": content for split in ("train", "test") for name, content in SIX.items()}
    files["test/readme"] = b""
    write = {"tree": write_tree, "zip": write_zip, "tar": write_tar}[form]
    path = write(tmp_path / ("x" if form == "tree" else f"x.{form}"), files)
    listing = open_source(f"{path}#test").listing()
    assert list(listing.names) == sorted(SIX)
    assert (listing.classes, listing.ignored) == (("cat", "dog"), 1)
    before = open_source(f"{path}#test").fingerprint()
    write(path, {**files, "train/cat/0.png": b"changed"})
    assert open_source(f"{path}#test").fingerprint() == before


def test_a_path_with_a_hash_mark_that_exists_is_that_path(tmp_path):
    tree = write_tree(tmp_path / "a#b" / "c#d", SIX)
    assert open_source(str(tree)).listing().count == 6
    assert open_source(f"file://{tree}").listing().count == 6
    assert open_source(f"{tree}#cat").listing().count == 3


def test_linked_folders_and_files_are_followed_but_loops_are_not(tmp_path):
    real = write_tree(tmp_path / "real", SIX)
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "cat").symlink_to(real / "cat")
    (tree / "dog").mkdir()
    (tree / "dog" / "0.png").symlink_to(real / "dog" / "0.png")
    (tree / "dog" / "loop").symlink_to(tree)
    (tree / "dog" / "itself").symlink_to(tree / "dog")
    (tree / "dog" / "broken.png").symlink_to(tmp_path / "nowhere")
    source = open_source(str(tree))
    assert list(source.listing().names) == [
        "cat/0.png",
        "cat/1.png",
        "cat/2.png",
        "dog/0.png",
        "dog/broken.png",
    ]
    assert everything(source)["dog/broken.png"].reason == "is a broken link"
    assert everything(source)["dog/0.png"] == SIX["dog/0.png"]


def test_file_names_are_never_taken_for_patterns(tmp_path):
    names = ["photo[1].png", "a*b.png", "what?.png", "50%23.png", "ü .png"]
    tree = write_tree(tmp_path / "[t]*", {name: name.encode() for name in names})
    assert everything(open_source(str(tree))) == {name: name.encode() for name in names}


def test_a_name_that_is_not_utf8_is_spelled_out(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(b"x")
    assert everything(open_source(str(tmp_path))) == {"caf\\xe9.png": b"x"}


def test_a_pipe_in_a_tree_is_a_bad_image_and_blocks_nobody(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    assert everything(open_source(str(tmp_path)))["x.png"].reason == "is not a regular file"


def test_a_file_that_vanishes_after_the_listing_is_a_bad_image(tmp_path):
    source = open_source(as_tree(tmp_path))
    source.listing()
    (tmp_path / "tree" / "cat" / "1.png").unlink()
    assert everything(source)["cat/1.png"].reason == "cannot be read: No such file or directory"


def hostile_zip(path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("../up.png", "a/../../up.png", "/root.png", "C:\\x.png", "..\\up.png", "good.png"):
            archive.writestr(name, SIX["cat/0.png"])
        link = zipfile.ZipInfo("link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("huge.png", bytes(64 * 2**20 + 1))
        archive.writestr("lzma.png", SIX["cat/0.png"], zipfile.ZIP_LZMA)
        archive.writestr("liar.png", bytes(2**20))
        archive.writestr("secret.png", b"0123456789")
        archive.writestr("flipped.png", b"0123456789", zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    directory = data.index(b"PK\1\2")
    secret = data.index(b"secret.png", directory) - 46
    data[secret + 8] |= 1
    liar = data.index(b"liar.png", directory) - 46
    data[liar + 24 : liar + 28] = (10).to_bytes(4, "little")  # declares 10 bytes, inflates to a mebibyte
    flipped = data.index(b"flipped.png") + len("flipped.png")
    data[flipped] ^= 1
    path.write_bytes(data)
    return path


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> dict[str, object]:
    return everything(open_source(str(hostile_zip(tmp_path_factory.mktemp("hostile") / "x.zip"))))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../up.png", "has '..' in its name"),
        ("a/../../up.png", "has '..' in its name"),
        ("root.png", "has an absolute name"),
        ("C:\\x.png", "has an absolute name"),
        ("..\\up.png", "has '..' in its name"),
        ("link.png", "is a link"),
        ("huge.png", "has 67,108,865 bytes, more than 64 MiB"),
        ("lzma.png", "is compressed with method 14, not with deflate"),
        ("liar.png", "is damaged: Bad CRC-32"),
        ("secret.png", "is encrypted"),
        ("flipped.png", "is damaged: Bad CRC-32"),
    ],
)
def test_a_hostile_entry_of_a_zip_is_a_bad_image(hostile, name, reason):
    assert isinstance(hostile[name], BadImage)
    assert hostile[name].reason == reason


def test_the_good_entry_of_a_hostile_zip_is_read(hostile):
    assert hostile["good.png"] == SIX["cat/0.png"]


def test_hostile_members_of_a_tar_are_bad_images(tmp_path):
    files = {
        "../up.png": b"x",
        "/root.png": b"x",
        "good.png": b"x",
        "huge.png": bytes(64 * 2**20 + 1),
        "./a//b.png": b"x",
    }
    found = everything(open_source(str(write_tar(tmp_path / "x.tar.gz", files, {"link.png": "/etc/passwd"}))))
    reasons = {name: content.reason for name, content in found.items() if isinstance(content, BadImage)}
    assert reasons == {
        "../up.png": "has '..' in its name",
        "root.png": "has an absolute name",
        "huge.png": "has 67,108,865 bytes, more than 64 MiB",
        "link.png": "is a link",
    }
    assert found["good.png"] == found["a/b.png"] == b"x"


def test_a_name_that_occurs_twice_in_an_archive_is_a_bad_image(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.png", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.png", b"2")
    found = everything(open_source(str(tmp_path / "x.zip")))
    assert found["a.png"].reason == "occurs 2 times"


def test_bad_names_do_not_disturb_the_classes_of_the_good_ones(tmp_path):
    source = open_source(str(write_zip(tmp_path / "x.zip", {**SIX, "../x.png": b"", "/x.png": b""})))
    assert source.listing().classes == ("cat", "dog")
    assert labelled(source).count(None) == 2


# --- fingerprints -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["tree", "zip", "tar"])
def test_the_fingerprint_does_not_depend_on_the_order_of_files(tmp_path, form):
    seen = set()
    for seed in range(4):
        names = sorted(SIX)
        random.Random(seed).shuffle(names)
        write = {"tree": write_tree, "zip": write_zip, "tar": write_tar}[form]
        path = write(tmp_path / (f"{seed}" if form == "tree" else f"{seed}.{form}"), {n: SIX[n] for n in names})
        seen.add(open_source(str(path)).fingerprint())
    assert len(seen) == 1


def test_the_fingerprint_does_not_depend_on_compression_or_on_files_that_are_not_images(tmp_path):
    uris = [
        as_tree(tmp_path),
        as_tar(".tar")(tmp_path),
        as_tar(".tar.gz")(tmp_path),
        as_tar(".tar.xz")(tmp_path),
    ]
    uris.append(str(write_tree(tmp_path / "more", {**SIX, "README": b"x", ".hidden": b"y"})))
    assert len({open_source(uri).fingerprint() for uri in uris}) == 1
    stored = write_zip(tmp_path / "stored.zip", SIX, zipfile.ZIP_STORED)
    assert open_source(str(stored)).fingerprint() == open_source(as_zip(tmp_path)).fingerprint()


def changed_content() -> dict[str, bytes]:
    return {**SIX, "cat/0.png": encoded(noise(99))}


def changed_name() -> dict[str, bytes]:
    return {name.replace("cat/0", "cat/9"): content for name, content in SIX.items()}


def changed_label() -> dict[str, bytes]:
    return {name.replace("cat/0.png", "dog/00.png"): content for name, content in SIX.items()}


def one_more() -> dict[str, bytes]:
    return {**SIX, "cat/3.png": SIX["cat/0.png"]}


def one_less() -> dict[str, bytes]:
    return {name: content for name, content in SIX.items() if name != "cat/0.png"}


@pytest.mark.parametrize("form", ["tree", "zip", "tar"])
def test_the_fingerprint_changes_with_any_image_name_or_label(tmp_path, form):
    write = {"tree": write_tree, "zip": write_zip, "tar": write_tar}[form]
    seen = set()
    changes = [lambda: SIX, changed_content, changed_name, changed_label, one_more, one_less]
    for number, change in enumerate(changes):
        path = write(tmp_path / (f"{number}" if form == "tree" else f"{number}.{form}"), change())
        seen.add(open_source(str(path)).fingerprint())
    assert len(seen) == len(changes)


def test_the_fingerprint_of_tables_and_arrays_changes_with_pixels_and_labels(tmp_path):
    images = stacked()
    other = images.copy()
    other[0, 0, 0, 0] ^= 1
    for number, (x, y) in enumerate([(images, [0] * 6), (other, [0] * 6), (images, [0] * 5 + [1])]):
        np.savez(tmp_path / f"{number}.npz", images=x, labels=np.array(y))
        write_parquet(tmp_path / str(number) / "a.parquet", [encoded(image) for image in x], y)
    for form in ("{}.npz", "{}"):
        uris = [str(tmp_path / form.format(number)) for number in range(3)]
        assert len({open_source(uri).fingerprint() for uri in uris}) == 3


# --- arrays -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("fortran", [False, True])
@pytest.mark.parametrize("shape", [(5, 6, 7), (5, 6, 7, 1), (5, 6, 7, 3), (5, 6, 7, 4), (5, 1, 6, 7), (5, 3, 6, 7)])
def test_every_layout_of_arrays_is_understood(tmp_path, shape, fortran, compressed):
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    stored = np.asfortranarray(array) if fortran else array
    np.save(tmp_path / "x.npy", stored)
    (np.savez_compressed if compressed else np.savez)(tmp_path / "x.npz", x=stored)
    channels_first = len(shape) == 4 and shape[3] == 7
    expected = array.transpose(0, 2, 3, 1) if channels_first else array
    for uri in (tmp_path / "x.npy", tmp_path / "x.npz"):
        found = dict(open_source(str(uri)).read([3, 0]))
        for index in (0, 3):
            assert (found[index] == expected[index]).all()


@pytest.mark.parametrize(
    ("images", "labels"),
    [("images", "labels"), ("x", "y"), ("x_train", "y_train"), ("data", None), ("arr_0", "labels")],
)
def test_the_usual_keys_of_an_npz_are_known(tmp_path, images, labels):
    arrays = {images: stacked()} | ({labels: np.array([[3], [3], [3], [5], [5], [5]], np.uint8)} if labels else {})
    np.savez(tmp_path / "x.npz", **arrays)
    assert labelled(open_source(str(tmp_path / "x.npz"))) == (list("333555") if labels else [None] * 6)


@pytest.mark.parametrize("keys", ["x_{} y_{}", "{}_images {}_labels"])
def test_the_splits_of_an_npz_are_selected_by_name(tmp_path, keys):
    arrays = {}
    for split, count in (("train", 4), ("test", 2)):
        x, y = keys.format(split, split).split()
        arrays |= {x: stacked()[:count], y: np.arange(count)}
    np.savez(tmp_path / "x.npz", **arrays)
    train, test = (open_source(f"{tmp_path / 'x.npz'}#{split}") for split in ("train", "test"))
    assert (train.listing().count, test.listing().count) == (4, 2)
    assert labelled(test) == ["0", "1"]
    assert train.fingerprint() != test.fingerprint()


def test_integer_labels_are_indices_into_sorted_class_names(tmp_path):
    np.savez(tmp_path / "x.npz", x=stacked(), y=np.array([10, 2, -1, 10, 0, 2]))
    source = open_source(str(tmp_path / "x.npz"))
    assert source.listing().classes == ("0", "10", "2")
    assert source.listing().labels.tolist() == [1, 2, -1, 1, 0, 2]


def test_labels_that_are_all_negative_are_no_labels(tmp_path):
    np.savez(tmp_path / "x.npz", x=stacked(), y=np.full(6, -1))
    assert open_source(str(tmp_path / "x.npz")).listing().labels is None


# --- Parquet ----------------------------------------------------------------------------------------------


def test_the_class_names_of_hugging_face_are_used_and_sorted(tmp_path):
    features = {"label": {"names": ["dog", "cat"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    path = write_parquet(tmp_path / "x.parquet", [b"1", b"2", b"3"], [0, 1, None], metadata=metadata)
    listing = open_source(str(path)).listing()
    assert listing.classes == ("cat", "dog")
    assert listing.labels.tolist() == [1, 0, -1]


def test_parquet_splits_are_selected_by_how_file_names_begin(tmp_path):
    for split, count in (("train", 3), ("test", 2)):
        write_parquet(tmp_path / f"{split}-00000-of-00001.parquet", [b"x"] * count, list(range(count)))
    (tmp_path / "README.md").write_text("x")
    listing = open_source(f"{tmp_path}#test").listing()
    assert (listing.count, listing.ignored, listing.classes) == (2, 1, ("0", "1"))
    assert open_source(str(tmp_path)).listing().count == 5


def test_parquet_columns_may_be_plain_binary_and_labels_dictionaries_or_missing(tmp_path):
    labels = pa.array(["b", "a", "b"]).dictionary_encode()
    pa.parquet.write_table(pa.table({"img": [b"1", b"2", b"3"], "fine_label": labels}), tmp_path / "x.parquet")
    source = open_source(str(tmp_path / "x.parquet"))
    assert labelled(source) == ["b", "a", "b"]
    assert everything(source) == {f"x/{row:08d}": str(row + 1).encode() for row in range(3)}
    write_parquet(tmp_path / "y.parquet", [b"1"])
    assert open_source(str(tmp_path / "y.parquet")).listing().labels is None


def test_a_row_without_bytes_is_a_bad_image(tmp_path):
    source = open_source(str(write_parquet(tmp_path / "x.parquet", [b"1", None])))
    assert everything(source)["x/00000001"].reason == "has no bytes"


# --- CIFAR and digits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["directory", "tar.gz"])
def test_cifar_10_is_read_in_the_order_of_its_batches(tmp_path, form):
    files = cifar10_files()
    shuffled = {f"cifar-10-batches-py/{name}": files[name] for name in sorted(files, reverse=True)}
    if form == "directory":
        uri = str(write_tree(tmp_path, shuffled) / "cifar-10-batches-py")
    else:
        uri = str(write_tar(tmp_path / "c.tar.gz", shuffled))
    source = open_source(uri)
    assert source.format == "cifar"
    expected = np.concatenate([cifar_batch(4, i)[b"data"].reshape(-1, 3, 32, 32) for i in range(1, 6)])
    assert (np.stack(pixels(source, 32)) == expected).all()
    assert source.listing().classes == ("cat", "frog", "truck")
    assert labelled(source) == ["frog", "cat", "truck", "frog"] * 5
    assert open_source(f"{uri}#test").listing().count == 4
    assert open_source(f"{uri}#train").fingerprint() == source.fingerprint() != open_source(f"{uri}#test").fingerprint()
    assert sorted(dict(source.read([19, 5]))) == [5, 19]


def test_cifar_100_is_read_with_its_fine_labels(tmp_path):
    files = {"train": cifar_batch(5, 1, "fine_labels"), "test": cifar_batch(2, 2, "fine_labels")}
    files["meta"] = {b"fine_label_names": [b"apple", b"bear", b"crab"]}
    write_tree(tmp_path, {name: pickle.dumps(content, 2) for name, content in files.items()})
    source = open_source(str(tmp_path))
    assert source.format == "cifar"
    assert labelled(source) == ["apple", "bear", "crab", "apple", "bear"]
    assert open_source(f"{tmp_path}#test").listing().count == 2


def test_cifar_written_by_python_2_is_read(tmp_path):
    """Strings of Python 2 are bytes to Python 3, the dtype's name among them."""
    data = np.arange(3072, dtype=np.uint8).tobytes()
    python2 = (
        b"(dp0\nS'data'\np1\ncnumpy.core.multiarray\n_reconstruct\np2\n(cnumpy\nndarray\np3\n(I0\ntp4\nS'b'\np5\ntp6\nRp7\n"
        b"(I1\n(I1\nI3072\ntp8\ncnumpy\ndtype\np9\n(S'u1'\np10\nI0\nI1\ntp11\nRp12\n(I3\nS'|'\np13\nNNNI-1\nI-1\nI0\ntp14\nbI00\nS"
        + ("'" + "".join(f"\\x{byte:02x}" for byte in data) + "'").encode()
        + b"\np15\ntp16\nbsS'labels'\np17\n(lp18\nI6\nas."
    )
    write_tree(tmp_path, {"test_batch": python2})
    source = open_source(f"{tmp_path}#test")
    assert decode(everything(source)["00000000"], 32).tobytes() == data
    assert labelled(source) == ["6"]


def test_cifar_pickles_of_every_protocol_are_read(tmp_path):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        write_tree(tmp_path / str(protocol), {"test_batch": pickle.dumps(cifar_batch(2, 1), protocol)})
        assert len(pixels(open_source(f"{tmp_path / str(protocol)}#test"), 32)) == 2


def test_digits_need_no_download_and_split_into_every_fifth_and_the_rest():
    whole, train, test = (open_source(f"sklearn:digits{split}") for split in ("", "#train", "#test"))
    assert (whole.listing().count, train.listing().count, test.listing().count) == (1797, 1437, 360)
    assert list(test.listing().names[:3]) == ["0000", "0005", "0010"]
    assert whole.listing().classes == tuple("0123456789")
    assert (np.stack(pixels(whole))[::5] == np.stack(pixels(test))).all()
    assert {image.max() for image in pixels(test)} <= set(range(200, 256))
    assert len({source.fingerprint() for source in (whole, train, test)}) == 3


# --- memory -----------------------------------------------------------------------------------------------


def peak_of_reading(source: Source) -> int:
    count = source.listing().count
    tracemalloc.start()
    try:
        for _ in source.read(range(count)):
            pass
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_source_of_64_mib_is_read_in_much_less(tmp_path):
    files = {f"{i:02d}.png": bytes([i]) * 2**20 for i in range(64)}
    tree = write_tree(tmp_path / "t", files)
    archive = write_zip(tmp_path / "x.zip", files)
    tars = [write_tar(tmp_path / name, files) for name in ("x.tar", "x.tar.gz")]
    np.savez_compressed(tmp_path / "x.npz", x=np.zeros((64, 1024, 1024), np.uint8))
    np.save(tmp_path / "x.npy", np.zeros((64, 1024, 1024), np.uint8))
    for path in (tree, archive, *tars, tmp_path / "x.npz", tmp_path / "x.npy"):
        assert peak_of_reading(open_source(str(path))) < 24 * 2**20, path.name
