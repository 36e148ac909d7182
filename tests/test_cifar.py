"""The whole method on real pictures, very small: a zip of class folders in, a report out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import limbeck
from limbeck.nn.encoders import EncoderConfig, build_encoder
from limbeck.runner import Run
from limbeck.specfile import read_spec
from limbeck.stages.task import Workshop
from limbeck.store import Store

DATA = os.environ.get("LIMBECK_TEST_DATA")
EXAMPLE = Path(__file__).parent.parent / "examples" / "cifar10-small.yaml"

pytestmark = pytest.mark.skipif(DATA is None, reason="LIMBECK_TEST_DATA does not name a folder of CIFAR-10 zips")


def test_the_laptop_example_runs_end_to_end_on_real_pictures(tmp_path):
    train, test = f"{DATA}/cifar10-train.zip", f"{DATA}/cifar10-test.zip"
    tiny = [
        f"source.uri={train}",
        "source.limit=600",
        f"evaluate.tasks=[{{name: cifar, train: {{uri: '{train}', limit: 600}}, test: {{uri: '{test}', limit: 200}}}}]",
        "evaluate.labelFractions=[0.1, 0.5]",
        "evaluate.seeds=[0, 1]",
        "evaluate.steps=8",
        "evaluate.rateFactors=[1.0]",
        "evaluate.selectionSeeds=[1000]",
        "teacher.epochs=1",
        "teacher.width=8",
        "student.width=8",
        "trajectories.experts=2",
        "distill.iterations=3",
        "distill.innerSteps=3",
    ]
    specfile = read_spec(EXAMPLE, [*tiny, f"output.uri={tmp_path}"])
    summary = Run(specfile.distillation, Workshop(Store(str(tmp_path)), torch.device("cpu"))).all()

    assert (summary.source.images, summary.distilled.images) == (600, 12)
    methods = {"distilled", "none", "start", "random", "highLoss", "full"}
    assert {entry.method for entry in summary.accuracies} == methods
    assert all(0.05 < entry.mean < 0.6 for entry in summary.accuracies)
    assert (tmp_path / "runs" / "cifar10-small" / "report.html").stat().st_size > 10_000

    distilled = limbeck.load(summary.distilled.path)
    encoder = build_encoder(EncoderConfig("convnet", 16, 8, "instance", 3), 0)
    before = encoder.state_dict()["0.weight"].clone()
    limbeck.pretrain(encoder, distilled, device="cpu")
    assert not torch.equal(encoder.state_dict()["0.weight"], before)
