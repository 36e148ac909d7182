"""Stage 7, evaluate: encoders pre-trained on the synthetic set and on its rivals, judged by linear probes.

For every architecture and method, encoders of the selection seeds are trained at every learning rate of the grid and
scored on held-out labels; the best rate is then trained with the reporting seeds and scored on the test images. Each
encoder and each of its probes is a result of its own, so a cut evaluation resumes, another share of labels retrains
nothing, and another distilled set is compared without training its rivals again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from limbeck.errors import WorkError
from limbeck.evaluation.baselines import FIXED, Diet, Diets
from limbeck.evaluation.encoders import train, untrained
from limbeck.evaluation.probe import UnreachedError
from limbeck.evaluation.probing import TaskImages, failed, probe
from limbeck.evaluation.protocol import Candidate, best_rate
from limbeck.evaluation.scores import FILE, Score, write_scores
from limbeck.failures import explained
from limbeck.nn.encoders import EncoderConfig, student_config
from limbeck.progress import Bar
from limbeck.spec import Architecture, DistillationSpec
from limbeck.stages.task import StageTask
from limbeck.threads import fitting_threads


def evaluate(task: StageTask) -> None:
    """Write `accuracies.parquet`, one row a probe."""
    settings = task.spec.evaluate
    write_scores(task.out / FILE, evaluate_part(task, settings.architectures, ["distilled", *settings.baselines]))


def evaluate_part(
    task: StageTask, architectures: Sequence[Architecture], methods: Sequence[str], *, selection_only: bool = False
) -> list[Score]:
    """Return the scores of some methods, whose encoders are trained and probed unless that was done before.

    Without "distilled" among the methods the task needs no distilled set; "champion" is the registered set among the
    inputs by that name. Nothing is written to the task's folder.

    Args:
        task: the evaluation.
        architectures: of the encoders.
        methods: as in `evaluate.baselines`, "distilled" or "champion".
        selection_only: leave out the reporting seeds: the test images are not looked at.

    Raises:
        WorkError: a figure is not finite, or every rate of a method's grid diverges, or memory does not suffice.
    """
    if not task.spec.evaluate.tasks:
        return []
    with explained("evaluate", None):
        return _part(task, architectures, methods, selection_only)


def _part(
    task: StageTask, architectures: Sequence[Architecture], methods: Sequence[str], selection_only: bool
) -> list[Score]:
    spec, settings = task.spec, task.spec.evaluate
    evaluation = _Evaluation(task)
    scores = []
    total = len(architectures) * sum(evaluation.encoders(method, selection_only) for method in methods)
    with task.shop.progress.bar("evaluate", total, "encoders") as bar:
        for architecture in architectures:
            config = encoder_config(spec, architecture)
            with fitting_threads(config, settings.batch):
                for method in methods:
                    scores += evaluation.scores(config, method, bar, selection_only)
    return scores


def encoder_config(spec: DistillationSpec, architecture: Architecture) -> EncoderConfig:
    """The encoder of that architecture: the student's own settings where it is the student's, else the usual ones."""
    if architecture == spec.student.architecture:
        return student_config(spec)
    width = spec.evaluate.width
    if architecture == "convnet":
        return EncoderConfig("convnet", spec.source.image_size, width or 128, "instance")
    return EncoderConfig(architecture, spec.source.image_size, width or 64, "batch")


class _Evaluation:
    """Trains and probes the encoders of one method after the other."""

    def __init__(self, task: StageTask) -> None:
        self._task, self._settings = task, task.spec.evaluate
        self._diets = Diets(task)
        self._tasks = [TaskImages(task, entry.name) for entry in self._settings.tasks]

    def encoders(self, method: str, selection_only: bool) -> int:
        """Return how many encoders a method has for each architecture."""
        settings = self._settings
        choosing = 0 if method in FIXED else len(settings.rate_factors) * len(settings.selection_seeds)
        return choosing + (0 if selection_only else len(settings.seeds))

    def scores(self, config: EncoderConfig, method: str, bar: Bar, selection_only: bool) -> list[Score]:
        """Choose a method's rate on held-out labels, then score its encoders of the reporting seeds."""
        if method in FIXED:
            factor, scores = 1.0, list[Score]()
        else:
            factor, scores = self._choose(config, method, bar)
        for seed in () if selection_only else self._settings.seeds:
            scores += self._scored(config, method, factor, seed, report=True)
            bar.advance(note=f"{config.architecture}, {method}, seed {seed}")
        return scores

    def _choose(self, config: EncoderConfig, method: str, bar: Bar) -> tuple[float, list[Score]]:
        """Return the best rate factor, and its scores on held-out labels."""
        found: dict[float, list[Score]] = {}
        diverged = ""
        for factor in self._settings.rate_factors:
            scores = list[Score]()
            for seed in self._settings.selection_seeds:
                try:
                    scores += self._scored(config, method, factor, seed, report=False)
                except _DivergedError as error:
                    diverged = str(error)
                    break
                finally:
                    bar.advance(note=f"{config.architecture}, {method}, rate x {factor:g}, seed {seed}")
            else:
                found[factor] = scores
        if not found:
            raise WorkError(diverged)
        best = best_rate([Candidate(factor, _held_out(scores)) for factor, scores in found.items()])
        return best.factor, found[best.factor]

    def _scored(self, config: EncoderConfig, method: str, factor: float, seed: int, *, report: bool) -> list[Score]:
        """Return the scores of one encoder.

        Raises:
            _DivergedError: its training has no result.
        """
        diet = self._diets.of(method, seed)
        trained = untrained(config, seed) if diet is None else train(self._task, config, diet, factor, seed)
        if trained.diverged is not None:
            change = "spec.evaluate.rateFactors" + ("" if method == "distilled" else " or baselineRate")
            raise _DivergedError(
                f"evaluate: {method}, {config.architecture}, seed {seed}: {trained.diverged}; lower {change}"
            )
        scores = []
        for images in self._tasks:
            try:
                rows = probe(self._task, images, trained, seed=seed, report=report)
            except (FloatingPointError, UnreachedError) as error:
                raise failed(method, seed, error) from None
            wanted = "test" if report else "heldOut"
            scores += [
                Score(
                    task=images.name,
                    architecture=config.architecture,
                    method=method,
                    label_fraction=row.fraction,
                    labels=row.labels,
                    seed=seed,
                    steps=row.steps if isinstance(diet, Diet) else None,
                    rate=diet.rate * factor if isinstance(diet, Diet) else None,
                    ridge=row.ridge,
                    split=row.split,
                    accuracy=row.accuracy,
                    images=None if diet is None else diet.images,
                    bytes=None if diet is None else diet.bytes,
                )
                for row in rows
                if row.split == wanted
            ]
        return scores


def _held_out(scores: Iterable[Score]) -> dict[tuple[str, float], dict[int, list[float]]]:
    """The accuracies on held-out labels by setting and steps."""
    found: dict[tuple[str, float], dict[int, list[float]]] = {}
    for score in scores:
        assert score.steps is not None
        found.setdefault((score.task, score.label_fraction), {}).setdefault(score.steps, []).append(score.accuracy)
    return found


class _DivergedError(WorkError):
    """A training whose loss or weights are not finite."""
