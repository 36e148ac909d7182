"""An iteration's gradient: the mean over its pairs, in one process and over several."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from limbeck.checkpoint import load_tensors, save_tensors
from limbeck.matching.experts import FILE, Experts
from limbeck.matching.match import match
from limbeck.matching.matcher import Matcher
from limbeck.matching.steps import Steps, student_loss
from limbeck.matching.unroll import InnerLoop
from limbeck.nn.augmentation import Moves
from limbeck.nn.encoders import EncoderConfig, build_student
from limbeck.nn.flat import FlatNetwork, flatten
from limbeck.spec import Engine

SIZE, DIMENSION = 7, 3
NETWORK = FlatNetwork(build_student(EncoderConfig("convnet", 8, 4, "instance", 1), DIMENSION, 0))


def matcher(folder, **changes):
    """Of two experts with three epochs; batches of four of the seven images."""
    files = []
    for index in range(2):
        student = build_student(EncoderConfig("convnet", 8, 4, "instance", 1), DIMENSION, 0, index)
        theta = flatten(student) + 0.05 * torch.randn(4, 1, generator=torch.Generator().manual_seed(index)).cumsum(0)
        files.append(folder / str(index) / FILE)
        if not files[-1].exists():
            save_tensors(files[-1], {"theta": theta})
    settings = {"seed": 3, "start_epochs": lambda iteration: 2, "gap": 2, "inner_steps": 4, "inner_batch": 4}
    settings |= {"engine": Engine(), "device": torch.device("cpu")} | changes
    return Matcher(Experts(files), Steps(student_loss(FlatNetwork(student))), InnerLoop(0.9), **settings)


def synthetic():
    draws = torch.Generator().manual_seed(1)
    images, targets = (torch.randn(SIZE, *shape, generator=draws) for shape in ((3, 8, 8), (DIMENSION,)))
    return images, targets, torch.tensor(0.05)


def test_the_gradient_is_the_mean_over_the_pairs(tmp_path):
    one = matcher(tmp_path)
    drawn = one.draw(0, 3, SIZE)
    together, alone = one.match(drawn, *synthetic()), [one.match([pair], *synthetic()) for pair in drawn]
    torch.testing.assert_close(torch.tensor(together.loss), torch.tensor([m.loss for m in alone]).mean())
    for part in ("images", "targets", "rate"):
        mean = torch.stack([getattr(m.gradient, part) for m in alone]).mean(0)
        torch.testing.assert_close(getattr(together.gradient, part), mean)


def test_draws_depend_on_the_seed_and_the_iteration_alone(tmp_path):
    one, other = matcher(tmp_path), matcher(tmp_path)
    other.match(other.draw(0, 1, SIZE), *synthetic())
    for pair, again in zip(one.draw(5, 3, SIZE), other.draw(5, 3, SIZE), strict=True):
        assert (pair.expert, pair.epoch) == (again.expert, again.epoch)
        assert torch.equal(pair.order, again.order)
    assert torch.equal(one.draw(5, 1, SIZE)[0].order, one.draw(5, 3, SIZE)[0].order)  # more pairs keep the first
    orders = [pair.order for iteration in range(3) for pair in one.draw(iteration, 3, SIZE)]
    assert not any(torch.equal(a, b) for k, a in enumerate(orders) for b in orders[:k])
    assert {pair.expert for k in range(20) for pair in one.draw(k, 1, SIZE)} == {0, 1}
    assert {pair.epoch for k in range(20) for pair in one.draw(k, 1, SIZE)} == {0, 1}


def test_another_seed_draws_otherwise(tmp_path):
    one, other = (matcher(tmp_path, seed=seed).draw(5, 3, SIZE) for seed in (3, 4))
    assert not torch.equal(torch.stack([pair.order for pair in one]), torch.stack([pair.order for pair in other]))


@pytest.mark.parametrize(
    "changes", [{}, {"inner_batch": SIZE}, {"image_size": 8}, {"layers": NETWORK.sizes}, {"gap": 1}], ids=str
)
def test_a_pair_is_matched_as_the_settings_say(tmp_path, changes):
    """Also in batches of the whole set, with augmented images, and with the loss taken by layer."""
    one, settings = matcher(tmp_path, **changes), {"inner_batch": 4, "gap": 2} | changes
    (pair,) = one.draw(1, 1, SIZE)
    thetas = load_tensors(tmp_path / str(pair.expert) / FILE)[0]["theta"]
    start, goal = thetas[pair.epoch], thetas[pair.epoch + settings["gap"]]
    assert (pair.order is None) == (settings["inner_batch"] >= SIZE)
    assert (pair.moves is None) == ("image_size" not in changes)
    batches = [None] * 4 if pair.order is None else [rows[None] for rows in pair.order]
    moves = None if pair.moves is None else Moves.stack([pair.moves]).steps()
    steps, layers = Steps(student_loss(NETWORK)), changes.get("layers")
    expected = match(steps, start[None], goal[None], *synthetic(), batches, InnerLoop(0.9), moves=moves, layers=layers)
    found = one.match([pair], *synthetic())
    assert found.loss == pytest.approx(expected.losses.item(), rel=1e-5)
    for part in ("images", "targets", "rate"):
        torch.testing.assert_close(
            getattr(found.gradient, part), getattr(expected.gradient, part), rtol=1e-4, atol=1e-6
        )


RANK = """
import sys, torch
from pathlib import Path
from limbeck.checkpoint import save_tensors
from tests.matching.test_matcher import SIZE, matcher, synthetic

folder, rank, ranks = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
one = matcher(folder)
found = one.match(one.draw(0, 3, SIZE), *synthetic())
gradient = found.gradient
save_tensors(folder / f"rank{rank}", {"images": gradient.images, "targets": gradient.targets, "rate": gradient.rate,
             "loss": torch.tensor(found.loss)})
torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize("ranks", [2, 4])  # of three pairs one matches two; one has none, and takes part in the sum
def test_ranks_share_the_pairs_and_agree_on_the_gradient(tmp_path, ranks):
    one = matcher(tmp_path)
    alone = one.match(one.draw(0, 3, SIZE), *synthetic())
    processes = [
        subprocess.Popen([sys.executable, "-c", RANK, str(tmp_path), str(rank), str(ranks)]) for rank in range(ranks)
    ]
    assert [process.wait(120) for process in processes] == [0] * ranks
    found = [load_tensors(tmp_path / f"rank{rank}")[0] for rank in range(ranks)]
    for other in found[1:]:
        assert all(torch.equal(found[0][name], other[name]) for name in other)
    for name in ("images", "targets", "rate"):
        expected = getattr(alone.gradient, name)
        assert (found[0][name] - expected).norm() < 1e-6 * expected.norm()
    assert found[0]["loss"].item() == pytest.approx(alone.loss, rel=1e-6)
