"""A store that goes while an archive is read from it: the work failed, and the archive is not said to be damaged."""

from __future__ import annotations

import errno
import io
import tarfile

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from limbeck.data.distilled import DistilledSet
from limbeck.data.sources import Source, open_source
from limbeck.errors import WorkError
from limbeck.patience import Retries
from limbeck.preflight import outside_digests
from tests.data.making import encoded, noise, write_zip
from tests.stages.tiny import distillation

FILES = {f"cat/{index:02d}.png": encoded(noise(index, 64)) for index in range(60)}


@pytest.fixture(params=["tar", "tar.gz", "zip", "parquet"])
def archive(request, tmp_path, monkeypatch) -> str:
    """The URL of an archive elsewhere than on this machine."""
    monkeypatch.setattr("limbeck.patience.patiently.__defaults__", (Retries(attempts=3, first=0.01, longest=0.01),))
    path = tmp_path / f"pictures.{request.param}"
    if request.param == "zip":
        write_zip(path, FILES)
    elif request.param == "parquet":
        rows = pa.table({"image": list(FILES.values()), "label": [index % 2 for index in range(len(FILES))]})
        pq.write_table(rows, path, row_group_size=10)
    else:
        with tarfile.open(path, "w:gz" if request.param == "tar.gz" else "w") as tar:
            for name, content in FILES.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    url = f"memory://{tmp_path.name}/{path.name}"
    fsspec.filesystem("memory").pipe_file(url, path.read_bytes())
    return url


def everything(source: Source) -> dict[str, object]:
    names = source.listing().names
    source.fingerprint()
    return {names[index]: content for index, content in source.read(range(len(names)))}


class Failing:
    """Has every read of a file in memory fail from a place on: always, or the first time only."""

    def __init__(self, monkeypatch, after: int, always: bool) -> None:
        self.failed, self._after, self._always = 0, after, always
        real = io.BytesIO.read

        def read(file, size: int = -1) -> bytes:
            if file.tell() >= self._after and (self._always or not self.failed):
                self.failed += 1
                raise OSError(errno.ETIMEDOUT, "timed out")
            return real(file, size)

        from fsspec.implementations.memory import MemoryFile

        monkeypatch.setattr(MemoryFile, "read", read, raising=False)


@pytest.mark.parametrize("after", [0, 4096])
def test_an_outage_is_no_damaged_archive(archive, monkeypatch, after):
    failing = Failing(monkeypatch, after, always=True)
    with pytest.raises(WorkError, match="tried 3 times"):
        everything(open_source(archive))
    assert failing.failed > 0


@pytest.mark.parametrize("after", [0, 4096])
def test_a_read_that_fails_once_is_made_again(archive, monkeypatch, after):
    expected = everything(open_source(archive))
    failing = Failing(monkeypatch, after, always=False)
    assert everything(open_source(archive)) == expected
    assert failing.failed == 1


@pytest.mark.parametrize("what", ["teacher", "set"])
def test_an_outage_is_no_missing_teacher_and_no_missing_set(tmp_path, monkeypatch, what):
    def away(*arguments: object, **options: object) -> bytes:
        raise OSError(errno.ETIMEDOUT, "timed out")

    memory = fsspec.filesystem("memory")
    memory.pipe_file(f"/{tmp_path.name}/teacher.pt", b"x")
    monkeypatch.setattr("limbeck.patience.patiently.__defaults__", (Retries(attempts=3, first=0.01, longest=0.01),))
    monkeypatch.setattr(type(memory), "cat_file", away)
    imported = {"algorithm": "pretrained", "checkpoint": f"memory://{tmp_path.name}/teacher.pt"}
    spec = distillation("out", {"teacher": imported}).spec
    asked = {
        "set": lambda: DistilledSet.load(f"memory://{tmp_path.name}"),
        "teacher": lambda: outside_digests("teacher", spec),
    }
    with pytest.raises(WorkError, match="tried 3 times"):
        asked[what]()
