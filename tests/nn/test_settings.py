"""What pre-training does with its settings, on a parameter that the loss does not reach; and small parts of nn."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from limbeck.data.feed import Examples
from limbeck.nn import precision
from limbeck.nn.augmentation import Moves, randomly_moved
from limbeck.nn.encoders import EncoderConfig, student_config
from limbeck.nn.pretraining import Recipe, pretrain_encoder
from limbeck.spec import DistillationSpec


class WithSpare(torch.nn.Module):
    """An encoder with a parameter whose gradient is zero: weight decay alone moves it."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = torch.nn.Parameter(torch.tensor([1.0, -2.0]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :4] + 0.0 * self.spare.sum()


@pytest.mark.parametrize(
    "changes",
    [{}, {"rate": 0.5}, {"weight_decay": 0.0}, {"weight_decay": 0.3}, {"momentum": 0.0}, {"steps": 1}, {"batch": 4}],
    ids=str,
)
def test_at_zero_gradient_pre_training_moves_by_rate_times_decay_times_theta_with_momentum(changes):
    settings: dict[str, Any] = {"rate": 0.1, "steps": 7, "batch": 8, "momentum": 0.9, "weight_decay": 0.05} | changes
    examples = Examples.held(torch.randn(20, 3, 4, 4), torch.randn(20, 2), torch.device("cpu"))
    found = pretrain_encoder(WithSpare(), examples, Recipe(**settings), seed=0)
    theta, velocity = torch.tensor([1.0, -2.0]), torch.zeros(2)
    for _ in range(settings["steps"]):
        velocity = settings["momentum"] * velocity + settings["weight_decay"] * theta
        theta = theta - settings["rate"] * velocity
    torch.testing.assert_close(found.spare.detach(), theta)


def test_images_are_moved_by_draws_of_their_own_from_the_generator():
    images = torch.randn(9, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    moves = Moves.draw((9,), 16, torch.Generator().manual_seed(5))
    assert torch.equal(randomly_moved(images, torch.Generator().manual_seed(5)), moves(images))


def test_shifts_reach_an_eighth_of_the_side_both_ways_and_half_are_mirrored():
    for side, most in ((4, 1), (8, 1), (16, 2), (40, 5)):
        moves = Moves.draw((2000,), side, torch.Generator().manual_seed(0))
        for part in (moves.down, moves.right):
            assert (part.min().item(), part.max().item()) == (-most, most)
        assert moves.mirrored.float().mean().item() == pytest.approx(0.5, abs=0.05)
        assert not torch.equal(moves.down, moves.right)


def test_the_student_s_encoder_is_as_the_spec_says():
    student = {"architecture": "resnet10", "width": 12, "norm": "batch", "depth": 2}
    spec = DistillationSpec.model_validate({"source": {"uri": "a", "imageSize": 16}, "student": student})
    config = student_config(spec)
    assert config == EncoderConfig("resnet10", 16, 12, "batch", 2)
    assert config.wire() == student | {"image_size": 16}


@pytest.mark.parametrize("has", [True, False])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_emulated_bfloat16_is_noted_where_the_hardware_lacks_it(monkeypatch, has, device):
    asked = []

    def of_cuda(including_emulation: bool = True) -> bool:
        asked.append(including_emulation)
        return has

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", of_cuda)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has)
    said: list[str] = []
    precision.tell_emulation("bfloat16", torch.device(device), said.append)
    assert said == ([] if has else ["this machine computes bfloat16 by emulation: slower than float32"])
    assert asked == ([False] if device == "cuda" else [])
    precision.tell_emulation("float32", torch.device(device), said.append)
    assert len(said) == (not has)
