"""A network as a pure function of one flat parameter vector theta f32[P].

Trajectory matching adds, scales and subtracts whole parameter vectors; keeping them flat makes those one-liners,
and an expert's snapshots one tensor f32[epochs + 1, P].
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.func import functional_call


class FlatNetwork:
    """`network(theta, images)` for a module's architecture; the module itself is copied and left alone.

    Batch norm uses the statistics of its batch, as in training, and keeps no running averages, so that a call
    changes nothing.

    Attributes:
        sizes: numbers of elements of the parameter tensors, in their order in theta.
        parameter_count: P, their sum.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = copy.deepcopy(module).train()
        for layer in self._module.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.track_running_stats = False
                layer.running_mean = layer.running_var = layer.num_batches_tracked = None
        parameters = dict(self._module.named_parameters())
        self._shapes = {name: parameter.shape for name, parameter in parameters.items()}
        self.sizes = tuple(parameter.numel() for parameter in parameters.values())
        self.parameter_count = sum(self.sizes)

    def __call__(self, theta: Tensor, images: Tensor) -> Tensor:
        """The network's output f32[b, d] at parameters theta f32[P] for images f32[b, 3, s, s]."""
        pieces = theta.split(self.sizes)
        views = {name: piece.view(shape) for (name, shape), piece in zip(self._shapes.items(), pieces, strict=True)}
        output: Tensor = functional_call(self._module, views, (images,))
        return output


def flatten(module: nn.Module) -> Tensor:
    """The parameters of a module as one vector f32[P], in the order of `named_parameters`."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in module.parameters()])
