"""The canonical dataset that ingest writes and every later stage reads: uint8 images, mapped, not loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from limbeck.data.shards import ShardedImages
from limbeck.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

    from limbeck.data.sources.listing import Names

INDEX_FILE = "index.parquet"
DESCRIPTION_FILE = "dataset.json"
ORIGIN_FILE = "origin.parquet"


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """Images of one size, in the order of their names.

    Attributes:
        path: the directory that it lies in.
        images: `uint8[n, 3, s, s]`, mapped from files of some 64 MiB.
        labels: `int64[n]` indices into `classes`, -1 where an image has none; None when no image has one.
        classes: class names, sorted.
        mean: `float32[3]`, each channel's mean over all pixels, in units where white is 1.
        std: `float32[3]`, each channel's standard deviation in the same units, at least 1/255.
        skipped: the images that could not be used, and why.
    """

    path: Path
    images: ShardedImages
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...]
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    skipped: dict[str, str]

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def names(self) -> Names:
        """The images' names in their source, sorted: read when they are first asked for.

        Raises:
            InputError: the index has been damaged since the dataset was opened.
        """
        from limbeck.data.sources.listing import Names

        return Names(self._column("name"))

    @property
    def checksums(self) -> pa.Array | None:
        """What the source knew of each image's content, `binary[n]`, null where it knew nothing; None: of no image.

        Raises:
            InputError: as of `names`.
        """
        return self._column("checksum", ORIGIN_FILE) if (self.path / ORIGIN_FILE).exists() else None

    def _column(self, name: str, file: str = INDEX_FILE) -> pa.Array:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return pq.read_table(self.path / file, columns=[name])[name].combine_chunks()
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise InputError(str(self.path), f"not a dataset, or damaged: {error}") from error

    @classmethod
    def open(cls, path: Path) -> ImageDataset:
        """Open what `write_dataset` wrote into the directory `path`.

        Raises:
            InputError: a file is missing or damaged, or they do not belong together.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            description = json.loads((path / DESCRIPTION_FILE).read_text(encoding="utf-8"))
            labels = pq.read_table(path / INDEX_FILE, columns=["label"])["label"].fill_null(-1).to_numpy()
            dataset = cls(
                path=path,
                images=ShardedImages.open(path, description["count"], description["imageSize"]),
                labels=None if (labels < 0).all() else labels.astype(np.int64),
                classes=tuple(description["classes"]),
                mean=np.array(description["mean"], np.float32),
                std=np.array(description["std"], np.float32),
                skipped=description["skipped"],
            )
        except FileNotFoundError as error:
            missing = Path(error.filename).name if error.filename else error
            raise InputError(str(path), f"not a dataset: {missing} is missing") from error
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise InputError(str(path), f"not a dataset, or damaged: {error}") from error
        if not len(dataset.images) == len(labels) == description["count"]:
            raise InputError(str(path), "not a dataset: its files do not belong together")
        return dataset
