"""Whether the distillation paid, in plain words and without flattery."""

from __future__ import annotations

from dataclasses import dataclass

from limbeck.report.evaluation import RIVALS, Setting, is_above, may_still_rise, method_name, overall, settings_of
from limbeck.report.wording import count, fraction, gain, listing, percent
from limbeck.summary import Accuracy, Difference, Summary

_SINGULAR = {
    "do": "does",
    "pre-train": "pre-trains",
    "reach": "reaches",
    "recover": "recovers",
    "stand": "stands",
}
_RIVAL_NAMES = {"start": "what it started from", "random": "a random subset"}


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
        """The recovered gap there, every method at its own plateau; None where not defined or not measured."""
        gap = self.setting.gaps.get(self.label_fraction)
        return None if gap is None else gap.value


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
    sentence = _sentence(summary, headline)
    remarks = [*_over_all_settings(summary), _alone(summary, headline), _rising(headline)]
    failures = _failures(summary)
    if failures:
        remarks.insert(0, sentence)
        sentence = failures
    return Verdict(sentence, tuple(remark for remark in remarks if remark))


def _failures(summary: Summary) -> str:
    """The rivals that the distilled set is not above by the interval, over all settings; empty where there is none."""
    failures: list[str] = []
    for rival in RIVALS:
        difference = overall(summary, rival)
        if difference is not None and not is_above(difference):
            subject = "It" if failures else "This set"
            verb = "is not" if difference.mean <= 0 or difference.low is not None else "is not shown to be"
            better = "is worse than" if difference.high is not None and difference.high < 0 else f"{verb} better than"
            failures.append(f"{subject} {better} {_RIVAL_NAMES[rival]}: {_gain(difference)} {_where(summary, rival)}.")
    return " ".join(failures)


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
            f"{subject} {_verb('do', images)} not beat a random subset of as many bytes: "
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


def _gain(difference: Difference) -> str:
    return gain(difference.mean, difference.low, difference.high)


def _where(summary: Summary, rival: str) -> str:
    return "in the one setting measured" if len(_by_setting(summary, rival)) == 1 else "over all settings"


def _by_setting(summary: Summary, rival: str) -> list[Difference]:
    return [d for d in summary.differences if d.against == rival and d.task is not None]


def _over_all_settings(summary: Summary) -> list[str]:
    """How far and how often the distilled set is above its rivals by the interval, and which were not measured."""
    remarks = []
    for rival in RIVALS:
        difference, each = overall(summary, rival), _by_setting(summary, rival)
        above = sum(map(is_above, each))
        often = f"in {'all' if above == len(each) else f'{above} of the'} {len(each)} settings"
        if difference is None:
            continue
        if is_above(difference):
            also = f"; by the interval, {often}" if len(each) > 1 else ""
            where = _where(summary, rival)
            remarks.append(f"It is better than {_RIVAL_NAMES[rival]} by {_gain(difference)} {where}{also}.")
        elif above:
            remarks.append(f"By the interval, it is better than {_RIVAL_NAMES[rival]} {often}.")
    methods = {accuracy.method for accuracy in summary.accuracies}
    if "start" not in methods:
        remarks.append(
            "What it started from was not evaluated (the baseline start), so what distilling added to it is not known."
        )
    if "random" in methods and overall(summary, "random") is None:
        remarks.append(
            "The summary holds no paired differences, so chance is not ruled out as the cause of the difference to "
            "the random subset."
        )
    return remarks


def _alone(summary: Summary, headline: Headline) -> str:
    """Whether chance could explain the headline's difference to the random subset, where there are other settings."""
    difference = headline.setting.differences.get(("random", headline.label_fraction))
    if difference is None or len(_by_setting(summary, "random")) < 2 or is_above(difference) or difference.mean <= 0:
        return ""
    where = f"On {headline.setting.task} with {fraction(headline.label_fraction)} of the labels alone"
    return f"{where}, the difference to the random subset is {_gain(difference)}: chance is not ruled out."


def _rising(headline: Headline) -> str:
    """Which of the methods that the headline compares might do better with more steps."""
    accuracies = [headline.accuracy(method) for method in ("full", "distilled", "random")]
    rising = [a for a in accuracies if a is not None and may_still_rise(a)]
    if not rising:
        return ""
    names = listing([method_name(accuracy.method).lower() for accuracy in rising])
    steps = listing([f"{number:,}" for number in sorted({a.steps for a in rising if a.steps is not None})])
    return f"Still rising at {steps} steps: {names}. More steps might change the figures."
