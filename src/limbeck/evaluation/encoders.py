"""Pre-trained encoders as results of their own, `encoder/<key>/`: kept at every point of the curve, for any probe.

Parameters are stored in half precision, which probes read back: the same figures whether an encoder was trained now
or found done.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.checkpoint import Checkpoint, load_tensors, save_tensors
from limbeck.errors import InputError, WorkError
from limbeck.evaluation.baselines import Diet, SslDiet
from limbeck.evaluation.protocol import curve_points
from limbeck.nn.encoders import ConvNet, EncoderConfig, ResNet, build_encoder
from limbeck.nn.pretraining import Recipe, pretrain_encoder, recipe_of
from limbeck.seeding import derive
from limbeck.ssl.training import train_ssl
from limbeck.stages.graph import ENCODER_VERSION
from limbeck.stages.task import StageTask
from limbeck.store import Identity, Result

_RECORD = "encoder.json"
SSL_POINT = 0  # where the curve of an encoder has one point that is not counted in steps


@dataclass(frozen=True)
class Trained:
    """An encoder at the points of its curve.

    Attributes:
        config: its network.
        seed: of its initial weights.
        digest: of its files; of its initial weights' description where it is not trained.
        points: numbers of steps, ascending.
        folder: where the points are kept; None for an untrained encoder.
        diverged: why its training has no result; None where it has.
    """

    config: EncoderConfig
    seed: int
    digest: str
    points: tuple[int, ...]
    folder: Path | None
    diverged: str | None = None

    def at(self, steps: int) -> ConvNet | ResNet:
        """Return the encoder at one of its points, on the CPU in eval mode."""
        encoder = _fresh(self.config, self.seed)
        if self.folder is not None:
            tensors, _ = load_tensors(self.folder / _file(steps))
            encoder.load_state_dict({name: _widened(tensor) for name, tensor in tensors.items()})
        return encoder.eval()


def untrained(config: EncoderConfig, seed: int) -> Trained:
    """Return an encoder as it is initialised."""
    return Trained(config, seed, f"untrained {json.dumps(config.wire(), sort_keys=True)} {seed}", (SSL_POINT,), None)


def train(task: StageTask, config: EncoderConfig, diet: Diet | SslDiet, factor: float, seed: int) -> Trained:
    """Return the encoder of one diet, rate factor and seed, which is trained unless that was done before.

    Raises:
        WorkError: the training by self-supervision failed.
        InputError: it lacks a package.
    """
    settings = task.spec.evaluate
    section: dict[str, Any] = {"encoder": config.wire(), "seed": seed, "diet": dict(diet.description)}
    recipe, points = None, tuple[int, ...]((SSL_POINT,))
    if isinstance(diet, Diet):
        recipe = recipe_of(task.spec, diet.rate * factor, len(diet.examples))
        points = curve_points(recipe.steps, settings.curve_points)
        section |= {"recipe": recipe.wire(), "points": list(points)}

    def work(folder: Path) -> list[str]:
        checkpoint = Checkpoint(folder, task.spec.execution.checkpoint_seconds, task.shop.store)
        record: dict[str, Any] = {"diverged": None}
        if isinstance(diet, SslDiet):
            encoder = _fresh(config, seed).to(task.shop.device)
            _train_ssl(task, encoder, diet, checkpoint, folder, seed)
        else:
            assert recipe is not None
            try:
                _pretrain(task, config, diet, recipe, points, checkpoint, folder, seed)
            except FloatingPointError as error:
                record["diverged"] = str(error)
        (folder / _RECORD).write_text(json.dumps(record) + "\n")
        return []

    identity = Identity("encoder", ENCODER_VERSION, section, {"dataset": task.inputs["dataset"].digest})
    result, _ = task.shop.make(identity, work)
    return _read(result, config, seed, points)


def _pretrain(
    task: StageTask,
    config: EncoderConfig,
    diet: Diet,
    recipe: Recipe,
    points: Sequence[int],
    checkpoint: Checkpoint,
    folder: Path,
    seed: int,
) -> None:
    """Train and keep the encoder at every point; resume where all points so far are kept.

    It takes all that `pretrain_encoder` and `_keep` need, which no other function shares.
    """
    encoder = _fresh(config, seed).to(task.shop.device)
    saved = checkpoint.load()
    behind = [] if saved is None else [point for point in points if point <= saved[1]["steps"]]
    whole = all((folder / _file(point)).exists() for point in behind)  # another machine may have lost them
    pretrain_encoder(
        encoder,
        diet.examples,
        recipe,
        seed=seed,
        stop=task.shop.stop,
        checkpoint=checkpoint if whole else Checkpoint(folder / "checkpoint.again", checkpoint.every),
        points=points,
        reached=lambda steps: _keep(encoder, folder / _file(steps)),
    )


def _train_ssl(
    task: StageTask, encoder: ConvNet | ResNet, diet: SslDiet, checkpoint: Checkpoint, folder: Path, seed: int
) -> None:
    """Train the encoder, in place, on all images, without the teacher, and keep it in `folder`."""
    settings, shop = diet.settings, task.shop
    try:
        train_ssl(
            encoder,
            diet.dataset,
            settings,
            device=shop.device,
            seed=derive(seed, "fullSsl"),
            checkpoint=checkpoint,
            stop=shop.stop,
        )
        _keep(encoder, folder / _file(SSL_POINT))
    except FloatingPointError as error:
        raise WorkError(
            f"evaluate: fullSsl, seed {seed}: {error}; lower spec.teacher.optimizer.rate (now "
            f"{settings.optimizer.rate:g})"
        ) from None
    except ImportError as error:
        raise InputError(
            "spec.evaluate.baselines", f"fullSsl needs {error.name}", "pip install 'limbeck[ssl]'"
        ) from None


def _fresh(config: EncoderConfig, seed: int) -> ConvNet | ResNet:
    return build_encoder(config, seed, "evaluate")


def _file(steps: int) -> str:
    return f"steps-{steps}.safetensors"


def _keep(encoder: nn.Module, path: Path) -> None:
    """Write an encoder in half precision.

    Raises:
        FloatingPointError: a value is too large for it.
    """
    tensors = {name: _narrowed(tensor) for name, tensor in encoder.state_dict().items()}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise FloatingPointError(f"{name} of the encoder is too large for half precision")
    save_tensors(path, tensors)


def _narrowed(tensor: Tensor) -> Tensor:
    return tensor.half() if tensor.dtype == torch.float32 else tensor


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.float16 else tensor


def _read(result: Result, config: EncoderConfig, seed: int, points: tuple[int, ...]) -> Trained:
    record: Mapping[str, Any] = json.loads((result.path / _RECORD).read_text())
    return Trained(config, seed, result.digest, points, result.path, record["diverged"])
