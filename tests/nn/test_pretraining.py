"""Pre-training by regression: what comes back, and that it is the same every time."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from limbeck.data.feed import Examples
from limbeck.interrupt import Stopped, StopRequest
from limbeck.nn.encoders import EncoderConfig, build_encoder
from limbeck.nn.pretraining import Recipe, pretrain_encoder

CPU = torch.device("cpu")
RECIPE = Recipe(rate=0.05, epochs=3, batch=8, momentum=0.9, weight_decay=1e-4)


def encoder(norm="batch"):
    return build_encoder(EncoderConfig("convnet", 8, 8, norm, 1), 0)


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(30, 3, 8, 8, generator=generator)
    parts = images.flatten(1), images[:, 0, :4].flatten(1), images[:, 1, :, 4:].flatten(1)
    return images, torch.stack([part.mean(1) for part in parts], 1)


def pretrained(data, recipe=RECIPE, seed=0, module=None, **options):
    return pretrain_encoder(module or encoder(), Examples.held(*data, CPU), recipe, seed=seed, **options)


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_the_encoder_itself_comes_back_trained_in_eval_mode_without_a_head(data):
    module = encoder()
    names, before = list(module.state_dict()), copy.deepcopy(module)
    result = pretrained(data, module=module)
    assert result is module
    assert not any(part.training for part in result.modules())
    assert list(result.state_dict()) == names
    assert not same(result, before)


def test_what_it_learns_is_the_targets(data):
    images, targets = data
    recipe = replace(RECIPE, epochs=60)
    features = {name: m(images).detach() for name, m in (("no", encoder().eval()), ("yes", pretrained(data, recipe)))}
    left = {
        name: (targets - f @ torch.linalg.solve(f.T @ f + torch.eye(f.shape[1]), f.T @ targets)).norm()
        for name, f in features.items()
    }
    assert left["yes"] < 0.7 * left["no"]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(data):
    torch.manual_seed(1)
    first = pretrained(data)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert same(first, pretrained(data))
    assert torch.equal(torch.get_rng_state(), before)
    assert not same(first, pretrained(data, seed=1))


def test_one_pass_has_as_many_steps_as_whole_batches(data):
    """Thirty images in batches of eight: three steps an epoch, as batch norm counts them."""
    assert pretrained(data)[1].num_batches_tracked == 3 * RECIPE.epochs


def test_a_batch_larger_than_the_set_is_the_set(data):
    images, targets = data
    small = images[:5], targets[:5]
    assert same(pretrained(small, replace(RECIPE, batch=1000)), pretrained(small, replace(RECIPE, batch=5)))


def test_features_of_any_shape_are_flattened_for_the_head(data):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU())
    before = copy.deepcopy(module)
    assert not same(pretrained(data, module=module), before)


@pytest.mark.parametrize("epochs", [1, 5])
def test_a_diverging_training_is_an_error(data, epochs):
    with pytest.raises(FloatingPointError, match="at learning rate 1e\\+30"):
        pretrained(data, replace(RECIPE, rate=1e30, epochs=epochs), module=encoder("none"))


def test_a_network_that_is_not_finite_is_never_returned(data):
    """One step of one epoch: the loss before the step is finite, what the step leaves is not."""
    images, targets = data
    with pytest.raises(FloatingPointError):
        pretrained((images, 1e6 * targets), replace(RECIPE, rate=1e38, epochs=1, batch=30), module=encoder("none"))


def test_a_stop_request_stops_it(data):
    stop = StopRequest()
    stop.requested = True
    with pytest.raises(Stopped):
        pretrained(data, stop=stop)
