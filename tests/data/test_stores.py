"""One data set on every kind of storage in every form is one data set."""

import pickle

import numpy as np
import pytest

from limbeck.data.decode import decode
from tests.data.making import six_images, write_parquet, write_tar, write_tree, write_zip
from tests.data.storing import read_elsewhere, shelf

__all__ = ["shelf"]

SIX = six_images()
ORDER = sorted(SIX)
LABELS = [0, 0, 0, 1, 1, 1]


def samples() -> dict[str, bytes]:
    """The six as samples of a WebDataset: their classes beside them."""
    return {
        member: content
        for name in ORDER
        for member, content in (
            (name.replace("/", "-"), SIX[name]),
            (name.replace("/", "-").replace(".png", ".cls"), name.split("/")[0].encode()),
        )
    }


def write_shards(root, suffix=".tar"):
    members = list(samples().items())
    for shard, start in enumerate(range(0, 12, 4)):
        root.mkdir(parents=True, exist_ok=True)
        write_tar(root / f"train-{shard:03d}{suffix}", dict(members[start : start + 4]))
    return root


def write_parquets(root):
    for part in range(3):
        here = slice(2 * part, 2 * part + 2)
        images = [SIX[name] for name in ORDER[here]]
        write_parquet(root / f"train-{part}.parquet", images, LABELS[here])
    return root


def write_npy(path):
    np.save(path, np.stack([decode(SIX[name], 8).transpose(1, 2, 0) for name in ORDER]))
    return path


def write_npz(path):
    pixels = np.stack([decode(SIX[name], 8).transpose(1, 2, 0) for name in ORDER])
    np.savez_compressed(path, x=pixels, y=np.array(LABELS))
    return path


FORMS = {
    "images": lambda root: write_tree(root / "tree", SIX),
    "zip": lambda root: write_zip(root / "x.zip", SIX),
    "tar": lambda root: write_tar(root / "x.tar", SIX),
    "tar.gz": lambda root: write_tar(root / "x.tar.gz", SIX),
    "webdataset": lambda root: write_shards(root / "shards"),
    "webdataset.gz": lambda root: write_shards(root / "packed", ".tar.gz"),
    "parquet": lambda root: write_parquets(root / "tables"),
    "npy": lambda root: write_npy(root / "x.npy"),
    "npz": lambda root: write_npz(root / "x.npz"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_data_set_is_the_same_on_every_store_in_every_form(tmp_path, shelf, form):
    source = shelf.source(shelf.put(FORMS[form](tmp_path)))
    listing = source.listing()
    assert source.format == form.split(".")[0]
    assert (listing.count, listing.ignored) == (6, 0)
    if form != "npy":
        assert listing.labels.tolist() == LABELS
    found = read_elsewhere(source, list(range(6)))
    for index, name in enumerate(ORDER):
        assert (decode(found[index], 8) == decode(SIX[name], 8)).all()
    some = read_elsewhere(source, [4, 1])
    assert sorted(some) == [1, 4]
    assert all(np.array_equal(some[index], found[index]) for index in some)


@pytest.mark.parametrize("form", FORMS)
def test_what_stands_for_an_image_stays_as_long_as_it_does(tmp_path, shelf, form):
    path = FORMS[form](tmp_path)
    first = shelf.source(shelf.put(path))
    again = shelf.source(shelf.put(path, f"copy-{path.name}" if path.suffix else ""))
    assert len(bytes.fromhex(first.fingerprint())) == 32
    if form.split(".")[0] not in ("parquet", "webdataset"):  # whose names are those of their files
        assert first.fingerprint() == again.fingerprint()
    checksums = first.checksums()
    if form in ("npy", "npz"):
        assert checksums is None
        return
    assert checksums.null_count == 0
    assert len(set(checksums.to_pylist())) == 6
    assert checksums.equals(again.checksums())


@pytest.mark.parametrize("form", ["images", "zip", "tar", "tar.gz", "webdataset", "parquet"])
def test_another_content_has_another_fingerprint_and_checksum(tmp_path, shelf, form, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    before = shelf.source(shelf.put(FORMS[form](tmp_path / "a"), f"changing.{form}"), form.split(".")[0])
    fingerprint, checksums = before.fingerprint(), before.checksums().to_pylist()
    monkeypatch.setitem(SIX, "dog/2.png", SIX["cat/0.png"])
    after = shelf.source(shelf.put(FORMS[form](tmp_path / "b"), f"changing.{form}"), form.split(".")[0])
    assert after.fingerprint() != fingerprint
    assert after.checksums().to_pylist()[-1] != checksums[-1]
    if form == "images":
        assert after.checksums().to_pylist()[:-1] == checksums[:-1]


def mark(files, path):
    """Write an empty object whose name ends in a slash, as consoles do for a folder."""
    bucket, _, key = path.partition("/")
    if "s3" in files.protocol:
        files.call_s3("put_object", Bucket=bucket, Key=key, Body=b"")
    else:
        upload = f"{files.base.replace('/storage/v1/', '/upload/storage/v1/')}b/{bucket}/o"
        files.call("POST", upload, uploadType="media", name=key, data=b"")


def test_a_placeholder_is_no_image(tmp_path, shelf):
    url = shelf.put(write_tree(tmp_path / "marked", SIX))
    if url.startswith(("gs:", "s3:")):
        files, root = shelf.access.open(url)
        for name in ("", "cat/", "folder.png/"):
            mark(files, f"{root}/{name}")
    listing = shelf.source(url).listing()
    assert (list(listing.names), listing.ignored) == (ORDER, 0)


def test_a_split_is_a_folder(tmp_path, shelf):
    files = {f"{split}/{name}": content for split in ("train", "test") for name, content in SIX.items()}
    url = shelf.put(write_tree(tmp_path / "parts", files))
    assert list(shelf.source(f"{url}#test").listing().names) == ORDER
    assert shelf.source(f"{url}#test").fingerprint() == shelf.source(f"{url}#train").fingerprint()


def test_a_reader_carries_no_secret(tmp_path, shelf):
    for form in ("images", "zip", "tar.gz", "webdataset", "parquet"):
        source = shelf.source(shelf.put(FORMS[form](tmp_path)))
        dict(source.read([0]))
        assert b"a-secret-that-nobody-must-see" not in pickle.dumps(source.reader([0, 1, 2]))
