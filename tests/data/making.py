"""Real image files, archives and tables for the tests of `limbeck.data`."""

import io
import pickle
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def noise(seed: int, size: int = 8, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, channels), dtype=np.uint8)


def encoded(image: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(width: int, height: int, depth: int, colour: int, row: bytes, *chunks: bytes) -> bytes:
    """A PNG of `height` equal rows, written by hand: Pillow cannot write every kind that it can read."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = zlib.compress((b"\0" + row) * height)
    parts = [png_chunk(b"IHDR", head), *chunks, png_chunk(b"IDAT", body), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def six_images(seed: int = 0) -> dict[str, bytes]:
    """Two classes of three images."""
    names = [f"{animal}/{i}.png" for animal in ("cat", "dog") for i in range(3)]
    return {name: encoded(noise(seed + i)) for i, name in enumerate(names)}


def write_tree(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def write_zip(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path: Path, files: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    mode = {".gz": "w:gz", ".tgz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}.get(path.suffix, "w")
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    return path


def write_parquet(path: Path, images: list[bytes | None], labels: object = None, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {"image": pa.array([{"bytes": image, "path": None} for image in images], kind)}
    if labels is not None:
        columns["label"] = pa.array(labels)
    metadata = options.pop("metadata", None)
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path, **options)
    return path


def cifar_batch(count: int, seed: int, key: str = "labels") -> dict[bytes, object]:
    data = np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)
    return {b"data": data, key.encode(): [i % 3 for i in range(count)], b"filenames": [b"x.png"] * count}


def cifar10_files(count: int = 4) -> dict[str, bytes]:
    titles = {b"label_names": [b"frog", b"cat", b"truck"]}
    files = {f"data_batch_{i}": cifar_batch(count, i) for i in range(1, 6)}
    files |= {"test_batch": cifar_batch(count, 9), "batches.meta": titles}
    return {name: pickle.dumps(content, 2) for name, content in files.items()}
