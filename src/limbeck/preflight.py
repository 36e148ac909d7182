"""Checks of a spec against its data, before any work: counts, classes, labels. They list, they do not decode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from limbeck.data.sources import Source, open_source
from limbeck.errors import InputError
from limbeck.spec import DistillationSpec, OnBadImage


@dataclass(frozen=True)
class NamedSource:
    """A source that a spec names, and what is taken of it."""

    label: str  # as in progress lines
    source: Source
    limit: int | None
    on_bad_image: OnBadImage

    @property
    def count(self) -> int:
        """How many images will be taken, unless some are bad and skipped."""
        count = self.source.listing().count
        return count if self.limit is None else min(count, self.limit)


def open_sources(spec: DistillationSpec) -> dict[str, NamedSource]:
    """All sources of a spec: "dataset" is the one to distil, "train:TASK" and "test:TASK" are the evaluation's."""
    own, bad = spec.source, spec.source.on_bad_image
    sources = {"dataset": NamedSource("source", open_source(own.uri, own.format), own.limit, bad)}
    for task in spec.evaluate.tasks:
        for part, data in (("train", task.train), ("test", task.test)):
            source = open_source(data.uri, data.format)
            sources[f"{part}:{task.name}"] = NamedSource(f"{task.name}/{part}", source, data.limit, bad)
    return sources


def check_against_data(spec: DistillationSpec, sources: Mapping[str, NamedSource]) -> None:
    """Check the cross-field rules that only the data can answer; `sources` are those of `open_sources`.

    Raises:
        InputError: a size larger than the source, labels that are missing or do not agree, or label fractions that
            give fewer labels than classes.
    """
    images = sources["dataset"].count
    if images < 2:
        raise InputError("spec.source", f"{spec.source.uri} holds {images} image", "at least 2")
    size = spec.distill.count(images)
    if size > images:
        raise InputError("spec.distill.size", str(size), f"at most the source's {images} images")
    for index, task in enumerate(spec.evaluate.tasks):
        where = f"spec.evaluate.tasks[{index}]"
        train, test = sources[f"train:{task.name}"], sources[f"test:{task.name}"]
        for part, entry in (("train", train), ("test", test)):
            if entry.source.listing().labels is None:
                raise InputError(
                    f"{where}.{part}", f"{entry.source.uri} has no labels", "class folders or a label column"
                )
        names, others = train.source.listing().classes, test.source.listing().classes
        if names != others:
            only = sorted(set(names) ^ set(others))
            raise InputError(
                f"{where}.test", f"class {only[0]!r} is in train or test alone", "the same classes in both"
            )
        if len(names) < 2:
            raise InputError(f"{where}.train", f"{len(names)} class", "at least 2 classes")
        for position, fraction in enumerate(spec.evaluate.label_fractions):
            labels = round(fraction * train.count)
            if labels < len(names):
                raise InputError(
                    f"spec.evaluate.labelFractions[{position}]",
                    f"{fraction:g} of task {task.name}'s {train.count} labels is {labels}",
                    f"at least one a class: {len(names) / train.count:.3g} or more for {len(names)} classes",
                )
