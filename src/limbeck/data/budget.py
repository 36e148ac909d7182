"""The size of a training set in bytes, targets included: what a distilled set and its rivals are compared at."""

from __future__ import annotations

_CHANNELS = 3
_FLOAT = 4  # bytes of a float32: of a target's value, and of the learning rate


def set_bytes(images: int, side: int, target_dimension: int, pixel_bytes: int) -> int:
    """Count the bytes of a set: the kept pixels, float32 targets, and one float32 learning rate.

    Args:
        images: how many there are.
        side: of the kept images, in pixels.
        target_dimension: values of a target.
        pixel_bytes: of one channel of a pixel: 1 for uint8, 4 for float32.
    """
    return images * (_CHANNELS * side**2 * pixel_bytes + _FLOAT * target_dimension) + _FLOAT
