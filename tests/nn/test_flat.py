"""A flat parameter vector gives what the module gives, and calling it changes nothing."""

from __future__ import annotations

import copy

import pytest
import torch

from limbeck.nn.encoders import EncoderConfig, build_student
from limbeck.nn.flat import FlatNetwork, flatten

NETWORKS = [("convnet", "instance"), ("convnet", "batch"), ("convnet", "none"), ("resnet10", "batch")]


def student(architecture="convnet", norm="batch", seed=0):
    return build_student(EncoderConfig(architecture, 16, 4, norm, None), 5, seed)


@pytest.mark.parametrize(("architecture", "norm"), NETWORKS)
def test_the_flat_network_equals_the_module_and_leaves_it_as_it_is(architecture, norm):
    module, images = student(architecture, norm).train(), torch.randn(6, 3, 16, 16)
    before = copy.deepcopy(module.state_dict())
    network = FlatNetwork(module)
    first = network(flatten(module), images)
    second = network(flatten(module), images)
    assert torch.equal(first, second)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    torch.testing.assert_close(first, module(images))  # in training mode, with the batch's own statistics
    assert network.parameter_count == flatten(module).numel()


@pytest.mark.parametrize(("architecture", "norm"), NETWORKS)
def test_other_parameters_give_that_other_module(architecture, norm):
    network, other = FlatNetwork(student(architecture, norm)), student(architecture, norm, 1)
    images = torch.randn(6, 3, 16, 16)
    torch.testing.assert_close(network(flatten(other), images), other.train()(images))


@pytest.mark.parametrize(("architecture", "norm"), NETWORKS)
def test_flatten_has_the_order_that_torch_puts_back(architecture, norm):
    one, other = student(architecture, norm), student(architecture, norm, 1)
    theta = flatten(one)
    assert not torch.equal(theta, flatten(other))
    torch.nn.utils.vector_to_parameters(theta, other.parameters())
    assert torch.equal(flatten(other), theta)
    for name, parameter in other.named_parameters():
        assert torch.equal(parameter, dict(one.named_parameters())[name]), name


def test_a_flat_vector_is_a_copy():
    module = student()
    flatten(module).zero_()
    assert flatten(module).abs().sum() > 0


def test_gradients_reach_theta_and_a_vector_of_another_length_is_refused():
    module = student()
    theta = flatten(module).requires_grad_()
    FlatNetwork(module)(theta, torch.randn(4, 3, 16, 16)).square().sum().backward()
    assert theta.grad.count_nonzero() > 0.5 * theta.numel()
    with pytest.raises(RuntimeError):
        FlatNetwork(module)(torch.zeros(len(theta) + 1), torch.randn(4, 3, 16, 16))
