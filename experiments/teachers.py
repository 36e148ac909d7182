"""A teacher's targets or weights as a small file, and how good the teacher is: its linear-probe accuracies.

A spec names the weights of `results/NAME/teacher.safetensors` as `teachers/NAME.safetensors`.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.checkpoint import save_tensors
from limbeck.data.dataset import ImageDataset
from limbeck.data.feed import Examples
from limbeck.data.targets import open_targets, read_standardization
from limbeck.evaluation.probe import fit_probes
from limbeck.evaluation.probing import TaskImages
from limbeck.evaluation.protocol import best_probe
from limbeck.spec import DistillationSpec
from limbeck.ssl.teachers import LoadedTeacher, load_teacher
from limbeck.stages.task import StageTask, Workshop
from limbeck.store import Result

FRACTIONS = (0.01, 0.05, 0.5)  # of the labels
_BATCH = 256
_FOLDER, _WEIGHTS, _RECORD = "teachers", "teacher.safetensors", "teacher.json"


def export_teacher(
    spec: DistillationSpec, shop: Workshop, results: Mapping[str, Result], folder: Path, *, weights: bool
) -> None:
    """Write `teacher.json` and the targets or the weights in half precision, unless they are there.

    Args:
        spec: of the teacher; its first task gives the labels of the probes.
        shop: where the probes are fitted.
        results: of ingest, teacher and targets, by name.
        folder: where the files go.
        weights: write `teacher.safetensors`, which `teacher.checkpoint` reads, rather than `targets.safetensors`,
            f16[n, k] in the order of the dataset.
    """
    origin = {name: results[name].digest for name in ("dataset", "teacher", "targets")}
    record = folder / _RECORD
    file = folder / (_WEIGHTS if weights else "targets.safetensors")
    if file.exists() and record.exists() and json.loads(record.read_text())["digests"] == origin:
        return
    folder.mkdir(parents=True, exist_ok=True)
    targets = torch.from_numpy(np.array(open_targets(results["targets"].path)))
    tensors = {"targets": targets}
    if weights:
        tensors = load_teacher(results["teacher"].path, torch.device("cpu")).module.state_dict()
    save_tensors(file, {name: t.half() if t.is_floating_point() else t for name, t in tensors.items()})
    figures = {
        "digests": origin,
        "images": len(targets),
        "components": targets.shape[1],
        "teacher": spec.teacher.wire(),
        "targets": spec.targets.wire(),
        "probes": probe_figures(StageTask(spec, shop, results, folder)),
    }
    partial = record.with_suffix(".partial")
    partial.write_text(json.dumps(figures, indent=1) + "\n")
    partial.replace(record)


def link_teachers(specs: Iterable[DistillationSpec], results: Path, work: Path) -> None:
    """Link the weights of the teachers that specs name into the working folder."""
    for name in sorted({found for spec in specs if (found := teacher_of(spec)) is not None}):
        weights = (results / name / _WEIGHTS).resolve()
        if not weights.is_file():
            raise SystemExit(f"{weights} does not exist: study.py teacher {name} --weights makes it")
        target = work / _FOLDER / f"{name}.safetensors"
        if target.resolve() != weights:  # a study beside this one may be reading the link
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            target.symlink_to(weights)


def teacher_of(spec: DistillationSpec) -> str | None:
    """Return NAME of a teacher that a spec names as `teachers/NAME.safetensors`; None where it trains its own."""
    path = Path(spec.teacher.checkpoint or "")
    return path.stem if path.parent == Path(_FOLDER) else None


def teacher_digest(folder: Path) -> str | None:
    """Return the digest of an exported teacher; None where there is none."""
    record = folder / _RECORD
    if not record.exists():
        return None
    digest: str = json.loads(record.read_text())["digests"]["teacher"]
    return digest


def probe_figures(task: StageTask) -> list[dict[str, Any]]:
    """Accuracies on the first task's test images of probes on the teacher's representations and on its targets.

    Labels, held-out part, ridges and seeds are those of the evaluation.
    """
    settings, shop = task.spec.evaluate, task.shop
    images = TaskImages(task, settings.tasks[0].name)
    teacher = load_teacher(task.inputs["teacher"].path, shop.device)
    standardize = read_standardization(task.inputs["targets"].path)
    drawn = {(seed, share): images.drawn(seed, share) for seed in settings.seeds for share in FRACTIONS}
    used: NDArray[np.int64] = np.unique(np.concatenate([images.held_out, *drawn.values()]))
    train = _represented(task, teacher, f"train:{images.name}", images.train.labelled[used])
    test = _represented(task, teacher, f"test:{images.name}", images.test.labelled)
    test_labels = torch.from_numpy(images.test.labels)
    found = list[dict[str, Any]]()
    for what, rows, tests in (
        ("representation", train, test),
        ("targets", standardize(train), standardize(test)),
    ):
        held = rows[np.searchsorted(used, images.held_out)], torch.from_numpy(images.train.labels[images.held_out])
        for share in FRACTIONS:
            values = []
            for seed in settings.seeds:
                chosen = drawn[seed, share]
                probes = fit_probes(
                    rows[np.searchsorted(used, chosen)],
                    torch.from_numpy(images.train.labels[chosen]),
                    images.classes,
                    settings.probe.ridges,
                    iterations=settings.probe.iterations,
                    tolerance=settings.probe.tolerance,
                )
                best, _ = best_probe([(entry, entry.accuracy(*held)) for entry in probes])
                values.append(best.accuracy(tests, test_labels))
                shop.stop.check()
            found.append(
                {
                    "features": what,
                    "labelFraction": share,
                    "labels": len(chosen),
                    "mean": statistics.fmean(values),
                    "deviation": statistics.stdev(values) if len(values) > 1 else 0.0,
                    "values": values,
                    "seeds": settings.seeds,
                }
            )
    return found


def _represented(task: StageTask, teacher: LoadedTeacher, source: str, indices: NDArray[np.int64]) -> Tensor:
    """Representations f32[m, d] of some images of a source, on the CPU."""
    shop = task.shop
    dataset = ImageDataset.open(task.inputs[source].path)
    examples = Examples.pixels(dataset.images, shop.device)
    rows = list[Tensor]()
    with (
        shop.progress.bar(f"representations, {source}", len(indices), "images") as bar,
        examples.feed(torch.from_numpy(indices).split(_BATCH)) as fed,
    ):
        for pixels, _ in fed:
            rows.append(teacher.represent(pixels).cpu())
            bar.advance(len(pixels))
            shop.stop.check()
    return torch.cat(rows)
