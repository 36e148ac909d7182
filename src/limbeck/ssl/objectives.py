"""The self-supervised objectives, assembled from lightly's losses and projection heads."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from limbeck.seeding import seeded
from limbeck.spec import Teacher


@dataclass(frozen=True)
class Objective:
    """A projection head f32[b, k] -> f32[b, p], and a loss of two views' projections, a scalar."""

    head: nn.Module
    loss: nn.Module

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """The loss of the features f32[b, k] of two views."""
        value: Tensor = self.loss(self.head(first), self.head(second))
        return value


def build_objective(teacher: Teacher, feature_dimension: int, seed: int) -> Objective:
    """Barlow Twins (Zbontar et al., 2021) or SimCLR (Chen et al., 2020); initial weights depend on the seed alone."""
    from lightly.loss import BarlowTwinsLoss, NTXentLoss
    from lightly.models.modules.heads import BarlowTwinsProjectionHead, SimCLRProjectionHead

    with seeded(seed, "teacher", "projection"):
        if teacher.algorithm == "barlowTwins":
            head = BarlowTwinsProjectionHead(feature_dimension, teacher.projection, teacher.projection)
            return Objective(head, BarlowTwinsLoss(lambda_param=teacher.redundancy_weight))
        head = SimCLRProjectionHead(feature_dimension, feature_dimension, teacher.projection)
        return Objective(head, NTXentLoss(temperature=teacher.temperature))
