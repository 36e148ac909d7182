"""A teacher on disk, whether trained here or imported, and how it is run over images.

The folder holds `teacher.json` (what it is, and the input that it expects) and its weights: `teacher.safetensors`,
or `teacher.torchscript.pt` for an imported TorchScript module.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from limbeck.checkpoint import save_tensors
from limbeck.errors import InputError
from limbeck.nn.encoders import EncoderConfig, build_encoder
from limbeck.spec import TIMM

_WHERE = "spec.teacher.checkpoint"


@dataclass(frozen=True)
class TeacherRecord:
    """What a teacher is, and the input that it expects."""

    kind: Literal["encoder", "torchscript", "timm"]
    encoder: EncoderConfig | None  # for kind encoder
    timm_name: str | None  # for kind timm
    input_size: int
    mean: list[float]  # normalisation of the input, in [0, 1] units
    std: list[float]


@dataclass(frozen=True)
class LoadedTeacher:
    """A teacher ready to run, in eval mode."""

    module: nn.Module
    record: TeacherRecord

    @torch.no_grad()
    def represent(self, pixels: Tensor) -> Tensor:
        """Representations f32[b, d] of pixels f32[b, 3, s, s] in [0, 1]."""
        size = self.record.input_size
        if pixels.shape[-1] != size:
            pixels = functional.interpolate(
                pixels, size=(size, size), mode="bicubic", align_corners=False, antialias=True
            ).clamp(0.0, 1.0)
        mean = torch.tensor(self.record.mean, device=pixels.device)[:, None, None]
        std = torch.tensor(self.record.std, device=pixels.device)[:, None, None]
        output: Tensor = self.module((pixels - mean) / std)
        return output.flatten(1).float()


def save_teacher(folder: Path, module: nn.Module, record: TeacherRecord) -> None:
    """Write a teacher's folder."""
    if isinstance(module, torch.jit.ScriptModule):
        module.save(str(folder / "teacher.torchscript.pt"))
    else:
        save_tensors(folder / "teacher.safetensors", module.state_dict())
    document: dict[str, Any] = {
        **record.__dict__,
        "encoder": record.encoder.wire() if record.encoder else None,
    }
    (folder / "teacher.json").write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")


def load_teacher(folder: Path, device: torch.device) -> LoadedTeacher:
    """Read a teacher's folder, onto the device."""
    document = json.loads((folder / "teacher.json").read_text())
    encoder = EncoderConfig(**document.pop("encoder")) if document["encoder"] else document.pop("encoder")
    record = TeacherRecord(encoder=encoder, **document)
    module: nn.Module
    if record.kind == "torchscript":
        script = _torchscript(folder / "teacher.torchscript.pt")
        assert script is not None
        module = script
    else:
        if record.kind == "timm":
            module = _timm_model(record.timm_name or "", pretrained=False)
        else:
            assert record.encoder is not None
            module = build_encoder(record.encoder, 0)
        module.load_state_dict(load_file(folder / "teacher.safetensors"))
    return LoadedTeacher(module.to(device).eval(), record)


def import_teacher(
    checkpoint: str, local_file: Path | None, config: EncoderConfig, mean: list[float], std: list[float]
) -> tuple[nn.Module, TeacherRecord]:
    """An encoder that was trained elsewhere.

    Args:
        checkpoint: as the spec names it; `timm:NAME`, or a file.
        local_file: that file on this machine; None for timm.
        config: the architecture that a state dict belongs to.
        mean: channel means that the encoder's input is normalised with, unless timm says otherwise.
        std: likewise.

    Raises:
        InputError: the file is unreadable, needs pickled code, or does not fit the architecture.
    """
    if checkpoint.startswith(TIMM):
        return _import_timm(checkpoint)
    assert local_file is not None
    if local_file.suffix != ".safetensors":
        script = _torchscript(local_file)
        if script is not None:
            _check_output(script, checkpoint, config.image_size)
            return script, TeacherRecord("torchscript", None, None, config.image_size, mean, std)
    try:
        module = build_encoder(config, 0)
    except ValueError as error:
        raise InputError("spec.teacher.depth", str(error), "a depth that source.imageSize can be halved by") from None
    _fill(module, _state_dict(checkpoint, local_file), checkpoint, config)
    return module, TeacherRecord("encoder", config, None, config.image_size, mean, std)


def _timm_model(name: str, *, pretrained: bool) -> nn.Module:
    try:
        import timm
    except ImportError:
        raise InputError(_WHERE, f"{TIMM}{name} needs timm", "pip install 'limbeck[ssl]'") from None
    if name not in timm.list_models() and name not in timm.list_pretrained():
        close = timm.list_models(f"*{name.split('.')[0]}*")[:3]
        hint = f"did you mean {', '.join(close)}?" if close else "a name from timm.list_models()"
        raise InputError(_WHERE, f"timm has no model {name!r}", hint)
    model: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=0)
    return model


def _import_timm(checkpoint: str) -> tuple[nn.Module, TeacherRecord]:
    name = checkpoint.removeprefix(TIMM)
    try:
        module = _timm_model(name, pretrained=True)
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(_WHERE, f"{checkpoint}: weights cannot be fetched ({reason})", "a reachable hub") from None
    settings: dict[str, Any] = dict(getattr(module, "pretrained_cfg"))  # noqa: B009 - timm sets it on every model
    size, mean, std = int(settings["input_size"][-1]), list(settings["mean"]), list(settings["std"])
    record = TeacherRecord("timm", None, name, size, mean, std)
    return module, record


def _torchscript(path: Path) -> nn.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates the format that the user has
        try:
            module: nn.Module = torch.jit.load(str(path), map_location="cpu")
        except (RuntimeError, ValueError):
            return None  # not a TorchScript archive; perhaps a state dict
    return module.eval()


def _check_output(module: nn.Module, checkpoint: str, size: int) -> None:
    """Refuse a module that does not map images to vectors, before anything is computed with it."""
    try:
        with torch.no_grad():
            output = module(torch.zeros(2, 3, size, size))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(
            _WHERE, f"{checkpoint} cannot read {size}x{size} images ({reason})", "an encoder of images"
        ) from None
    if not isinstance(output, Tensor) or output.ndim < 2 or len(output) != 2:
        raise InputError(_WHERE, f"{checkpoint} does not give one vector an image", "an encoder of images")


def _state_dict(checkpoint: str, path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(_WHERE, f"{checkpoint} does not exist", "a file or timm:NAME") from None
    except MemoryError:
        raise
    except Exception as error:  # what torch raises on damaged bytes has no common type
        if type(error).__name__ == "UnpicklingError":
            raise InputError(
                _WHERE,
                f"{checkpoint} holds pickled objects, which are never loaded",
                "a plain state dict of tensors",
            ) from None
        raise InputError(
            _WHERE, f"{checkpoint} is damaged or not a checkpoint", ".safetensors, .pt or TorchScript"
        ) from None
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(isinstance(t, Tensor) for t in loaded.values()):
        raise InputError(_WHERE, f"{checkpoint} is not a state dict", "a dict of names to tensors")
    return loaded


def _fill(module: nn.Module, state: dict[str, Tensor], checkpoint: str, config: EncoderConfig) -> None:
    """Load a state dict whose names may carry one common prefix, and a classifier that is left out."""
    wanted = module.state_dict()
    for prefix in ("", "module.", "encoder.", "backbone.", "model."):
        names = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
        missing = [n for n in wanted if n not in names]
        if not missing:
            break
    else:
        missing = [n for n in wanted if n not in state]
        raise InputError(
            _WHERE,
            f"{checkpoint} has no {missing[0]!r}" + (f" and {len(missing) - 1} more" if missing[1:] else ""),
            f"a state dict of {config.architecture} with width {config.width} (spec.teacher.architecture, width, norm)",
        )
    for name, tensor in wanted.items():
        if names[name].shape != tensor.shape:
            raise InputError(
                _WHERE,
                f"{checkpoint}: {name} has shape {tuple(names[name].shape)}",
                f"{tuple(tensor.shape)} for {config.architecture} with width {config.width}",
            )
    module.load_state_dict({name: names[name] for name in wanted})
