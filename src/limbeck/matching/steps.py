"""The derivatives of one training step: what experts, the inner loop and its replay are made of.

A step needs the gradient g = grad_theta L(theta; x, y); its replay needs the three products of the second derivatives
with a vector b: H b, (dg/dx)^T b and (dg/dy)^T b. Several networks are stepped at once by stacking them: every
argument has a leading dimension p, and nothing passes between the networks.

Eager, the products come from differentiating g once more, and the graph of a step can be held from the forward pass
so that it need not be built again. Compiled, they are the forward-mode derivative of the whole gradient along b
(Pearlmutter, 1994), one graph without autograd: of the two orders it was the faster and the quicker to compile.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from limbeck.errors import WorkError
from limbeck.nn.flat import FlatNetwork
from limbeck.spec import Precision

# after these the device's memory cannot be relied on; torch before 2.8 has no name for them
_DEVICE_ERROR: type[Exception] | tuple[()] = getattr(torch, "AcceleratorError", ())

Say = Callable[[str], None]

# L(theta f[p, P], x f[p, b, 3, s, s], y f[p, b, d]) -> f[p], the training loss of each of p networks
StudentLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


def student_loss(network: FlatNetwork, precision: Precision = "float32") -> StudentLoss:
    """Mean squared error of students to their targets, as a function of stacked parameters theta f[p, P].

    With bfloat16 the network runs under autocast; parameters, loss and gradients keep their own type.
    """

    def one(theta: Tensor, images: Tensor, targets: Tensor) -> Tensor:
        if precision == "float32":
            return functional.mse_loss(network(theta, images), targets)
        with torch.autocast(images.device.type, dtype=torch.bfloat16):
            output = network(theta, images)
        return functional.mse_loss(output.to(targets.dtype), targets)

    def loss(theta: Tensor, images: Tensor, targets: Tensor) -> Tensor:
        if len(theta) == 1:  # plain convolutions are faster than grouped ones
            return one(theta[0], images[0], targets[0])[None]
        each: Tensor = torch.vmap(one)(theta, images, targets)
        return each

    return loss


@dataclass(frozen=True)
class Products:
    """A step's second derivatives times b f[p, P]."""

    theta: Tensor  # H b, f[p, P]
    images: Tensor  # (dg/dx)^T b, as x
    targets: Tensor  # (dg/dy)^T b, as y


@dataclass(frozen=True)
class Held:
    """A step whose graph is kept; using it up frees it."""

    gradient: Tensor  # f[p, P], with its graph
    leaves: tuple[Tensor, Tensor, Tensor]  # theta, x, y

    def products(self, b: Tensor) -> Products:
        """The products with b f[p, P]; the graph is gone afterwards."""
        return Products(*torch.autograd.grad(self.gradient, self.leaves, b))


class Steps:
    """A step's derivatives by autograd, operation by operation."""

    def __init__(self, loss: StudentLoss) -> None:
        self._loss = loss

    def gradient(self, theta: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(g f[p, P], the losses f[p]), both detached."""
        with torch.enable_grad():
            theta = theta.detach().requires_grad_()
            values = self._loss(theta, x, y)
            (gradient,) = torch.autograd.grad(values.sum(), theta)
        return gradient, values.detach()

    def held(self, theta: Tensor, x: Tensor, y: Tensor) -> Held:
        """The gradient with its graph, for `Held.products` later."""
        with torch.enable_grad():
            leaves = tuple(tensor.detach().requires_grad_() for tensor in (theta, x, y))
            (gradient,) = torch.autograd.grad(self._loss(*leaves).sum(), leaves[0], create_graph=True)
        return Held(gradient, (leaves[0], leaves[1], leaves[2]))

    def products(self, theta: Tensor, x: Tensor, y: Tensor, b: Tensor) -> Products:
        """The second derivatives at (theta, x, y) times b f[p, P]."""
        return self.held(theta, x, y).products(b)


class CompiledSteps(Steps):  # pragma: no mutate block
    """The same derivatives by torch.compile: one graph of fused kernels each, compiled when first used.

    Where compiling fails (no compiler, an accelerator that it does not know) the step is taken eagerly, from there on
    always, and `say` is told once.
    """

    def __init__(self, loss: StudentLoss, say: Say) -> None:
        super().__init__(loss)
        self._say = say
        self._failed = False
        self._proven: set[tuple[str, torch.Size, torch.Size]] = set()  # what has run, by shapes: others compile anew

        def total(theta: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            values = loss(theta, x, y)
            return values.sum(), values

        gradient = torch.func.grad(total, has_aux=True)
        every = torch.func.grad(lambda theta, x, y: loss(theta, x, y).sum(), argnums=(0, 1, 2))

        def products(theta: Tensor, x: Tensor, y: Tensor, b: Tensor) -> tuple[Tensor, ...]:
            along: tuple[Tensor, ...] = torch.func.jvp(lambda moved: every(moved, x, y), (theta,), (b,))[1]
            return along

        self._gradient = torch.compile(gradient, dynamic=False)
        self._products = torch.compile(products, dynamic=False)

    def gradient(self, theta: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """As `Steps.gradient`."""
        eager = super().gradient
        with torch.no_grad():
            arguments = (theta.detach(), x, y)
            found: tuple[Tensor, Tensor] = self._try("gradient", self._gradient, eager, arguments)
        return found

    def held(self, theta: Tensor, x: Tensor, y: Tensor) -> Held:
        """As `Steps.held`; what is kept is what the compiled backward pass needs."""
        leaves = tuple(tensor.detach().requires_grad_() for tensor in (theta, x, y))

        def compiled(*leaves: Tensor) -> Held:
            with torch.enable_grad():
                gradient, _ = self._gradient(*leaves)
            return Held(gradient, (leaves[0], leaves[1], leaves[2]))

        def trial(*leaves: Tensor) -> Held:
            compiled(*leaves).products(torch.zeros_like(leaves[0]))  # or the backward pass would be compiled later
            return compiled(*leaves)

        held: Held = self._try("held", compiled, super().held, leaves, trial)
        return held

    def products(self, theta: Tensor, x: Tensor, y: Tensor, b: Tensor) -> Products:
        """As `Steps.products`."""
        eager = super().products
        with torch.no_grad():
            arguments = (theta.detach(), x.detach(), y.detach(), b)
            found: Products = self._try("products", lambda *a: Products(*self._products(*a)), eager, arguments)
        return found

    def _try(
        self,
        name: str,
        compiled: Callable[..., Any],
        eager: Callable[..., Any],
        arguments: tuple[Tensor, ...],
        trial: Callable[..., Any] | None = None,
    ) -> Any:
        """`compiled(*arguments)`, at the first use of its shapes by `trial` where there is one; else `eager`."""
        if self._failed:
            return eager(*arguments)
        key = (name, arguments[0].shape, arguments[1].shape)
        if key in self._proven:
            return compiled(*arguments)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the compiler's, of its own parts
                result = (trial or compiled)(*arguments)
        except Exception as error:  # the compiler's own errors have no common type
            if isinstance(error, _DEVICE_ERROR):
                raise WorkError(
                    f"a compiled training step failed on the accelerator ({str(error).strip().splitlines()[0]}), which "
                    "ends what this process can do there; set spec.execution.engine.compile: never and run it again"
                ) from error
            self._failed = True
            reason = str(error).strip().splitlines() or [""]
            said = f"{type(error).__name__}: {reason[0][:200]}"
            self._say(f"the training step could not be compiled ({said}); going on without compiling")
            return eager(*arguments)
        self._proven.add(key)
        return result


def held_bytes(steps: Steps, theta: Tensor, x: Tensor, y: Tensor) -> int:
    """Bytes that one held step of these shapes keeps, beside its arguments; found by taking one."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        held = Steps.held(steps, theta, x, y)  # eager, whatever the steps are: compiled ones keep no more
    for own in held.leaves:
        kept.pop(own.untyped_storage().data_ptr(), None)
    return sum(kept.values())
