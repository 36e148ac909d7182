"""Whatever is wrong with a source, its user reads one line that says where, what and what would be right."""

import contextlib
import os
import pickle
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.registry import _registry
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from limbeck.data.decode import BadImage
from limbeck.data.sources import open_source
from limbeck.errors import InputError
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
IMAGES = np.zeros((4, 8, 8), np.uint8)


def bytes_file(name: str, content: bytes) -> Callable[[Path], str]:
    def make(root: Path) -> str:
        (root / name).write_bytes(content)
        return str(root / name)

    return make


def uri(text: str) -> Callable[[Path], str]:
    return lambda root: text.format(root=root)


def empty_directory(root: Path) -> str:
    return str(root)


def only_text(root: Path) -> str:
    return str(write_tree(root / "t", {"a/readme.txt": b"", "b.txt": b""}))


def tree(fragment: str = "") -> Callable[[Path], str]:
    return lambda root: f"{write_tree(root / 't', SIX)}{fragment}"


def flat_tree(fragment: str) -> Callable[[Path], str]:
    return lambda root: f"{write_tree(root / 't', {'a.png': b''})}{fragment}"


def archive(fragment: str) -> Callable[[Path], str]:
    return lambda root: f"{write_zip(root / 'x.zip', SIX)}{fragment}"


def tar(fragment: str) -> Callable[[Path], str]:
    return lambda root: f"{write_tar(root / 'x.tar', SIX)}{fragment}"


def cut(make: Callable[[Path], Path], keep: float) -> Callable[[Path], str]:
    def cut_short(root: Path) -> str:
        path = make(root)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * keep)])
        return str(path)

    return cut_short


def endless_header(root: Path) -> str:
    """A tar whose first header announces two gibibytes of attributes."""
    member = tarfile.TarInfo("a.png")
    member.type, member.size = tarfile.XHDTYPE, 2**31
    (root / "x.tar").write_bytes(member.tobuf() + bytes(2**20))
    return str(root / "x.tar")


def npz(fragment: str = "", **arrays: object) -> Callable[[Path], str]:
    def make(root: Path) -> str:
        np.savez(root / "x.npz", **arrays)
        return f"{root / 'x.npz'}{fragment}"

    return make


def npy(array: np.ndarray, fragment: str = "") -> Callable[[Path], str]:
    def make(root: Path) -> str:
        np.save(root / "x.npy", array)
        return f"{root / 'x.npy'}{fragment}"

    return make


def saved_npy(root: Path) -> Path:
    np.save(root / "x.npy", IMAGES)
    return root / "x.npy"


def saved_npz(root: Path) -> Path:
    np.savez(root / "x.npz", x=IMAGES)
    return root / "x.npz"


def lying_npz(root: Path) -> str:
    """Its array claims a terabyte."""
    np.save(root / "x.npy", IMAGES)
    content = (root / "x.npy").read_bytes().replace(b"(4, 8, 8), ", b"(9999999, 999, 999), ")
    head = int.from_bytes(content[8:10], "little")
    extra = len(b"(9999999, 999, 999)") - len(b"(4, 8, 8)")
    content = content[:10] + content[10 : 10 + head + extra].rstrip().ljust(head - 1) + b"\n" + bytes(256)
    write_zip(root / "x.npz", {"x.npy": content})
    return str(root / "x.npz")


def parquet(fragment: str = "", **columns: object) -> Callable[[Path], str]:
    def make(root: Path) -> str:
        pq.write_table(pa.table(columns), root / "x.parquet")
        return f"{root / 'x.parquet'}{fragment}"

    return make


def saved_parquet(root: Path) -> Path:
    return write_parquet(root / "x.parquet", [b"x"] * 100)


def parquet_directory(fragment: str) -> Callable[[Path], str]:
    def make(root: Path) -> str:
        for split in ("train", "test"):
            write_parquet(root / f"{split}-00000-of-00001.parquet", [b"x"])
        return f"{root}{fragment}"

    return make


def uneven_parquet(root: Path) -> str:
    write_parquet(root / "a.parquet", [b"x"], [1])
    write_parquet(root / "b.parquet", [b"x"])
    return str(root)


def damaged_parquet_pages(root: Path) -> str:
    path = write_parquet(root / "x.parquet", [os.urandom(100) for _ in range(100)], compression="zstd")
    content = bytearray(path.read_bytes())
    content[4:4000] = bytes(3996)
    path.write_bytes(content)
    return str(path)


def titled_too_few(root: Path) -> str:
    metadata = {"huggingface": '{"info": {"features": {"label": {"names": ["a"]}}}}'}
    return str(write_parquet(root / "x.parquet", [b"x", b"y"], [0, 1], metadata=metadata))


def cifar(fragment: str = "", without: str = "", **changed: object) -> Callable[[Path], str]:
    def make(root: Path) -> str:
        files = cifar10_files() | {name: pickle.dumps(content, 2) for name, content in changed.items()}
        return str(write_tree(root, {name: c for name, c in files.items() if name != without})) + fragment

    return make


def batch(**changed: object) -> dict[bytes, object]:
    return cifar_batch(2, 1) | {key.encode(): value for key, value in changed.items()}


class Hostile:
    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call


def zip_of_text(root: Path) -> str:
    return str(write_zip(root / "x.zip", {"readme": b""}))


BAD: dict[str, tuple[Callable[[Path], str], str, str]] = {
    "missing path": (uri("{root}/nowhere"), "auto", "nowhere: no such file or directory"),
    "missing path with a hash": (uri("{root}/no#where/at"), "auto", "no such file or directory"),
    "missing path with a split": (uri("{root}/nowhere#train"), "auto", "no such file or directory"),
    "empty uri split": (tree("#"), "auto", "'' is not the name of a split"),
    "split that climbs": (tree("#.."), "auto", "'..' is not the name of a split"),
    "empty directory": (empty_directory, "auto", "holds no image; images are .jpg .jpeg .png files"),
    "directory of text": (only_text, "auto", "holds no image among 2 files"),
    "unknown format": (tree(), "tiff", "unknown format 'tiff'; it is one of auto, images, zip, tar"),
    "unknown suffix": (
        bytes_file("x.bin", b""),
        "auto",
        "its name does not tell what it holds; give the format",
    ),
    "single image": (bytes_file("x.png", b""), "auto", "its name does not tell what it holds"),
    "unknown scheme": (uri("nonsense://a/b"), "auto", "cannot be reached: Protocol not known: nonsense"),
    "memory that is empty": (uri("memory://limbeck-nowhere"), "auto", "no such file or directory"),
    "null byte": (uri("a\0b"), "auto", "cannot be reached"),
    "device": (uri("/dev/null"), "images", "neither a file nor a directory"),
    "file as a tree": (bytes_file("x.png", b""), "images", "is a file; format images reads a directory"),
    "directory as zip": (tree(), "zip", "is a directory; format zip reads a file"),
    "directory as tar": (tree(), "tar", "is a directory; format tar reads a file"),
    "directory as npy": (tree(), "npy", "is a directory; format npy reads a file"),
    "directory as npz": (tree(), "npz", "is a directory; format npz reads a file"),
    "tree as parquet": (tree(), "parquet", "holds no .parquet file"),
    "tree as cifar": (tree(), "cifar", "holds no CIFAR batch; expected data_batch_1..5"),
    "no such split of a tree": (tree("#val"), "auto", "there is no split 'val'; its splits are cat, dog"),
    "split of a flat tree": (flat_tree("#val"), "auto", "it has no splits: leave out the #"),
    "no such split of a zip": (archive("#val"), "auto", "there is no split 'val'; its splits are cat, dog"),
    "no such split of a tar": (tar("#val"), "auto", "there is no split 'val'; its splits are cat, dog"),
    "no zip": (bytes_file("x.zip", b"PK but no"), "auto", "is not a readable zip archive"),
    "empty zip file": (bytes_file("x.zip", b""), "auto", "is not a readable zip archive"),
    "cut zip": (
        cut(lambda root: write_zip(root / "x.zip", SIX), 0.7),
        "auto",
        "is not a readable zip archive",
    ),
    "zip of text": (zip_of_text, "auto", "holds no image among 1 files"),
    "no tar": (bytes_file("x.tar", b"no tar" * 1000), "auto", "is not a readable tar archive"),
    "empty tar file": (bytes_file("x.tar", b""), "auto", "is not a readable tar archive"),
    "tar with an endless header": (endless_header, "auto", "a header of 2,147,483,648 bytes"),
    "no gzip": (bytes_file("x.tar.gz", b"\x1f\x8bno"), "auto", "is not a readable tar archive"),
    "no bzip2": (bytes_file("x.tar.bz2", b"BZhno" * 9), "auto", "is not a readable tar archive"),
    "no xz": (bytes_file("x.tar.xz", b"\xfd7zXZ\0no" * 9), "auto", "is not a readable tar archive"),
    "cut tar": (
        cut(lambda root: write_tar(root / "x.tar", {"a.png": bytes(5000)}), 0.3),
        "auto",
        "tar archive",
    ),
    "cut tar.gz": (cut(lambda root: write_tar(root / "x.tar.gz", SIX), 0.5), "auto", "tar archive"),
    "tar.gz without its checksum": (
        cut(lambda root: write_tar(root / "x.tar.gz", SIX), 0.999),
        "auto",
        "is not a readable tar archive",
    ),
    "npy of floats": (npy(IMAGES.astype(float)), "auto", "images have dtype float64; images are uint8"),
    "npy of five channels": (npy(np.zeros((4, 8, 8, 5), np.uint8)), "auto", "images have shape (4, 8, 8, 5)"),
    "npy of one image": (npy(np.zeros((8, 8), np.uint8)), "auto", "images have shape (8, 8)"),
    "npy of no images": (npy(IMAGES[:0]), "auto", "holds no image: its shape is (0, 8, 8)"),
    "npy of objects": (npy(np.array([{}, {}], object)), "auto", "holds Python objects, which are pickles"),
    "npy with a split": (npy(IMAGES, "#train"), "auto", "it has no splits: leave out the #"),
    "no npy": (bytes_file("x.npy", b"no npy at all"), "auto", "is not a readable npy array"),
    "empty npy file": (bytes_file("x.npy", b""), "auto", "is not a readable npy array"),
    "cut npy": (cut(saved_npy, 0.9), "auto", "bytes where its header says 384: damaged"),
    "no npz": (bytes_file("x.npz", b"no npz"), "auto", "is not a readable zip archive"),
    "cut npz": (cut(saved_npz, 0.8), "auto", "is not a readable zip archive"),
    "npz of floats": (npz(x=IMAGES.astype(np.float32)), "auto", "x.npz: x: images have dtype float32"),
    "npz of objects": (npz(x=np.array([{}], object)), "auto", "holds Python objects, which are pickles"),
    "npz that claims a terabyte": (lying_npz, "auto", "damaged"),
    "npz of other keys": (
        npz(a=IMAGES, b=IMAGES),
        "auto",
        "has no images, only the keys a, b; images are under",
    ),
    "npz of splits": (npz(train_images=IMAGES, x_val=IMAGES), "auto", "#name selects: train, val"),
    "no such split of an npz": (npz("#val", x_train=IMAGES), "auto", "no split 'val'; its splits are train"),
    "npz with too few labels": (
        npz(x=IMAGES, y=np.zeros(3, int)),
        "auto",
        "labels have shape (3,); 4 images need",
    ),
    "npz with float labels": (npz(x=IMAGES, y=np.zeros(4)), "auto", "labels have dtype float64"),
    "npz with object labels": (
        npz(x=IMAGES, y=np.array(["a", None, 1, 2], object)),
        "auto",
        "Python objects",
    ),
    "no parquet": (
        bytes_file("x.parquet", b"no parquet"),
        "auto",
        "x.parquet is not a readable Parquet file",
    ),
    "empty parquet file": (bytes_file("x.parquet", b""), "auto", "x.parquet is not a readable Parquet file"),
    "cut parquet": (cut(saved_parquet, 0.5), "auto", "x.parquet is not a readable Parquet file"),
    "damaged parquet": (damaged_parquet_pages, "auto", "x.parquet is not a readable Parquet file"),
    "parquet without images": (
        parquet(a=[1], b=["x"]),
        "auto",
        "has no image column, only a, b; it is called",
    ),
    "parquet of numbers": (parquet(image=[1]), "auto", "column image of x.parquet has type int64"),
    "parquet of paths": (parquet(image=[{"path": "a"}]), "auto", "encoded images are binary"),
    "parquet without rows": (
        parquet(image=pa.array([], pa.binary())),
        "auto",
        "holds no image: it has no rows",
    ),
    "parquet with list labels": (
        parquet(image=[b"x"], label=[[1]]),
        "auto",
        "its label column has type list",
    ),
    "parquet labelled in part": (uneven_parquet, "auto", "only some of its files have a label column"),
    "parquet of too few class names": (titled_too_few, "auto", "label 1 but only 1 class names"),
    "parquet file with a split": (parquet("#train", image=[b"x"]), "auto", "it has no splits"),
    "no such split of parquets": (parquet_directory("#val"), "auto", "its splits are test, train"),
    "cifar without a batch": (cifar(without="data_batch_3"), "auto", "data_batch_3 is missing"),
    "no such split of cifar": (cifar("#val"), "auto", "there is no split 'val'; its splits are test, train"),
    "cifar that is no pickle": (bytes_file("test_batch", b"hello"), "cifar", "is not a readable tar archive"),
    "cifar of a list": (cifar(test_batch=[1]), "auto", "test_batch: is not a CIFAR batch"),
    "cifar of floats": (cifar(data_batch_2=batch(data=np.zeros((2, 3072)))), "auto", "not uint8 [n, 3072]"),
    "cifar of odd rows": (
        cifar(data_batch_2=batch(data=np.zeros((2, 99), np.uint8))),
        "auto",
        "uint8 [n, 3072]",
    ),
    "cifar of bytes": (cifar(data_batch_2=batch(data=b"x")), "auto", "has no array under 'data'"),
    "cifar with too few labels": (cifar(data_batch_2=batch(labels=[1])), "auto", "has 1 labels for 2 images"),
    "cifar with words for labels": (
        cifar(data_batch_2=batch(labels=["a", "b"])),
        "auto",
        "no list of integers",
    ),
    "cifar with odd titles": (
        cifar(**{"batches.meta": {b"label_names": 5}}),
        "auto",
        "not a list of strings",
    ),
    "hostile cifar": (cifar(test_batch=Hostile(os.system, "false")), "auto", "asks for posix.system"),
    "hostile cifar by eval": (cifar(test_batch=Hostile(eval, "1")), "auto", "asks for __builtin__.eval"),
    "no such sklearn set": (uri("sklearn:faces"), "auto", "use sklearn:digits, sklearn:digits#train"),
    "no such split of digits": (uri("sklearn:digits#val"), "auto", "its splits are test, train"),
    "digits from elsewhere": (tree(), "digits", "no such data set in scikit-learn"),
}


def use(where: str, kind: str = "auto") -> list[object]:
    source = open_source(where, kind)
    count = source.listing().count
    source.fingerprint()
    return [content for _, content in source.read(range(count))]


@pytest.mark.parametrize(("make", "kind", "phrase"), BAD.values(), ids=BAD.keys())
def test_a_bad_source_is_refused_in_one_line(tmp_path, make, kind, phrase):
    where = make(tmp_path)
    with pytest.raises(InputError) as caught:
        use(where, kind)
    assert phrase in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(" ".join(where.split()))


@pytest.mark.parametrize(
    ("address", "package", "remedy"),
    [
        ("gs://bucket/x.zip", "gcsfs", "pip install 'limbeck[gcs]'"),
        ("gcs://bucket/x#train", "gcsfs", "pip install 'limbeck[gcs]'"),
        ("sftp://host/x", "paramiko", "paramiko"),
    ],
)
def test_a_scheme_whose_package_is_missing_says_what_to_install(monkeypatch, address, package, remedy):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(_registry, address.partition(":")[0], raising=False)  # where it was used before
    with pytest.raises(InputError, match="needs a package that is not installed") as caught:
        open_source(address)
    assert remedy in str(caught.value)


def test_a_hostile_pickle_runs_nothing(tmp_path):
    witness = tmp_path / "ran"
    calls = [Hostile(os.mkdir, str(witness)), Hostile(exec, f"open({str(witness)!r}, 'w')")]
    calls.append(Hostile(getattr, Hostile(__import__, "os"), "mkdir"))
    for number, call in enumerate(calls):
        root = tmp_path / str(number)
        files = cifar10_files() | {"data_batch_1": pickle.dumps({b"data": call})}
        with pytest.raises(InputError, match="which no batch needs"):
            open_source(str(write_tree(root, files))).listing()
    assert not witness.exists()


MAKERS = {
    "zip": lambda root: write_zip(root / "x.zip", SIX),
    "tar": lambda root: write_tar(root / "x.tar", SIX),
    "tar.gz": lambda root: write_tar(root / "x.tar.gz", SIX),
    "npy": saved_npy,
    "npz": saved_npz,
    "parquet": saved_parquet,
}


@pytest.mark.parametrize("form", MAKERS)
@given(seed=st.integers(0, 2**31))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_is_refused_or_read_and_nothing_else(tmp_path, form, seed):
    path = MAKERS[form](tmp_path)
    content = bytearray(path.read_bytes())
    rng = np.random.default_rng(seed)
    for place in rng.integers(0, len(content), 6):
        content[place] = rng.integers(256)
    path.write_bytes(content[: rng.integers(1, 2 * len(content))])
    with contextlib.suppress(InputError):
        assert all(isinstance(content, bytes | np.ndarray | BadImage) for content in use(str(path)))


@given(st.binary(max_size=300))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_in_the_place_of_a_pickle_are_refused(tmp_path, content):
    write_tree(tmp_path, {"test_batch": content})
    with pytest.raises(InputError, match="is not a CIFAR batch"):
        open_source(f"{tmp_path}#test").listing()


def test_a_zip_that_is_bigger_than_it_says_is_not_read_beyond_what_it_says(tmp_path):
    path = write_zip(tmp_path / "x.zip", {"a.png": bytes(2**20)})
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\1\2")
    content[entry + 24 : entry + 28] = (100).to_bytes(4, "little")
    path.write_bytes(content)
    with zipfile.ZipFile(path) as archive:
        assert archive.infolist()[0].file_size == 100
    [(_, found)] = open_source(str(path)).read([0])
    assert isinstance(found, BadImage)


def test_a_zip_s_member_of_few_pixels_behind_gigabytes_is_not_read(tmp_path):
    """No honest compression grows: what is fetched is bounded as what comes of it is."""
    path = write_zip(tmp_path / "x.zip", {"a.png": b"x" * 10, "b.png": encoded(noise(0))}, zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\1\2")
    content[entry + 20 : entry + 24] = (2**31).to_bytes(4, "little")  # the packed size that the directory claims
    path.write_bytes(content)
    refusals = [found for _, found in open_source(str(path)).read([0, 1]) if isinstance(found, BadImage)]
    assert [refusal.reason for refusal in refusals] == ["has 2,147,483,648 bytes, more than 64 MiB"]
