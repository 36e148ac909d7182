"""One image, encoded or raw, becomes `uint8[3, size, size]`: the only place that parses foreign images."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, UnidentifiedImageError

MAX_ENCODED_BYTES = 64 * 2**20
"""An encoded image larger than this is bad: no photograph is, and a bomb may be."""

MAX_PIXELS = 64_000_000
"""An image of more pixels than this, by its header, is bad and is never decoded."""

_ALLOWED = ("JPEG", "PNG")
_START, _FRAMES, _SCAN = b"\xff\xd8\xff\xe0", (0xC0, 0xC1, 0xC2), 0xDA  # a JPEG's markers
_PLAIN_MARKERS = frozenset((*_FRAMES, 0xC4, 0xDB, 0xDD, 0xE0, 0xFE))  # and tables, restarts, JFIF's own, comments
_PLAIN_BYTES, _PLAIN_PIXELS = 2**20, 2**20  # of any more, the head is the smaller part
_REDUCING_GAP = 3.0  # how much larger than the result the cheap first reduction may leave an image
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImage(Exception):  # noqa: N818 -- it names the image, not the error
    """An image that cannot be used; `reason` says why in a few words that follow its name."""

    def __init__(self, reason: str) -> None:
        self.reason = " ".join(reason.split())
        super().__init__(self.reason)


def decode(data: bytes | NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The central square of an image, resized to `size` x `size`, in RGB.

    Transparent pixels lie on white, 16 bits become their upper 8, EXIF orientation is applied. Resizing is an
    antialiased bicubic; where none is needed the pixels are those of the source, byte for byte.

    Args:
        data: a JPEG or PNG file's bytes, or pixels `uint8[h, w]` or `uint8[h, w, 1 | 3 | 4]`.
        size: side of the result, in pixels.

    Returns:
        `uint8[3, size, size]`, contiguous.

    Raises:
        BadImage: not a JPEG or PNG, truncated, corrupt, or larger than `MAX_PIXELS` or `MAX_ENCODED_BYTES`.
    """
    if isinstance(data, np.ndarray):
        return _decode_pixels(data, size)
    if len(data) > MAX_ENCODED_BYTES:
        raise BadImage(f"has more than {MAX_ENCODED_BYTES >> 20} MiB")
    with _QUIET:
        return _channels_first(_central_square(_decode_file(data, size), size))


def decode_all(
    contents: Sequence[bytes | NDArray[np.uint8] | BadImage], size: int
) -> tuple[NDArray[np.uint8], dict[int, str]]:
    """What `decode` makes of each of several images, at a fraction of the cost where they are small JPEGs of that size.

    Args:
        contents: as of `decode`; a BadImage is passed through.
        size: side of the results, in pixels.

    Returns:
        `uint8[n, 3, size, size]`, zeros where an image is bad; and why it is, by its place in `contents`.
    """
    images: dict[int, NDArray[np.uint8]] = {}
    bad: dict[int, str] = {}
    canvas = Image.new("RGB", (size, size * len(contents)))  # one image after another, turned into an array at once
    tile = Image.new("RGB", (size, size))
    head = _JpegHead(0, 0, b"\0")  # the last one's: images that one program wrote have equal heads
    for place, content in enumerate(contents):
        if isinstance(content, bytes):
            if not content.startswith(head.data):
                head = _plain_jpeg(content) or head
            if head.width == head.height == size and content.startswith(head.data) and _decode_onto(tile, content):
                canvas.paste(tile, (0, place * size))
                continue
        try:
            if isinstance(content, BadImage):
                raise content
            images[place] = decode(content, size)
        except BadImage as error:
            bad[place] = error.reason
    rows = np.asarray(canvas).reshape(len(contents), size, size, 3).transpose(0, 3, 1, 2)
    rows = np.ascontiguousarray(rows)
    for place, image in images.items():
        rows[place] = image
    return rows, bad


@dataclass(frozen=True)
class _JpegHead:
    """What comes before a JPEG's pixels."""

    width: int
    height: int
    data: bytes


def _plain_jpeg(data: bytes) -> _JpegHead | None:
    """The head of a JPEG of three channels that needs nothing but decoding; None of any other.

    Pillow reads a head in Python, marker by marker, to keep what it says: for a small image that takes longer than
    all the rest. Here only those markers are let pass that say nothing about how the pixels are to be understood.
    """
    if len(data) > _PLAIN_BYTES or data[:4] != _START:
        return None
    found = None
    place, last = 2, len(data) - 10
    while place < last:
        marker = data[place + 1]
        if data[place] != 0xFF:
            return None
        if marker == _SCAN:
            return found and _JpegHead(*found, data[:place])
        length = (data[place + 2] << 8) + data[place + 3]
        if marker not in _PLAIN_MARKERS or length < 2:
            return None
        if marker == 0xDB and ((length - 2) % 65 or data[place + 4] > 3):
            return None
        if marker in _FRAMES:
            if found or length != 17 or data[place + 4] != 8 or data[place + 9] != 3:
                return None
            height, width = (data[place + 5] << 8) + data[place + 6], (data[place + 7] << 8) + data[place + 8]
            if not 0 < width * height <= _PLAIN_PIXELS:
                return None
            found = width, height
        place += 2 + length
    return None


def _decode_onto(image: Image.Image, data: bytes) -> bool:
    """Have Pillow's decoder, the one behind `Image.open`, fill an image of the JPEG's size; whether it could."""
    try:
        image.frombytes(data, "jpeg", ("RGB", "", 1, 0))
    except Exception:  # whatever it is: `decode` finds it again, and says why
        return False
    return True


def _decode_pixels(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    shape = pixels.shape if pixels.ndim == 3 else (*pixels.shape, 1)
    if pixels.dtype != np.uint8 or len(shape) != 3 or shape[2] not in (1, 3, 4) or 0 in shape:
        raise BadImage(f"has {pixels.dtype} pixels of shape {pixels.shape}")
    height, width, channels = shape
    _refuse_bomb(width, height)
    pixels = pixels.reshape(shape)
    if height == width == size and channels != 4:
        planes = np.broadcast_to(pixels.transpose(2, 0, 1), (3, size, size))
        return np.ascontiguousarray(planes)
    image = Image.fromarray(pixels[:, :, 0] if channels == 1 else np.ascontiguousarray(pixels))
    return _channels_first(_central_square(_on_white(image), size))


def _decode_file(data: bytes, size: int) -> Image.Image:
    """The whole upright image in RGB; a far too large JPEG is decoded at a half, a quarter or an eighth."""
    least = round(_REDUCING_GAP * size)
    plain = _plain_jpeg(data)
    if plain is not None and min(plain.width // least, plain.height // least) < 2:
        image = Image.new("RGB", (plain.width, plain.height))
        if _decode_onto(image, data):
            return image
    try:
        image = Image.open(io.BytesIO(data), formats=_ALLOWED)
        _refuse_bomb(*image.size)
        image.draft(None, (least, least))
        image.load()
        return _upright(_rgb(image), _orientation(image))
    except BadImage:
        raise
    except UnidentifiedImageError as error:
        raise BadImage("is not a readable JPEG or PNG image" if data else "is empty") from error
    except Image.DecompressionBombError as error:
        raise BadImage(f"has more than {MAX_PIXELS // 10**6} megapixels") from error
    except Exception as error:
        # On hostile bytes Pillow raises whatever a parser raises: OSError, SyntaxError, struct.error, ...
        raise BadImage(f"cannot be decoded: {error}") from error


def _refuse_bomb(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadImage(f"has {width} x {height} pixels, more than {MAX_PIXELS // 10**6} megapixels")


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # a PNG of 16-bit grey; Pillow's own conversion would clip it
        values = np.asarray(image)
        grey = (values >> 8).astype(np.uint8)
        if "transparency" in image.info:
            grey = np.where(values == image.info["transparency"], np.uint8(255), grey)
        return Image.fromarray(grey).convert("RGB")
    if image.mode == "CMYK" and "adobe" not in image.info:
        image = ImageChops.invert(image)  # Pillow takes every CMYK JPEG for Adobe's, whose values are inverted
    return _on_white(image)


def _on_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # a broken EXIF block says nothing about the pixels
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = _UPRIGHT.get(orientation)
    return image if turn is None else image.transpose(turn)


def _central_square(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    box = (left, top, left + side, top + side)
    if side == size:
        return image if width == height else image.crop(box)
    # Cropped before it is resized: a strip of 1 x 60,000 pixels must not become one of 32 x 1,920,000.
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=_REDUCING_GAP)


def _channels_first(image: Image.Image) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


class _Quiet:
    """Silences warnings while any thread decodes.

    `warnings.catch_warnings` swaps a global of the process: were each thread to nest its own, the last to
    leave could restore the filters of another. So the first thread in silences and the last one out restores.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._caught = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.simplefilter("ignore")

    def __exit__(self, *raised: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._caught.__exit__(None, None, None)


_QUIET = _Quiet()
