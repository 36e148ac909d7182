"""WebDataset's shards: samples are members of one key, their labels are in .cls, everything else is left alone."""

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.data.decode import BadImage
from limbeck.data.sources import open_source
from limbeck.data.sources.webdataset import key_of
from limbeck.errors import InputError
from tests.data.making import write_tar, write_tree


def shards(root, **members):
    root.mkdir(exist_ok=True)
    for name, files in members.items():
        write_tar(root / f"{name}.tar", files)
    return str(root)


def test_samples_are_members_of_one_key(tmp_path):
    uri = shards(
        tmp_path / "w",
        a={"x/1.jpg": b"1", "x/1.cls": b"7\n", "x/1.json": b"{}", "2.cls": b"10", "2.png": b"2", "3.JPEG": b"3"},
        b={"1.seg.png": b"mask", "1.jpeg": b"4", "1.cls": b"007"},
    )
    source = open_source(uri)
    listing = source.listing()
    assert source.format == "webdataset"
    assert listing.names == ["a/2.png", "a/3.JPEG", "a/x/1.jpg", "b/1.jpeg"]
    assert (listing.classes, listing.ignored) == (("10", "7"), 2)
    assert listing.labels.tolist() == [0, -1, 1, 1]
    assert dict(source.read(range(4))) == {0: b"2", 1: b"3", 2: b"1", 3: b"4"}


@pytest.mark.parametrize(
    ("texts", "classes", "labels"),
    [
        (["cat", "dog", "cat"], ("cat", "dog"), [0, 1, 0]),
        (["3", "cat", " 3\n"], ("3", "cat"), [0, 1, 0]),
        (["-1", "0", "+2"], ("0", "2"), [-1, 0, 1]),
        (["", "a", "b"], ("a", "b"), [-1, 0, 1]),
    ],
)
def test_labels_are_integers_or_names(tmp_path, texts, classes, labels):
    files = {f"{i}.{kind}": text.encode() for i, text in enumerate(texts) for kind in ("png", "cls")}
    listing = open_source(shards(tmp_path / "w", a=files)).listing()
    assert (listing.classes, listing.labels.tolist()) == (classes, labels)


def test_without_labels_there_are_none(tmp_path):
    assert open_source(shards(tmp_path / "w", a={"1.png": b"x"})).listing().labels is None


def test_a_range_in_braces_names_the_shards(tmp_path):
    root = shards(tmp_path / "w", **{f"train-{i:03d}": {f"{i}.png": b"x"} for i in range(4)})
    fsspec.filesystem("memory").put(root, "/limbeck-braces", recursive=True)
    try:
        for folder in (root, "memory://limbeck-braces"):
            names = open_source(f"{folder}/train-{{001..002}}.tar").listing().names
            assert names == ["train-001/1.png", "train-002/2.png"]
    finally:
        fsspec.filesystem("memory").rm("/limbeck-braces", recursive=True)
    with pytest.raises(InputError, match=r"shard train-004.tar and 1 more is not there"):
        open_source(f"{root}/train-{{003..005}}.tar").listing()
    with pytest.raises(InputError, match="names -1 shards"):
        open_source(f"{root}/train-{{003..001}}.tar")


def test_a_split_is_how_the_names_of_shards_begin(tmp_path):
    uri = shards(tmp_path / "w", **{"train-0": {"1.png": b"x"}, "val-0": {"2.png": b"y"}})
    assert open_source(f"{uri}#val").listing().names == ["val-0/2.png"]
    with pytest.raises(InputError, match="its splits are train, val"):
        open_source(f"{uri}#test").listing()


def test_a_directory_with_images_beside_its_archives_is_a_tree(tmp_path):
    uri = shards(tmp_path / "w", a={"1.png": b"x"})
    write_tree(tmp_path / "w", {"cat/1.png": b"x"})
    assert open_source(uri).format == "images"


def test_hostile_members_are_bad_images(tmp_path):
    root = tmp_path / "w"
    root.mkdir()
    files = {"../up.png": b"x", "/root.png": b"x", "good.png": b"x", "twice.png": b"1", "./twice.png": b"2"}
    write_tar(root / "a.tar", files, {"link.png": "/etc/passwd"})
    source = open_source(str(root))
    found = dict(zip(source.listing().names, dict(sorted(source.read(range(5)))).values(), strict=True))
    reasons = {name: content.reason for name, content in found.items() if isinstance(content, BadImage)}
    assert reasons == {
        "a/../up.png": "has '..' in its name",
        "a/root.png": "has an absolute name",
        "a/link.png": "is a link",
        "a/twice.png": "occurs 2 times",
    }
    assert found["a/good.png"] == b"x"


def cut(root):
    path = write_tar(root / "a.tar", {"1.png": bytes(5000)})
    path.write_bytes(path.read_bytes()[:2000])


def long_label(root):
    write_tar(root / "a.tar", {"1.png": b"", "1.cls": bytes(2000)})


def no_image(root):
    write_tar(root / "a.tar", {"1.cls": b"1"})


@pytest.mark.parametrize(
    ("make", "phrase"),
    [
        (cut, "is not a readable tar archive"),
        (long_label, "1.cls: has 2,000 bytes; an integer or the name of a class"),
        (no_image, "holds no image"),
        (lambda root: None, "holds no .tar shard"),
    ],
)
def test_a_bad_shard_is_refused_in_one_line(tmp_path, make, phrase):
    make(tmp_path)
    with pytest.raises(InputError) as caught:
        open_source(str(tmp_path), "webdataset").listing()
    assert phrase in str(caught.value)


@settings(deadline=None)
@given(st.text(st.sampled_from("a./é"), max_size=12))
def test_key_and_extension_make_the_name(path):
    key, extension = key_of(path)
    assert path.lower() in (f"{key}.{extension}".lower(), key.lower())
    assert "." not in key.rpartition("/")[2]
    assert "/" not in extension
