"""Images are mirrored and shifted, and gradients find their way back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.nn.augmentation import Moves


def moves(mirrored, down, right):
    return Moves(torch.tensor([mirrored]), torch.tensor([down]), torch.tensor([right]))


@pytest.mark.parametrize(
    ("move", "expected"),
    [
        (moves(False, 0, 0), [[1, 2, 3], [4, 5, 6], [7, 8, 9]]),
        (moves(True, 0, 0), [[3, 2, 1], [6, 5, 4], [9, 8, 7]]),
        (moves(False, 1, 0), [[0, 0, 0], [1, 2, 3], [4, 5, 6]]),
        (moves(False, 0, -1), [[2, 3, 0], [5, 6, 0], [8, 9, 0]]),
        (moves(True, -1, 1), [[0, 6, 5], [0, 9, 8], [0, 0, 0]]),
    ],
)
def test_an_image_is_mirrored_then_shifted_and_zeros_come_in(move, expected):
    image = torch.arange(1.0, 10.0).view(1, 1, 3, 3).expand(1, 3, 3, 3)
    assert torch.equal(move(image)[0, 1], torch.tensor(expected, dtype=torch.float32))


@given(side=st.integers(4, 24), images=st.integers(1, 5), networks=st.integers(1, 3), seed=st.integers(0, 99))
def test_the_adjoint_is_what_autograd_finds(side, images, networks, seed):
    draws = torch.Generator().manual_seed(seed)
    drawn = Moves.stack([Moves.draw((images,), side, draws) for _ in range(networks)])
    x = torch.randn(networks, images, 3, side, side, dtype=torch.float64, generator=draws, requires_grad=True)
    gradient = torch.randn(x.shape, dtype=torch.float64, generator=draws)
    (expected,) = torch.autograd.grad(drawn(x), x, gradient)
    assert torch.equal(drawn.adjoint(gradient), expected)


def test_moves_are_drawn_from_all_that_there_are():
    drawn = Moves.draw((4000,), 16, torch.Generator().manual_seed(0))
    seen = set(zip(drawn.mirrored.tolist(), drawn.down.tolist(), drawn.right.tolist(), strict=True))
    assert seen == {(m, d, r) for m in (False, True) for d in range(-2, 3) for r in range(-2, 3)}


def test_the_moves_of_many_steps_are_taken_apart_step_by_step():
    drawn = [Moves.draw((3, 4), 8, torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    steps = Moves.stack(drawn).steps()
    assert len(steps) == 3
    for step, found in enumerate(steps):
        assert torch.equal(found.down, torch.stack([drawn[0].down[step], drawn[1].down[step]]))
