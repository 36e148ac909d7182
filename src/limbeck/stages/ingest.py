"""Stage 1, ingest: images from anywhere into one canonical dataset of uint8 arrays, memory-mapped."""

from __future__ import annotations

from limbeck.data.ingest import write_dataset
from limbeck.data.sources import Source
from limbeck.spec import OnBadImage
from limbeck.stages.task import StageTask


def ingest(task: StageTask, source: Source, limit: int | None, on_bad_image: OnBadImage) -> None:
    """Write the canonical dataset of `source` (the spec's own, or an evaluation task's) into the task's folder."""
    write_dataset(
        source,
        task.out,
        image_size=task.spec.source.image_size,
        limit=limit,
        seed=task.spec.seed,
        on_bad_image=on_bad_image,
        progress=task.shop.progress,
        stop=task.shop.stop,
    )
