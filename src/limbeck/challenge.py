"""Registering a distilled set against the champion, which is evaluated again under the new set's protocol.

MLflow's registry decides (`limbeck.evaluation.comparison`); it answers with the version that it needs evaluated first.
The encoders of a champion are results in the store, so a repeated call trains nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from limbeck.data.distilled import DistilledSet
from limbeck.errors import InputError, WorkError
from limbeck.evaluation.comparison import CHAMPION, Champion, is_gap
from limbeck.evaluation.scores import summarize
from limbeck.spec import DistillationSpec
from limbeck.stages.task import StageTask, Workshop
from limbeck.store import Result
from limbeck.summary import Accuracy
from limbeck.tracking.messages import Published
from limbeck.tracking.recorder import Recorder
from limbeck.tracking.registered import RegisteredSet
from limbeck.warmstart import RegisteredStart

_FIELD = "spec.registry.name"
_ROUNDS = 3  # champions that are evaluated while others replace them


@dataclass(frozen=True)
class Challenge:
    """A new distilled set, and what is needed to evaluate the champion beside it.

    Attributes:
        spec: the new set's.
        shop: where encoders are trained.
        results: of all stages and of the tasks' data, as `Run.results` has them.
    """

    spec: DistillationSpec
    shop: Workshop
    results: Mapping[str, Result]

    def publish(self, recorder: Recorder) -> Published | None:
        """Have the set logged and registered, and evaluate the champion where the decision needs it.

        Raises:
            Stopped: a stop was requested.
        """
        published = recorder.publish(self.results["register"])
        for _ in range(_ROUNDS):
            if published is None or published.evaluate_first is None:
                return published
            version = published.evaluate_first
            try:
                champion = self._evaluated(version)
            except WorkError as error:  # another attempt may succeed, so nothing is decided
                return _undecided(published, f"version {version}, the champion, was not evaluated: {error}")
            published = recorder.publish(self.results["register"], champion)
        if published is None or published.evaluate_first is None:
            return published
        return _undecided(published, f"{_ROUNDS} champions were replaced while they were evaluated")

    def _evaluated(self, version: int) -> Champion:
        """Evaluate a version of `registry.name` beside the new set.

        Raises:
            WorkError: MLflow does not give it, or its encoders cannot be trained.
            Stopped: a stop was requested.
        """
        uri = f"models:/{self.spec.registry.name}/{version}"
        self.shop.progress.say(f"{uri}, the champion, is evaluated again beside this set")
        start = RegisteredStart(RegisteredSet(uri, self.spec.tracking.uri, _FIELD), self.shop)
        try:
            result = start.result()
            targets = DistilledSet.load(result.path).lineage.get("targets")
            side, wanted = start.form.shown, self.spec.source.image_size
            if side != wanted:
                found = f"its images have {side}x{side} pixels, those of this spec {wanted}x{wanted}"
                return Champion(version=version, refusal=found)
            if is_gap(self.spec.registry.metric or "") and targets != self.results["targets"].digest:
                return Champion(version=version, targets=targets)  # refused whatever its accuracies
            accuracies = _held_out(self._task(result))
        except InputError as error:
            return Champion(version=version, refusal=f"it cannot be used: {error}")
        return Champion(version=version, accuracies=accuracies, targets=targets)

    def _task(self, champion: Result) -> StageTask:
        return StageTask(self.spec, self.shop, {**self.results, CHAMPION: champion}, Path())


def _held_out(task: StageTask) -> list[Accuracy]:
    """The champion's accuracies on held-out labels, under the task's protocol, with its selection seeds alone."""
    from limbeck.stages.evaluate import evaluate_part

    scores = evaluate_part(task, task.spec.evaluate.architectures, [CHAMPION], selection_only=True)
    return summarize(scores)


def _undecided(published: Published, why: str) -> Published:
    """The answer with the reason why nothing was decided; MLflow keeps no decision, so that it can be made later."""
    assert published.registered is not None  # there is no champion without a registered name
    decision = f"not decided: {why}; limbeck stage register SPEC tries again"
    return published.model_copy(
        update={"registered": published.registered.model_copy(update={"decision": decision}), "evaluate_first": None}
    )
