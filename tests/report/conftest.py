"""A plausible run over scikit-learn's digits, with whatever a test wants otherwise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from html.parser import HTMLParser
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats
from sklearn.datasets import load_digits

from limbeck.report import ReportData, render_report
from limbeck.summary import (
    Accuracy,
    CurvePoint,
    Difference,
    DistilledSummary,
    RecoveredGap,
    SourceSummary,
    StageSummary,
    Summary,
)

MEANS = {  # method -> accuracy with 1 %, 5 %, 10 %, 50 % of the labels
    "full": (0.512, 0.743, 0.816, 0.921),
    "distilled": (0.421, 0.655, 0.748, 0.886),
    "start": (0.389, 0.622, 0.731, 0.879),
    "highLoss": (0.371, 0.598, 0.702, 0.861),
    "random": (0.355, 0.611, 0.717, 0.872),
    "none": (0.302, 0.540, 0.655, 0.838),
}
FRACTIONS = (0.01, 0.05, 0.1, 0.5)
STEPS = (125, 250, 500, 1000, 2000, 4000)
BEST_STEPS = {"full": 4000, "distilled": 1000, "start": 500}  # 2,000 for the others
SPEC = {
    "apiVersion": "limbeck.dev/v1alpha1",
    "kind": "Distillation",
    "spec": {
        "source": {"uri": "s3://datasets/digits", "imageSize": 8},
        "distill": {"size": 28, "initialization": "highLoss", "innerSteps": 20},
        "evaluate": {"tasks": [{"name": "digits"}], "labelFractions": list(FRACTIONS), "seeds": 5},
    },
}


def accuracies(
    means: dict[str, Sequence[float]] = MEANS,
    *,
    task: str = "digits",
    architecture: str = "convnet",
    fractions: Sequence[float] = FRACTIONS,
    seeds: int = 5,
    earlier: bool = False,
) -> list[Accuracy]:
    """Accuracies with these means; `earlier` as a version without curves, rates and bytes wrote them."""
    rng = np.random.default_rng(0)
    found = []
    for method, of_method in means.items():
        for label_fraction, mean in zip(fractions, of_method, strict=False):
            noise = rng.normal(0, 0.012, seeds)
            noise = noise - noise.mean()
            accuracy = Accuracy(
                task=task,
                architecture=architecture,
                method=method,
                label_fraction=label_fraction,
                labels=round(1797 * label_fraction),
                **_over_seeds(mean, noise),
                seeds=list(range(seeds)),
            )
            found.append(accuracy if earlier else accuracy.model_copy(update=_protocol(method, mean, noise)))
    return found


def _over_seeds(mean: float, noise: npt.NDArray[np.float64]) -> dict[str, Any]:
    deviation = float(noise.std(ddof=1)) if len(noise) > 1 else 0.0
    return {"mean": mean, "deviation": deviation, "values": (mean + noise).tolist()}


def _protocol(method: str, mean: float, noise: npt.NDArray[np.float64]) -> dict[str, Any]:
    """How a method was pre-trained: its accuracy is `mean` at its best steps, and lower before and after."""
    held_out = [mean - 0.01, mean + 0.01]
    selection = {"selection_seeds": [100, 101], "held_out": held_out}
    if method == "none":
        return selection
    if method == "fullSsl":
        return selection | {"images": 1797}
    best = BEST_STEPS.get(method, 2000)
    curve = [
        CurvePoint(steps=steps, held_out=held_out, **_over_seeds(mean - 0.02 * abs(np.log2(steps / best)), noise))
        for steps in STEPS
    ]
    size = {"images": 1797, "bytes": 805_056} if method.startswith("full") else {"images": 28, "bytes": 12_544}
    return selection | size | {"steps": best, "rate": 0.05, "curve": curve}


def gaps(of: Sequence[Accuracy]) -> list[RecoveredGap]:
    """The recovered gaps, by the definition in `limbeck.summary`."""
    cells = {(a.task, a.architecture, a.label_fraction, a.method): a for a in of}
    found = []
    for *setting, method in cells:
        here = [cells.get((*setting, m)) for m in ("distilled", "random", "full")]
        if method != "distilled" or None in here:
            continue
        steps = here[0].steps
        after = [next((p.mean for p in a.curve if p.steps == steps), None) for a in here]
        found.append(
            RecoveredGap(
                task=setting[0],
                architecture=setting[1],
                label_fraction=setting[2],
                value=_gap(*(a.mean for a in here)),
                equal_steps=steps,
                equal_steps_value=None if None in after else _gap(*after),
            )
        )
    return found


def _gap(distilled: float, random: float, full: float) -> float | None:
    return (distilled - random) / (full - random) if full > random else None


def differences(of: Sequence[Accuracy]) -> list[Difference]:
    """The differences paired by seed, by setting and over all."""
    cells = {(a.task, a.architecture, a.label_fraction, a.method): np.array(a.values) for a in of}
    found = []
    for rival in ("random", "start"):
        pairs = {
            setting: cells[*setting, "distilled"] - cells[*setting, rival]
            for *setting, method in cells
            for setting in [tuple(setting)]
            if method == rival and (*setting, "distilled") in cells
        }
        if pairs:
            pairs[None, None, None] = np.mean(list(pairs.values()), axis=0)
        found += [_difference(rival, setting, values) for setting, values in pairs.items()]
    return found


def _difference(against: str, setting: Sequence[Any], values: npt.NDArray[np.float64]) -> Difference:
    low = high = None
    if len(values) > 1:
        half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
        low, high = values.mean() - half, values.mean() + half
    task, architecture, label_fraction = setting
    return Difference(
        against=against,
        task=task,
        architecture=architecture,
        label_fraction=label_fraction,
        mean=values.mean(),
        low=low,
        high=high,
        seeds=len(values),
    )


def stages(*, device_memory: int = 0) -> list[StageSummary]:
    seconds = {"ingest": 0.8, "teacher": 61.2, "targets": 1.4, "trajectories": 42.0, "select": 0.6}
    seconds |= {"distill": 3711.0, "evaluate": 88.3, "register": 0.3}
    return [
        StageSummary(
            name=name,
            key=f"{i:064x}",
            digest=f"{i + 10:02x}" * 32,
            reused=name in ("ingest", "teacher"),
            seconds=spent,
            peak_memory_bytes=(400 + 300 * i) * 2**20,
            peak_device_memory_bytes=device_memory if name in ("teacher", "distill") else 0,
        )
        for i, (name, spent) in enumerate(seconds.items())
    ]


@cache
def _digits(size: int) -> npt.NDArray[np.uint8]:
    """uint8[400, 3, size, size]."""
    digits = (load_digits().images[:400] * 15.9).astype(np.uint8)
    scale = -(-size // 8)
    large = np.kron(digits, np.ones((1, scale, scale), np.uint8))[..., :size, :size]
    return np.repeat(large[:, None], 3, axis=1)


def make(
    *,
    images: int = 28,
    size: int = 8,
    shown: int | None = None,
    from_noise: bool = False,
    real: int = 16,
    iterations: int = 3000,
    source: dict[str, Any] | None = None,
    distilled: dict[str, Any] | None = None,
    **summary: Any,
) -> ReportData:
    rng = np.random.default_rng(0)
    digits = _digits(size)
    initial = digits[np.arange(images if shown is None else shown) % len(digits)]
    synthetic = np.clip(initial + rng.normal(0, 35, initial.shape), 0, 255).astype(np.uint8)

    steps = np.arange(iterations, dtype=np.int64)
    losses = 0.55 + 0.4 * np.exp(-steps / 700) + rng.normal(0, 0.04, iterations)
    rates = 0.1 - 0.03 * (1 - np.exp(-steps / 900))

    settings: dict[str, Any] = {
        "name": "digits-nightly",
        "limbeck_version": "0.1.0",
        "succeeded": True,
        "seconds": 3905.0,
        "device": "cpu, 2 cores",
        "stages": stages(),
        "accuracies": accuracies(),
        "links": {
            "report": "/results/runs/digits-nightly/report.html",
            "experiment": "https://mlflow.test/e/1",
        },
        "spec": SPEC,
    } | summary
    settings.setdefault("recovered_gaps", gaps(settings["accuracies"]))
    settings.setdefault("differences", differences(settings["accuracies"]))
    of_source = {
        "uri": "s3://datasets/digits",
        "fingerprint": "sha256:" + "4f" * 32,
        "images": 1797,
        "image_size": size,
        "skipped": {},
    }
    of_distilled = {
        "images": images,
        "image_size": size,
        "target_dimension": 64,
        "learning_rate": 0.0712,
        "matching_loss_first": 0.912,
        "matching_loss_last": 0.561,
        "path": "s3://results/distill/3f1c",
        "bytes": 12_544,
    }
    return ReportData(
        summary=Summary(
            source=SourceSummary(**(of_source | (source or {}))),
            distilled=DistilledSummary(**(of_distilled | (distilled or {}))),
            **settings,
        ),
        iterations=steps,
        matching_losses=losses,
        learning_rates=rates,
        synthetic=synthetic,
        initial=None if from_noise else initial,
        real=digits[100 : 100 + real],
    )


@pytest.fixture(scope="session")
def make_data() -> Callable[..., ReportData]:
    return make


@pytest.fixture(scope="session")
def make_accuracies() -> Callable[..., list[Accuracy]]:
    return accuracies


@dataclass(frozen=True)
class Element:
    """An element of a page with its text; `inside` are the tags around it, outermost first."""

    tag: str
    attributes: dict[str, str | None]
    inside: tuple[str, ...]
    texts: list[str]

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).replace("\N{NO-BREAK SPACE}", " ").split())


class Page(HTMLParser):
    """A page as a list of its elements in order; refuses one that is not properly nested."""

    VOID = frozenset({"meta", "link", "img", "br"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[Element] = []
        self._open: list[Element] = []
        self.feed(html)
        self.close()
        assert not self._open, f"left open: {[element.tag for element in self._open]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self._open.append(self.elements[-1])

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute of <{tag}> twice"
        self.elements.append(Element(tag, dict(attrs), tuple(e.tag for e in self._open), []))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.texts.append(data)

    def all(self, tag: str, **attributes: str) -> list[Element]:
        wanted = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
        return [e for e in self.elements if e.tag == tag and wanted.items() <= e.attributes.items()]

    def one(self, tag: str, **attributes: str) -> Element:
        (element,) = self.all(tag, **attributes)
        return element

    @property
    def text(self) -> str:
        return self.one("body").text


@pytest.fixture(scope="session")
def read_page() -> Callable[[ReportData], Page]:
    """Renders and parses."""
    return lambda data: Page(render_report(data))
