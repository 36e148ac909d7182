"""The encoders: the ConvNet of the dataset-distillation literature, and ResNets with the small-image stem.

An encoder maps images f32[b, 3, s, s] to flat features f32[b, k]; a `Student` is an encoder with the linear head
that regresses the teacher's representation. Probes look at the features before the head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from limbeck.seeding import seeded
from limbeck.spec import Architecture, DistillationSpec, Norm, convnet_depth

RESNET_BLOCKS = {"resnet10": (1, 1, 1, 1), "resnet18": (2, 2, 2, 2)}


@dataclass(frozen=True)
class EncoderConfig:
    """All that an encoder's shape depends on; `depth` is read by convnets alone."""

    architecture: Architecture
    image_size: int
    width: int
    norm: Norm
    depth: int | None = None

    def wire(self) -> dict[str, Any]:
        """For digests and recipes."""
        return asdict(self)


def student_config(spec: DistillationSpec) -> EncoderConfig:
    """The student's encoder."""
    student = spec.student
    return EncoderConfig(student.architecture, spec.source.image_size, student.width, student.norm, student.depth)


def _norm_layer(norm: Norm) -> Callable[[int], nn.Module]:
    layers: dict[Norm, Callable[[int], nn.Module]] = {
        "instance": lambda channels: nn.GroupNorm(channels, channels),
        "batch": nn.BatchNorm2d,
        "none": lambda channels: nn.Identity(),
    }
    return layers[norm]


class ConvNet(nn.Sequential):
    """`depth` blocks of 3x3 convolution, normalisation, ReLU and 2x2 average pooling; Gidaris and Komodakis, 2018.

    At 32x32, depth 3 and width 128 its features are 128 * 4 * 4 = 2048 numbers.
    """

    def __init__(self, image_size: int, depth: int, width: int, norm: Norm) -> None:
        if image_size % 2**depth:
            raise ValueError(f"{depth} blocks cannot halve {image_size}x{image_size} pixels")
        layer = _norm_layer(norm)
        blocks: list[nn.Module] = []
        for block in range(depth):
            blocks += [
                nn.Conv2d(3 if block == 0 else width, width, 3, padding=1),
                layer(width),
                nn.ReLU(),
                nn.AvgPool2d(2),
            ]
        super().__init__(*blocks, nn.Flatten())
        self.feature_dimension = width * (image_size // 2**depth) ** 2


class ResNet(nn.Module):
    """Residual network of He et al., 2016, with a 3x3 stem of stride 1 and no max-pooling, for small images.

    Parameters are named as torchvision names them (conv1, bn1, layer1.0.conv1, ...). Features are averaged over
    the remaining pixels, so any image size works.
    """

    def __init__(self, blocks: tuple[int, ...], width: int, norm: Norm) -> None:
        super().__init__()
        layer = _norm_layer(norm)
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = layer(width)
        channels = width
        self._stages: list[str] = []
        for stage, count in enumerate(blocks, start=1):
            planes = width * 2 ** (stage - 1)
            residuals = []
            for block in range(count):
                stride = 2 if stage > 1 and block == 0 else 1
                residuals.append(_residual_block(channels, planes, stride, layer))
                channels = planes
            self._stages.append(f"layer{stage}")
            self.add_module(self._stages[-1], nn.Sequential(*residuals))
        self.feature_dimension = channels

    def forward(self, images: Tensor) -> Tensor:
        """f32[b, 3, s, s] to f32[b, 8 * width]."""
        maps: Tensor = functional.relu(self.bn1(self.conv1(images)))
        for stage in self._stages:
            maps = getattr(self, stage)(maps)
        return maps.mean((2, 3))


def _residual_block(channels: int, planes: int, stride: int, layer: Callable[[int], nn.Module]) -> nn.Module:
    from torchvision.models.resnet import BasicBlock  # slow to import, and only ResNets need it

    downsample = None
    if stride != 1 or channels != planes:
        downsample = nn.Sequential(nn.Conv2d(channels, planes, 1, stride=stride, bias=False), layer(planes))
    block: nn.Module = BasicBlock(channels, planes, stride, downsample, norm_layer=layer)
    block.relu = nn.ReLU()  # not in place: the block is differentiated twice
    return block


class Student(nn.Module):
    """An encoder and the linear head that regresses targets f32[b, d] from its features."""

    def __init__(self, encoder: nn.Module, feature_dimension: int, target_dimension: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(feature_dimension, target_dimension)

    def forward(self, images: Tensor) -> Tensor:
        """f32[b, 3, s, s] to f32[b, d]."""
        result: Tensor = self.head(self.encoder(images))
        return result


def build_encoder(config: EncoderConfig, seed: int, *purpose: str | int) -> ConvNet | ResNet:
    """A freshly initialised encoder on the CPU; its weights depend on (seed, purpose) alone."""
    with seeded(seed, "encoder", *purpose):
        if config.architecture == "convnet":
            depth = convnet_depth(config.image_size, config.depth)
            return ConvNet(config.image_size, depth, config.width, config.norm)
        return ResNet(RESNET_BLOCKS[config.architecture], config.width, config.norm)


def build_student(config: EncoderConfig, target_dimension: int, seed: int, *purpose: str | int) -> Student:
    """A freshly initialised student on the CPU; its weights depend on (seed, purpose) alone."""
    encoder = build_encoder(config, seed, *purpose)
    with seeded(seed, "head", *purpose):
        return Student(encoder, encoder.feature_dimension, target_dimension)
