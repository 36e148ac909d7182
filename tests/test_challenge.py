# ruff: noqa: F811 -- a fixture that is imported is an argument too
"""The champion is evaluated again before a new set is compared with it, on an MLflow in a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest

from limbeck import challenge as module
from limbeck.challenge import Challenge
from limbeck.data.distilled import DistilledSet
from limbeck.errors import WorkError
from limbeck.evaluation.comparison import is_better, lower_bound
from limbeck.stages.task import StageTask, Workshop
from limbeck.store import Identity, Result
from limbeck.summary import Accuracy, Summary
from limbeck.tracking.messages import Publish, Published
from limbeck.tracking.recorder import UNRECORDED
from limbeck.tracking.registry import Registry
from limbeck.tracking.runs import open_experiment
from tests.stages.tiny import Lines, distillation, finished, one_thread, workshop  # noqa: F401 - fixtures
from tests.tracking.conftest import no_mlflow_of_ours  # noqa: F401 - a fixture
from tests.tracking.test_registry import register
from tests.tracking.tracked import as_champion, copy_of, publishable, run_tracked


def held_out(summary: Summary) -> list[float]:
    """The distilled set's accuracies on held-out labels, one a selection seed."""
    (entry,) = [entry for entry in summary.accuracies if entry.method == "distilled"]
    return entry.held_out


def encoders(output: Path) -> set[str]:
    """The keys of the encoders that evaluations have trained."""
    return {path.parent.name for path in output.glob("encoder/*/manifest.json")}


class DirectRecorder:
    """A stand-in for `Recording` and its sender: it asks the registry itself, in this process."""

    def __init__(self, uri: str, request: Publish) -> None:
        self._registry, self._request = Registry(uri), request
        client = self._registry._client
        self._experiment = open_experiment(client, "registry").experiment_id
        self._run = client.create_run(self._experiment).info.run_id

    def publish(self, result: Result, champion: Any = None) -> Published:
        request = self._request.model_copy(update={"champion": champion})
        assert request.name is not None
        model = self._registry.log(request, self._run, self._experiment)
        registered, first = self._registry.register(request.name, request, model, self._run)
        return Published(registered=registered, evaluate_first=first)

    def __getattr__(self, name: str) -> Any:
        return getattr(UNRECORDED, name)


class EvaluatePart:
    """A strict stand-in for the part of `evaluate` that trains encoders on a champion.

    It needs what the real one needs, and answers with the accuracies that the champion came with.
    """

    def __init__(self) -> None:
        self.evaluated: list[str] = []
        self.meanwhile: Callable[[], None] = lambda: None

    def __call__(self, task: StageTask) -> list[Accuracy]:
        champion = DistilledSet.load(task.inputs["champion"].path)
        assert task.inputs["champion"].path.is_relative_to(task.shop.store.local_folder("start"))
        assert task.spec.source.image_size == champion.images.shape[-1]
        assert {"register", "targets"} <= task.inputs.keys()
        self.evaluated.append(task.inputs["champion"].digest)
        self.meanwhile()
        return as_champion(0, champion.evaluation, None).accuracies


@pytest.fixture
def evaluate_part(monkeypatch: pytest.MonkeyPatch) -> EvaluatePart:
    stand_in = EvaluatePart()
    monkeypatch.setattr(module, "_held_out", stand_in)
    return stand_in


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """An MLflow whose champion of `digits` is version 1."""
    found = f"sqlite:///{tmp_path / 'mlflow.db'}"
    register(found, tmp_path / "1", "digits", number=1)
    return found


class Challenger:
    """A set to register, with all that a challenge needs."""

    def __init__(self, tmp_path: Path, uri: str, changes: dict[str, Any] | None = None, **settings: Any) -> None:
        self.lines = Lines()
        self.spec = distillation(
            tmp_path / "out", {"registry.name": "digits", "tracking": {"uri": uri}, **(changes or {})}
        ).spec
        self.shop = workshop(tmp_path / "out", self.lines)
        number = settings.pop("number", 2)
        request = publishable(tmp_path / str(number), "digits", number=number, **settings)
        self.recorder = DirectRecorder(uri, request)
        self.results = {name: made(self.shop, name) for name in ("targets", "register")}

    def publish(self) -> Published:
        published = Challenge(self.spec, self.shop, self.results).publish(self.recorder)
        assert published is not None
        assert published.registered is not None
        return published

    @property
    def outcome(self) -> tuple[int, bool, str]:
        registered = self.publish().registered
        assert registered is not None
        return registered.version, registered.champion, registered.decision


def made(shop: Workshop, name: str) -> Result:
    def work(folder: Path) -> list[str]:
        (folder / "file").write_text(name)
        return []

    return shop.make(Identity(name, 1, {}, {}), work)[0]


def decision_of(uri: str, number: int) -> str | None:
    return Registry(uri).resolve(f"models:/digits/{number}").tags.get("limbeck.decision")


def test_the_champion_is_evaluated_once_and_replaced_by_a_better_set(tmp_path, uri, evaluate_part):
    challenger = Challenger(tmp_path, uri, shift=0.05)
    version, champion, decision = challenger.outcome
    assert (version, champion) == (2, True)
    assert "5.0 points above version 1 (95 % one-sided bound +4." in decision
    assert challenger.lines.lines == ["models:/digits/1, the champion, is evaluated again beside this set"]
    assert challenger.outcome == (2, True, decision)
    assert len(evaluate_part.evaluated) == 1


@pytest.mark.parametrize("promote", ["always", "never"])
def test_a_policy_that_compares_nothing_evaluates_nothing(tmp_path, uri, evaluate_part, promote):
    assert Challenger(tmp_path, uri, shift=-0.1, promote=promote).outcome[1] is (promote == "always")
    assert evaluate_part.evaluated == []


def test_a_worse_set_is_registered_and_not_promoted(tmp_path, uri, evaluate_part):
    version, champion, decision = Challenger(tmp_path, uri, shift=-0.05).outcome
    assert (version, champion) == (2, False)
    assert "5.0 points below version 1" in decision
    assert len(evaluate_part.evaluated) == 1


@pytest.mark.parametrize("file", ["distilled.safetensors", "distilled.json", "checksums.json"])
def test_a_damaged_champion_is_a_line(tmp_path, uri, evaluate_part, file):
    (stored,) = tmp_path.joinpath("mlruns").rglob(file)
    stored.write_text("{}")
    version, champion, decision = Challenger(tmp_path, uri, shift=0.3).outcome
    assert (version, champion) == (2, False)
    assert decision.startswith("not compared with version 1: it cannot be used: spec.registry.name: models:/digits/1")
    assert f"{file} was altered" in decision
    assert "\n" not in decision
    assert decision_of(uri, 2) == decision
    assert evaluate_part.evaluated == []


def test_a_champion_of_another_image_size_is_a_line(tmp_path, uri, evaluate_part):
    _, champion, decision = Challenger(tmp_path, uri, {"source.imageSize": 16}, shift=0.3).outcome
    assert not champion
    assert "version 1: its images have 8x8 pixels, those of this spec 16x16; limbeck registry promote" in decision
    assert evaluate_part.evaluated == []


def test_a_gap_to_other_targets_is_refused_before_any_encoder_is_trained(tmp_path, uri, evaluate_part):
    challenger = Challenger(tmp_path, uri, {"registry.metric": "recovered_gap"}, shift=0.3, metric="recovered_gap")
    _, champion, decision = challenger.outcome
    assert not champion  # the results' targets are another digest than the champion's
    assert "not compared with version 1" in decision
    assert evaluate_part.evaluated == []


def test_what_may_succeed_later_decides_nothing(tmp_path, uri, evaluate_part, monkeypatch):
    challenger = Challenger(tmp_path, uri, shift=0.05)
    with monkeypatch.context() as broken:
        broken.setattr(Registry, "pull", lambda *_: (_ for _ in ()).throw(OSError("no answer")))
        version, champion, decision = challenger.outcome
    assert (version, champion) == (2, False)
    assert decision.startswith("not decided: version 1, the champion, was not evaluated: spec.registry.name: MLflow at")
    assert decision.endswith("no answer; limbeck stage register SPEC tries again")

    def fails() -> None:
        raise WorkError("evaluate: champion, seed 1000: the loss is not finite")

    evaluate_part.meanwhile = fails
    assert "seed 1000: the loss is not finite; limbeck stage register" in challenger.outcome[2]
    assert decision_of(uri, 2) is None
    evaluate_part.meanwhile = lambda: None
    assert challenger.outcome[1]


def test_another_champion_meanwhile_is_evaluated_too_but_not_for_ever(tmp_path, uri, evaluate_part):
    challenger, numbers = Challenger(tmp_path, uri, number=9, shift=0.5), iter(range(2, 9))

    def replaced() -> None:
        number = next(numbers)
        register(uri, tmp_path / str(number), "digits", number=number, promote="always", shift=0.01 * number)

    evaluate_part.meanwhile = replaced
    version, champion, decision = challenger.outcome
    assert (version, champion) == (2, False)  # registered first of all, before versions 3 to 5
    assert decision.startswith("not decided: 3 champions were replaced while they were evaluated; limbeck stage")
    assert len(set(evaluate_part.evaluated)) == 3
    evaluate_part.meanwhile = lambda: None
    assert "above version 5" in challenger.outcome[2]


def test_whole_runs_evaluate_the_champion_before_they_publish(tmp_path, finished):
    """Through the process that talks to MLflow, with real encoders; the decision is that of the summaries' figures."""
    uri, output, progress = f"sqlite:///{tmp_path / 'mlflow.db'}", copy_of(finished, tmp_path / "out"), Lines()
    changes = {
        "registry": {"name": "tiny", "confidence": 0.6},
        "evaluate.selectionSeeds": [1000, 1001, 1002],
        "evaluate.baselines": [],
    }
    first = run_tracked(output, uri, changes, progress)
    old = held_out(first)
    assert first.registered is not None
    assert first.registered.decision == f"the first champion; accuracy {fmean(old):.3f} on held-out labels"
    assert not any("evaluated again" in line for line in progress.lines)
    trained = encoders(output)

    second = run_tracked(output, uri, {**changes, "distill.size": 1, "distill.iterations": 1}, progress)
    new = held_out(second)
    assert progress.lines.count("models:/tiny/1, the champion, is evaluated again beside this set") == 1
    assert len(encoders(output) - trained) == 8  # 3 that choose and 2 that report of the new set, 3 of the champion
    gains = np.array(new) - np.array(old)  # the protocol is the same, so the champion's figures are those it came with
    assert gains.any()
    assert second.registered is not None
    assert (second.registered.version, second.registered.champion) == (2, bool(is_better(gains, 0.6)))
    side, bound = "above" if gains.mean() >= 0 else "below", lower_bound(gains, 0.6)
    assert f"accuracy {fmean(new):.3f} on held-out labels, {100 * abs(gains.mean()):.1f} points {side} version 1" in (
        second.registered.decision
    )
    assert f"(60 % one-sided bound {100 * bound:+.1f} over 3 seeds)" in second.registered.decision
