"""limbeck distils a large unlabelled image dataset into a small synthetic one that pre-trains encoders.

`load` reads a distilled set, `pretrain` pre-trains an encoder from one; the `limbeck` command makes them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from limbeck.version import __version__

if TYPE_CHECKING:
    from torch import nn

    from limbeck.data.distilled import DistilledSet
    from limbeck.tracking.encoders import log_encoder

__all__ = ["__version__", "load", "log_encoder", "pretrain"]


def __getattr__(name: str) -> object:
    if name == "log_encoder":
        from limbeck.tracking.encoders import log_encoder

        return log_encoder
    raise AttributeError(f"module 'limbeck' has no attribute {name!r}")


def load(where: str) -> DistilledSet:
    """Read a distilled set, a torch Dataset of (image f32[3, s, s], target f32[d]), checking every byte.

    Args:
        where: a folder or URL, as `limbeck run` printed it; or a registered set, `models:/NAME@champion` or
            `models:/NAME/VERSION`, in the MLflow of MLFLOW_TRACKING_URI, else mlflow.db in the working directory.

    Raises:
        InputError: there is none, or it is damaged.
    """
    if where.startswith("models:/"):
        from limbeck.tracking.place import require, tracking_uri

        require()
        from limbeck.tracking.registry import Registry

        return Registry(tracking_uri(None)).load(where)
    from limbeck.data.distilled import DistilledSet

    return DistilledSet.load(where)


def pretrain(
    encoder: nn.Module,
    distilled: DistilledSet,
    *,
    seed: int = 0,
    device: str | None = None,
    steps: int | None = None,
) -> nn.Module:
    """Pre-train an encoder, in place, on a distilled set by the set's own recipe; returned in eval mode.

    Args:
        encoder: maps normalised images f32[b, 3, s, s] to features of any shape [b, ...].
        distilled: the set.
        seed: of the regression head's weights and of the order of the images.
        device: "cuda", "cpu", ...; by default CUDA where there is one.
        steps: steps of training, in place of the recipe's.

    Raises:
        InputError: the recipe's learning rate is not a positive number.
        FloatingPointError: the training diverged.
    """
    from dataclasses import replace

    import torch

    from limbeck.data.distilled_files import check_rate
    from limbeck.data.feed import Examples
    from limbeck.nn.pretraining import pretrain_encoder
    from limbeck.stages.task import pick_device

    check_rate(distilled.recipe.rate, "distilled.recipe.rate")
    recipe = distilled.recipe if steps is None else replace(distilled.recipe, steps=steps)
    where = pick_device() if device is None else torch.device(device)
    examples = Examples.held(distilled.images, distilled.targets, where)
    return pretrain_encoder(encoder, examples, recipe, seed=seed)
