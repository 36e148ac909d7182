"""A step's derivatives: by autograd, compiled, in bfloat16, and where nothing can be compiled."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from limbeck.matching.steps import CompiledSteps, Steps, held_bytes, student_loss
from limbeck.nn.encoders import EncoderConfig, build_student
from limbeck.nn.flat import FlatNetwork, flatten


def problem(pairs=1, batch=6, dtype=torch.float32, norm="instance"):
    students = [build_student(EncoderConfig("convnet", 8, 4, norm, 1), 3, 0, k).to(dtype) for k in range(pairs)]
    draws = torch.Generator().manual_seed(0)
    theta = torch.stack([flatten(student) for student in students])
    x = torch.randn(pairs, batch, 3, 8, 8, generator=draws, dtype=dtype)
    y = torch.randn(pairs, batch, 3, generator=draws, dtype=dtype)
    b = torch.randn(theta.shape, generator=draws, dtype=dtype)
    return FlatNetwork(students[0]), theta, x, y, b


def relative_error(ours, reference):
    return ((ours - reference).norm() / reference.norm()).item()


def test_the_products_are_the_hessian_and_the_mixed_derivatives_times_b():
    network, theta, x, y, b = problem(dtype=torch.float64)
    loss = student_loss(network)
    products = Steps(loss).products(theta, x, y, b)

    def gradient(theta, x, y):
        return torch.autograd.grad(loss(theta, x, y).sum(), theta, create_graph=True)[0]

    jacobians = torch.autograd.functional.jacobian(gradient, (theta, x, y))
    for product, jacobian in zip((products.theta, products.images, products.targets), jacobians, strict=True):
        assert relative_error(product, torch.tensordot(b, jacobian, 2)) < 1e-10


def test_compiled_steps_are_the_eager_ones():
    network, theta, x, y, b = problem(pairs=2)
    said = []
    eager, compiled = Steps(student_loss(network)), CompiledSteps(student_loss(network), said.append)
    gradient, losses = compiled.gradient(theta, x, y)
    assert relative_error(gradient, eager.gradient(theta, x, y)[0]) < 1e-4
    assert relative_error(losses, eager.gradient(theta, x, y)[1]) < 1e-4
    expected = eager.products(theta, x, y, b)
    for products in (compiled.products(theta, x, y, b), compiled.held(theta, x, y).products(b)):
        assert relative_error(products.theta, expected.theta) < 1e-4
        assert relative_error(products.images, expected.images) < 1e-4
        assert relative_error(products.targets, expected.targets) < 1e-4
    assert said == []


def test_a_held_step_gives_what_a_step_built_again_gives():
    network, theta, x, y, b = problem(pairs=2)
    steps = Steps(student_loss(network))
    held = steps.held(theta, x, y)
    assert torch.allclose(held.gradient, steps.gradient(theta, x, y)[0], rtol=1e-5, atol=1e-7)
    assert torch.equal(held.products(b).theta, steps.products(theta, x, y, b).theta)


def test_bfloat16_computes_the_network_and_leaves_the_rest_in_float32():
    network, theta, x, y, b = problem(batch=16)
    exact, rough = Steps(student_loss(network)), Steps(student_loss(network, "bfloat16"))
    gradient, losses = rough.gradient(theta, x, y)
    assert gradient.dtype == losses.dtype == torch.float32
    assert 0 < relative_error(gradient, exact.gradient(theta, x, y)[0]) < 0.1
    assert 0 < relative_error(rough.products(theta, x, y, b).images, exact.products(theta, x, y, b).images) < 0.2


def test_what_a_held_step_keeps_grows_with_its_batch():
    sizes = []
    for batch in (8, 16):
        network, theta, x, y, _ = problem(batch=batch)
        sizes.append(held_bytes(Steps(student_loss(network)), theta, x, y))
    activations = 4 * 8 * 4 * 8 * 8  # one layer's, of the smaller batch
    assert sizes[0] > 2 * activations
    assert 1.7 < sizes[1] / sizes[0] < 2.1


@pytest.mark.parametrize("pairs", [1, 2])
def test_what_a_held_step_keeps_leaves_out_its_arguments(pairs):
    network, *arguments, _ = problem(pairs=pairs)
    steps, spare = Steps(student_loss(network)), 2**22
    within = [
        torch.cat([tensor.flatten(), torch.zeros(spare)])[: tensor.numel()].view_as(tensor) for tensor in arguments
    ]
    assert held_bytes(steps, *within) == held_bytes(steps, *arguments) < spare


WITHOUT_A_COMPILER = """
import json, torch
from limbeck.matching.steps import CompiledSteps, Steps, student_loss
from tests.matching.test_steps import problem

network, theta, x, y, b = problem()
said, loss = [], student_loss(network)
steps, eager = CompiledSteps(loss, said.append), Steps(loss)
same = []
for _ in range(2):
    same.append(torch.equal(steps.gradient(theta, x, y)[0], eager.gradient(theta, x, y)[0]))
    same.append(torch.equal(steps.products(theta, x, y, b).theta, eager.products(theta, x, y, b).theta))
    same.append(torch.equal(steps.held(theta, x, y).products(b).images, eager.products(theta, x, y, b).images))
print(json.dumps({"said": said, "same": all(same)}))
"""


def test_without_a_compiler_the_steps_are_eager_after_one_warning(tmp_path):
    environment = {**os.environ, "CXX": "/nonexistent/g++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", WITHOUT_A_COMPILER]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["same"]
    (line,) = found["said"]
    assert line.startswith("the training step could not be compiled (")
    assert "\n" not in line


@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
def test_stacked_networks_are_independent(norm):
    network, theta, x, y, _ = problem(pairs=3, norm=norm, dtype=torch.float64)
    steps = Steps(student_loss(network))
    together, losses = steps.gradient(theta, x, y)
    for k in range(3):
        alone, loss = steps.gradient(theta[k : k + 1], x[k : k + 1], y[k : k + 1])
        assert relative_error(together[k], alone[0]) < 1e-12
        assert relative_error(losses[k], loss[0]) < 1e-12
