"""A distilled set: a small synthetic dataset that carries all that is needed to pre-train from it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import Dataset

from limbeck.checkpoint import save_tensors
from limbeck.data.distilled_files import PREVIEW, RECORD, TENSORS
from limbeck.errors import InputError
from limbeck.nn.enlarging import Enlarging
from limbeck.nn.pretraining import Recipe
from limbeck.patience import patiently
from limbeck.storage import PLAIN, Access
from limbeck.store import data_folder, file_digest, json_digest


@dataclass(frozen=True)
class DistilledSet(Dataset[tuple[Tensor, Tensor]]):
    """Synthetic images and their targets, as a torch Dataset of (image f32[3, s, s], target f32[d]).

    Attributes:
        images: f32[m, 3, s, s], normalised with `mean` and `std`, as networks see them.
        targets: f32[m, d], what an encoder's head is trained to give.
        mean: f32[3], in [0, 1] units; normalise other images likewise before the pre-trained encoder sees them.
        std: f32[3], likewise.
        recipe: the optimiser settings that the set was made for, its learned rate among them.
        spec: the spec that made it, as in a file.
        lineage: digests of all that it was made from.
        evaluation: accuracies and recovered gaps, as in a run's summary.
        stored: f32[m, 3, r, r], the images as they are kept and saved, where they are smaller; they are enlarged to
            `images`.
    """

    images: Tensor
    targets: Tensor
    mean: Tensor
    std: Tensor
    recipe: Recipe
    spec: dict[str, Any]
    lineage: dict[str, str]
    evaluation: dict[str, Any]
    stored: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def kept(self) -> Tensor:
        """The images as they are saved, f32[m, 3, r, r]."""
        return self.images if self.stored is None else self.stored

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.targets[index]

    def pixels(self, images: Tensor) -> Tensor:
        """Images normalised as this set's are, f32[m, 3, s, s], as one would look at them: in [0, 1]."""
        return _pixels(images, self.mean, self.std)

    def viewable(self, images: Tensor) -> Tensor:
        """The same as uint8[m, 3, s, s]."""
        return viewable(images, self.mean, self.std)

    def save(self, folder: Path) -> None:
        """Write the set into a folder: tensors, a JSON record that names their checksum, and a picture."""
        tensors = {"images": self.kept, "targets": self.targets, "viewable": self.viewable(self.kept)}
        save_tensors(folder / TENSORS, tensors)
        record = {
            "format": 1,
            "imageSize": self.images.shape[-1],
            "sha256": file_digest(folder / TENSORS),
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            "recipe": self.recipe.wire(),
            "spec": self.spec,
            "lineage": self.lineage,
            "evaluation": self.evaluation,
        }
        record["digest"] = json_digest(record)
        (folder / RECORD).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
        image_grid(self.viewable(self.images)).save(folder / PREVIEW)

    @classmethod
    def load(cls, folder: str | Path, access: Access = PLAIN) -> DistilledSet:
        """Read a set from a folder or fsspec URL; its record and its tensors are checked to the last byte.

        A result of a store, such as `gs://bucket/runs/register/KEY`, is read through its manifest.

        Raises:
            InputError: there is no distilled set, or it is damaged.
            WorkError: the storage does not answer.
        """
        where, whole = str(folder), "a whole copy of the set"
        try:
            filesystem, path = access.open(where)
        except ValueError as error:
            raise InputError(where, str(error), "a path or an fsspec URL") from None
        try:
            text, data = patiently(f"reading {where}", lambda: _files(filesystem, path))
            record = json.loads(text)
            if record.pop("digest") != json_digest(record):
                raise InputError(where, f"{RECORD} was altered (its digest differs)", whole)
            if hashlib.sha256(data).hexdigest() != record["sha256"]:
                raise InputError(where, f"{TENSORS} is damaged (sha256 differs)", whole)
            tensors = safetensors.torch.load(data)
            kept = tensors["images"].clone()
            side = record.get("imageSize", kept.shape[-1])  # earlier sets are kept as they are seen
            return cls(
                images=Enlarging(kept.shape[-1], side, kept.device)(kept),
                targets=tensors["targets"].clone(),
                mean=torch.tensor(record["mean"]),
                std=torch.tensor(record["std"]),
                recipe=Recipe(**record["recipe"]),
                spec=record["spec"],
                lineage=record["lineage"],
                evaluation=record["evaluation"],
                stored=None if side == kept.shape[-1] else kept,
            )
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise InputError(where, "no distilled set is there", f"a folder with {RECORD} and {TENSORS}") from None
        except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise InputError(where, f"the distilled set is damaged ({error})", whole) from None


def _files(filesystem: Any, path: str) -> tuple[bytes, bytes]:
    """Record and tensors of a set: of the folder itself, or where the manifest of a store's result says."""
    try:
        record = filesystem.cat_file(f"{path}/{RECORD}")  # no question before it: an outage would be no as well
    except (FileNotFoundError, NotADirectoryError):
        path = data_folder(filesystem, path)
        record = filesystem.cat_file(f"{path}/{RECORD}")
    return record, filesystem.cat_file(f"{path}/{TENSORS}")


def viewable(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Images f32[m, 3, s, s], normalised with mean f32[3] and std f32[3], as uint8[m, 3, s, s]."""
    return _pixels(images, mean, std).mul(255.0).round().to(torch.uint8)


def _pixels(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return (images * std[:, None, None] + mean[:, None, None]).clamp(0.0, 1.0)


def image_grid(images: Tensor, columns: int = 10, scale: int = 4, gap: int = 2) -> Image.Image:
    """A picture of images uint8[m, 3, s, s] in rows of `columns`, enlarged without blur."""
    count, _, side, _ = images.shape
    columns = min(columns, count)
    rows, cell = -(-count // columns), side * scale + gap
    sheet = Image.new("RGB", (columns * cell + gap, rows * cell + gap), "white")
    for index, image in enumerate(images):
        tile = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        place = (gap + index % columns * cell, gap + index // columns * cell)
        sheet.paste(tile.resize((side * scale, side * scale), Image.Resampling.NEAREST), place)
    return sheet
