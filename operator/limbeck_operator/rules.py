"""What crosses fields of the spec, in CEL: the API server's side of the validators of `limbeck.spec`, class by class.

A test holds both against one table of good and bad specs, and sees that no validator is left out.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from limbeck.presets import PAPER_SIZES, PRESETS, USUAL_FRACTION
from limbeck.redact import SECRET_INSIDE, SECRET_NAME
from limbeck.spec import NO_SECRETS, PINNED, REGISTERED
from limbeck_operator.usual import USUAL

_SIZE = "self.source.imageSize"


class Rule(NamedTuple):
    """A CEL expression about a section, and what to say where it does not hold."""

    rule: str
    message: str


def _value(path: str) -> str:
    """A field that presets set, as what is given or what its preset says: the API server does not fill it in."""
    said = {name: _at(settings, path) for name, settings in PRESETS.items()}
    expression = _literal(_at(USUAL, path))
    for name, value in said.items():
        if value is not None and _literal(value) != expression:
            expression = f"(self.preset == '{name}' ? {_literal(value)} : {expression})"
    for (size, fraction), settings in PAPER_SIZES.items():
        value = _at(settings, path)
        if value is not None:
            share = f"(has(self.distill.fraction) ? self.distill.fraction : {USUAL_FRACTION})"
            published = f"!has(self.distill.size) && {_SIZE} == {size} && {share} == {fraction}"
            expression = f"(self.preset == 'paper' && {published} ? {_literal(value)} : {expression})"
    return f"(has(self.{path}) ? self.{path} : {expression})"


def _at(settings: Any, path: str) -> Any:
    for name in path.split("."):
        settings = settings.get(name, {})
    return None if settings == {} else settings


def _literal(value: Any) -> str:
    return json.dumps(value).replace('"', "'")


_USUAL_DEPTH = (  # as many halvings as leave 4x4 pixels: limbeck.spec.convnet_depth
    f"({_SIZE} < 16 ? 1 : {_SIZE} < 32 ? 2 : {_SIZE} < 64 ? 3 : {_SIZE} < 128 ? 4 : "
    f"{_SIZE} < 256 ? 5 : {_SIZE} < 512 ? 6 : 7)"
)
_POWERS = "[1, 2, 4, 8, 16, 32, 64, 128]"


def _divides(depth: str) -> str:
    return f"{_SIZE} % {_POWERS}[{depth}] == 0"


def _network(section: str, unless: str = "") -> list[Rule]:
    """A network that the spec makes fits the images; `unless` tells where it is another one."""
    depth = f"(has(self.{section}.depth) ? self.{section}.depth : {_USUAL_DEPTH})"
    is_convnet = f"self.{section}.architecture == 'convnet'"
    return [
        Rule(
            f"{unless}!({is_convnet}) || {_divides(depth)}",
            f"{section}.depth: source.imageSize must be a multiple of 2 to the power of the blocks of a convnet",
        ),
        Rule(
            f"{unless}{is_convnet} || self.{section}.norm != 'instance' || {_SIZE} > 8",
            f"{section}.norm: batch or none, or a source.imageSize above 8, is allowed for a ResNet",
        ),
    ]


_OTHERS_TEACHER = "(has(self.teacher.checkpoint) && !self.teacher.checkpoint.endsWith('.safetensors')) || "
_FOR_BATCH_NORM = "at least 2 images, for a student with batch norm"


def _no_repeats(field: str) -> Rule:
    """A list of numbers in which each is there once; other lists are sets."""
    return Rule(f"self.{field}.all(x, self.{field}.exists_one(y, y == x))", f"{field}: each value once")


RULES: dict[str, list[Rule]] = {
    "Probe": [_no_repeats("ridges")],
    "Teacher": [
        Rule(
            "(self.algorithm == 'pretrained') == has(self.checkpoint)",
            "checkpoint is given exactly when algorithm is pretrained",
        )
    ],
    "Distill": [
        Rule("!has(self.size) || !has(self.fraction)", "fraction: either size or fraction, not both"),
        Rule(
            f"!has(self.warmStart) || !self.warmStart.startsWith('{REGISTERED}') || "
            f"self.warmStart.matches('^{PINNED}$')",
            "warmStart: models:/NAME/VERSION, with the number of a version",
        ),
        Rule("self.method != 'krrSt' || self.pairs == 1", "pairs: 1 with method krrSt, which has no pairs"),
    ],
    "Evaluate": [
        Rule(
            "!self.seeds.exists(seed, seed in self.selectionSeeds)",
            "selectionSeeds: seeds that are not among evaluate.seeds, which choose nothing",
        ),
        _no_repeats("labelFractions"),
        _no_repeats("rateFactors"),
    ],
    "Task": [
        Rule(
            "self.allowOverlap || self.train.uri != self.test.uri || self.train.format != self.test.format || "
            "(has(self.train.limit) ? self.train.limit : 0) != (has(self.test.limit) ? self.test.limit : 0)",
            "test: other images than train's, or allowOverlap: true",
        )
    ],
    "Toleration": [
        Rule("self.operator != 'Exists' || !has(self.value)", "value: no value with operator Exists"),
        Rule("self.operator != 'Equal' || has(self.key)", "key: a key, or operator Exists"),
        Rule(
            "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
            "tolerationSeconds: only with effect NoExecute",
        ),
    ],
    "Secret": [
        Rule(
            "has(self.mountPath) || (has(self.environment) && size(self.environment) > 0)",
            "environment, mountPath or both",
        )
    ],
    "StorageOption": [
        Rule(
            "[has(self.value), has(self.environment), has(self.file)].filter(given, given).size() == 1",
            "value: one of value, environment and file",
        ),
        Rule(
            f"!has(self.value) || self.value in {list(NO_SECRETS)} || "
            f"!(self.name.matches(r'{SECRET_NAME}') || self.value.matches(r'{SECRET_INSIDE}'))",
            "value: environment or file, so that no secret stands in the spec",
        ),
    ],
    "RayWorkerGroup": [
        Rule(
            "(!has(self.minReplicas) || self.minReplicas <= self.replicas) && "
            "self.replicas <= (has(self.maxReplicas) ? self.maxReplicas : self.replicas)",
            "replicas: minReplicas to maxReplicas",
        ),
        Rule("!has(self.gpuType) || self.gpus > 0", "gpuType: only where gpus is at least 1"),
    ],
    "Ray": [
        Rule("!has(self.address) || !has(self.cluster)", "cluster: one of address and cluster"),
        Rule(
            "!has(self.minWorkers) || (has(self.workers) && self.minWorkers <= self.workers)",
            "minWorkers: at most workers, which must be given too",
        ),
    ],
    "DistillationSpec": [
        Rule(
            "!has(self.trajectories.epochs) || "
            f"self.trajectories.epochs >= {_value('distill.maxStartEpoch')} - 1 + {_value('distill.expertGap')}",
            "trajectories.epochs: at least distill.maxStartEpoch - 1 + distill.expertGap",
        ),
        Rule(
            f"{_value('distill.downsampling')} * 2 <= self.source.imageSize",
            "distill.downsampling: at most half of source.imageSize",
        ),
        Rule("!has(self.source.limit) || self.source.limit >= 2", "source.limit: at least 2 images"),
        Rule(
            "!has(self.source.limit) || !has(self.distill.size) || self.distill.size <= self.source.limit",
            "distill.size: at most source.limit",
        ),
        *_network("student"),
        *_network("teacher", _OTHERS_TEACHER),
        Rule(
            "self.student.architecture == 'convnet' || !self.evaluate.architectures.exists(a, a == 'convnet') || "
            + _divides(_USUAL_DEPTH),
            "evaluate.architectures: source.imageSize must be a multiple of 2 to the power of the blocks of a convnet",
        ),
        Rule(
            f"self.student.norm != 'batch' || {_value('trajectories.batch')} >= 2",
            f"trajectories.batch: {_FOR_BATCH_NORM}",
        ),
        Rule(
            f"self.student.norm != 'batch' || {_value('distill.innerBatch')} >= 2",
            f"distill.innerBatch: {_FOR_BATCH_NORM}",
        ),
        Rule(
            "self.student.norm != 'batch' || !has(self.distill.size) || self.distill.size >= 2",
            f"distill.size: {_FOR_BATCH_NORM}",
        ),
    ],
    "ScheduledDistillationSpec": [
        Rule(
            "self.warmStart != 'champion' || has(self.template.spec.registry.name)",
            "warmStart: only with template.spec.registry.name, whose champion it is",
        ),
        Rule(
            "self.warmStart != 'champion' || has(self.template.spec.distill.size)",
            "warmStart: only with template.spec.distill.size: a fraction changes with the source",
        ),
        Rule(
            "self.warmStart != 'champion' || !has(self.template.spec.distill.warmStart)",
            "template.spec.distill.warmStart: nothing beside warmStart",
        ),
    ],
}
# whose validators say that nothing stands twice: sets, and maps by name
BY_LIST_TYPE = {"RayCluster", "StorageOptions"}
