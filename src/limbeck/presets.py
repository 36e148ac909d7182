"""Named settings that a spec starts from: what it does not say itself is the preset's, then the field's own default.

`recommended` is the fields' defaults; `docs/recipe.md` says what they rest on. `paper` is what the paper and its
authors' code use, written out, so that it stays what it is when a default changes: the settings of CIFAR at 2 %, and
by image size and fraction the changes that were published with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
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

# what differs from PRESETS["paper"], by source.imageSize and distill.fraction: all that the authors published
PAPER_SIZES: Mapping[tuple[int, float], Mapping[str, Any]] = MappingProxyType(
    {
        (32, 0.02): {},
        (32, 0.05): {"distill": {"maxStartEpoch": 5, "pixelStep": 1e4}},
        (64, 0.02): {"distill": {"iterations": 10_000, "innerSteps": 10, "pixelStep": 1e5}},
    }
)
USUAL_IMAGE_SIZE, USUAL_FRACTION = 32, 0.02  # of a spec that gives none


def completed(document: Mapping[str, Any]) -> dict[str, Any]:
    """A spec, as it stands in a file, with what its preset says and it does not; what is wrong in it stays."""
    preset = document.get("preset", "recommended")
    known = isinstance(preset, str) and preset in PRESETS
    settings = PRESETS[preset] if known else {}
    if preset == "paper":
        distill = _section(document, "distill")
        size = _given(_section(document, "source"), "imageSize", USUAL_IMAGE_SIZE)
        fraction = _given(distill, "fraction", USUAL_FRACTION)
        if _given(distill, "size", None) is None and isinstance(size, int) and isinstance(fraction, int | float):
            settings = _merged(PAPER_SIZES.get((size, fraction), {}), settings)
    return _merged(document, settings)


def unpublished(preset: Preset, image_size: int, size: int | None, fraction: float | None) -> str | None:
    """A note where the authors published no settings for a spec with their preset; None where they did.

    Args:
        preset: of the spec.
        image_size: its source.imageSize.
        size: its distill.size.
        fraction: its distill.fraction.
    """
    share = USUAL_FRACTION if fraction is None else fraction
    if preset != "paper" or (size is None and (image_size, share) in PAPER_SIZES):
        return None
    amount = f"{100 * share:g} %" if size is None else f"a set of {size:,} images (distill.size)"
    return (
        f"preset: paper: no published settings for {amount} at {image_size}x{image_size} pixels; those of CIFAR at "
        "2 % are used"
    )


def preset_fields() -> frozenset[tuple[str, ...]]:
    """The paths of all fields that a preset sets."""
    return frozenset(path for settings in (*PRESETS.values(), *PAPER_SIZES.values()) for path in _paths(settings))


def _section(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = document.get(name)
    if isinstance(found, BaseModel):
        found = found.model_dump(by_alias=True, exclude_unset=True)
    return found if isinstance(found, Mapping) else {}


def _given(section: Mapping[str, Any], wire: str, usual: Any) -> Any:
    """A field of a section by either of its names; `usual` where it is absent or null."""
    found = section.get(wire, section.get(to_snake(wire)))
    return usual if found is None else found


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
