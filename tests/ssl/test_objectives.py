"""Both objectives can be learned, and their heads depend on the seed alone."""

from __future__ import annotations

import pytest
import torch

from limbeck.nn.encoders import EncoderConfig, build_encoder
from limbeck.spec import Teacher
from limbeck.ssl.objectives import build_objective


@pytest.mark.parametrize("algorithm", ["barlowTwins", "simclr"])
def test_the_loss_falls_in_a_few_steps_on_a_tiny_batch(algorithm):
    encoder = build_encoder(EncoderConfig("convnet", 8, 8, "batch", 1), 0).train()
    objective = build_objective(Teacher(algorithm=algorithm, projection=16), encoder.feature_dimension, 0)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(32, 3, 8, 8, generator=generator)
    one, two = (images + 0.3 * torch.randn(images.shape, generator=generator) for _ in range(2))
    optimizer = torch.optim.Adam([*encoder.parameters(), *objective.head.parameters()], lr=3e-3)
    losses = []
    for _ in range(25):
        loss = objective(*encoder(torch.cat([one, two])).chunk(2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("algorithm", ["barlowTwins", "simclr"])
def test_the_head_depends_on_the_seed_alone(algorithm):
    teacher = Teacher(algorithm=algorithm, projection=16)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, other = (build_objective(teacher, 12, seed).head.state_dict() for seed in (0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    same = build_objective(teacher, 12, 0).head.state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_simclr_s_loss_is_that_of_the_paper():
    objective = build_objective(Teacher(algorithm="simclr", temperature=0.5, projection=8), 6, 0)
    first, second = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
    z = torch.nn.functional.normalize(objective.head(torch.cat([first, second])), dim=1)
    similarity = z @ z.T / 0.5
    similarity.fill_diagonal_(-torch.inf)
    partner = torch.arange(10).roll(5)
    expected = torch.nn.functional.cross_entropy(similarity, partner)
    objective.head.train()
    z1, z2 = z.chunk(2)  # one pass over both views: batch norm in the head sees them together
    torch.testing.assert_close(objective.loss(z1, z2), expected)


def test_barlow_twins_loss_is_that_of_the_paper():
    teacher = Teacher(redundancy_weight=0.01, projection=8)
    loss = build_objective(teacher, 6, 0).loss
    first, second = torch.randn(2, 20, 8, generator=torch.Generator().manual_seed(0))
    a, b = ((z - z.mean(0)) / z.std(0, correction=0) for z in (first, second))
    correlation = a.T @ b / 20
    diagonal = correlation.diagonal()
    off = correlation.square().sum() - diagonal.square().sum()
    torch.testing.assert_close(loss(first, second), (1 - diagonal).square().sum() + 0.01 * off, rtol=1e-3, atol=1e-3)
