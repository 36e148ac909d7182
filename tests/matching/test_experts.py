"""One expert: plain SGD on the full data, snapshots of every epoch, and nothing that depends on its neighbours."""

from __future__ import annotations

import json

import pytest
import torch

from limbeck.checkpoint import Checkpoint, save_tensors
from limbeck.data.feed import Examples
from limbeck.interrupt import Stopped, StopRequest
from limbeck.matching.experts import FILE, PLACES, Experts, divergence, expert_steps, train_experts
from limbeck.matching.steps import Steps, student_loss
from limbeck.nn.encoders import EncoderConfig, build_student
from limbeck.nn.flat import FlatNetwork, flatten
from limbeck.seeding import generator
from limbeck.spec import Sgd
from tests.data.feeding import DEVICES, WAYS, examples

IMAGES, TARGETS = torch.randn(20, 3, 8, 8), torch.randn(20, 4)


def student(index=0):
    return build_student(EncoderConfig("convnet", 8, 4, "instance", 1), 4, 0, "expert", index)


def side_by_side(students, **changed):
    settings = {"epochs": 3, "batch": 8, "optimizer": Sgd(rate=0.05, momentum=0.9, weight_decay=1e-2), "seed": 0}
    settings |= {"indices": range(len(students)), "stop": StopRequest(), "steps_done": lambda count: None} | changed
    steps = Steps(student_loss(FlatNetwork(students[0])))
    return train_experts(students, steps, Examples.held(IMAGES, TARGETS, torch.device("cpu")), **settings)


def trained(start=0, index=None, **changed):
    return side_by_side([student(start)], indices=[start if index is None else index], **changed)[0]


def test_an_expert_is_trained_as_torch_s_own_sgd_trains():
    expert, module = trained(5), student(5)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2)
    torch.testing.assert_close(expert.theta[0], flatten(module))
    for epoch in range(3):
        order = torch.randperm(20, generator=generator(0, "expert", 5, "order", epoch))
        losses = []
        for batch in order[:16].view(2, 8):  # the last, shorter batch is left out
            loss = torch.nn.functional.mse_loss(module(IMAGES[batch]), TARGETS[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        torch.testing.assert_close(expert.theta[epoch + 1], flatten(module), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(expert.losses[epoch], torch.stack(losses).mean(), rtol=1e-4, atol=1e-6)


def test_a_flatter_expert_follows_the_gradient_uphill_of_where_it_is():
    expert, module, radius = trained(5, epochs=1, sharpness_radius=0.3), student(5), 0.3
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2)
    order = torch.randperm(20, generator=generator(0, "expert", 5, "order", 0))
    for batch in order[:16].view(2, 8):
        theta = flatten(module)
        torch.nn.functional.mse_loss(module(IMAGES[batch]), TARGETS[batch]).backward()
        gradient = torch.cat([p.grad.flatten() for p in module.parameters()])
        torch.nn.utils.vector_to_parameters(theta + radius * gradient / gradient.norm(), module.parameters())
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(module(IMAGES[batch]), TARGETS[batch]).backward()
        torch.nn.utils.vector_to_parameters(theta, module.parameters())
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(expert.theta[1], flatten(module), rtol=1e-4, atol=1e-6)


def test_an_augmented_expert_sees_its_own_moves_beside_others_or_alone():
    plain, alone = trained(0), trained(0, augmentation="flipShift")
    assert not torch.equal(plain.theta[1], alone.theta[1])
    beside = side_by_side([student(0), student(1)], augmentation="flipShift")
    torch.testing.assert_close(beside[0].theta, alone.theta, rtol=1e-4, atol=1e-6)


def test_experts_are_repeatable_differ_from_each_other_and_leave_the_student_alone():
    module = student()
    before = flatten(module)
    side_by_side([module])
    assert torch.equal(trained(0).theta, trained(0).theta)
    assert torch.equal(flatten(module), before)
    assert not torch.equal(trained(0).theta[0], trained(1).theta[0])
    one, other = trained(0, index=0), trained(0, index=1)  # the same start, another order
    assert torch.equal(one.theta[0], other.theta[0])
    assert not torch.equal(one.theta[1], other.theta[1])


@pytest.mark.parametrize("device", DEVICES)
def test_an_expert_is_the_same_bits_wherever_its_data_lies(tmp_path, device):
    modules = [
        build_student(EncoderConfig("convnet", 8, 4, "instance", 1), 5, 0, "expert", k).to(device) for k in (0, 1)
    ]
    steps = Steps(student_loss(FlatNetwork(modules[0])))
    settings = {"epochs": 3, "batch": 20, "optimizer": Sgd(rate=0.05), "seed": 0, "indices": [0, 1]}
    settings |= {"stop": StopRequest(), "steps_done": lambda count: None}
    with torch.backends.cudnn.flags(enabled=True, deterministic=True):
        found = [train_experts(modules, steps, examples(tmp_path, way, device), **settings) for way in WAYS]
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            assert torch.equal(one.theta, other.theta)
            assert torch.equal(one.losses, other.losses)


def test_fewer_epochs_are_the_first_ones():
    assert torch.equal(trained(epochs=1).theta, trained(epochs=3).theta[:2])


def test_every_step_is_counted():
    steps = []
    trained(steps_done=lambda count: steps.append(count))
    assert len(steps) == expert_steps(20, 8, 3) == 6
    assert expert_steps(20, 1000, 3) == 3


def test_an_expert_that_diverges_is_an_error():
    with pytest.raises(FloatingPointError, match="expert 3 is not finite in epoch"):
        trained(3, optimizer=Sgd.model_construct(rate=1e30, momentum=0.9, weight_decay=0.0))


def test_an_expert_stops_when_it_is_asked_to():
    stop = StopRequest()
    stop.requested = True
    with pytest.raises(Stopped):
        trained(stop=stop)


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_experts_side_by_side_equal_those_trained_alone(norm):
    students = [build_student(EncoderConfig("convnet", 8, 8, norm, 1), 4, 0, "expert", index) for index in range(3)]
    together = side_by_side(students, epochs=2)
    for index, expert in enumerate(together):
        (alone,) = side_by_side([students[index]], indices=[index], epochs=2)
        assert torch.equal(expert.theta[0], alone.theta[0])
        assert ((expert.theta - alone.theta).norm() / alone.theta.norm()).item() < 1e-4
        torch.testing.assert_close(expert.losses, alone.losses, rtol=1e-4, atol=1e-6)
    assert not torch.equal(together[0].theta[1], together[1].theta[1])


def broken(index):
    module = student(index)
    with torch.no_grad():
        module.head.bias.fill_(1e30)
    return module


def test_the_one_of_a_group_that_diverges_is_named_and_leaves_the_others_alone():
    found = side_by_side([student(0), broken(1), student(2)], indices=[6, 7, 8])
    faults = [
        divergence(index, expert.losses, expert.theta[-1]) for index, expert in zip((6, 7, 8), found, strict=True)
    ]
    assert [fault and str(fault) for fault in faults] == [None, "the loss of expert 7 is not finite in epoch 1", None]
    whole = side_by_side([student(0), student(1), student(2)], indices=[6, 7, 8])
    for beside in (0, 2):
        assert torch.equal(found[beside].theta, whole[beside].theta)


def test_a_group_whose_experts_all_diverge_ends_at_once():
    with pytest.raises(FloatingPointError, match="experts 6, 7: losses or parameters are not finite in epoch 1"):
        side_by_side([broken(0), broken(1)], indices=[6, 7])


def test_parameters_that_the_last_step_breaks_are_a_divergence_with_every_loss_finite():
    losses, theta = torch.tensor([1.0, 0.5]), torch.tensor([0.1, float("inf")])
    assert divergence(4, losses, torch.zeros(2)) is None
    assert str(divergence(4, losses, theta)) == "the parameters of expert 4 are not finite after epoch 2"


def test_snapshots_are_read_one_by_one_from_disk(tmp_path):
    experts = [trained(index) for index in range(2)]
    for index, expert in enumerate(experts):
        save_tensors(tmp_path / "expert" / str(index) / FILE, {"theta": expert.theta, "losses": expert.losses})
    entries = [{"stage": "expert", "key": str(index), "digest": f"d{index}"} for index in range(2)]
    (tmp_path / PLACES).write_text(json.dumps({"experts": entries}))
    asked = []

    def locate(stage, key, digest):
        asked.append((stage, key, digest))
        return tmp_path / stage / key

    read = Experts.listed(tmp_path, locate)
    assert asked == [("expert", "0", "d0"), ("expert", "1", "d1")]
    assert len(read) == 2
    for index, expert in enumerate(experts):
        for epoch in range(4):
            assert torch.equal(read.theta(index, epoch), expert.theta[epoch])
    module = student()
    torch.nn.utils.vector_to_parameters(read.theta(1, 3), module.parameters())
    assert torch.isfinite(module(IMAGES)).all()


class StopAfter(StopRequest):
    """Asks to stop once so many steps were done."""

    def __init__(self, steps):
        super().__init__()
        self.done, self._steps = [], steps

    def __call__(self, count):
        self.done.append(count)
        self.requested = sum(self.done) >= self._steps


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
@pytest.mark.parametrize("together", [1, 2])
def test_a_cut_expert_goes_on_within_itself_and_ends_with_the_same_bytes(tmp_path, steps, together):
    students = [student(index) for index in range(together)]
    uncut = side_by_side(students)
    stop = StopAfter(steps)
    with pytest.raises(Stopped):
        side_by_side(students, stop=stop, steps_done=stop, checkpoint=Checkpoint(tmp_path, 1000.0))
    done = []
    on = side_by_side(students, steps_done=done.append, checkpoint=Checkpoint(tmp_path, 1000.0))
    assert done == [steps] + [1] * (6 - steps)
    for one, other in zip(uncut, on, strict=True):
        assert torch.equal(one.theta, other.theta)
        assert torch.equal(one.losses, other.losses)


def test_the_state_of_other_experts_is_not_taken_up(tmp_path):
    stop = StopAfter(3)
    with pytest.raises(Stopped):
        side_by_side([student(0), student(1)], stop=stop, steps_done=stop, checkpoint=Checkpoint(tmp_path, 1000.0))
    assert torch.equal(trained(0, checkpoint=Checkpoint(tmp_path, 1000.0)).theta, trained(0).theta)


def test_state_is_saved_in_time(tmp_path):
    trained(0, checkpoint=Checkpoint(tmp_path, 1000.0))
    assert not list(tmp_path.iterdir())
    trained(0, checkpoint=Checkpoint(tmp_path, 0.0))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]
