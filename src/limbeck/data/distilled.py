"""A distilled set: a small synthetic dataset that carries all that is needed to pre-train from it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import Dataset

from limbeck.checkpoint import save_tensors
from limbeck.data.budget import set_bytes
from limbeck.data.distilled_files import PREVIEW, RECORD, TENSORS, check_rate
from limbeck.data.pixels import PixelGrid, unit_pixels, viewable
from limbeck.errors import InputError
from limbeck.nn.enlarging import Enlarging
from limbeck.nn.pretraining import Recipe
from limbeck.patience import patiently
from limbeck.storage import PLAIN, Access
from limbeck.store import data_folder, file_digest, json_digest

_FORMATS = {"float32": 1, "uint8": 2}


@dataclass(frozen=True)
class DistilledSet(Dataset[tuple[Tensor, Tensor]]):
    """Synthetic images and their targets, as a torch Dataset of (image f32[3, s, s], target f32[d]).

    Attributes:
        images: f32[m, 3, s, s], normalised with `mean` and `std`, as networks see them.
        targets: f32[m, d], what an encoder's head is trained to give.
        mean: f32[3], in [0, 1] units; normalise other images likewise before the pre-trained encoder sees them.
        std: f32[3], likewise.
        recipe: how an encoder is pre-trained on it: at the rate and for the steps that were best on held-out labels;
            where it was not evaluated, at the learned rate.
        spec: the spec that made it, as in a file.
        lineage: digests of all that it was made from.
        evaluation: accuracies and recovered gaps, as in a run's summary.
        stored: f32[m, 3, r, r], the images as they are kept and saved, where they are smaller; they are enlarged to
            `images`.
        pixel_type: how the kept images are saved: rounded to whole numbers 0 to 255, or as they are.
        learned_rate: the learning rate that was distilled with the images, of which the recipe's is a multiple; None in
            sets of earlier versions, which do not name it.
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
    pixel_type: Literal["uint8", "float32"] = "float32"
    learned_rate: float | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def kept(self) -> Tensor:
        """The images as they are saved, but normalised, f32[m, 3, r, r]."""
        return self.images if self.stored is None else self.stored

    @property
    def nbytes(self) -> int:
        """Bytes of the kept pixels, the targets and the learning rate."""
        pixel_bytes = 1 if self.pixel_type == "uint8" else 4
        return set_bytes(len(self), self.kept.shape[-1], self.targets.shape[1], pixel_bytes)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.targets[index]

    def pixels(self, images: Tensor) -> Tensor:
        """Images normalised as this set's are, f32[m, 3, s, s], as one would look at them: in [0, 1]."""
        return unit_pixels(images, self.mean, self.std)

    def viewable(self, images: Tensor) -> Tensor:
        """The same as uint8[m, 3, s, s]."""
        return viewable(images, self.mean, self.std)

    def save(self, folder: Path) -> None:
        """Write the set into a folder: tensors, a JSON record that names their checksum, and a picture.

        Images that are kept in float32 are saved as uint8 as well, as `viewable`, for those who look at them.
        """
        seen = self.viewable(self.kept)
        kept = {"images": seen} if self.pixel_type == "uint8" else {"images": self.kept, "viewable": seen}
        save_tensors(folder / TENSORS, {**kept, "targets": self.targets})
        record = {
            "format": _FORMATS[self.pixel_type],
            "imageSize": self.images.shape[-1],
            "sha256": file_digest(folder / TENSORS),
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            "recipe": self.recipe.wire(),
            "learnedRate": self.learned_rate,
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
            InputError: there is no distilled set, or it is damaged, or nothing can be trained from it.
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
            check_rate(record["recipe"]["rate"], where)
            if record.get("learnedRate") is not None:
                check_rate(record["learnedRate"], where)
            return _assembled(record, safetensors.torch.load(data))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise InputError(where, "no distilled set is there", f"a folder with {RECORD} and {TENSORS}") from None
        except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise InputError(where, f"the distilled set is damaged ({error})", whole) from None


def _assembled(record: dict[str, Any], tensors: dict[str, Tensor]) -> DistilledSet:
    """The set of a record and its tensors.

    Raises:
        ValueError: its format is unknown, or an image or a target is not finite.
    """
    if record.get("format", 1) not in _FORMATS.values():
        raise ValueError(f"its format is {record['format']}, which a later limbeck wrote")
    mean, std = torch.tensor(record["mean"]), torch.tensor(record["std"])
    raw = tensors["images"]
    whole = raw.dtype == torch.uint8
    kept = PixelGrid(mean, std).normalised(raw) if whole else raw.clone()
    targets = tensors["targets"].clone()
    for name, values in (("images", kept), ("targets", targets)):
        if not values.isfinite().all():
            raise ValueError(f"its {name} are not finite")
    side = record.get("imageSize", kept.shape[-1])  # earlier sets are kept as they are seen
    return DistilledSet(
        images=Enlarging(kept.shape[-1], side, kept.device)(kept),
        targets=targets,
        mean=mean,
        std=std,
        recipe=Recipe.read(record["recipe"], len(kept)),
        spec=record["spec"],
        lineage=record["lineage"],
        evaluation=record["evaluation"],
        stored=None if side == kept.shape[-1] else kept,
        pixel_type="uint8" if whole else "float32",
        learned_rate=record.get("learnedRate"),
    )


def _files(filesystem: Any, path: str) -> tuple[bytes, bytes]:
    """Record and tensors of a set: of the folder itself, or where the manifest of a store's result says."""
    try:
        record = filesystem.cat_file(f"{path}/{RECORD}")  # no question before it: an outage would be no as well
    except (FileNotFoundError, NotADirectoryError):
        path = data_folder(filesystem, path)
        record = filesystem.cat_file(f"{path}/{RECORD}")
    return record, filesystem.cat_file(f"{path}/{TENSORS}")


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
