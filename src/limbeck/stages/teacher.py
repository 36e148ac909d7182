"""Stage 2, teacher: an encoder trained by self-supervised learning on the unlabelled images, or imported."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from limbeck.data.dataset import ImageDataset
from limbeck.errors import InputError, WorkError
from limbeck.nn.encoders import EncoderConfig, build_encoder
from limbeck.patience import patiently
from limbeck.spec import TIMM
from limbeck.ssl.teachers import TeacherRecord, import_teacher, save_teacher
from limbeck.ssl.training import train_ssl
from limbeck.stages.task import StageTask
from limbeck.storage import Access


def teacher(task: StageTask) -> None:
    """Write `teacher.json`, the weights and, where it was trained here, the loss of every epoch."""
    dataset = ImageDataset.open(task.inputs["dataset"].path)
    settings = task.spec.teacher
    config = EncoderConfig(
        settings.architecture, task.spec.source.image_size, settings.width, settings.norm, settings.depth
    )
    mean, std = dataset.mean.tolist(), dataset.std.tolist()
    if settings.checkpoint is not None:
        local = None if settings.checkpoint.startswith(TIMM) else _fetch(settings.checkpoint, task)
        module, record = import_teacher(settings.checkpoint, local, config, mean, std)
        save_teacher(task.out, module, record)
        return
    module = _train(task, dataset, config)
    save_teacher(task.out, module, TeacherRecord("encoder", config, None, config.image_size, mean, std))


def _fetch(checkpoint: str, task: StageTask) -> Path:
    """The checkpoint file, in the working folder under a name that is not part of the result."""
    try:
        filesystem, path = Access.of(task.spec).open(checkpoint)
        target = task.out / f"checkpoint-imported{Path(path).suffix}"
        patiently(f"reading {checkpoint}", lambda: filesystem.get_file(path, str(target)))
    except FileNotFoundError:
        raise InputError("spec.teacher.checkpoint", f"{checkpoint} does not exist", "a file or timm:NAME") from None
    except ValueError as error:
        raise InputError("spec.teacher.checkpoint", f"{checkpoint}: {error}", "a path or an fsspec URL") from None
    return target


def _train(task: StageTask, dataset: ImageDataset, config: EncoderConfig) -> torch.nn.Module:
    settings, seed, shop = task.spec.teacher, task.spec.seed, task.shop
    encoder = build_encoder(config, seed, "teacher")
    try:
        losses = train_ssl(
            encoder,
            dataset,
            settings,
            device=shop.device,
            seed=seed,
            checkpoint=task.checkpoint(),
            stop=shop.stop,
            progress=shop.progress,
            epoch_done=lambda epoch, loss: shop.live.figures(epoch, {"teacher_loss": loss}),
        )
    except ImportError as error:
        raise InputError(
            "spec.teacher.algorithm", f"{settings.algorithm} needs {error.name}", "pip install 'limbeck[ssl]'"
        ) from None
    except FloatingPointError as error:
        raise WorkError(
            f"teacher: {error}; lower spec.teacher.optimizer.rate (now {settings.optimizer.rate:g})"
        ) from None
    (task.out / "history.json").write_text(json.dumps({"losses": losses}) + "\n")
    return encoder
