"""Encoders: their shapes and names, and weights that depend on the seed and the purpose alone."""

from __future__ import annotations

import pytest
import torch
import torchvision

from limbeck.nn.encoders import EncoderConfig, build_encoder, build_student


def config(architecture="convnet", image_size=8, width=8, norm="instance", depth=None):
    return EncoderConfig(architecture, image_size, width, norm, depth)


@pytest.mark.parametrize(
    ("image_size", "depth", "width", "features"),
    [(32, None, 128, 2048), (64, None, 128, 2048), (8, None, 8, 128), (8, 2, 8, 32), (4, None, 5, 20), (48, 4, 4, 36)],
)
def test_a_convnet_s_features_are_its_width_times_the_pixels_that_are_left(image_size, depth, width, features):
    encoder = build_encoder(config(image_size=image_size, depth=depth, width=width), 0)
    assert encoder.feature_dimension == features
    assert encoder(torch.randn(2, 3, image_size, image_size)).shape == (2, features)


def test_a_convnet_that_cannot_halve_its_image_is_refused():
    with pytest.raises(ValueError, match="3 blocks cannot halve 12x12 pixels"):
        build_encoder(config(image_size=12, depth=3), 0)


@pytest.mark.parametrize("architecture", ["resnet10", "resnet18"])
@pytest.mark.parametrize("image_size", [8, 32, 64])
def test_resnets_take_images_of_any_size_and_are_differentiable_twice(architecture, image_size):
    encoder = build_encoder(config(architecture, image_size, 4, "batch"), 0)
    images = torch.randn(2, 3, image_size, image_size, requires_grad=True)
    features = encoder(images)
    assert features.shape == (2, encoder.feature_dimension) == (2, 32)
    (gradient,) = torch.autograd.grad(features.square().sum(), images, create_graph=True)
    gradient.square().sum().backward()
    assert images.grad.abs().sum() > 0


@pytest.mark.parametrize("architecture", ["convnet", "resnet10", "resnet18"])
@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
@pytest.mark.parametrize("image_size", [8, 32])
def test_features_tell_images_apart(architecture, norm, image_size):
    """A network whose normalisation wipes out its input would train, distil and be probed without an error."""
    if architecture != "convnet" and norm == "instance" and image_size == 8:
        pytest.skip("refused by the spec: its last stage is one pixel, and a pixel minus itself is nothing")
    encoder = build_encoder(config(architecture, image_size, 8, norm), 0)
    features = encoder(torch.randn(8, 3, image_size, image_size))
    assert features.std(0).max() > 1e-3


def test_a_resnet18_s_parameters_are_named_and_shaped_as_torchvision_s():
    ours = {n: t.shape for n, t in build_encoder(config("resnet18", 32, 64, "batch"), 0).state_dict().items()}
    theirs = {n: t.shape for n, t in torchvision.models.resnet18().state_dict().items() if not n.startswith("fc.")}
    assert list(ours) == list(theirs)
    assert ours.pop("conv1.weight") == (64, 3, 3, 3)  # the stem for small images
    theirs.pop("conv1.weight")
    assert ours == theirs


def states(*modules):
    return [torch.cat([p.flatten() for p in module.state_dict().values()]) for module in modules]


@pytest.mark.parametrize("architecture", ["convnet", "resnet10"])
def test_weights_depend_on_the_seed_and_the_purpose_alone(architecture):
    shape = config(architecture, norm="batch")
    torch.manual_seed(1)
    one = build_student(shape, 5, 3, "expert", 7)
    torch.manual_seed(2)
    torch.randn(100)
    others = (build_student(shape, 5, *which) for which in ((3, "expert", 7), (4, "expert", 7), (3, "x", 7)))
    first, second, third, fourth = states(one, *others)
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert not torch.equal(first, fourth)
    # the encoder is that encoder, whatever its head
    assert torch.equal(*states(one.encoder, build_encoder(shape, 3, "expert", 7)))
    assert torch.equal(*states(one.encoder, build_student(shape, 9, 3, "expert", 7).encoder))


def test_building_an_encoder_leaves_torch_s_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    build_student(config(), 5, 0)
    assert torch.equal(torch.get_rng_state(), before)
