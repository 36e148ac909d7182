"""The archives that studies read, in their working folder: whole ones, and training images in two parts.

A spec names them as `data/DATASET-PART.zip`. PART is train or test, as they are given, or development or validation, a
split of the training images: a recipe is chosen on the validation images, so that the test images choose nothing.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable
from pathlib import Path

from limbeck.spec import DistillationSpec

FOLDER = "data"
_HELD_OUT = 5  # every fifth training image, by the checksum of its name, is for validation


def named_by(specs: Iterable[DistillationSpec]) -> list[str]:
    """The names of the archives that specs read from `data/`, sorted."""
    uris = set[str]()
    for spec in specs:
        uris.add(spec.source.uri)
        uris.update(data.uri for task in spec.evaluate.tasks for data in (task.train, task.test))
    return sorted(uri.removeprefix(f"{FOLDER}/") for uri in uris if uri.startswith(f"{FOLDER}/"))


def place(names: Iterable[str], given: Path, folder: Path) -> None:
    """Bring archives into the folder, unless they are there: linked, or split from the training images.

    Args:
        names: as `named_by` returns them.
        given: where DATASET-train.zip and DATASET-test.zip lie, class folders of pictures.
        folder: where the specs look for them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        dataset, _, part = name.removesuffix(".zip").rpartition("-")
        whole = f"{dataset}-train.zip" if part in ("development", "validation") else name
        if not (given / whole).is_file():
            raise SystemExit(f"--data: {given} has no {whole}")
        target = folder / name
        if target.exists():
            continue
        if whole == name:
            target.symlink_to(given / whole)
        else:
            _extract(given / whole, target, held_out=part == "validation")


def _extract(whole: Path, target: Path, *, held_out: bool) -> None:
    """Write the part of an archive that is held out, or the rest."""
    partial = target.with_suffix(".partial")
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(partial, "w") as part:
        for entry in source.infolist():
            if entry.is_dir():
                continue
            held = hashlib.sha256(entry.filename.encode()).digest()[0] % _HELD_OUT == 0
            if held == held_out:
                part.writestr(entry.filename, source.read(entry))
    partial.replace(target)
