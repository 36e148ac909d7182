"""The recipe study: its specs are good, a study that is stopped resumes, and its intervals hold what they claim."""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from limbeck.checkpoint import load_tensors
from limbeck.specfile import read_spec
from tests.stages.tiny import tiny

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
SCRIPTS = ("study", "tables", "archives", "teachers")
STUDIES = [path.stem for path in EXPERIMENTS.glob("*.yaml") if "variants" in yaml.safe_load(path.read_text())]
CHECK = """
import json, sys
from study import Study
study = Study.read(sys.argv[1])
pairs = [(variant, index) for variant in study.variants for index in range(variant.distillations)]
assert len({variant.run_name(index) for variant, index in pairs}) == len(pairs)
assert len({study.result(*pair) for pair in pairs}) == len(pairs)
print(json.dumps([
    {"name": variant.name, "index": index, "spec": study.distillation(variant, index).spec.wire()}
    for variant, index in pairs
]))
"""
# what changes the start of a distillation or the bytes of the set; `start` and `random` must then be its own
RIVALS_FOLLOW = ["source", "targets", "student"]
START_FOLLOWS = [
    *("size", "fraction", "downsampling", "pixels", "initialization", "seed"),
    "warmStart",
]


@pytest.fixture(autouse=True)
def usual_priority(monkeypatch):
    """At the lowest priority a study would wait for the tests beside it."""
    monkeypatch.setenv("LIMBECK_STUDY_NICE", "0")


def module(name: str) -> ModuleType:
    """A script of experiments/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, EXPERIMENTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made  # where its data classes look their annotations up
    spec.loader.exec_module(made)
    return made


tables, archives = module("tables"), module("archives")


@cache
def specs_of(name: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-c", CHECK, name]
    done = subprocess.run(command, cwd=EXPERIMENTS, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", STUDIES)
def test_every_variant_of_a_study_is_a_good_spec_of_its_own(name):
    entries = specs_of(name)
    assert len({json.dumps(entry["spec"], sort_keys=True) for entry in entries}) == len(entries)
    base = entries[0]["spec"]
    assert {"start", "random", "full"} <= set(base["evaluate"]["baselines"])
    for entry in entries:
        spec = entry["spec"]
        assert not set(spec["evaluate"]["seeds"]) & set(spec["evaluate"]["selectionSeeds"])
        assert spec["evaluate"]["seeds"] == base["evaluate"]["seeds"], entry["name"]
        assert spec["evaluate"]["labelFractions"] == base["evaluate"]["labelFractions"], entry["name"]


@pytest.mark.parametrize("name", STUDIES)
def test_a_variant_that_starts_elsewhere_has_its_own_start_and_one_with_other_targets_its_own_rivals(name):
    entries = specs_of(name)
    bases = {entry["index"]: entry["spec"] for entry in entries if entry["name"] == entries[0]["name"]}
    for entry in entries:
        spec, baselines, base = entry["spec"], set(entry["spec"]["evaluate"]["baselines"]), bases[entry["index"]]
        if any(spec["distill"][field] != base["distill"][field] for field in START_FOLLOWS):
            assert "start" in baselines, entry["name"]
        if not entry["index"] and any(spec[section] != base[section] for section in RIVALS_FOLLOW):
            assert {"start", "random", "full"} <= baselines, entry["name"]


def test_the_reported_seeds_chose_nothing_in_a_study():
    chosen = set[int]()
    reported = set[int]()
    for name in STUDIES:
        for entry in specs_of(name)[:1]:
            evaluate = entry["spec"]["evaluate"]
            mine = reported if name.startswith("report") else chosen
            mine.update(evaluate["seeds"])
            chosen.update(evaluate["selectionSeeds"])
    assert not chosen & reported


def test_krr_st_has_a_study_of_its_own_as_large_as_that_of_trajectory_matching():
    counts = {name: len(specs_of(name)) for name in ("study", "krr-study")}
    assert counts["krr-study"] >= counts["study"]
    assert {entry["spec"]["distill"]["method"] for entry in specs_of("krr-study")} == {"krrSt"}


def test_every_spec_beside_the_studies_is_valid():
    for path in EXPERIMENTS.glob("*.yaml"):
        if path.stem not in STUDIES:
            read_spec(path, [])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A study of two variants of the tiny spec, and archives of a few pictures."""
    for name in SCRIPTS:
        shutil.copy(EXPERIMENTS / f"{name}.py", tmp_path)
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(tiny("results", {"evaluate.baselines": []})))
    variants = [
        {"name": "base", "axis": "", "set": {}, "baselines": True, "distillations": 2},
        {
            "name": "k-centre",
            "axis": "initialisation",
            "set": {"distill.initialization": "kCenter", "evaluate.baselines": ["start"]},
        },
    ]
    (tmp_path / "few.yaml").write_text(yaml.safe_dump({"base": "base.yaml", "variants": variants}))
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "png")
    (tmp_path / "data").mkdir()
    for part in ("train", "test"):
        with zipfile.ZipFile(tmp_path / "data" / f"cifar10-{part}.zip", "w") as archive:
            for k in range(40):
                archive.writestr(f"{k % 2}/{k}.png", picture.getvalue())
    return tmp_path


def study(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "study.py", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    logs = "".join(log.read_text() for log in (folder / "work" / "logs").glob("*.log"))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    return done.stdout


def test_a_study_that_is_stopped_resumes_and_does_nothing_twice(folder):
    run = ("run", "few", "--data", "data", "--work", "work")
    assert "stopped" in study(folder, *run, "--minutes", "0")
    assert not (folder / "few.md").exists()
    study(folder, *run, "--only", "base")
    assert "not run" in (folder / "few.md").read_text()
    assert "1 of 3 distillations" in study(folder, *run)
    shutil.rmtree(folder / "work" / "results")
    assert "0 of 3 distillations" in study(folder, *run)  # the figures are enough
    lines = [line for line in (folder / "few.md").read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    first, second = (table for table in (cells[:4], cells[4:]))
    assert [row[1] for row in first] == ["variant", "---", "base", "k-centre"]
    assert [row[2] for row in first[2:]] == ["2", "1"]
    assert {len(row) for row in first} == {len(first[0])}
    assert {len(row) for row in second} == {len(second[0])}
    named = [dict(zip(second[0], row, strict=True)) for row in second[2:]]
    assert [(row["variant"], row["method"]) for row in named] == [
        *(("base", method) for method in ("distilled", "start", "random", "full")),
        *(("k-centre", method) for method in ("distilled", "start")),
    ]
    assert all(row["steps"] and row["rate"] and row["bytes"] for row in named)
    assert all(
        "[" in row["above start"] and "[" in row["above random"] for row in named if row["method"] == "distilled"
    )
    files = [json.loads(file.read_text()) for file in (folder / "results" / "few").glob("base-*.json")]
    methods = {file["distillation"]: {entry["method"] for entry in file["accuracies"]} for file in files}
    assert methods == {0: {"distilled", "start", "random", "full"}, 1: {"distilled", "start"}}


def test_a_teacher_s_targets_are_exported_once_with_its_probe_figures(folder):
    (folder / "small.yaml").write_text(yaml.safe_dump(tiny("results", {"targets": {"components": 5}})))
    command = ("teacher", "small", "--data", "data", "--work", "work")
    assert "stopped" in study(folder, *command, "--minutes", "0")
    study(folder, *command)
    made = folder / "results" / "small"
    targets = load_tensors(made / "targets.safetensors")[0]["targets"]
    assert targets.shape == (200, 5)
    assert str(targets.dtype) == "torch.float16"
    record = json.loads((made / "teacher.json").read_text())
    assert [(row["features"], row["labelFraction"]) for row in record["probes"]] == [
        (features, share) for features in ("representation", "targets") for share in (0.01, 0.05, 0.5)
    ]
    assert record["probes"][2]["mean"] > 0.3  # of ten classes
    before = (made / "teacher.json").stat().st_mtime_ns
    study(folder, *command)
    assert (made / "teacher.json").stat().st_mtime_ns == before


def test_a_study_trains_with_the_weights_of_a_committed_teacher_and_counts_no_result_of_another(folder):
    run = ("run", "few", "--data", "data", "--work", "work", "--only", "base")
    taught = {"algorithm": "pretrained", "checkpoint": "teachers/small.safetensors"}
    network = tiny("results")["spec"]["teacher"]
    taught |= {name: network[name] for name in ("architecture", "width", "depth", "norm") if name in network}
    document = tiny("results", {"evaluate.baselines": []})
    document["spec"]["teacher"] = taught
    (folder / "base.yaml").write_text(yaml.safe_dump(document))
    (folder / "small.yaml").write_text(yaml.safe_dump(tiny("results")))
    refused = subprocess.run([sys.executable, "study.py", *run], cwd=folder, capture_output=True, text=True)
    assert refused.returncode == 1
    assert "study.py teacher small --weights makes it" in refused.stderr
    study(folder, "teacher", "small", "--data", "data", "--work", "work", "--weights")
    made = folder / "results" / "small"
    weights = load_tensors(made / "teacher.safetensors")[0]
    assert {str(entry.dtype) for entry in weights.values() if entry.is_floating_point()} == {"torch.float16"}
    study(folder, *run)
    stored = [load_tensors(f)[0] for f in (folder / "work" / "results" / "teacher").glob("*/teacher.safetensors")]
    assert len(stored) == 2  # that of small, and the imported one
    assert any(all(entry.equal(weights[name].to(entry.dtype)) for name, entry in one.items()) for one in stored)
    assert "0 of 3 distillations" in study(folder, *run)
    record = json.loads((made / "teacher.json").read_text())
    record["digests"]["teacher"] = "another"
    (made / "teacher.json").write_text(json.dumps(record))
    assert "2 of 3 distillations" in study(folder, *run, "--minutes", "0")


def test_training_images_are_split_in_two_and_archives_that_no_spec_names_are_not_needed(folder):
    names = ["cifar10-development.zip", "cifar10-test.zip", "cifar10-validation.zip"]
    archives.place(names, folder / "data", folder / "placed")
    assert sorted(path.name for path in (folder / "placed").iterdir()) == names
    development, validation = (
        set(zipfile.ZipFile(folder / "placed" / f"cifar10-{part}.zip").namelist())
        for part in ("development", "validation")
    )
    assert development
    assert validation
    assert not development & validation
    assert development | validation == set(zipfile.ZipFile(folder / "data" / "cifar10-train.zip").namelist())
    with pytest.raises(SystemExit, match=r"has no cifar100-train\.zip"):
        archives.place(["cifar100-train.zip"], folder / "data", folder / "placed")


# ---- intervals


def test_with_one_distillation_the_interval_is_the_paired_t_interval():
    from scipy.stats import ttest_rel

    draws = np.random.default_rng(0)
    ours, theirs = draws.normal(size=(1, 6)), draws.normal(size=(1, 6))
    expected = ttest_rel(ours[0], theirs[0]).confidence_interval(0.95)
    found = tables.interval(ours, theirs)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx((ours - theirs).mean())


def test_an_interval_needs_two_seeds():
    assert tables.interval(np.array([[1.0], [3.0]])) == tables.Interval(2.0, None, None)


@pytest.mark.parametrize(("by_distillation", "by_seed"), [(1.0, 0.0), (1.0, 1.0), (0.3, 1.0), (0.0, 1.0)])
@pytest.mark.parametrize(("ours", "theirs"), [(3, 0), (3, 1), (3, 3)])
def test_the_interval_holds_the_truth_nineteen_times_in_twenty(by_distillation, by_seed, ours, theirs):
    """The truth is 0; seeds are shared by the two sides, one rival set without luck of its own is a subset or full."""
    draws, seeds, hits, rounds = np.random.default_rng(1), 5, 0, 1500

    def side(count: int, luck: float) -> np.ndarray:
        own = luck * draws.normal(size=(count, 1)) + by_seed * draws.normal(size=(1, seeds))
        return own + 0.5 * draws.normal(size=(count, seeds))

    for _ in range(rounds):
        shared = draws.normal(size=(1, seeds))
        mine, rival = side(ours, by_distillation), None
        if theirs:
            mine, rival = mine + shared, side(theirs, by_distillation if theirs > 1 else 0.0) + shared
        found = tables.interval(mine, rival)
        hits += found.low <= 0.0 <= found.high
    assert hits / rounds >= 0.95 - 3 * (0.95 * 0.05 / rounds) ** 0.5


def test_a_single_distillation_s_luck_is_not_in_the_interval_and_three_widen_it():
    luck = np.array([[2.0], [0.0], [-2.0]])
    values = np.random.default_rng(2).normal(size=(1, 5)) * 0.1
    one, three = tables.interval(values), tables.interval(values + luck)
    assert three.high - three.low > 10 * (one.high - one.low)
