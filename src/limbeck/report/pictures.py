"""The pictures of the report: PNG data URIs, and which of many are shown."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from limbeck.report.data import Images

SHOWN_PAIRS = 48
SHOWN_REAL = 24
_PICTURE_WIDTH = 64
_WIDEST_PICTURE = 128


@dataclass(frozen=True)
class Picture:
    """One synthetic image and, where there is one, the real image that it started from.

    Attributes:
        number: Which synthetic image it is, counted from 1.
        synthetic: PNG data URI.
        initial: PNG data URI; None where it started from noise.
    """

    number: int
    synthetic: str
    initial: str | None


def pictures_of(synthetic: Images, initial: Images | None) -> list[Picture]:
    """At most `SHOWN_PAIRS` of the synthetic images, evenly spaced.

    Args:
        synthetic: uint8[m, 3, s, s].
        initial: uint8[m, 3, s, s] in the same order, or None.
    """
    shown = np.unique(np.linspace(0, len(synthetic) - 1, min(SHOWN_PAIRS, len(synthetic))).round().astype(int))
    return [
        Picture(
            number=int(i) + 1,
            synthetic=png_data_uri(synthetic[i]),
            initial=None if initial is None else png_data_uri(initial[i]),
        )
        for i in shown
    ]


def png_data_uri(image: Images) -> str:
    """The image, uint8[3, s, s], as a `data:image/png` URI; shrunk only if it is too wide for a phone."""
    picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    picture.thumbnail((_WIDEST_PICTURE, _WIDEST_PICTURE))
    png = io.BytesIO()
    picture.save(png, format="png")
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode("ascii")


def display_width(image_size: int) -> int:
    """How wide a picture is shown, in CSS pixels.

    A whole multiple of the width of its PNG, so that all pixels are shown alike.
    """
    return max(_PICTURE_WIDTH // image_size, 1) * min(image_size, _WIDEST_PICTURE)
