"""Which experts are trained side by side: fixed groups by index, as large as the spec says.

Stacked networks take other kernels than one alone, so an expert's last bits depend on the size of its group. That is
therefore chosen by the spec and the kind of device alone: group g is the experts g T to (g + 1) T - 1. It is always
trained whole, also where only one of them is missing, or the last ones are more than the spec asks for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from limbeck.spec import DistillationSpec

_SIZES = (10, 5, 4, 2, 1)  # most numbers of experts are multiples of these: nothing is trained in vain
_MOST_ELEMENTS = 2**28  # of the first layer's activations, of all networks of a group: some GiB with what follows
_OF_A_RESNET = 4  # times what the first layer keeps, compared to a ConvNet


def group_size(spec: DistillationSpec, *, accelerated: bool) -> int:
    """T, by the spec and whether it is an accelerator; on the CPU one by default, where stacking does not pay."""
    if spec.trajectories.together is not None:
        return spec.trajectories.together
    if not accelerated:
        return 1
    elements = spec.trajectories.batch * spec.source.image_size**2 * spec.student.width
    if spec.student.architecture != "convnet":
        elements *= _OF_A_RESNET
    return next((size for size in _SIZES if size * elements <= _MOST_ELEMENTS), 1)


def group_of(index: int, size: int) -> range:
    """The group that an expert belongs to."""
    first = index // size * size
    return range(first, first + size)


def grouped(indices: Iterable[int], size: int) -> list[list[int]]:
    """Experts by group, both ascending."""
    groups: dict[int, list[int]] = {}
    for index in sorted(indices):
        groups.setdefault(index // size, []).append(index)
    return list(groups.values())


def share(indices: Sequence[int], size: int, rank: int, ranks: int) -> list[int]:
    """The experts that one of several workers makes: whole groups, so that none is trained twice."""
    return [index for group in grouped(indices, size)[rank::ranks] for index in group]
