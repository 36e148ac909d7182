"""A set's bytes are its pixels, its targets and its learning rate."""

from __future__ import annotations

import pytest

from limbeck.data.budget import set_bytes


@pytest.mark.parametrize(
    ("images", "side", "dimension", "pixel_bytes", "expected"),
    [
        (50, 16, 32, 1, 44_800 + 4),  # 50 whole images of CIFAR-10 at 16x16
        (200, 8, 32, 4, 179_200 + 4),  # "the same pixels" in float32
        (200, 8, 32, 1, 64_000 + 4),
        (0, 8, 32, 1, 4),
    ],
)
def test_pixels_targets_and_the_rate_are_counted(images, side, dimension, pixel_bytes, expected):
    assert set_bytes(images, side, dimension, pixel_bytes) == expected
