"""Ingest by Ray workers: the bytes of the command's own, whoever is killed, and what they do not know they leave."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from limbeck.data.sources import open_source
from limbeck.errors import InputError, WorkError
from limbeck.fanout import supervisor
from limbeck.fanout.messages import FOLDER_MARK, Parts, ranges_of
from limbeck.fanout.parts import make_parts
from limbeck.fanout.supervisor import RayFanout
from limbeck.runner import Run
from limbeck.stages.task import Workshop
from tests.buckets import google
from tests.data.making import encoded, write_parquet, write_tar, write_tree, write_zip
from tests.fanout.heads import TOKEN, Head, head
from tests.fanout.processes import LimbeckProcess, kill, marked, wait_for
from tests.stages.tiny import Lines, distillation, workshop, write_tiny

ROOT = Path(__file__).parents[2]
IMAGES, PARTS = 2400, 4  # a part takes a process some seconds
RECORDS = ".part-*.json"


def spec_of(uri: str) -> dict[str, Any]:
    return {"source": {"uri": uri, "imageSize": 64}, "execution.ray": {"cpusPerWorker": 1}, "evaluate.tasks": []}


def eager(*arguments: object, cwd: Path, **environment: str) -> LimbeckProcess:
    found = {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]), **TOKEN, **environment}
    return LimbeckProcess(*arguments, cwd=cwd, environment=found, module="tests.fanout.eager")


def dataset_files(output: str) -> dict[str, str]:
    """sha256 of the files of the one dataset in a store; of its manifest, the digest in it."""
    files, root = fsspec.core.url_to_fs(output)
    (manifest,) = files.glob(f"{root}/ingest/*/manifest.json")
    digests = {"digest": json.loads(files.cat_file(manifest))["digest"]}
    found = files.find(str(manifest).rpartition("/")[0])
    return digests | {
        path.rsplit("/", 1)[1]: hashlib.sha256(files.cat_file(path)).hexdigest()
        for path in found
        if path.endswith((".safetensors", ".parquet", "dataset.json")) and not path.endswith("origin.parquet")
    }


@pytest.fixture(scope="module")
def drawn() -> list[bytes]:
    """Large pictures of one colour each: few bytes, and some time to decode."""
    colours = np.random.default_rng(0).integers(0, 256, (40, 3), np.uint8)
    return [encoded(np.broadcast_to(colour, (1200, 1200, 3)).copy(), "JPEG") for colour in colours]


def zipped(path: Path, drawn: list[bytes], images: int) -> Path:
    return write_zip(path, {f"{index:04d}.jpg": drawn[index % len(drawn)] for index in range(images)})


@pytest.fixture(scope="module")
def pictures(drawn, tmp_path_factory) -> Path:
    return zipped(tmp_path_factory.mktemp("pictures") / "pictures.zip", drawn, IMAGES)


@pytest.fixture(scope="module")
def alone(pictures, tmp_path_factory) -> dict[str, str]:
    """The files that the command makes without workers."""
    output = tmp_path_factory.mktemp("alone")
    Run(distillation(output, spec_of(str(pictures))), workshop(output)).stage("ingest")
    files = dataset_files(str(output))
    assert len(files) == 4
    return files


@pytest.fixture(scope="module")
def bucket(pictures) -> Iterator[str]:
    """A bucket with the pictures."""
    with google() as url:
        fsspec.filesystem("gs").put_file(str(pictures), f"{url}/pictures.zip")
        yield url


@pytest.fixture(scope="module")
def cluster(bucket, tmp_path_factory) -> Iterator[Head]:
    """A cluster that shares nothing with the command but the bucket."""
    with head({"XDG_CACHE_HOME": str(tmp_path_factory.mktemp("workers"))}) as started:
        yield started


@pytest.fixture
def away(bucket, cluster, tmp_path) -> tuple[list[object], str]:
    """The arguments of an ingest from bucket to bucket by two workers of the cluster, and its output."""
    output = f"{bucket}/{tmp_path.name}"
    spec = write_tiny(tmp_path / "spec.yaml", output, spec_of(f"{bucket}/pictures.zip"))
    fanned = ["--set", f"execution.ray.address={cluster.gcs}", "--workers", 2]
    return ["stage", "ingest", spec, *fanned], output


# --- with Ray ---------------------------------------------------------------------------------------------


def test_a_killed_worker_costs_the_parts_that_it_was_at(tmp_path, pictures, alone):
    spec, output = write_tiny(tmp_path / "spec.yaml", tmp_path / "out", spec_of(str(pictures))), tmp_path / "out"
    run = eager("stage", "ingest", spec, "--workers", 2, cwd=tmp_path)
    wait_for(lambda: list(output.glob(f"work/ingest/*/{RECORDS}")), 120, f"part: {run.err}")
    kill(run.pids("RayTrainWorker")[0])
    assert run.ends() == 0, run.err
    assert "ingest: the group of workers starts again" in run.err
    assert dataset_files(str(output)) == alone
    logs = "".join(path.read_text() for path in output.glob("logs/ingest/worker-*.log"))
    assert max(Counter(re.findall(r"part (\d+) is done", logs)).values()) == 1  # none was made again
    assert not marked(run.mark), "processes are left"


def test_the_command_alone_goes_on_where_a_killed_driver_was(tmp_path, away, alone):
    arguments, output = away
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    run = eager(*arguments, cwd=tmp_path, **cache)
    files = fsspec.filesystem("gs")
    wait_for(lambda: files.glob(f"{output}/work/ingest/*/{RECORDS}"), 120, f"part: {run.err}")
    kill(*run.pids("limbeck.fanout.driver"))
    assert run.ends() == 1
    assert "ingest: Ray went away" in run.problems[-1]
    second = LimbeckProcess(*arguments[:3], cwd=tmp_path, environment=cache)
    assert second.ends() == 0, second.err
    (count,) = re.findall(r"ingest: ([\d,]+) of 2,400 images were finished before", second.err)
    assert int(count.replace(",", "")) >= 683
    assert dataset_files(output) == alone


def test_a_stop_ends_the_workers_and_what_they_finished_is_kept(tmp_path, away, bucket, drawn):
    arguments, output = away
    files = fsspec.filesystem("gs")
    # so many that work is left, however late it is seen that some is done
    files.put_file(str(zipped(tmp_path / "more.zip", drawn, 3 * IMAGES)), f"{bucket}/more.zip")
    more = ["--set", f"source.uri={bucket}/more.zip"]
    run = eager(*arguments, *more, cwd=tmp_path, XDG_CACHE_HOME=str(tmp_path / "cache"))
    wait_for(lambda: files.glob(f"{output}/work/ingest/*/{RECORDS}"), 120, f"part: {run.err}")
    run.process.send_signal(signal.SIGINT)
    assert run.ends(30) == 1
    assert run.problems[-1].startswith("stopped; what is finished is kept. To go on: ")
    assert not marked(run.mark), "processes are left"
    assert 0 < len(files.glob(f"{output}/work/ingest/*/{RECORDS}")) < 2 * PARTS  # of thrice as many


# --- without ----------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path) -> Path:
    return write_tree(
        tmp_path / "tree", {f"{index}.png": encoded(np.full((8, 8, 3), index, np.uint8)) for index in range(12)}
    )


def ingested(uri: str, output: Path, address: str | None = None) -> list[str]:
    """What is said while a source is ingested with workers at hand."""
    changes = spec_of(uri) | {"execution.ray.address": address}
    shop, said = workshop(output), Lines()
    fanout = RayFanout(distillation(output, changes).spec, 2, shop.store, said, shop.stop)
    Run(distillation(output, changes), Workshop(shop.store, shop.device, said, fanout=fanout)).stage("ingest")
    return said.lines


def test_what_does_not_pay_or_cannot_be_shared_is_ingested_without_ray(tmp_path, tree, monkeypatch):
    def start(*arguments: object, **options: object) -> None:
        raise AssertionError("a driver was started")

    monkeypatch.setattr(supervisor.subprocess, "Popen", start)
    ingested(str(tree), tmp_path / "few")
    monkeypatch.setattr(supervisor, "_ENOUGH_IMAGES_HERE", 0)
    monkeypatch.setattr(supervisor, "_ENOUGH_IMAGES_THERE", 0)
    with pytest.raises(AssertionError, match="a driver was started"):
        ingested(str(tree), tmp_path / "many")
    ingested(str(tree), tmp_path / "elsewhere", address="auto")  # which may not see this folder
    packed = tmp_path / "tree.tgz"
    write_tar(packed, {path.name: path.read_bytes() for path in tree.iterdir()})
    ingested(str(packed), tmp_path / "packed")
    fsspec.filesystem("memory").put(str(tree), "/ray-ingest", recursive=True)
    ingested("memory://ray-ingest", tmp_path / "memory")


def test_parts_that_workers_leave_are_made_by_the_command(tmp_path, tree, monkeypatch):
    popen = subprocess.Popen
    script = (
        "import sys\nfrom limbeck.fanout.messages import *\n"
        "job = Job.model_validate_json(sys.stdin.readline())\n"
        "assert job.parts.numbers == [0], job\n"
        "for event in (Connected(), Said(line='no such file'), Ended()): sys.stdout.write(event_line(event))\n"
    )
    monkeypatch.setattr(
        supervisor.subprocess, "Popen", lambda command, **options: popen([sys.executable, "-c", script], **options)
    )
    monkeypatch.setattr(supervisor, "_ENOUGH_IMAGES_HERE", 0)
    said = ingested(str(tree), tmp_path / "out")
    ingested(str(tree), tmp_path / "again")
    monkeypatch.setattr(supervisor, "_ENOUGH_IMAGES_HERE", 100)
    ingested(str(tree), tmp_path / "here")
    assert "ingest: no such file" in said
    assert dataset_files(str(tmp_path / "out")) == dataset_files(str(tmp_path / "here"))


def parts_of(tree: Path, output: Path, **changes: Any) -> tuple[Parts, Workshop]:
    """The order of a command whose folder is there, and the workshop of a worker."""
    shop = workshop(output)
    folder = output / "work/ingest/key"
    folder.mkdir(parents=True)
    (folder / FOLDER_MARK).write_text("a mark")
    source = open_source(str(tree))
    settings = {
        "uri": source.uri,
        "format": source.format,
        "fingerprint": source.fingerprint(),
        "limit": None,
        "ranges": [(0, 1)],
        "folder": "work/ingest/key",
        "mark": "a mark",
    }
    return Parts.model_validate(settings | changes), shop


def made(parts: Parts, shop: Workshop, told: list[str]) -> list[str]:
    spec = distillation(shop.store.url, spec_of(parts.uri)).spec
    make_parts(parts, parts.numbers, spec, None, 1, shop, told.append)
    return [path.name for path in sorted(Path(shop.store.url).glob("work/ingest/key/.part-*"))]


def test_a_worker_that_sees_another_folder_of_that_name_says_so(tmp_path, tree):
    parts, shop = parts_of(tree, tmp_path / "out", mark="another mark")
    with pytest.raises(WorkError, match=r"a worker on .* does not see what the command writes to .*/work/ingest/key; "):
        made(parts, shop, [])


def test_a_worker_that_cannot_open_the_source_makes_none_and_says_why(tmp_path, tree):
    parts, shop = parts_of(tree, tmp_path / "out", uri=str(tmp_path / "nowhere"))
    told: list[str] = []
    assert made(parts, shop, told) == []
    (line,) = told
    assert re.fullmatch(
        r"a worker on .* cannot open the source \(.*: no such file or directory\); its parts are .*", line
    )


def test_a_source_that_has_changed_since_the_command_listed_it_fails_the_work(tmp_path, tree):
    parts, shop = parts_of(tree, tmp_path / "out", fingerprint="0" * 64)
    with pytest.raises(WorkError, match="has changed since this run began; start a new run"):
        made(parts, shop, [])


def test_a_source_that_is_corrupt_is_the_users_to_mend(tmp_path, tree):
    table = write_parquet(tmp_path / "table.parquet", [path.read_bytes() for path in tree.iterdir()])
    content = bytearray(table.read_bytes())
    content[4:200] = bytes(196)  # the first pages; what they hold is listed at its end
    table.write_bytes(content)
    parts, shop = parts_of(table, tmp_path / "out")
    with pytest.raises(InputError, match=r"table\.parquet"):
        made(parts, shop, [])


@pytest.mark.parametrize("numbers", [[], [4], [0, 1, 2], [0, 2, 3, 9]])
def test_many_numbers_are_a_few_ranges(tmp_path, tree, numbers):
    ranges = ranges_of(numbers)
    parts, _ = parts_of(tree, tmp_path / "out", ranges=ranges)
    assert parts.numbers == numbers
    assert len(ranges) <= 3
