# ruff: noqa: F811 -- a fixture that is imported is an argument too
"""What is done is not done again, what was cut goes on, and the same spec gives the same bytes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from limbeck import cli
from limbeck.checkpoint import load_tensors
from limbeck.data.dataset import ImageDataset
from limbeck.data.feed import Examples
from limbeck.data.targets import open_targets
from limbeck.errors import InputError
from limbeck.interrupt import Stopped, StopRequest
from limbeck.matching.experts import listed_places, train_experts
from limbeck.matching.steps import Steps, student_loss
from limbeck.nn.encoders import build_student, student_config
from limbeck.nn.flat import FlatNetwork
from limbeck.runner import Run
from limbeck.store import Store
from limbeck.summary import Summary
from tests.forks import processes
from tests.stages.tiny import (
    AT_EVERY_CHANCE,
    Lines,
    StopAt,
    digests,
    distillation,
    finished,  # noqa: F401 - a fixture
    one_thread,  # noqa: F401 - a fixture
    result_files,
    run_in_child,
    run_tiny,
    workshop,
    write_tiny,
)

STAGES = ("teacher", "targets", "trajectories", "select", "distill", "evaluate", "register")


def reused(summary: Summary) -> set[str]:
    return {stage.name for stage in summary.stages if stage.reused}


def computed(summary: Summary) -> set[str]:
    return {stage.name for stage in summary.stages if not stage.reused}


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copied"))


def read_summary(output: Path) -> Summary:
    return Summary.model_validate_json((output / "runs" / "tiny" / "summary.json").read_text())


def file_of(output: Path, stage: str, name: str) -> Path:
    (path,) = (output / stage).glob(f"*/{name}")
    return path


def test_a_run_ends_with_a_summary_and_a_report(finished):
    summary = read_summary(finished)
    assert summary.succeeded
    assert summary.name == "tiny"
    assert summary.source.images == 200
    assert summary.distilled.images == 10
    assert [stage.name for stage in summary.stages[3:]] == list(STAGES)
    methods = [accuracy.method for accuracy in summary.accuracies]
    assert methods == ["distilled", "none", "random", "highLoss", "full"]
    assert all(accuracy.seeds == [0, 1] and len(accuracy.values) == 2 for accuracy in summary.accuracies)
    assert all(0.0 < accuracy.mean <= 1.0 for accuracy in summary.accuracies)
    assert len(summary.recovered_gaps) == 1
    report = finished / "runs" / "tiny" / summary.links["report"]
    assert "<html" in report.read_text()
    assert Path(summary.links["distilledSet"]).is_dir()


def test_the_summary_names_every_finished_stage_as_the_store_has_it(finished):
    store = Store(str(finished))
    for stage in read_summary(finished).stages:
        result = store.find(stage.name.split()[0], stage.key)
        assert result is not None
        assert result.digest == stage.digest


def test_the_same_run_again_computes_nothing(copied):
    before, files = read_summary(copied), result_files(copied)
    again = run_tiny(copied)
    assert computed(again) == set()
    assert digests(again) == digests(before)
    assert result_files(copied) == files


def test_another_folder_gets_the_same_bytes(finished, tmp_path):
    other = run_tiny(tmp_path / "elsewhere" / "deeper")
    assert result_files(tmp_path / "elsewhere" / "deeper") == result_files(finished)
    assert digests(other) == digests(read_summary(finished))


def test_another_seed_gives_other_bytes(finished, tmp_path):
    other, before = digests(run_tiny(tmp_path, {"seed": 1})), digests(read_summary(finished))
    for stage in STAGES:
        assert other[stage][1] != before[stage][1], stage
    theta = [load_tensors(p)[0]["theta"][0] for o in (tmp_path, finished) for p in o.glob("expert/*/*.safetensors")]
    assert len(theta) == 6
    assert all(not torch.equal(a, b) for i, a in enumerate(theta) for b in theta[:i])


def test_a_changed_evaluation_reuses_all_that_was_distilled(copied):
    assert computed(run_tiny(copied, {"evaluate.epochs": 1})) == {"evaluate", "register"}


def test_another_seed_of_the_evaluation_trains_its_own_encoders_alone(copied):
    before = {path.parent: path.stat().st_mtime_ns for path in copied.glob("encoder/*/manifest.json")}
    run_tiny(copied, {"evaluate.seeds": [0, 1, 2]})
    after = {path.parent: path.stat().st_mtime_ns for path in copied.glob("encoder/*/manifest.json")}
    assert before.items() <= after.items()
    assert len(after) == len(before) + 4  # one for each method but none, whose encoder is not trained


def test_a_changed_distillation_reuses_the_teacher_and_the_experts(copied):
    assert computed(run_tiny(copied, {"distill.iterations": 5})) == {"distill", "evaluate", "register"}
    assert computed(run_tiny(copied, {"distill.size": 12})) == {"select", "distill", "evaluate", "register"}


def test_more_experts_reuse_the_first_ones(copied):
    before = {path: path.stat().st_mtime_ns for path in copied.glob("expert/*/manifest.json")}
    summary = run_tiny(copied, {"trajectories.experts": 4})
    after = {path: path.stat().st_mtime_ns for path in copied.glob("expert/*/manifest.json")}
    assert {"teacher", "targets"} <= reused(summary)
    assert before.items() <= after.items()
    assert len(after) == 4


def test_an_expert_alone_equals_that_expert_of_many(finished):
    store, spec = Store(str(finished)), distillation(finished).spec
    stages = {stage.name: stage for stage in read_summary(finished).stages}
    dataset = ImageDataset.open(finished / "ingest" / stages["ingest source"].key)
    targets = open_targets(file_of(finished, "targets", "targets.safetensors").parent)
    examples = Examples.normalized(dataset.images, dataset.mean, dataset.std, torch.device("cpu"), targets)
    places = listed_places(file_of(finished, "trajectories", "experts.json").parent)
    for index in (2, 0):
        student = build_student(student_config(spec), targets.shape[1], spec.seed, "expert", index)
        (alone,) = train_experts(
            [student],
            Steps(student_loss(FlatNetwork(student))),
            examples,
            epochs=spec.expert_epochs,
            batch=spec.trajectories.batch,
            optimizer=spec.trajectories.optimizer,
            seed=spec.seed,
            indices=[index],
            stop=StopRequest(),
            steps_done=lambda count: None,
        )
        result = store.find(places[index]["stage"], places[index]["key"])
        assert result is not None
        assert result.digest == places[index]["digest"]
        theirs = load_tensors(result.path / "expert.safetensors")[0]
        assert torch.equal(alone.theta, theirs["theta"])
        assert torch.equal(alone.losses, theirs["losses"])


def limbeck(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["limbeck", *arguments])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    raise AssertionError("the command does not exit")


def test_stages_one_by_one_refuse_before_their_inputs_and_give_what_a_run_gives(
    monkeypatch, capsys, tmp_path, finished
):
    output = tmp_path / "out"
    spec = str(write_tiny(tmp_path / "tiny.yaml", output))
    for stage, following in zip(("ingest", *STAGES), STAGES, strict=False):
        assert limbeck(monkeypatch, "stage", following, spec) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert f"{'ingest source' if stage == 'ingest' else stage} is not done in {output}" in line
        assert limbeck(monkeypatch, "stage", stage, spec) == 0
        assert Path(capsys.readouterr().out.strip()).parent == output / stage
    assert limbeck(monkeypatch, "stage", STAGES[-1], spec) == 0
    assert result_files(output) == result_files(finished)


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        ("teacher", "teacher.safetensors"),
        ("targets", "targets.safetensors"),
        ("distill", "synthetic.safetensors"),
        ("register", "distilled.json"),
    ],
)
@pytest.mark.parametrize("harm", ["truncated", "altered", "missing"])
def test_a_damaged_result_is_named_and_made_again(copied, stage, name, harm):
    files, path = result_files(copied), file_of(copied, stage, name)
    content = bytearray(path.read_bytes())
    if harm == "missing":
        path.unlink()
    elif harm == "truncated":
        path.write_bytes(content[:-1])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    progress = Lines()
    summary = run_tiny(copied, progress=progress)
    assert computed(summary) == {stage}
    (said,) = [line for line in progress.lines if "made again" in line]
    assert str(path) in said
    assert result_files(copied) == files


@pytest.mark.parametrize("harm", ["missing", "altered"])
def test_a_damaged_expert_is_made_again_when_it_is_needed(copied, harm):
    files = result_files(copied)
    path = sorted(copied.glob("expert/*/expert.safetensors"))[1]
    if harm == "missing":
        shutil.rmtree(path.parent)
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    shutil.rmtree(next((copied / "distill").iterdir()))
    run_tiny(copied)
    assert result_files(copied) == files


def test_a_manifest_of_any_bytes_is_a_damaged_result(copied):
    files = result_files(copied)
    for content in (b"", b"{}", b"\xff\xfe", b'{"format": 1'):
        file_of(copied, "distill", "manifest.json").write_bytes(content)
        progress = Lines()
        assert computed(run_tiny(copied, progress=progress)) == {"distill"}
        assert any("manifest" in line and "made again" in line for line in progress.lines)
    assert result_files(copied) == files


@pytest.mark.parametrize(("title", "steps"), [("teacher", 5), ("trajectories", 7), ("distill", 1), ("distill", 5)])
def test_a_stopped_run_goes_on_and_ends_with_the_same_bytes(finished, tmp_path, title, steps):
    changes = {"teacher.epochs": 3} if title == "teacher" else {}
    uncut = finished
    if changes:
        uncut = tmp_path / "uncut"
        run_tiny(uncut, changes)
    cut = tmp_path / "cut"
    progress = StopAt(title, steps)
    with pytest.raises(Stopped):
        Run(distillation(cut, changes | AT_EVERY_CHANCE), workshop(cut, progress, progress.stop)).all()
    assert not (cut / "runs").exists()
    onward = StopAt("nothing", 0)
    Run(distillation(cut, changes), workshop(cut, onward)).all()
    begun = {"teacher": steps, "distill": steps}  # steps that need not be done again
    if title in begun:
        assert onward.started_at[title] == begun[title]
    assert result_files(cut) == result_files(uncut)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_stopped_teacher_of_any_layout_and_precision_goes_on_to_the_same_bytes(tmp_path, precision):
    changes = {"teacher.precision": precision, "teacher.epochs": 3, "teacher.architecture": "resnet10"}
    uncut, cut = tmp_path / "uncut", tmp_path / "cut"
    progress, onward = StopAt("teacher", 5), StopAt("nothing", 0)
    for output in (uncut, cut):
        Run(distillation(output, changes), workshop(output)).stage("ingest")
    Run(distillation(uncut, changes), workshop(uncut)).stage("teacher")
    with pytest.raises(Stopped):
        Run(distillation(cut, changes | AT_EVERY_CHANCE), workshop(cut, progress, progress.stop)).stage("teacher")
    Run(distillation(cut, changes), workshop(cut, onward)).stage("teacher")
    assert onward.started_at["teacher"] == 5
    assert result_files(cut) == result_files(uncut)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_stopped_distillation_goes_on_with_its_optimizer_s_state(tmp_path, optimizer, schedule):
    steps = {"pixelStep": 0.1, "targetStep": 0.1, "rateStep": 1e-3} if optimizer == "adam" else {"pixelStep": 10.0}
    changes = {"distill": {"size": 10, "iterations": 8, "innerSteps": 3, "optimizer": optimizer, "schedule": schedule}}
    changes["distill"] |= steps
    changes["evaluate.tasks"] = []
    run_tiny(tmp_path / "uncut", changes)
    progress = StopAt("distill", 3)
    with pytest.raises(Stopped):
        Run(distillation(tmp_path / "cut", changes), workshop(tmp_path / "cut", progress, progress.stop)).all()
    onward = StopAt("nothing", 0)
    run_tiny(tmp_path / "cut", changes, onward)
    assert onward.started_at["distill"] == 3  # it saved its state when it was asked to stop
    assert result_files(tmp_path / "cut") == result_files(tmp_path / "uncut")


@pytest.mark.parametrize(
    "changes",
    [
        {"distill.method": "krrSt", "distill.kernel": {"pool": 2, "poolSteps": 3, "realBatch": 20}},
        {"distill.averageLast": 0.9, "distill.targetRank": 2, "student.augmentation": "flipShift"},
    ],
    ids=["krrSt", "mean of the last"],
)
def test_a_stopped_distillation_of_any_kind_goes_on_to_the_same_bytes(tmp_path, changes):
    changes = changes | {"evaluate.tasks": []}
    run_tiny(tmp_path / "uncut", changes)
    progress = StopAt("distill", 5)
    with pytest.raises(Stopped):
        Run(distillation(tmp_path / "cut", changes), workshop(tmp_path / "cut", progress, progress.stop)).all()
    run_tiny(tmp_path / "cut", changes)
    assert result_files(tmp_path / "cut") == result_files(tmp_path / "uncut")


def test_a_partial_checkpoint_of_a_killed_run_is_no_part_of_the_result(copied):
    files = result_files(copied)
    (result,) = (copied / "distill").iterdir()
    shutil.rmtree(result)
    scratch = copied / "work" / "distill" / result.name
    scratch.mkdir(parents=True)
    (scratch / ".checkpoint.safetensors.partial").write_bytes(b"cut while it was written")
    run_tiny(copied)
    assert result_files(copied) == files


def test_an_unreadable_checkpoint_is_a_fresh_start(copied):
    files = result_files(copied)
    for content in (b"", b"\0" * 100, b"\xff" * 8):
        (result,) = (copied / "distill").iterdir()
        shutil.rmtree(result)
        scratch = copied / "work" / "distill" / result.name
        scratch.mkdir(parents=True)
        (scratch / "checkpoint.safetensors").write_bytes(content)
        run_tiny(copied)
        assert result_files(copied) == files


def test_a_run_killed_at_random_moments_ends_with_the_same_bytes(tmp_path):
    changes = {"teacher.epochs": 3, "distill.iterations": 30, "evaluate.seeds": [0]}
    run_tiny(tmp_path / "uncut", changes)
    moments, killed = random.Random(20), 0
    for output in ("first", "timed"):  # the first one starts the server of forks
        started = time.monotonic()
        child = processes().Process(target=run_in_child, args=(str(tmp_path / output), changes))
        child.start()
        child.join()
    took = time.monotonic() - started
    cut = str(tmp_path / "cut")
    for _ in range(60):
        child = processes().Process(target=run_in_child, args=(cut, changes))
        child.start()
        child.join(timeout=moments.uniform(0.05, 0.3) * took if killed < 12 else None)
        if child.exitcode == 0:
            break
        assert child.exitcode is None, "it failed by itself"
        child.kill()
        child.join()
        killed += 1
    assert child.exitcode == 0
    assert killed >= 3
    assert result_files(tmp_path / "cut") == result_files(tmp_path / "uncut")
    left = [path for path in (tmp_path / "cut" / "work").rglob("*") if path.is_file()]
    assert not [path for path in left if path.suffix != ".lock"]  # a kill right after a commit leaves one; it is free


def test_an_interrupted_command_says_how_to_go_on_and_the_same_command_finishes(tmp_path, monkeypatch, capfd):
    spec = write_tiny(tmp_path / "my spec.yaml", tmp_path / "out", {"distill.iterations": 200, "evaluate.tasks": []})
    command = [sys.executable, "-m", "limbeck.cli", "run", str(spec)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith("select"):
                process.send_signal(signal.SIGINT)
        assert process.wait() == 1
    assert lines[-1] == f"stopped; what is finished is kept. To go on: limbeck run '{spec}'\n"
    assert "Traceback" not in "".join(lines)
    assert not any(line.startswith("distill") for line in lines)
    assert limbeck(monkeypatch, "run", str(spec)) == 0
    assert "trajectories             already done" in capfd.readouterr().err


def test_a_stage_that_is_done_is_found_and_nothing_is_asked_of_the_others(copied):
    shutil.rmtree(copied / "teacher")
    with pytest.raises(InputError, match="teacher is not done"):
        Run(distillation(copied), workshop(copied)).stage("evaluate")
