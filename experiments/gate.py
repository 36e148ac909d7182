"""Simulate the champion gate: how often it promotes a set that is no better, and how often one that is.

`python experiments/gate.py` prints the tables of docs/champion.md and draws its figure, docs/images/champion-gate.svg,
in seconds and with the same bytes every time. The rule itself is `limbeck.evaluation.comparison.is_better`.

Accuracies are in units of one set's deviation over the selection seeds. As in `evaluate`, either set is taken at the
best of 3 learning rates and 4 numbers of steps by its own mean on the held-out labels; all 12 are equally good, which
gives luck the most room.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from limbeck.evaluation.comparison import CONFIDENCE, is_better

SEEDS = (3, 5, 8)
SHARES = (0.0, 0.5)
DIFFERENCES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
NIGHTS, REPORTING_SEEDS = 52, 5
DRAWS = 20_000
_GRID = (3, 4)  # learning rates, numbers of steps
_FIGURE = Path(__file__).parents[1] / "docs" / "images" / "champion-gate.svg"

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Noise:
    """Of a set's accuracies on held-out labels.

    Attributes:
        seeds: how many selection seeds.
        shared: share of the variance over seeds that both sets have in common, as from the encoder's initial weights.
        selected: whether rate and steps are chosen on the same accuracies.
    """

    seeds: int
    shared: float = 0.0
    selected: bool = True

    def common(self, draws: int, rng: np.random.Generator) -> Floats:
        """What all sets of a draw have in common, f64[draws, seeds]."""
        return math.sqrt(self.shared) * rng.standard_normal((draws, self.seeds))

    def own(self, draws: int, rng: np.random.Generator) -> Floats:
        """What one set has for itself, at its chosen rate and steps, f64[draws, seeds]."""
        scale = math.sqrt(1.0 - self.shared)
        if not self.selected:
            return scale * rng.standard_normal((draws, self.seeds))
        settings = math.prod(_GRID)
        noise = scale * rng.standard_normal((draws, settings, self.seeds))
        best = noise.mean(axis=2).argmax(axis=1)
        return np.asarray(noise[np.arange(draws), best])


def promoted(noise: Noise, difference: float, draws: int = DRAWS) -> float:
    """Share of draws in which a set that is truly better by `difference` replaces the champion."""
    rng = np.random.default_rng(0)
    common = noise.common(draws, rng)
    new, champion = (common + noise.own(draws, rng) for _ in range(2))
    return float(is_better(new + difference - champion, CONFIDENCE).mean())


@dataclass(frozen=True)
class Year:
    """After 52 nightly runs of equal sets, over many such years.

    Attributes:
        shown: mean of the figure that the champion shows, minus the truth, in standard errors of such a figure.
        champions: mean number of sets that became champion, the first among them.
    """

    shown: float
    champions: float


def year(noise: Noise, draws: int = DRAWS // 10) -> Year:
    """The gate: it looks at held-out labels, and the champion shows the test images and the reporting seeds."""
    rng = np.random.default_rng(0)
    common = noise.common(draws, rng)
    champion, shown = common + noise.own(draws, rng), _reported(draws, rng)
    champions = np.ones(draws)
    for _ in range(NIGHTS - 1):
        new, reported = common + noise.own(draws, rng), _reported(draws, rng)
        better = is_better(new - champion, CONFIDENCE)
        champion, shown = np.where(better[:, None], new, champion), np.where(better, reported, shown)
        champions += better
    return Year(float(shown.mean()) * math.sqrt(REPORTING_SEEDS), float(champions.mean()))


def year_before(draws: int = DRAWS // 10) -> Year:
    """The rule until now: the difference above its standard error, on the figures that the champion shows."""
    rng = np.random.default_rng(0)
    champion, champions = rng.standard_normal((draws, REPORTING_SEEDS)), np.ones(draws)
    for _ in range(NIGHTS - 1):
        new = rng.standard_normal((draws, REPORTING_SEEDS))
        differences = new - champion
        better = differences.mean(axis=1) > differences.std(axis=1, ddof=1) / math.sqrt(REPORTING_SEEDS)
        champion = np.where(better[:, None], new, champion)
        champions += better
    return Year(float(champion.mean()) * math.sqrt(REPORTING_SEEDS), float(champions.mean()))


def _reported(draws: int, rng: np.random.Generator) -> Floats:
    return np.asarray(rng.standard_normal((draws, REPORTING_SEEDS)).mean(axis=1))


def power_table() -> str:
    """The share of runs whose set is promoted, by its true difference, as a table in Markdown."""
    heads = ["true difference", *(f"{n} seeds, {100 * share:.0f} % shared" for share in SHARES for n in SEEDS)]
    rows = [
        [f"{d:g}", *(f"{100 * promoted(Noise(n, share), d):.1f} %" for share in SHARES for n in SEEDS)]
        for d in DIFFERENCES
    ]
    return _markdown(heads, rows)


def year_table() -> str:
    """What the champion shows after 52 equal nights, as a table in Markdown."""
    rows = [["before: the difference above its standard error, 5 seeds", *_shown(year_before())]]
    rows += [[f"the gate, {seeds} selection seeds", *_shown(year(Noise(seeds)))] for seeds in SEEDS]
    return _markdown(["rule", "shown minus true, in standard errors", "champions in 52 nights"], rows)


def _shown(found: Year) -> list[str]:
    return [f"{found.shown:+.2f}", f"{found.champions:.1f}"]


def _markdown(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(file: Path) -> None:
    """Draw power over the true difference as an SVG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    differences = np.linspace(0.0, 3.0, 25)
    with mpl.rc_context({"svg.hashsalt": "limbeck", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(5.6, 3.2), layout="constrained")
        axes = figure.subplots()
        for color, seeds in zip(("C0", "C1", "C2"), SEEDS, strict=True):
            for style, shared in zip(("-", "--"), SHARES, strict=True):
                power = [promoted(Noise(seeds, shared), float(d), DRAWS // 4) for d in differences]
                axes.plot(differences, power, style, color=color, label=f"{seeds} seeds, {100 * shared:.0f} % shared")
        axes.axhline(1.0 - CONFIDENCE, color="0.6", linewidth=0.8)
        axes.set(xlabel="true difference, in deviations over the seeds", ylabel="share of runs promoted", ylim=(0, 1))
        axes.legend(frameon=False)
        figure.savefig(file, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    sys.stdout.write(f"{power_table()}\n\n{year_table()}\n")
    draw(_FIGURE)
