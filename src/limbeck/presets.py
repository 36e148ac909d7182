"""Named settings that a spec starts from: what it does not say itself is the preset's, then the field's own default.

`recommended` is the fields' defaults; `docs/recipe.md` says what they rest on. `paper` is what the paper and its
authors' code use, written out, so that it stays what it is when a default changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.alias_generators import to_snake

Preset = Literal["recommended", "paper"]

# by the names on the wire
PRESETS: Mapping[Preset, Mapping[str, Any]] = {
    "recommended": {},
    "paper": {
        "targets": {"standardize": False, "components": 0, "whitening": 0.0},
        "student": {"augmentation": "none"},
        "trajectories": {
            "experts": 100,
            "batch": 256,
            "optimizer": {"rate": 0.1, "momentum": 0.9, "weightDecay": 1e-4},
            "sharpnessRadius": 0.0,
        },
        "distill": {
            "downsampling": 1,
            "pixels": "float32",
            "initialization": "highLoss",
            "iterations": 5000,
            "innerSteps": 40,
            "innerBatch": 256,
            "expertGap": 2,
            "maxStartEpoch": 2,
            "startGrowth": 0.0,
            "lossNormalization": "total",
            "averageLast": 0.0,
            "optimizer": "sgd",
            "schedule": "constant",
            "pixelStep": 1000.0,
            "targetStep": 1.0,
            "rateStep": 1e-4,
            "momentum": 0.5,
            "innerOptimizer": {"rate": 0.1, "momentum": 0.0, "weightDecay": 0.0},
        },
        "evaluate": {"epochs": 20, "batch": 256, "momentum": 0.9, "weightDecay": 1e-4},
    },
}


def completed(document: Mapping[str, Any]) -> dict[str, Any]:
    """A spec, as it stands in a file, with what its preset says and it does not; what is wrong in it stays."""
    preset = document.get("preset", "recommended")
    known = isinstance(preset, str) and preset in PRESETS
    return _merged(document, PRESETS[preset] if known else {})


def preset_fields() -> frozenset[tuple[str, ...]]:
    """The paths of all fields that a preset sets."""
    return frozenset(path for settings in PRESETS.values() for path in _paths(settings))


def _merged(own: Mapping[str, Any], preset: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(own)
    for wire, value in preset.items():
        name = next((given for given in (wire, to_snake(wire)) if given in own), wire)
        found = own.get(name, {})
        if isinstance(found, BaseModel):
            found = found.model_dump(by_alias=True, exclude_unset=True)
        if not isinstance(value, Mapping):
            merged.setdefault(name, value)
        elif isinstance(found, Mapping):
            merged[name] = _merged(found, value)
    return merged


def _paths(settings: Mapping[str, Any]) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for name, value in settings.items():
        found += [(name, *rest) for rest in _paths(value)] if isinstance(value, Mapping) else [(name,)]
    return found
