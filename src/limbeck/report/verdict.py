"""Whether the distillation paid, in plain words and without flattery."""

from __future__ import annotations

from dataclasses import dataclass

from limbeck.report.evaluation import Setting, settings_of
from limbeck.report.wording import count, fraction, percent
from limbeck.summary import Accuracy, Summary

_SINGULAR = {
    "do": "does",
    "pre-train": "pre-trains",
    "reach": "reaches",
    "recover": "recovers",
    "stand": "stands",
}


@dataclass(frozen=True)
class Verdict:
    """One sentence, and what a reader must know not to read too much into it."""

    sentence: str
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Headline:
    """The figure that the verdict speaks of.

    It is fixed before anything is measured, so that it cannot be picked for its result: the first task and
    architecture of the spec, and their smallest label fraction, where pre-training matters most.
    """

    setting: Setting
    label_fraction: float

    def accuracy(self, method: str) -> Accuracy | None:
        """The method's accuracy there, if it was measured."""
        return self.setting.cells.get((method, self.label_fraction))

    @property
    def gap(self) -> float | None:
        """The recovered gap there; None where it is not defined or was not measured."""
        return self.setting.gaps.get(self.label_fraction)


def headline_of(summary: Summary) -> Headline | None:
    """The headline figure; None where the distilled set was not evaluated."""
    for setting in settings_of(summary):
        for label_fraction in setting.labels:
            if ("distilled", label_fraction) in setting.cells:
                return Headline(setting, label_fraction)
    return None


def verdict_of(summary: Summary) -> Verdict:
    """What the run showed."""
    if not summary.succeeded:
        return Verdict("This run did not succeed; what follows is what it had reached.")
    headline = headline_of(summary)
    if headline is None:
        return Verdict(_unevaluated(summary))
    remarks = (_over_all_settings(summary), _spread(headline))
    return Verdict(_sentence(summary, headline), tuple(remark for remark in remarks if remark))


def _unevaluated(summary: Summary) -> str:
    images = summary.distilled.images
    return (
        f"{count(images, 'synthetic image')} {_verb('stand', images)} for "
        f"{count(summary.source.images, 'real one')}; the run did not evaluate the synthetic set, "
        "so how well it pre-trains is not known."
    )


def _sentence(summary: Summary, headline: Headline) -> str:
    images = summary.distilled.images
    where = f"On {headline.setting.task} with {fraction(headline.label_fraction)} of the labels"
    subject = f"{where}, {count(images, 'synthetic image')}"

    distilled, random, full = (headline.accuracy(method) for method in ("distilled", "random", "full"))
    assert distilled is not None
    reaching = f"{subject} {_verb('reach', images)} {percent(distilled.mean, 1)} accuracy"
    if random is None:
        return f"{reaching}; no random subset was measured to compare with."
    if distilled.mean <= random.mean:
        return (
            f"{subject} {_verb('do', images)} not beat a random subset of as many pixels: "
            f"{percent(distilled.mean, 1)} accuracy against {percent(random.mean, 1)}."
        )
    if headline.gap is None:
        compared = f"{reaching}, a random subset {percent(random.mean, 1)}"
        if full is None:
            return f"{compared}; the full data was not measured."
        return f"{compared}; the full data does not beat the random subset, so there is no gap to recover."
    gap = f"{percent(headline.gap)} of the gap between a random subset and the full data"
    if headline.gap >= 1:
        return f"{subject} {_verb('pre-train', images)} as well as the full data: {gap}."
    return f"{subject} {_verb('recover', images)} {gap}."


def _verb(verb: str, images: int) -> str:
    return _SINGULAR[verb] if images == 1 else verb


def _over_all_settings(summary: Summary) -> str:
    """In how many settings the distilled set beats the random subset, where there is more than one."""
    compared = [
        setting.cells["distilled", label_fraction].mean > setting.cells["random", label_fraction].mean
        for setting in settings_of(summary)
        for label_fraction in setting.labels
        if {("distilled", label_fraction), ("random", label_fraction)} <= setting.cells.keys()
    ]
    if len(compared) < 2:
        return ""
    beaten = "all" if all(compared) else f"{sum(compared) or 'none'} of the"
    return f"The distilled set beats the random subset in {beaten} {len(compared)} settings measured."


def _spread(headline: Headline) -> str:
    """Whether chance could explain the headline's difference to the random subset."""
    distilled, random = headline.accuracy("distilled"), headline.accuracy("random")
    if distilled is None or random is None:
        return ""
    if min(len(distilled.seeds), len(random.seeds)) < 2:
        return "It rests on one seed, so chance is not ruled out."
    difference, deviation = abs(distilled.mean - random.mean), max(distilled.deviation, random.deviation)
    if difference > deviation:
        return ""
    return (
        "The difference to the random subset lies within one standard deviation over the seeds: "
        f"{percent(difference, 1)} against {percent(deviation, 1)}."
    )
