"""Pre-training by regression: what comes back, and that it is the same every time."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from limbeck.checkpoint import Checkpoint
from limbeck.data.feed import Examples
from limbeck.interrupt import Stopped, StopRequest
from limbeck.nn.encoders import EncoderConfig, build_encoder
from limbeck.nn.pretraining import Recipe, pretrain_encoder
from limbeck.seeding import generator, seeded
from limbeck.spec import epoch_steps

CPU = torch.device("cpu")
RECIPE = Recipe(rate=0.05, steps=12, batch=8, momentum=0.9, weight_decay=1e-4)


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
    recipe = replace(RECIPE, steps=180)
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


@pytest.mark.parametrize("steps", [1, 4, 5, 11])
def test_exactly_as_many_steps_are_taken_as_the_recipe_has_across_epochs(data, steps):
    """Thirty images in batches of eight: four steps an epoch, as batch norm counts them."""
    assert pretrained(data, replace(RECIPE, steps=steps))[1].num_batches_tracked == steps


@pytest.mark.parametrize(
    ("count", "batch", "steps"), [(30, 8, 4), (32, 8, 4), (33, 8, 4), (34, 8, 5), (5, 8, 1), (3, 1, 3)]
)
def test_an_epoch_ends_with_a_shorter_batch_unless_that_is_one_image(count, batch, steps):
    assert epoch_steps(count, batch) == steps


def plain(images, targets, recipe, seed):
    """The same by the book: a loop over epochs and batches with torch's own optimiser arithmetic written out."""
    module = encoder().train()
    with seeded(seed, "pretrain", "head"):
        head = torch.nn.Linear(module(images[:2]).shape[1], targets.shape[1])
    module = encoder().train()
    parameters = [*module.parameters(), *head.parameters()]
    velocity = [torch.zeros_like(p) for p in parameters]
    done, epoch = 0, 0
    while done < recipe.steps:
        order = torch.randperm(len(images), generator=generator(seed, "pretrain", "order", epoch))
        for rows in order.split(recipe.batch):
            if done == recipe.steps:
                break
            loss = (head(module(images[rows])) - targets[rows]).square().mean()
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                for p, v, g in zip(parameters, velocity, gradients, strict=True):
                    v.mul_(recipe.momentum).add_(g + recipe.weight_decay * p)
                    p.sub_(recipe.rate * v)
            done += 1
        epoch += 1
    return module.eval()


@pytest.mark.parametrize("changes", [{}, {"weight_decay": 0.1}, {"momentum": 0.0}, {"steps": 7}, {"rate": 0.01}])
def test_it_is_sgd_with_momentum_and_weight_decay_on_the_mean_squared_error(data, changes):
    recipe = replace(RECIPE, **changes)
    expected = plain(*data, recipe, 0)
    for ours, theirs in zip(
        pretrained(data, recipe).state_dict().values(), expected.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_points_see_the_encoder_as_training_for_that_long_leaves_it(data):
    module, seen = encoder(), {}
    pretrained(data, module=module, points=(3, 6), reached=lambda step: seen.update({step: copy.deepcopy(module)}))
    assert list(seen) == [3, 6]
    for steps, found in seen.items():
        assert not found.training
        assert same(found, pretrained(data, replace(RECIPE, steps=steps)))


@pytest.mark.parametrize("when", [1, 5, 8, 11])
def test_a_stopped_training_resumes_to_the_same_bytes(data, tmp_path, when):
    class StopAfter(StopRequest):
        steps = 0

        def check(self):
            super().check()
            self.steps += 1
            self.requested = self.steps >= when

    points, seen = (3, 6, 12), []
    recipe = replace(RECIPE, augmentation="flipShift")
    options = {"points": points, "reached": seen.append}
    with pytest.raises(Stopped):
        pretrained(data, recipe, stop=StopAfter(), checkpoint=Checkpoint(tmp_path, 1e9), **options)
    resumed = pretrained(data, recipe, checkpoint=Checkpoint(tmp_path, 1e9), **options)
    assert same(resumed, pretrained(data, recipe))
    assert seen == list(points)


def test_a_batch_larger_than_the_set_is_the_set(data):
    images, targets = data
    small = images[:5], targets[:5]
    assert same(pretrained(small, replace(RECIPE, batch=1000)), pretrained(small, replace(RECIPE, batch=5)))


def test_features_of_any_shape_are_flattened_for_the_head(data):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU())
    before = copy.deepcopy(module)
    assert not same(pretrained(data, module=module), before)


@pytest.mark.parametrize("steps", [3, 15])
def test_a_diverging_training_is_an_error(data, steps):
    with pytest.raises(FloatingPointError, match=r"learning rate 1e\+30"):
        pretrained(data, replace(RECIPE, rate=1e30, steps=steps), module=encoder("none"))


def test_a_network_that_is_not_finite_is_never_returned(data):
    """One step of one epoch: the loss before the step is finite, what the step leaves is not."""
    images, targets = data
    with pytest.raises(FloatingPointError):
        pretrained((images, 1e6 * targets), replace(RECIPE, rate=1e38, steps=1, batch=30), module=encoder("none"))


def test_a_stop_request_stops_it(data):
    stop = StopRequest()
    stop.requested = True
    with pytest.raises(Stopped):
        pretrained(data, stop=stop)


def test_a_recipe_of_whole_epochs_in_an_earlier_file_is_read_as_its_steps():
    record = {"rate": 0.1, "epochs": 5, "batch": 8, "momentum": 0.9, "weight_decay": 1e-4}
    assert Recipe.read(record, 30) == Recipe(0.1, 15, 8, 0.9, 1e-4)
    assert Recipe.read(RECIPE.wire(), 30) == RECIPE
