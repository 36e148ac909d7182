"""Ingest in parts: by processes that may die, cut and taken up again, and with what an earlier dataset holds."""

import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

import limbeck.data.ingest
import limbeck.data.parts
import limbeck.data.shards
from limbeck.data.dataset import ImageDataset
from limbeck.data.ingest import write_dataset
from limbeck.data.parts import part_rows
from limbeck.data.shards import shard_rows
from limbeck.errors import InputError, WorkError
from limbeck.interrupt import Stopped, StopRequest
from limbeck.store import Store
from tests.data.drawn import DrawnSource, Telling, read_so_far

COUNT = 1500  # of 64 x 64: three parts
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def findable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, sys.path)]))


@pytest.fixture
def by_processes(monkeypatch):
    monkeypatch.setattr(limbeck.data.ingest, "_FEW_IMAGES", 0)
    monkeypatch.setattr(limbeck.data.ingest, "available_cores", lambda: 2)


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of 80 images of 8 x 8, in this process."""
    monkeypatch.setattr(limbeck.data.shards, "_SHARD_BYTES", 80 * 3 * 8 * 8)


def ingest(source: DrawnSource, out: Path, **changed: object) -> ImageDataset:
    options = {"image_size": source.size, "limit": None, "seed": 0, "on_bad_image": "fail"} | changed
    return write_dataset(source, out, **options)


def files_of(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if not path.name.startswith(".")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    """The files of COUNT images, made here without other processes."""
    out = tmp_path_factory.mktemp("whole")
    ingest(DrawnSource(COUNT), out)
    return files_of(out)


def workers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "limbeck.data.worker" in _command(child)]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # what another test has left, and nobody has waited for
        return []


# --- processes --------------------------------------------------------------------------------------------


def test_processes_write_the_bytes_that_one_writes(tmp_path, by_processes, whole):
    telling = Telling()
    ingest(DrawnSource(COUNT), tmp_path / "out", progress=telling)
    assert files_of(tmp_path / "out") == whole
    assert telling.done == telling.total == COUNT
    assert workers() == []


def test_a_worker_that_is_killed_costs_its_part_and_is_told_of(tmp_path, by_processes, whole):
    killed = []

    def kill_one(done: int) -> None:
        if not killed:
            killed.append(workers()[0])
            killed[0].kill()

    telling = Telling(kill_one)
    ingest(DrawnSource(COUNT), tmp_path / "out", progress=telling)
    assert files_of(tmp_path / "out") == whole
    assert telling.done == COUNT
    (line,) = telling.lines
    assert line.startswith("ingest: a process that decodes was killed, perhaps because memory ran out; images ")
    assert line.endswith(" are tried again")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("death", "a process that decodes was killed, perhaps because memory ran out"),
        ("exit", "a process that decodes ended with exit code 3"),
        ("fault", "RuntimeError: no such luck"),
    ],
)
def test_a_part_that_fails_twice_is_an_error_of_one_line(tmp_path, by_processes, how, message):
    telling = Telling()
    with pytest.raises(WorkError) as caught:
        ingest(DrawnSource(COUNT, failing={700: how}), tmp_path / "out", progress=telling)
    assert str(caught.value) == f"{message} (images 683 to 1365, tried 2 times)"
    assert len(telling.lines) == 1
    assert workers() == []


def test_a_source_that_turns_out_to_be_corrupt_is_the_users_to_mend(tmp_path, by_processes):
    with pytest.raises(InputError, match="drawn: is corrupt; mend it"):
        ingest(DrawnSource(COUNT, failing={1400: "corrupt"}), tmp_path / "out")
    assert workers() == []


def test_a_stop_ends_the_processes(tmp_path, by_processes):
    stop = StopRequest()
    seen = []

    def ask(done: int) -> None:
        seen.extend(workers())
        stop.requested = True

    with pytest.raises(Stopped):
        ingest(DrawnSource(20_000), tmp_path / "out", progress=Telling(ask), stop=stop)
    assert seen
    assert not any(worker.is_running() for worker in seen)


def test_bad_images_that_other_processes_find_are_skipped_and_leave_no_gap(tmp_path, by_processes):
    bad = frozenset({0, 5, 6, 682, 683, 1499})
    dataset = ingest(DrawnSource(COUNT, bad=bad), tmp_path / "out", on_bad_image="skip")
    kept = [index for index in range(COUNT) if index not in bad]
    assert list(dataset.names) == [f"{index:06d}" for index in kept]
    assert dataset.skipped == {f"{index:06d}": "is bad" for index in sorted(bad)}
    for row in (0, 4, 700, len(kept) - 1):
        assert (dataset.images[row] == DrawnSource(COUNT).image(kept[row]).transpose(2, 0, 1)).all()
    assert dataset.labels.tolist() == [index % 3 for index in kept]


def test_a_process_that_decodes_needs_no_torch():
    code = "import limbeck.data.worker, limbeck.data.parts, limbeck.data.sources, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "mlflow", "rich", "sklearn"} & set(loaded)


# --- cut --------------------------------------------------------------------------------------------------


def run_until(count: int, out: Path, log: Path, kind: str, moment: int) -> subprocess.Popen[str]:
    """A process that ingests, once it has said that it is so far."""
    process = subprocess.Popen(
        [sys.executable, "-c", "from tests.data.drawn import main; main()", str(count), str(out), str(log), kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    for line in process.stdout:
        if line == "ready\n" or int(line) >= moment:
            break
    return process


@pytest.mark.parametrize(("kind", "moment"), [("many", 1), ("many", 900), ("single", 1400)])
def test_a_killed_ingest_leaves_no_process_and_resumes_to_the_same_bytes(tmp_path, whole, kind, moment):
    log = tmp_path / "log"
    process = run_until(COUNT, tmp_path / "out", log, kind, moment)
    children = psutil.Process(process.pid).children()
    assert bool(children) == (kind == "many")
    process.kill()
    process.communicate()
    _, left = psutil.wait_procs(children, timeout=20)
    assert left == []
    finished = {path.stem for path in (tmp_path / "out").glob(".part-*.json")}
    log.unlink(missing_ok=True)
    source = DrawnSource(COUNT, log=log, single_pass=kind == "single", shuffled=kind == "single")
    telling = Telling()
    ingest(source, tmp_path / "out", progress=telling)
    assert files_of(tmp_path / "out") == whole
    again = Counter(read_so_far(log))
    assert set(again.values()) <= {1}
    rows = part_rows(64, COUNT)
    kept = [
        index
        for number in range(3)
        if f".part-{number:05d}" in finished
        for index in range(COUNT)[number * rows :][:rows]
    ]
    assert set(again) == set(range(COUNT)) - set(kept)


def test_a_finished_ingest_is_found_whole(tmp_path, whole):
    log = tmp_path / "log"
    ingest(DrawnSource(COUNT), tmp_path / "out")
    telling = Telling()
    ingest(DrawnSource(COUNT, log=log), tmp_path / "out", progress=telling)
    assert read_so_far(log) == []
    assert telling.lines == ["ingest: 1,500 of 1,500 images were finished before"]
    assert files_of(tmp_path / "out") == whole


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "record", "record gone"])
def test_a_part_that_is_not_what_its_record_says_is_made_again(tmp_path, whole, damage):
    out, log = tmp_path / "out", tmp_path / "log"
    ingest(DrawnSource(COUNT), out)
    file, record = out / ".part-00001.safetensors", out / ".part-00001.json"
    data = file.read_bytes()
    match damage:
        case "flipped":
            file.write_bytes(data[:5000] + bytes([data[5000] ^ 1]) + data[5001:])
        case "cut":
            file.write_bytes(data[:5000])
        case "gone":
            file.unlink()
        case "record":
            record.write_text(record.read_text()[:50])
        case _:
            record.unlink()
    ingest(DrawnSource(COUNT, log=log), out)
    assert read_so_far(log) == list(range(683, 1366))
    assert files_of(out) == whole


@pytest.mark.parametrize("summed", [True, False])
def test_parts_of_a_source_that_has_changed_are_made_again(tmp_path, summed):
    out, log = tmp_path / "out", tmp_path / "log"
    ingest(DrawnSource(COUNT, summed=summed), out)
    changed = DrawnSource(COUNT, versions={1499: 1}, summed=summed)
    dataset = ingest(replace(changed, log=log), out)
    assert read_so_far(log) == list(range(1366, COUNT) if summed else range(COUNT))
    assert (dataset.images[1499] == changed.image(1499).transpose(2, 0, 1)).all()


def test_an_ingest_that_another_image_size_follows_starts_anew(tmp_path):
    ingest(DrawnSource(100), tmp_path / "out")
    ingest(DrawnSource(100), tmp_path / "out", image_size=32)
    ingest(DrawnSource(100), tmp_path / "other", image_size=32)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "other")


class Bucket:
    """Where copies are kept: a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.kept = folder, []
        folder.mkdir(exist_ok=True)

    def keep(self, file: Path) -> None:
        shutil.copy(file, self.folder / file.name)
        self.kept.append(file.name)

    def fetch(self, file: Path) -> None:
        if (self.folder / file.name).exists():
            shutil.copy(self.folder / file.name, file)


def test_another_machine_goes_on_with_the_copies(tmp_path, whole):
    bucket, log = Bucket(tmp_path / "bucket"), tmp_path / "log"
    stop = StopRequest()

    def ask(done: int) -> None:
        stop.requested = done > 1400

    with pytest.raises(Stopped):
        ingest(DrawnSource(COUNT), tmp_path / "here", copies=bucket, stop=stop, progress=Telling(ask))
    assert {name for name in bucket.kept if name.endswith(".json")} == {".part-00000.json", ".part-00001.json"}
    ingest(DrawnSource(COUNT, log=log), tmp_path / "there", copies=bucket)
    assert read_so_far(log) == list(range(1366, COUNT))
    assert files_of(tmp_path / "there") == whole


def test_another_machine_goes_on_from_a_remote_store(tmp_path, whole, monkeypatch):
    stop = StopRequest()

    def ask(done: int) -> None:
        stop.requested = done > 1400

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "here"))
    with pytest.raises(Stopped), Store("memory://parts").scratch("ingest", "0" * 32) as folder:
        ingest(DrawnSource(COUNT), folder, copies=Store("memory://parts"), stop=stop, progress=Telling(ask))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "there"))
    log, store = tmp_path / "log", Store("memory://parts")
    with store.scratch("ingest", "0" * 32) as folder:
        ingest(DrawnSource(COUNT, log=log), folder, copies=store)
        assert files_of(folder) == whole
    assert read_so_far(log) == list(range(1366, COUNT))
    assert store.names("work/ingest") == []


def test_a_copy_that_fails_is_an_error(tmp_path):
    class Full(Bucket):
        def keep(self, file: Path) -> None:
            raise WorkError("the bucket is full")

    with pytest.raises(WorkError, match="the bucket is full"):
        ingest(DrawnSource(COUNT), tmp_path / "out", copies=Full(tmp_path / "bucket"))


# --- shards -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [100, 500, 2000])
def test_shards_are_the_same_whatever_the_parts_and_the_gaps(tmp_path, small_shards, count):
    assert (part_rows(8, count) == shard_rows(8)) == (count == 2000)  # many: a part is a shard as it stands
    bad = frozenset(range(3, count, 37)) | {count - 1}
    gaps = ingest(DrawnSource(count, size=8, bad=bad), tmp_path / "gaps", on_bad_image="skip")
    whole = ingest(DrawnSource(count, size=8), tmp_path / "whole")
    kept = [index for index in range(count) if index not in bad]
    assert len(gaps) == len(kept)
    assert (np.asarray(gaps.images) == whole.images[np.array(kept)]).all()
    shards = sorted((tmp_path / "gaps").glob("images-*"))
    assert len(shards) == -(-len(kept) // 80)
    assert (np.asarray(whole.images) == [whole_image(index) for index in range(count)]).all()
    scaled = np.asarray(gaps.images) / 255
    np.testing.assert_allclose(gaps.mean, scaled.mean((0, 2, 3)), rtol=1e-6)


def whole_image(index: int) -> np.ndarray:
    return DrawnSource(0, size=8).image(index).transpose(2, 0, 1)


def test_where_files_cannot_have_two_names_shards_are_copies(tmp_path, small_shards, monkeypatch):
    ingest(DrawnSource(2000, size=8), tmp_path / "linked")
    (tmp_path / "copied").mkdir()

    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    ingest(DrawnSource(2000, size=8), tmp_path / "copied")
    assert files_of(tmp_path / "linked") == files_of(tmp_path / "copied")


def test_a_part_of_bad_images_only_is_no_file(tmp_path, small_shards):
    bad = frozenset(range(10, 20))  # the second part of ten
    dataset = ingest(DrawnSource(60, size=8, bad=bad), tmp_path / "out", on_bad_image="skip")
    assert len(dataset) == 50
    again = Telling()
    ingest(DrawnSource(60, size=8, bad=bad), tmp_path / "out", on_bad_image="skip", progress=again)
    assert again.lines == ["ingest: 60 of 60 images were finished before"]


@pytest.mark.parametrize("bad", [frozenset(), frozenset({1, 77, 499})])
def test_a_source_of_one_pass_in_any_order_gives_the_same_bytes(tmp_path, small_shards, bad):
    ingest(DrawnSource(500, size=8, bad=bad), tmp_path / "a", on_bad_image="skip")
    source = DrawnSource(500, size=8, bad=bad, single_pass=True, shuffled=True)
    telling = Telling()
    ingest(source, tmp_path / "b", on_bad_image="skip", progress=telling)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert telling.done == 500
    assert list((tmp_path / "b").glob("*.rows")) == list((tmp_path / "b").glob(".*.rows")) == []


def test_a_limit_and_shards_fit_together(tmp_path, small_shards):
    chosen = ingest(DrawnSource(500, size=8), tmp_path / "out", limit=170)
    assert len(chosen) == 170
    for row, name in enumerate(chosen.names):
        assert (chosen.images[row] == whole_image(int(name))).all()


# --- what an earlier dataset holds ------------------------------------------------------------------------


@pytest.mark.parametrize("single_pass", [False, True])
def test_only_what_has_changed_is_read(tmp_path, single_pass):
    before = DrawnSource(COUNT, bad=frozenset({9}), single_pass=single_pass)
    earlier = ingest(before, tmp_path / "earlier", on_bad_image="skip")
    after = replace(before, count=COUNT + 100, versions={0: 1, 700: 1}, log=tmp_path / "log")
    telling = Telling()
    ingest(after, tmp_path / "out", on_bad_image="skip", earlier=earlier, progress=telling)
    assert sorted(read_so_far(tmp_path / "log")) == [0, 9, 700, *range(COUNT, COUNT + 100)]
    assert telling.lines == ["ingest: 1,497 of 1,600 images are those of an earlier dataset"]
    assert telling.done == COUNT + 100
    ingest(after, tmp_path / "full", on_bad_image="skip")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "full")


def test_processes_reuse_what_an_earlier_dataset_holds(tmp_path, by_processes):
    earlier = ingest(DrawnSource(COUNT), tmp_path / "earlier")
    after = DrawnSource(COUNT, versions={700: 1}, log=tmp_path / "log")
    ingest(after, tmp_path / "out", earlier=earlier)
    assert read_so_far(tmp_path / "log") == [700]
    ingest(after, tmp_path / "full")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "full")


@pytest.mark.parametrize("why", ["no checksums", "another size"])
def test_nothing_is_reused_of_a_dataset_that_says_too_little(tmp_path, why):
    source = DrawnSource(100, summed=why != "no checksums")
    earlier = ingest(source, tmp_path / "earlier", image_size=32 if why == "another size" else 64)
    telling = Telling()
    ingest(replace(source, log=tmp_path / "log"), tmp_path / "out", earlier=earlier, progress=telling)
    assert len(read_so_far(tmp_path / "log")) == 100
    assert telling.lines == []


def test_a_renamed_image_is_another_one(tmp_path):
    """Names say which image a label and a sample belong to: content alone does not."""
    earlier = ingest(DrawnSource(100), tmp_path / "earlier")
    log = tmp_path / "log"
    ingest(DrawnSource(101, log=log), tmp_path / "out", earlier=earlier)
    assert read_so_far(log) == [100]
