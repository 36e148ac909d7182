"""limbeck distils a large unlabelled image dataset into a small synthetic one that pre-trains encoders.

`load` reads a distilled set, `pretrain` pre-trains an encoder from one; the `limbeck` command makes them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from limbeck.version import __version__

if TYPE_CHECKING:
    from torch import nn

    from limbeck.data.distilled import DistilledSet

__all__ = ["__version__", "load", "pretrain"]


def load(folder: str) -> DistilledSet:
    """Read a distilled set, a torch Dataset of (image f32[3, s, s], target f32[d]), checking every byte.

    Args:
        folder: where it is, as `limbeck run` printed it.

    Raises:
        InputError: there is none, or it is damaged.
    """
    from limbeck.data.distilled import DistilledSet

    return DistilledSet.load(folder)


def pretrain(
    encoder: nn.Module,
    distilled: DistilledSet,
    *,
    seed: int = 0,
    device: str | None = None,
    epochs: int | None = None,
) -> nn.Module:
    """Pre-train an encoder, in place, on a distilled set by the set's own recipe; returned in eval mode.

    Args:
        encoder: maps normalised images f32[b, 3, s, s] to features of any shape [b, ...].
        distilled: the set.
        seed: of the regression head's weights and of the order of the images.
        device: "cuda", "cpu", ...; by default CUDA where there is one.
        epochs: passes over the set, in place of the recipe's.
    """
    from dataclasses import replace

    import torch

    from limbeck.nn.pretraining import pretrain_encoder
    from limbeck.stages.task import pick_device

    recipe = distilled.recipe if epochs is None else replace(distilled.recipe, epochs=epochs)
    where = pick_device() if device is None else torch.device(device)
    return pretrain_encoder(encoder, distilled.images, distilled.targets, recipe, seed=seed, device=where)
