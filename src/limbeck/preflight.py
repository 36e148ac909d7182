"""Checks of a spec against its data: before any work, from listings alone, and again when all images were read.

Nothing here imports torch unless it is needed: a look at whether a source has changed runs often, in a small pod.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from itertools import product

from limbeck.data.dataset import ImageDataset
from limbeck.data.sources import Source, open_source
from limbeck.errors import InputError
from limbeck.evaluation.comparison import ACCURACY, DISTILLED, GAP
from limbeck.patience import patiently
from limbeck.spec import TIMM, DistillationSpec, OnBadImage, SourceFormat, StageName
from limbeck.storage import Access
from limbeck.store import json_digest
from limbeck.warmstart import FIELD as WARM_START
from limbeck.warmstart import Form, RegisteredStart, registered_start


@dataclass(frozen=True)
class SourceSettings:
    """What a spec says of one of its sources."""

    label: str  # as in progress lines
    field: str  # where the spec names it
    uri: str
    format: SourceFormat
    limit: int | None
    on_bad_image: OnBadImage


@dataclass(frozen=True)
class NamedSource:
    """A source that a spec names, and what is taken of it."""

    settings: SourceSettings
    source: Source


@dataclass(frozen=True)
class Facts:
    """What the checks need to know of a dataset."""

    images: int
    labelled: int | None  # how many have a label; None when it has no labels at all
    classes: tuple[str, ...]


def source_settings(spec: DistillationSpec) -> dict[str, SourceSettings]:
    """All sources of a spec: "dataset" is the one to distil, "train:TASK" and "test:TASK" are the evaluation's."""
    own, bad = spec.source, spec.source.on_bad_image
    found = {"dataset": SourceSettings("source", "spec.source", own.uri, own.format, own.limit, bad)}
    for index, task in enumerate(spec.evaluate.tasks):
        for part, data in (("train", task.train), ("test", task.test)):
            field = f"spec.evaluate.tasks[{index}].{part}"
            label = f"{task.name}/{part}"
            found[f"{part}:{task.name}"] = SourceSettings(label, field, data.uri, data.format, data.limit, bad)
    return found


def open_sources(spec: DistillationSpec) -> dict[str, NamedSource]:
    """The sources of `source_settings`, opened.

    Raises:
        InputError: one of them is not there, or is not what it should be; names the field.
    """
    opened, access = {}, Access.of(spec)
    for name, settings in source_settings(spec).items():
        try:
            source = open_source(settings.uri, settings.format, access)
            source.listing()
        except InputError as error:
            where = f"{settings.field}.uri"
            raise InputError(where, f"{error.where}: {error.found}", error.allowed) from None
        opened[name] = NamedSource(settings, source)
    return opened


def fingerprints_of(sources: Mapping[str, NamedSource]) -> dict[str, str]:
    """What the sources are now, by name."""
    return {name: entry.source.fingerprint() for name, entry in sources.items()}


def source_digest(fingerprints: Mapping[str, str]) -> str:
    """One digest for all of them: as long as it stays, so do the sources."""
    return json_digest(dict(fingerprints))


def check_against_data(
    spec: DistillationSpec, sources: Mapping[str, NamedSource], start: RegisteredStart | None = None
) -> None:
    """Check, from listings alone, the rules that only the data can answer.

    Args:
        spec: to check.
        sources: those of `open_sources`.
        start: that of `registered_start`, where whoever asks has it already.

    Raises:
        InputError: as `check_facts`; or what the spec names outside its sources (a teacher to import, a set to start
            from, a package) is not there or does not fit.
        WorkError: MLflow does not give the set to start from.
    """
    start = start or registered_start(spec)
    check_facts(spec, {name: _listed(entry) for name, entry in sources.items()}, start)
    _check_metric(spec)
    for stage in ("teacher", "distill"):
        outside_digests(stage, spec, start)
    _check_packages(spec)


def check_datasets(
    spec: DistillationSpec, datasets: Mapping[str, ImageDataset], start: RegisteredStart | None = None
) -> None:
    """The same rules for what was read: bad images may have been skipped.

    Raises:
        InputError: as `check_facts`.
        WorkError: likewise.
    """
    check_facts(
        spec,
        {
            name: Facts(
                len(dataset), None if dataset.labels is None else int((dataset.labels >= 0).sum()), dataset.classes
            )
            for name, dataset in datasets.items()
        },
        start or registered_start(spec),
    )


def check_facts(spec: DistillationSpec, facts: Mapping[str, Facts], start: RegisteredStart | None) -> None:
    """The rules themselves; `start` is that of `registered_start`.

    Raises:
        InputError: a size larger than the source, labels that are missing or do not agree, label fractions that give
            fewer labels than classes, batches of one image where batch norm needs two, or a set to start from that
            has another size.
        WorkError: MLflow does not give the set to start from.
    """
    images = facts["dataset"].images
    if images < 2:
        raise InputError("spec.source.uri", f"{spec.source.uri} gives {images} image", "at least 2")
    size = spec.distill.count(images, spec.source.image_size)
    if size > images:
        if spec.distill.size is None:
            raise InputError("spec.distill.fraction", f"{size} images", f"at most the source's {images}")
        raise InputError("spec.distill.size", str(size), f"at most the source's {images} images")
    if spec.distill.warm_start is not None:
        _check_warm_start(spec, spec.distill.warm_start, size, start)
    student_norm = spec.student.norm == "batch"
    if student_norm and size < 2:
        raise InputError("spec.distill.size", f"{size} image", "at least 2, for a student with batch norm")
    batch_norm = student_norm or any(
        name not in ("convnet", spec.student.architecture) for name in spec.evaluate.architectures
    )
    side = spec.distill.side(spec.source.image_size)
    rivals = size * side**2 // spec.source.image_size**2  # at least: of as many pixels; targets add to it
    fewest = min(size, max(1, rivals), spec.evaluate.batch)
    if batch_norm and spec.evaluate.tasks and fewest < 2:
        raise InputError("spec.evaluate.batch", "1 image a step", "at least 2, for an encoder with batch norm")
    for index, task in enumerate(spec.evaluate.tasks):
        _check_task(spec, f"spec.evaluate.tasks[{index}]", task.name, facts)


def _check_task(spec: DistillationSpec, where: str, task: str, facts: Mapping[str, Facts]) -> None:
    train, test = facts[f"train:{task}"], facts[f"test:{task}"]
    for part, entry in (("train", train), ("test", test)):
        if not entry.labelled:
            raise InputError(f"{where}.{part}", f"task {task} has no labels here", "class folders or a label column")
    if train.classes != test.classes:
        only = sorted(set(train.classes) ^ set(test.classes))
        raise InputError(f"{where}.test", f"class {only[0]!r} is in train or test alone", "the same classes in both")
    classes = len(train.classes)
    if classes < 2:
        raise InputError(f"{where}.train", f"{classes} class", "at least 2 classes")
    assert train.labelled is not None
    if train.labelled <= classes:
        found = f"{train.labelled} labels for {classes} classes of task {task}"
        raise InputError(f"{where}.train", found, "more labels than classes: some are held out from the probes")
    for position, fraction in enumerate(spec.evaluate.label_fractions):
        labels = round(fraction * train.labelled)
        if labels < classes:
            raise InputError(
                f"spec.evaluate.labelFractions[{position}]",
                f"{fraction:g} of task {task}'s {train.labelled} labels is {labels}",
                f"at least one a class: {classes / train.labelled:.3g} or more for {classes} classes",
            )


def _check_metric(spec: DistillationSpec) -> None:
    metric, evaluate = spec.registry.metric, spec.evaluate
    if metric is None:
        return
    kinds = [ACCURACY, GAP] if {"random", "full"} <= {*evaluate.baselines} else [ACCURACY]
    known = kinds if evaluate.tasks else []
    cells = product(evaluate.tasks, evaluate.architectures, evaluate.label_fractions)
    known = known + [f"{kind}/{task.name}/{name}/{fraction:g}" for task, name, fraction in cells for kind in kinds]
    kind, *rest = metric.split("/")
    of_method = kind == ACCURACY and len(rest) == 4
    if of_method and rest[2] in evaluate.baselines:
        allowed = "/".join([kind, rest[0], rest[1], rest[3]])
        raise InputError("spec.registry.metric", f"{metric} is a figure of {rest[2]}, not of the set", allowed)
    if of_method and rest[2] == DISTILLED:
        metric = "/".join([kind, rest[0], rest[1], rest[3]])
    if metric not in known:
        allowed = ", ".join(get_close_matches(metric, known, 3, 0.0)) or "none: evaluate.tasks is empty"
        raise InputError("spec.registry.metric", f"{spec.registry.metric} is not evaluated", allowed)


def _check_warm_start(spec: DistillationSpec, uri: str, size: int, start: RegisteredStart | None) -> None:
    if start is not None:
        found = start.form
    else:
        from limbeck.data.distilled import DistilledSet

        try:
            earlier = DistilledSet.load(uri, Access.of(spec))
            found = Form(tuple(earlier.kept.shape), earlier.images.shape[-1])
        except InputError as error:
            raise InputError(WARM_START, f"{error.where}: {error.found}", error.allowed) from None
    wanted = Form.distilled(spec, size)
    if found != wanted:
        allowed = f"{size} of {wanted.pixels}, as this spec distils"
        raise InputError(WARM_START, f"{uri} has {found.shape[0]} images of {found.pixels}", allowed)


def outside_digests(stage: StageName, spec: DistillationSpec, start: RegisteredStart | None = None) -> dict[str, str]:
    """Digests of the content of what a stage reads from outside: an imported teacher, a set to start from.

    Raises:
        InputError: it is not there.
        WorkError: MLflow does not say what the set to start from is, or the storage does not answer.
    """
    if stage == "distill":
        start = start or registered_start(spec)
        if start is not None:
            return {"warmStart": start.digest}
    outside = {"teacher": ("checkpoint", spec.teacher.checkpoint), "distill": ("warmStart", spec.distill.warm_start)}
    name, uri = outside.get(stage, ("", None))
    if uri is None or uri.startswith(TIMM):  # a timm model is named by the spec itself
        return {}
    where = f"spec.{stage}.{name}"
    try:
        filesystem, path = Access.of(spec).open(uri)
        if stage == "teacher" and filesystem.isdir(path):
            raise InputError(where, f"{uri} is a folder", "a .safetensors, .pt or TorchScript file, or timm:NAME")
        files = sorted(patiently(f"{where}: listing {uri}", lambda: filesystem.find(path)))

        def digest(file: str) -> str:
            content = patiently(f"{where}: reading {uri}", lambda: filesystem.cat_file(file))
            return hashlib.sha256(content).hexdigest()

        digests = [[file.removeprefix(path), digest(file)] for file in files]
    except (ValueError, OSError) as error:
        raise InputError(where, f"{uri}: {error}", "a path or an fsspec URL") from None
    if not files:
        raise InputError(where, f"{uri} does not exist", "a path or an fsspec URL")
    return {name: json_digest(digests)}


def _check_packages(spec: DistillationSpec) -> None:
    teacher, evaluate, objective = spec.teacher, spec.evaluate, ("lightly", "kornia")
    needed: list[tuple[str, str, tuple[str, ...]]] = []  # the field, its value, what that needs
    if teacher.checkpoint is not None and teacher.checkpoint.startswith(TIMM):
        needed.append(("teacher.checkpoint", teacher.checkpoint, ("timm",)))
    if teacher.algorithm != "pretrained":
        needed.append(("teacher.algorithm", teacher.algorithm, objective))
    if "fullSsl" in evaluate.baselines and evaluate.tasks:
        needed.append(("evaluate.baselines", "fullSsl", objective))
    for field, value, packages in needed:
        absent = [package for package in packages if find_spec(package) is None]
        if absent:
            raise InputError(f"spec.{field}", f"{value} needs {' and '.join(absent)}", "pip install 'limbeck[ssl]'")


def _listed(entry: NamedSource) -> Facts:
    listing, limit = entry.source.listing(), entry.settings.limit
    most = listing.count if limit is None else min(listing.count, limit)
    labelled = None if listing.labels is None else min(most, int((listing.labels >= 0).sum()))
    return Facts(most, labelled, listing.classes)
