"""A teacher that is stopped goes on within its epoch, and ends with the bytes of one that is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from limbeck.checkpoint import Checkpoint, load_tensors, save_tensors
from limbeck.data.dataset import ImageDataset
from limbeck.interrupt import Stopped, StopRequest
from limbeck.nn.encoders import EncoderConfig, build_encoder
from limbeck.spec import Teacher
from limbeck.ssl.training import train_ssl
from tests.stages.tiny import StopAt

CPU = torch.device("cpu")
SETTINGS = Teacher(architecture="resnet10", width=8, epochs=2, batch=8, projection=8)
STEPS = 3  # an epoch


@pytest.fixture
def dataset(tmp_path) -> ImageDataset:
    images = np.random.default_rng(0).integers(0, 256, (26, 3, 8, 8), np.uint8)
    mean, std = np.full(3, 0.5, np.float32), np.full(3, 0.3, np.float32)
    return ImageDataset(tmp_path, images, None, (), mean, std, {})


def trained(dataset, folder, every=1000.0, stop_after=10**6):
    """The weights, the losses and the step that it began at."""
    encoder, progress = (
        build_encoder(EncoderConfig("resnet10", 8, 8, "batch"), 0, "teacher"),
        StopAt("teacher", stop_after),
    )
    losses = train_ssl(
        encoder,
        dataset,
        SETTINGS,
        device=CPU,
        seed=0,
        checkpoint=Checkpoint(folder, every),
        stop=progress.stop,
        progress=progress,
    )
    return encoder.state_dict(), losses, progress.started_at["teacher"]


def test_weights_that_the_last_step_breaks_are_refused_with_every_loss_finite(tmp_path, dataset, monkeypatch):
    def broken(optimizer, *_):
        optimizer.param_groups[0]["params"][0].data.fill_(torch.inf)

    monkeypatch.setattr(torch.optim.AdamW, "step", broken)
    settings = SETTINGS.model_copy(update={"epochs": 1, "batch": 26})  # one step
    encoder, losses = build_encoder(EncoderConfig("resnet10", 8, 8, "batch"), 0, "teacher"), list[float]()
    with pytest.raises(FloatingPointError, match=r"^conv1\.weight of the encoder is not finite after the last step$"):
        train_ssl(
            encoder,
            dataset,
            settings,
            device=CPU,
            seed=0,
            checkpoint=Checkpoint(tmp_path, 1000.0),
            stop=StopRequest(),
            epoch_done=lambda _, loss: losses.append(loss),
        )
    assert np.isfinite(losses).tolist() == [True]


def same(one, other) -> bool:
    return one[1] == other[1] and all(torch.equal(tensor, other[0][name]) for name, tensor in one[0].items())


@pytest.mark.parametrize("steps", range(1, 2 * STEPS))
def test_a_stopped_teacher_goes_on_within_its_epoch_to_the_same_bytes(tmp_path, dataset, steps):
    uncut = trained(dataset, tmp_path / "uncut")
    with pytest.raises(Stopped):
        trained(dataset, tmp_path / "cut", stop_after=steps)
    onward = trained(dataset, tmp_path / "cut")
    assert onward[2] == steps
    assert same(onward, uncut)


def test_state_is_saved_in_time_and_changes_nothing(tmp_path, dataset):
    seldom, often = trained(dataset, tmp_path / "seldom"), trained(dataset, tmp_path / "often", every=0.0)
    assert same(seldom, often)
    assert not (tmp_path / "seldom").exists()
    values = load_tensors(tmp_path / "often" / "checkpoint.safetensors")[1]
    assert (values["epochs"], values["step"]) == (1, STEPS - 1)
    assert same(trained(dataset, tmp_path / "often"), seldom)  # as after a kill


def test_state_of_a_version_that_saved_between_epochs_is_taken_up(tmp_path, dataset):
    with pytest.raises(Stopped):
        trained(dataset, tmp_path, stop_after=STEPS)
    path = tmp_path / "checkpoint.safetensors"
    tensors, values = load_tensors(path)
    assert values.pop("step") == 0
    assert tensors.pop("total") == 0.0
    save_tensors(path, tensors, values)
    onward = trained(dataset, tmp_path)
    assert onward[2] == STEPS
    assert same(onward, trained(dataset, tmp_path / "uncut"))
