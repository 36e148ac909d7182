# ruff: noqa: F811 -- a fixture that is imported is an argument too
"""Distillation that starts from a registered set: its very pixels, whatever it is called, downloaded once."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.checkpoint import load_tensors
from limbeck.outcome import Outcome
from limbeck.preflight import outside_digests
from limbeck.runner import Run
from limbeck.tracking.registry import Registry
from tests.fanout.processes import LimbeckProcess
from tests.stages.command import limbeck  # noqa: F401 - a fixture
from tests.stages.tiny import digests, distillation, run_tiny, workshop, write_tiny
from tests.tracking.test_registry import register
from tests.tracking.tracked import copy_of, run_tracked

NOWHERE = "http://127.0.0.1:9"
FEW = {"distill.size": 4, "distill.iterations": 2, "evaluate.tasks": []}  # as many images as sets of `register` have


def filled(folder: Path) -> str:
    """A new MLflow in a folder with two versions of `digits`, of which the first is the champion."""
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    with contextlib.chdir(folder):  # where MLflow keeps the files
        register(uri, folder / "1", "digits", number=1)
        register(uri, folder / "2", "digits", number=2, shift=-0.1)
    return uri


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One for all tests that only read it."""
    return filled(tmp_path_factory.mktemp("mlflow"))


@pytest.fixture
def own_mlflow(tmp_path: Path) -> str:
    """One for a test that changes it."""
    return filled(tmp_path)


@pytest.fixture
def pulls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The versions that are downloaded, in order."""
    done: list[int] = []
    pull = Registry.pull

    def counted(self: Registry, version: Any, folder: Path) -> Path:
        done.append(version.number)
        return pull(self, version, folder)

    monkeypatch.setattr(Registry, "pull", counted)
    return done


def starting(uri: str, which: str = "models:/digits/1", **changes: Any) -> dict[str, Any]:
    return {**FEW, "tracking": {"enabled": False, "uri": uri}, "distill.warmStart": which, **changes}


def damage_all(folder: Path) -> None:
    """Spoil the files of all versions in an MLflow that is there."""
    for file in folder.joinpath("mlruns").rglob("distilled.safetensors"):
        file.write_bytes(b"x")


def key(uri: str, which: str) -> dict[str, str]:
    return outside_digests("distill", distillation("out", starting(uri, which)).spec)


def test_a_run_starts_from_the_pixels_that_an_earlier_run_registered(tmp_path, server, finished):
    first = run_tracked(copy_of(finished, tmp_path / "first"), server.uri, {"registry.name": "warm"})
    assert first.registered is not None
    changes = starting(server.uri, f"models:/warm/{first.registered.version}", **{"distill.size": 10})
    second = run_tiny(tmp_path / "second", changes)
    (synthetic,) = (tmp_path / "second" / "distill").glob("*/synthetic.safetensors")
    tensors = load_tensors(synthetic)[0]
    earlier = Registry(server.uri).load("models:/warm/1")
    pixels = earlier.pixels(earlier.images)
    torch.testing.assert_close(earlier.pixels(tensors["initial_images"]), pixels, atol=1e-5, rtol=0)
    assert not torch.equal(tensors["images"], tensors["initial_images"])
    assert second.spec["distill"]["warmStart"] == "models:/warm/1"


def test_the_same_version_is_the_same_distillation_and_another_one_another(tmp_path, mlflow, pulls):
    first = digests(run_tiny(tmp_path / "out", starting(mlflow)))
    again = run_tiny(tmp_path / "out", starting(mlflow))
    assert all(stage.reused for stage in again.stages)
    assert digests(again) == first
    assert pulls == [1]
    other = run_tiny(tmp_path / "out", starting(mlflow, "models:/digits/2"))
    assert [stage.name for stage in other.stages if not stage.reused] == ["distill", "evaluate", "register"]
    assert digests(other)["distill"] != first["distill"]
    assert pulls == [1, 2]


def test_stages_of_several_processes_download_it_once(tmp_path, mlflow, pulls):
    spec = distillation(tmp_path / "out", starting(mlflow))
    fingerprints = Run(spec, workshop(tmp_path / "out")).fingerprints()
    for stage in ("ingest", "teacher", "targets", "trajectories", "select", "distill", "evaluate", "register"):
        Run(spec, workshop(tmp_path / "out"), fingerprints=fingerprints).stage(stage)
    assert pulls == [1]


def test_what_it_is_made_from_is_told_by_content_and_not_by_name(tmp_path, mlflow):
    elsewhere = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    register(elsewhere, tmp_path / "3", "digits", number=3)
    register(elsewhere, tmp_path / "again", "digits", number=1, shift=0.1)
    assert key(mlflow, "models:/digits/1") == key(mlflow, "models:/digits/1")
    assert len({str(key(uri, f"models:/digits/{n}")) for uri in (mlflow, elsewhere) for n in (1, 2)}) == 4
    checksums = Registry(mlflow).resolve("models:/digits/1").tags["limbeck.checksums"]
    assert key(mlflow, "models:/digits/1") == {"warmStart": checksums}


def test_a_copy_that_is_damaged_in_the_store_is_downloaded_again(tmp_path, mlflow, pulls):
    run_tiny(tmp_path / "out", starting(mlflow))
    (copy,) = (tmp_path / "out" / "start").glob("*/distilled.safetensors")
    copy.write_bytes(b"x")
    run_tiny(tmp_path / "out", starting(mlflow))
    assert pulls == [1, 1]


def test_ray_workers_are_given_it_through_the_store(tmp_path, mlflow):
    changes = starting(mlflow, **{"distill.pairs": 2, "trajectories.experts": 2})
    alone = distillation(tmp_path / "alone", changes)
    Run(alone, workshop(tmp_path / "alone")).all()
    shutil.copytree(tmp_path / "alone", tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "distill")
    spec = write_tiny(tmp_path / "spec.yaml", tmp_path / "out", changes)
    run = LimbeckProcess("stage", "distill", spec, "--workers", 2, cwd=tmp_path)
    assert run.ends() == 0, run.err
    (one,), (two,) = ((tmp_path / name / "distill").glob("*/synthetic.safetensors") for name in ("alone", "out"))
    one, two = load_tensors(one)[0], load_tensors(two)[0]
    assert torch.equal(one["initial_images"], two["initial_images"])
    torch.testing.assert_close(one["images"], two["images"])


@pytest.mark.parametrize(
    ("which", "phrase"),
    [
        ("models:/digits@champion", "found 'models:/digits@champion'; allowed: models:/NAME/VERSION"),
        ("models:/digits/latest", "found 'models:/digits/latest'; allowed: models:/NAME/VERSION"),
        ("models:/digits/9", "models:/digits/9: digits/9: there is no such version; 2, 1"),
        ("models:/nothing/1", "models:/nothing/1: nothing: no such distilled set in sqlite:///"),
    ],
)
def test_what_is_no_version_is_one_line(limbeck, tmp_path, mlflow, which, phrase):
    spec = write_tiny(tmp_path / "tiny.yaml", tmp_path / "out", starting(mlflow, which))
    for command in ("validate", "run"):
        outcome = limbeck(command, spec)
        assert outcome.code == 2
        (line,) = outcome.problems
        assert line.startswith(f"{spec}:")
        assert f"spec.distill.warmStart: {phrase}" in line
    assert not (tmp_path / "out").exists()


def test_one_that_cannot_be_had_is_one_line_before_any_work(limbeck, tmp_path, own_mlflow):
    cases: list[tuple[dict[str, Any], int, str]] = [
        ({"distill.size": 5}, 2, "models:/digits/1 has 4 images of 8x8 pixels; 5 of 8x8 pixels, as this spec distils"),
        ({"source.imageSize": 16}, 2, "4 of 16x16 pixels, as this spec distils"),
        ({"tracking": {"enabled": False, "uri": NOWHERE}}, 1, f"MLflow at {NOWHERE}: "),
        ({"tracking": {"enabled": False, "uri": "sqlite:///none.db"}}, 2, "nothing was tracked in none.db yet"),
    ]
    for changes, code, phrase in cases:
        spec = write_tiny(tmp_path / "tiny.yaml", tmp_path / "out", starting(own_mlflow, **changes))
        for command in ("validate", "run"):
            outcome = limbeck(command, spec)
            assert outcome.code == code, outcome
            assert len(outcome.problems) == 1, outcome
            assert "spec.distill.warmStart: " in outcome.problems[0]
            assert phrase in outcome.problems[0]
        assert limbeck("validate", "--offline", spec).code == 0
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "none.db").exists()
    damage_all(tmp_path)
    outcome = limbeck("run", write_tiny(tmp_path / "tiny.yaml", tmp_path / "out", starting(own_mlflow)))
    assert (outcome.code, len(outcome.problems)) == (2, 1)
    assert "spec.distill.warmStart: models:/digits/1: distilled.safetensors was altered" in outcome.problems[0]


def test_mlflow_that_is_not_installed_is_named(limbeck, tmp_path, mlflow, monkeypatch):
    monkeypatch.setattr("limbeck.tracking.place.find_spec", lambda name: None)
    outcome = limbeck("validate", write_tiny(tmp_path / "tiny.yaml", tmp_path / "out", starting(mlflow)))
    assert outcome.code == 2
    assert "spec.distill.warmStart: models:/digits/1: mlflow: it is not installed" in outcome.problems[-1]


# ---- what a schedule's check says of the champion


@pytest.fixture
def look(limbeck, tmp_path) -> Callable[..., tuple[Any, Outcome]]:
    """What `limbeck fingerprint --champion` prints, and its outcome."""

    def looked(uri: str, **changes: Any) -> tuple[Any, Outcome]:
        settings = {**FEW, "tracking": {"uri": uri}, "registry.name": "digits", **changes}
        spec = write_tiny(tmp_path / "tiny.yaml", tmp_path / "out", settings)
        done = limbeck("fingerprint", spec, "--champion", "--outcome", tmp_path / "outcome")
        assert done.code == 0, done.err
        return done, Outcome.model_validate_json((tmp_path / "outcome").read_text())

    return looked


def test_a_check_names_the_champion_of_now(look, own_mlflow):
    done, outcome = look(own_mlflow)
    assert (outcome.model, outcome.version, outcome.champion) == ("digits", 1, True)
    assert outcome.source_fingerprint == done.out.strip()
    assert done.err == ""
    Registry(own_mlflow).promote("digits", 2)
    assert look(own_mlflow)[1].version == 2


def test_a_check_names_none_where_there_is_none_that_fits_and_says_why(look, tmp_path, own_mlflow):
    def why(uri: str = own_mlflow, **changes: Any) -> str:
        done, outcome = look(uri, **changes)
        assert (outcome.model, outcome.version, outcome.champion) == (None, None, None)
        assert json.loads((tmp_path / "outcome").read_text()) == {"sourceFingerprint": done.out.strip()}
        (line,) = done.problems
        return line

    assert "nothing was tracked in" in why(f"sqlite:///{tmp_path / 'none.db'}")
    assert "no such distilled set" in why(**{"registry.name": "other"})
    assert "version 1 has 4 images of 8x8 pixels; 5 of 8x8" in why(**{"distill.size": 5})
    assert "4 images of 8x8 pixels; 4 of 16x16" in why(**{"source.imageSize": 16})
    register(own_mlflow, tmp_path / "3", "shy", number=3, promote="never")
    assert "shy has no alias 'champion'" in why(**{"registry.name": "shy"})
    damage_all(tmp_path)
    assert "distilled.safetensors was altered" in why()


@pytest.mark.parametrize(
    ("changes", "code", "phrase"),
    [
        ({"tracking": {"uri": NOWHERE}}, 1, f"spec.registry.name: MLflow at {NOWHERE}: "),
        ({"registry": {}}, 2, "spec.registry.name: nothing"),
        ({"distill": {"fraction": 0.1}}, 2, "spec.distill.size: nothing"),
    ],
)
def test_a_check_that_cannot_be_made_fails_in_one_line(limbeck, tmp_path, mlflow, changes, code, phrase):
    settings = {"tracking": {"uri": mlflow}, "registry": {"name": "digits"}, **changes}
    spec = write_tiny(tmp_path / "tiny.yaml", tmp_path / "out", settings)
    done = limbeck("fingerprint", spec, "--champion", "--outcome", tmp_path / "outcome")
    assert done.code == code, done
    assert len(done.problems) == 1
    assert phrase in done.problems[0]
    assert not (tmp_path / "outcome").exists()
