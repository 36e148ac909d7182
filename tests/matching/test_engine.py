"""How steps are taken: by the size of the work, the spec and the memory."""

from __future__ import annotations

import pytest
import torch

from limbeck.errors import WorkError
from limbeck.matching.engine import Work, choose_layout, choose_steps, stack_bytes
from limbeck.matching.steps import CompiledSteps, Steps, held_bytes, student_loss
from limbeck.nn.encoders import EncoderConfig, build_student
from limbeck.nn.flat import FlatNetwork, flatten
from limbeck.spec import Engine

CPU = torch.device("cpu")
STUDENT = build_student(EncoderConfig("convnet", 8, 4, "instance", 1), 3, 0)
NETWORK = FlatNetwork(STUDENT)


def one_step():
    return Steps(student_loss(NETWORK)), flatten(STUDENT)[None], torch.randn(1, 6, 3, 8, 8), torch.randn(1, 6, 3)


def test_the_work_of_a_forward_pass_is_that_of_its_convolution_and_its_head():
    multiply_adds = 6 * (4 * 3 * 9 * 8 * 8 + 4 * 4 * 4 * 3)
    assert Work(NETWORK, 6, 8, 1.0).forward_flops() == 2 * multiply_adds


@pytest.mark.parametrize(
    ("forwards", "setting", "compiled"),
    [(10.0, "auto", False), (1e15, "auto", True), (10.0, "always", True), (1e15, "never", False)],
)
def test_long_work_is_compiled_unless_the_spec_says_otherwise(forwards, setting, compiled):
    said = []
    steps = choose_steps(Work(NETWORK, 6, 8, forwards), "float32", Engine(compile=setting), CPU, said.append)
    assert isinstance(steps, CompiledSteps) == compiled
    assert len(said) == compiled


def test_on_an_accelerator_steps_are_compiled_only_where_the_spec_says_so():
    work, cuda = Work(NETWORK, 6, 8, 1e15), torch.device("cuda")
    assert not isinstance(choose_steps(work, "float32", Engine(), cuda, print), CompiledSteps)
    assert isinstance(choose_steps(work, "float32", Engine(compile="always"), cuda, print), CompiledSteps)


@pytest.mark.skipif(not hasattr(torch, "AcceleratorError"), reason="this torch has no name for it")
def test_a_compiled_step_that_breaks_the_accelerator_is_not_taken_eagerly_after_it():
    said = []
    steps, (_, theta, x, y) = CompiledSteps(student_loss(NETWORK), said.append), one_step()

    def broken(*arguments: object) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nmore")

    steps._gradient = broken
    with pytest.raises(WorkError, match=r"illegal memory access was encountered\).*engine\.compile: never"):
        steps.gradient(theta, x, y)
    assert said == []


def test_bfloat16_that_is_emulated_is_said():
    said = []
    choose_steps(Work(NETWORK, 6, 8, 1.0), "bfloat16", Engine(), CPU, said.append)
    assert bool(said) != torch.ops.mkldnn._is_mkldnn_bf16_supported()


@pytest.mark.parametrize(("budget", "hold"), [("0", 0), (2.5, 2), ("1Gi", 5), (None, 5)])
def test_as_many_steps_are_held_as_the_budget_allows(budget, hold):
    steps, theta, x, y = one_step()
    if isinstance(budget, float):
        budget = str(int(budget * held_bytes(steps, theta, x, y)))
    layout = choose_layout(steps, theta, x, y, pairs=4, inner_steps=5, engine=Engine(memory_budget=budget))
    assert (layout.stacked, layout.hold) == (1, hold)


def test_a_stack_s_memory_is_foreseen():
    steps, theta, x, y = one_step()
    four = [tensor.repeat(4, *[1] * (tensor.dim() - 1)) for tensor in (theta, x, y)]
    assert stack_bytes(steps, theta, x, y, 4) == pytest.approx(held_bytes(steps, *four), rel=0.05)
    assert stack_bytes(steps, theta, x, y, 1) == held_bytes(steps, theta, x, y)


def test_the_work_in_seconds_is_that_of_its_forward_passes_at_the_rate_of_the_threads():
    work = Work(NETWORK, 6, 8, 1000.0)
    assert work.seconds() == pytest.approx(1000 * work.forward_flops() / (3.5e10 * torch.get_num_threads()))


@pytest.mark.parametrize(("share", "compiled"), [(0.99, False), (1.0, True)])
def test_work_of_ten_minutes_is_worth_compiling(share, compiled):
    forwards = share * 600 / Work(NETWORK, 6, 8, 1.0).seconds()
    steps = choose_steps(Work(NETWORK, 6, 8, forwards * (1 + 1e-9)), "float32", Engine(), CPU, lambda line: None)
    assert isinstance(steps, CompiledSteps) == compiled
