# ruff: noqa: F811 -- a fixture that is imported is an argument too
"""`limbeck registry`, `limbeck ui`, and the settings of a spec that tracking has, on the default store: a file here."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import mlflow
import pytest
import torch
from torch import nn

import limbeck as library
from limbeck.tracking.registry import Registry
from tests.stages.command import limbeck  # noqa: F401 - a fixture
from tests.stages.tiny import write_tiny
from tests.tracking.test_registry import register
from tests.tracking.tracked import copy_of


@pytest.fixture
def two_versions(tmp_path, monkeypatch):
    """The URI of a store with two versions: the first is the champion, the second is worse."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"  # absolute, because MLflow remembers stores by their URIs
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    register(uri, tmp_path / "1", "digits", number=1)
    register(uri, tmp_path / "2", "digits", number=2, shift=-0.1)
    return uri


def test_the_registry_from_the_command_line(limbeck, tmp_path, two_versions):
    assert "digits  2         1" in limbeck("registry", "list").out
    (listed,) = json.loads(limbeck("registry", "list", "--json").out)
    assert [version["version"] for version in listed["versions"]] == [2, 1]
    shown = limbeck("registry", "show", "digits")
    assert "champion" in shown.out
    assert "10.0 points below version 1" in " ".join(shown.out.split())
    assert limbeck("registry", "promote", "digits", 2).out == "digits: version 2 is the champion\n"
    assert (
        "version 1 is the champion again, version 2 the previous one" in limbeck("registry", "rollback", "digits").out
    )
    pulled = limbeck("registry", "pull", "digits", tmp_path / "pulled")
    assert "digits, version 1" in pulled.out
    assert library.load(str(tmp_path / "pulled")).images.shape == (4, 3, 8, 8)
    assert "version 2" in limbeck("registry", "pull", "digits@previous", tmp_path / "other").out


@pytest.mark.parametrize(
    ("arguments", "code", "phrase"),
    [
        (["show", "nothing"], 2, "no such distilled set in sqlite:///"),
        (["promote", "digits", "9"], 2, "there is no such version; 2, 1"),
        (["rollback", "digits"], 2, "no previous champion"),
        (["pull", "digits@best", "x"], 2, "no alias 'best'"),
        (["list", "--tracking-uri", "http://127.0.0.1:9"], 1, "MLflow at http://127.0.0.1:9"),
        (["list", "--tracking-uri", "nonsense://x"], 1, "nonsense"),
    ],
)
def test_what_cannot_be_done_is_one_line(limbeck, two_versions, arguments, code, phrase):
    outcome = limbeck("registry", *arguments)
    assert outcome.code == code
    assert phrase in outcome.problems[-1]
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(
    ("metric", "phrase"),
    [
        ("acuracy/digits", "is not evaluated; accuracy"),
        ("accuracy/digits/convnet/random/0.1", "is a figure of random, not of the set; accuracy/digits/convnet/0.1"),
    ],
)
def test_a_metric_that_no_gate_can_take_is_refused_before_any_work(limbeck, tmp_path, metric, phrase):
    spec = write_tiny(tmp_path / "tiny.yaml", tmp_path / "out", {"registry.metric": metric})
    outcome = limbeck("run", spec)
    assert outcome.code == 2
    assert f"spec.registry.metric: {metric} {phrase}" in outcome.problems[-1]


def test_a_run_without_any_setting_is_tracked_in_a_file_here_and_shown_by_ui(limbeck, tmp_path, finished):
    output = copy_of(finished, tmp_path / "out")
    nothing_yet = limbeck("ui")
    assert nothing_yet.code == 2
    assert "nothing was tracked here yet" in nothing_yet.err
    spec = write_tiny(tmp_path / "tiny.yaml", output, {"tracking": {}, "registry.name": "tiny-set"})
    outcome = limbeck("run", spec)
    assert outcome.code == 0, outcome.err
    assert "registered     tiny-set, version 1, the champion" in outcome.out
    assert "limbeck ui shows it" in outcome.out
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "limbeck.cli", "ui", "--port", str(port)]
    shown = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    try:
        assert shown.stdout is not None
        assert shown.stdout.readline() == f"http://127.0.0.1:{port}/#/experiments?workflowType=machine_learning\n"
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.3)
    finally:
        os.killpg(shown.pid, signal.SIGINT)  # as a terminal does; MLflow's own processes would be left otherwise
        assert shown.wait(30) == 0


def test_a_pre_trained_encoder_is_a_pytorch_model_linked_to_its_set(tmp_path, two_versions):
    source = "models:/digits@champion"
    distilled = library.load(source)
    encoder = library.pretrain(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten()), distilled)
    uri = library.log_encoder(encoder, distilled, source=source, name="small")
    again = mlflow.pytorch.load_model(uri)
    assert torch.equal(
        again.module()(distilled.images) if hasattr(again, "module") else again(distilled.images),
        encoder(distilled.images),
    )
    client = mlflow.MlflowClient(two_versions)
    model = client.get_logged_model(uri.removeprefix("models:/"))
    run = client.get_run(model.source_run_id)
    assert [entry.model_id for entry in run.inputs.model_inputs] == [Registry(two_versions).resolve(source).model_id]
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".pkl", ".pickle", ".pth")]
