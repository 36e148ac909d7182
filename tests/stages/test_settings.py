"""Numeric settings reach the arithmetic that they name: whole stages against a plain reference.

`tests/test_settings.py` lists which test shows which field's effect.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional

from limbeck.checkpoint import load_tensors
from limbeck.data.dataset import ImageDataset
from limbeck.data.targets import open_targets
from limbeck.matching.experts import listed_places
from limbeck.matching.selection import random_subset
from limbeck.matching.steps import student_loss
from limbeck.matching.unroll import InnerLoop
from limbeck.nn.encoders import build_student, student_config
from limbeck.nn.flat import FlatNetwork, flatten
from limbeck.progress import SILENT, Bar
from limbeck.runner import Run
from limbeck.seeding import generator
from limbeck.spec import DistillationSpec
from limbeck.store import Result
from tests.matching.plain import unrolled_match
from tests.stages.tiny import distillation, workshop

FEW = {"evaluate.tasks": [], "source.limit": 60, "trajectories.batch": 25, "student.width": 4, "teacher.width": 4}


def made(output: Path, changes: dict[str, Any], last: str, progress: Any = SILENT) -> tuple[DistillationSpec, Run]:
    """The results of a tiny run up to a stage, some of them from earlier runs."""
    whole = distillation(output, FEW | changes)
    run = Run(whole, workshop(output, progress))
    for name in ("ingest", "teacher", "targets", "trajectories", "select", "distill"):
        run.stage(name)
        if name == last:
            return whole.spec, run
    raise AssertionError(last)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all: stages that a change does not touch are made once."""
    return tmp_path_factory.mktemp("settings")


# ---- teacher and targets


@pytest.mark.parametrize(("changes", "channels", "features"), [({}, 4, 64), ({"teacher.width": 6}, 6, 96)])
def test_the_teacher_s_width_is_the_channels_of_its_first_stage(output, changes, channels, features):
    _, run = made(output, changes, "targets")
    weights = load_tensors(run.results["teacher"].path / "teacher.safetensors")[0]
    assert weights["0.weight"].shape == (channels, 3, 3, 3)
    assert open_targets(run.results["targets"].path).shape[1] == features


@pytest.mark.parametrize(("depth", "features"), [(1, 4 * 16), (2, 4 * 4), (3, 4)])
def test_the_teacher_s_depth_is_its_blocks_each_halving_the_side(output, depth, features):
    _, run = made(output, {"teacher.depth": depth}, "targets")
    weights = load_tensors(run.results["teacher"].path / "teacher.safetensors")[0]
    assert sum(tensor.ndim == 4 for tensor in weights.values()) == depth
    assert open_targets(run.results["targets"].path).shape[1] == features


def covariance(run: Run) -> torch.Tensor:
    return torch.from_numpy(np.cov(np.array(open_targets(run.results["targets"].path), np.float64).T))


@pytest.mark.parametrize(("components", "kept"), [(0, 64), (3, 3), (1000, 64)])
def test_targets_are_made_of_as_many_principal_components(output, components, kept):
    _, run = made(output, {"targets.components": components, "targets.standardize": False}, "targets")
    found = covariance(run).reshape(kept, kept)
    _, whole = made(output, {"targets.components": 0, "targets.standardize": False}, "targets")
    largest = torch.linalg.eigvalsh(covariance(whole)).flip(0)[:kept]
    if components:
        torch.testing.assert_close(found, torch.diag(largest), rtol=1e-3, atol=1e-5 * largest[0].item())


@pytest.mark.parametrize("whitening", [0.0, 0.5, 1.0])
def test_each_component_is_divided_by_its_variance_to_half_the_power_of_whitening(output, whitening):
    settings = {"targets.components": 5, "targets.standardize": False}
    _, run = made(output, settings | {"targets.whitening": whitening}, "targets")
    _, plain = made(output, settings | {"targets.components": 0}, "targets")
    values = torch.linalg.eigvalsh(covariance(plain)).flip(0)
    raised = values + 0.01 * values.mean()  # so that what hardly varies is not blown up
    expected = (values / raised**whitening)[:5]
    torch.testing.assert_close(covariance(run).diagonal(), expected, rtol=1e-3, atol=1e-6)


# ---- trajectories


def plain_expert(spec: DistillationSpec, run: Run, index: int) -> torch.Tensor:
    """f32[epochs + 1, P] by torch's own SGD, with sharpness-aware steps where the spec has a radius."""
    settings, sgd = spec.trajectories, spec.trajectories.optimizer
    images, targets = data(run)
    module = build_student(student_config(spec), targets.shape[1], spec.seed, "expert", index)
    optimizer = torch.optim.SGD(module.parameters(), lr=sgd.rate, momentum=sgd.momentum, weight_decay=sgd.weight_decay)
    snapshots, batch = [flatten(module)], settings.batch
    for epoch in range(spec.expert_epochs):
        order = torch.randperm(len(images), generator=generator(spec.seed, "expert", index, "order", epoch))
        for rows in order[: len(images) // batch * batch].split(batch):
            theta = flatten(module)
            functional.mse_loss(module(images[rows]), targets[rows]).backward()
            if settings.sharpness_radius:
                gradient = torch.cat([p.grad.flatten() for p in module.parameters()])
                uphill = theta + settings.sharpness_radius * gradient / gradient.norm()
                torch.nn.utils.vector_to_parameters(uphill, module.parameters())
                optimizer.zero_grad()
                functional.mse_loss(module(images[rows]), targets[rows]).backward()
                torch.nn.utils.vector_to_parameters(theta, module.parameters())
            optimizer.step()
            optimizer.zero_grad()
        snapshots.append(flatten(module))
    return torch.stack(snapshots)


def data(run: Run) -> tuple[torch.Tensor, torch.Tensor]:
    dataset = ImageDataset.open(run.results["dataset"].path)
    pixels = torch.from_numpy(np.asarray(dataset.images)).float() / 255
    mean, std = (torch.from_numpy(values)[:, None, None] for values in (dataset.mean, dataset.std))
    return (pixels - mean) / std, torch.from_numpy(np.array(open_targets(run.results["targets"].path)))


def trained(run: Run) -> list[torch.Tensor]:
    """Each expert's f32[epochs + 1, P]."""
    store = run._shop.store
    places = listed_places(run.results["trajectories"].path)
    found: list[Result | None] = [store.find(place["stage"], place["key"]) for place in places]
    return [load_tensors(result.path / "expert.safetensors")[0]["theta"] for result in found if result]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"trajectories.experts": 2},
        {"trajectories.epochs": 4},
        {"trajectories.batch": 12},
        {"trajectories.optimizer": {"rate": 0.02}},
        {"trajectories.optimizer": {"momentum": 0.3}},
        {"trajectories.optimizer": {"weightDecay": 0.3}},
        {"trajectories.sharpnessRadius": 0.5},
    ],
    ids=str,
)
def test_experts_are_trained_as_a_plain_loop_with_these_settings_trains(output, changes):
    spec, run = made(output, changes, "trajectories")
    found = trained(run)
    assert len(found) == spec.trajectories.experts
    for index, theta in enumerate(found[:2]):
        torch.testing.assert_close(theta, plain_expert(spec, run, index), rtol=1e-3, atol=1e-5)


class Threads:
    """Progress that notes how many threads torch has while experts are trained."""

    def __init__(self) -> None:
        self.seen: set[int] = set()

    @contextmanager
    def bar(self, title: str, total: int, unit: str, done: int = 0) -> Iterator[Bar]:
        owner = self

        class Noting:
            def advance(self, steps: int = 1, note: str = "") -> None:
                if title == "trajectories":
                    owner.seen.add(torch.get_num_threads())

        yield Noting()

    def say(self, line: str) -> None:
        pass


@pytest.mark.parametrize("count", [1, 3])
def test_experts_are_trained_with_as_many_threads(output, count):
    progress = Threads()
    made(output, {"trajectories.threads": count, "trajectories.experts": 1, "seed": count}, "trajectories", progress)
    assert progress.seen == {count}


# ---- distill


def plain_history(spec: DistillationSpec, run: Run, iterations: int) -> tuple[list[float], list[float]]:
    """The matching losses and rates of the first iterations, by autograd through the unrolled loop; pixels stay."""
    settings, inner = spec.distill, spec.distill.inner_optimizer
    images, targets = data(run)
    chosen = load_tensors(run.results["select"].path / "selection.safetensors")[0]["indices"]
    x, y, rate, experts = images[chosen], targets[chosen], torch.tensor(inner.rate), trained(run)
    loss = student_loss(FlatNetwork(build_student(student_config(spec), y.shape[1], 0)))  # for its form alone
    losses, rates = [], []
    seed = spec.seed if settings.seed is None else settings.seed
    for iteration in range(iterations):
        gradients, values = [], []
        for pair in range(settings.pairs):
            draws = generator(seed, "distill", iteration, *((pair,) if pair else ()))
            theta = experts[int(torch.randint(len(experts), (), generator=draws))]
            window = settings.max_start_epoch
            if iteration < settings.start_growth * settings.iterations:
                grown = iteration / (settings.start_growth * settings.iterations)
                window = 1 + int(grown * settings.max_start_epoch)
            epoch = int(torch.randint(window, (), generator=draws))
            batches: list[torch.Tensor | None] = [None] * settings.inner_steps
            if settings.inner_batch < len(x):
                count = -(-settings.inner_steps * settings.inner_batch // len(x))
                order = torch.cat([torch.randperm(len(x), generator=draws) for _ in range(count)])
                batches = list(order[: settings.inner_steps * settings.inner_batch].split(settings.inner_batch))
            start, goal = theta[epoch], theta[epoch + settings.expert_gap]
            value, gradient = unrolled_match(
                loss, start, goal, x, y, rate, batches, InnerLoop(inner.momentum, inner.weight_decay)
            )
            values.append(value)
            gradients.append(gradient)
        losses.append(torch.stack(values).mean().item())
        rates.append(rate.item())
        _, by_y, by_rate = (torch.stack(parts).mean(0) for parts in zip(*gradients, strict=True))
        y = y - settings.target_step * by_y  # momentum is 0 here
        # the logarithm moves by rateStep / start^2 times its gradient, which is rate times the rate's
        rate = rate * torch.exp(-settings.rate_step / inner.rate**2 * rate * by_rate)
    return losses, rates


PLAIN = {
    "trajectories.epochs": 6,
    "distill.pixelStep": 0.0,
    "distill.targetStep": 0.5,
    "distill.rateStep": 1e-3,
    "distill.momentum": 0.0,
    "distill.iterations": 4,
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"distill.iterations": 3},
        {"distill.innerSteps": 5},
        {"distill.innerBatch": 3},
        {"distill.pairs": 3},
        {"distill.seed": 7},
        {"distill.expertGap": 3},
        {"distill.maxStartEpoch": 4},
        {"distill.maxStartEpoch": 4, "distill.startGrowth": 1.0},
        {"distill.innerOptimizer": {"rate": 0.02, "momentum": 0.0}},
        {"distill.innerOptimizer": {"rate": 0.05, "momentum": 0.7}},
        {"distill.innerOptimizer": {"rate": 0.05, "momentum": 0.0, "weightDecay": 0.5}},
    ],
    ids=str,
)
def test_the_matching_loss_of_every_iteration_is_that_of_the_unrolled_loop_with_these_settings(output, changes):
    spec, run = made(output, PLAIN | changes, "distill")
    history = pq.read_table(run.results["distill"].path / "history.parquet").to_pydict()
    assert len(history["matchingLoss"]) == spec.distill.iterations
    losses, rates = plain_history(spec, run, spec.distill.iterations)
    assert history["matchingLoss"] == pytest.approx(losses, rel=1e-3)
    assert history["learningRate"] == pytest.approx(rates, rel=1e-4)


@pytest.mark.parametrize(("changes", "images"), [({"size": 7}, 7), ({"size": None, "fraction": 0.1}, 6)])
def test_the_set_has_as_many_images_as_size_or_fraction_say(output, changes, images):
    _, run = made(output, {f"distill.{name}": value for name, value in changes.items()} | PLAIN, "distill")
    found = load_tensors(run.results["distill"].path / "synthetic.safetensors")[0]
    assert found["images"].shape == (images, 3, 8, 8)


def test_downsampling_divides_the_side_and_a_fraction_of_the_pixels_is_more_images(output):
    smaller = {"distill.size": None, "distill.fraction": 0.1, "distill.downsampling": 2}
    _, run = made(output, PLAIN | smaller, "distill")
    found = load_tensors(run.results["distill"].path / "synthetic.safetensors")[0]
    assert found["stored"].shape == (24, 3, 4, 4)  # 4 times 6, of a quarter of the pixels
    assert found["images"].shape == (24, 3, 8, 8)


def test_another_seed_of_the_distillation_draws_another_start_for_the_same_experts(output):
    (_, first), (_, second), (spec, third) = (
        made(output, PLAIN | {"distill.initialization": "random"} | changes, "select")
        for changes in ({}, {"distill.seed": 0}, {"distill.seed": 7})
    )
    chosen = [
        load_tensors(run.results["select"].path / "selection.safetensors")[0]["indices"]
        for run in (first, second, third)
    ]
    assert first.results["select"].digest == second.results["select"].digest
    assert chosen[0].tolist() != chosen[2].tolist()
    assert first.results["trajectories"].digest == third.results["trajectories"].digest
    assert first.results["teacher"].digest == third.results["teacher"].digest
    assert chosen[2].tolist() == random_subset(len(data(third)[0]), spec.distill.size or 0, 7).tolist()


def test_another_seed_of_the_distillation_draws_another_pool_of_krr_st(output):
    losses = []
    for changes in ({}, {"distill.seed": 7}):
        krr = {"distill.method": "krrSt", "distill.kernel": {"poolSteps": 3}, "distill.pixelStep": 0.0}
        _, run = made(output, PLAIN | krr | {"distill.initialization": "highLoss"} | changes, "distill")
        losses.append(pq.read_table(run.results["distill"].path / "history.parquet")["matchingLoss"].to_pylist())
    assert losses[0] != losses[1]
