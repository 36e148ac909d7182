import contextlib
import struct
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import limbeck.data.decode
from limbeck.data.decode import MAX_ENCODED_BYTES, BadImage, decode, decode_all
from tests.data.making import encoded, noise, png_chunk, raw_png


def pixel(data: bytes) -> tuple[int, ...]:
    """The colour of the first pixel of an image that is 2 x 2."""
    return tuple(decode(data, 2)[:, 0, 0].tolist())


def of_one_colour(mode: str, colour: object) -> Image.Image:
    return Image.new(mode, (2, 2), colour)


TRANSPARENT_RED = png_chunk(b"PLTE", bytes([255, 0, 0])) + png_chunk(b"tRNS", bytes([0]))

COLOURS = {
    "RGB": (encoded(of_one_colour("RGB", (1, 2, 3))), (1, 2, 3)),
    "grey": (encoded(of_one_colour("L", 77)), (77, 77, 77)),
    "grey of 2 bits": (raw_png(2, 2, 2, 0, bytes([0b01000000])), (85, 85, 85)),
    "one bit, white": (encoded(of_one_colour("1", 1)), (255, 255, 255)),
    "one bit, black": (encoded(of_one_colour("1", 0)), (0, 0, 0)),
    "opaque RGBA": (encoded(of_one_colour("RGBA", (1, 2, 3, 255))), (1, 2, 3)),
    "transparent RGBA": (encoded(of_one_colour("RGBA", (1, 2, 3, 0))), (255, 255, 255)),
    "half transparent RGBA": (encoded(of_one_colour("RGBA", (0, 0, 0, 51))), (204, 204, 204)),
    "transparent LA": (encoded(of_one_colour("LA", (9, 0))), (255, 255, 255)),
    "half transparent LA": (encoded(of_one_colour("LA", (0, 51))), (204, 204, 204)),
    "palette": (encoded(of_one_colour("RGB", (1, 2, 3)).quantize(2)), (1, 2, 3)),
    "transparent palette": (raw_png(2, 2, 8, 3, bytes(2), TRANSPARENT_RED), (255, 255, 255)),
    "RGB with a transparent colour": (
        raw_png(2, 2, 8, 2, bytes([1, 2, 3] * 2), png_chunk(b"tRNS", struct.pack(">3H", 1, 2, 3))),
        (255, 255, 255),
    ),
    "16-bit grey": (raw_png(2, 2, 16, 0, struct.pack(">2H", 40000, 0)), (156, 156, 156)),
    "16-bit grey with a transparent one": (
        raw_png(2, 2, 16, 0, struct.pack(">2H", 40000, 0), png_chunk(b"tRNS", struct.pack(">H", 40000))),
        (255, 255, 255),
    ),
    "16-bit RGB": (raw_png(2, 2, 16, 2, struct.pack(">6H", 65535, 32768, 300, 0, 0, 0)), (255, 128, 1)),
    "transparent 16-bit RGBA": (raw_png(2, 2, 16, 6, bytes(16)), (255, 255, 255)),
    "grey JPEG": (encoded(of_one_colour("L", 77), "JPEG"), (77, 77, 77)),
    "progressive JPEG": (encoded(of_one_colour("RGB", (9, 9, 9)), "JPEG", progressive=True), (9, 9, 9)),
    "CMYK JPEG of Adobe": (
        encoded(of_one_colour("CMYK", (255, 0, 0, 0)), "JPEG", quality=100),
        (0, 255, 255),
    ),
}


@pytest.mark.parametrize(("data", "colour"), COLOURS.values(), ids=COLOURS.keys())
def test_every_colour_mode_becomes_the_rgb_that_a_viewer_shows(data, colour):
    assert pixel(data) == colour


def test_a_cmyk_jpeg_without_adobes_marker_is_not_inverted():
    adobe = encoded(of_one_colour("CMYK", (255, 0, 0, 0)), "JPEG", quality=100)
    marker = adobe.index(b"\xff\xee")
    length = struct.unpack(">H", adobe[marker + 2 : marker + 4])[0]
    plain = adobe[:marker] + adobe[marker + 2 + length :]
    # Adobe stores no cyan as 255: the same numbers without the marker are (0, 255, 255, 255), which is black.
    assert pixel(plain) == (0, 0, 0)


TURNED = {
    1: [[10, 20], [30, 40]],
    2: [[20, 10], [40, 30]],
    3: [[40, 30], [20, 10]],
    4: [[30, 40], [10, 20]],
    5: [[10, 30], [20, 40]],
    6: [[30, 10], [40, 20]],
    7: [[40, 20], [30, 10]],
    8: [[20, 40], [10, 30]],
}


@pytest.mark.parametrize(("orientation", "expected"), TURNED.items())
def test_exif_orientation_is_applied(orientation, expected):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(np.array([[10, 20], [30, 40]], np.uint8), exif=exif)
    assert decode(data, 2)[0].tolist() == expected


def test_a_broken_exif_block_leaves_the_image_as_it_is():
    data = encoded(np.full((4, 4, 3), 200, np.uint8), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xffgarbage")
    assert (decode(data, 4) == 200).all()


@given(st.integers(1, 40), st.integers(0, 2**31), st.sampled_from(["bytes", "array"]))
@settings(max_examples=25, deadline=None)
def test_an_image_of_the_right_size_is_untouched(size, seed, form):
    pixels = noise(seed, size)
    data = pixels if form == "array" else encoded(pixels)
    assert (decode(data, size) == pixels.transpose(2, 0, 1)).all()


@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 33), st.sampled_from([1, 3, 4]))
@settings(max_examples=40, deadline=None)
def test_any_shape_becomes_a_contiguous_square(height, width, size, channels):
    pixels = np.full((height, width, channels), 255, np.uint8)
    square = decode(pixels, size)
    assert square.shape == (3, size, size)
    assert square.dtype == np.uint8
    assert square.flags.c_contiguous
    assert (square == 255).all()


def test_the_centre_is_kept_without_resizing_when_the_shorter_side_fits():
    pixels = noise(1, 12)[:5]
    assert (decode(encoded(pixels), 5) == pixels[:, 3:8].transpose(2, 0, 1)).all()


def test_resizing_is_antialiased():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(decode(encoded(stripes), 8).astype(int) - 128).max() < 8


def test_a_large_jpeg_looks_the_same_as_a_large_png():
    y, x = np.mgrid[0:1200, 0:1600]
    smooth = np.stack([x * 255 // 1600, y * 255 // 1200, (x + y) * 255 // 2800], -1).astype(np.uint8)
    jpeg, png = (decode(encoded(smooth, kind), 32) for kind in ("JPEG", "PNG"))
    assert np.abs(jpeg.astype(int) - png).max() <= 4


def test_a_long_strip_does_not_grow_into_a_bomb():
    assert decode(encoded(np.full((1, 60_000, 3), 7, np.uint8)), 64).max() == 7


JPEG, PNG = (encoded(noise(0, 64), kind) for kind in ("JPEG", "PNG"))

BAD = {
    "empty": (b"", "is empty"),
    "text": (b"not an image", "is not a readable JPEG or PNG"),
    "gif": (encoded(noise(0), "GIF"), "is not a readable JPEG or PNG"),
    "truncated JPEG": (JPEG[: len(JPEG) // 2], "truncated"),
    "truncated PNG": (PNG[: len(PNG) // 2], "truncated"),
    "PNG with a flipped bit": (PNG[:600] + bytes([PNG[600] ^ 1]) + PNG[601:], "cannot be decoded"),
    "bomb": (raw_png(30_000, 30_000, 8, 0, b"", png_chunk(b"tEXt", b"a")), "megapixels"),
    "little bomb": (raw_png(9_000, 8_000, 8, 0, b""), "9000 x 8000 pixels, more than 64 megapixels"),
    "too many bytes": (bytes(MAX_ENCODED_BYTES + 1), "more than 64 MiB"),
    "floats": (np.zeros((4, 4, 3)), "float64 pixels"),
    "five channels": (np.zeros((4, 4, 5), np.uint8), "shape (4, 4, 5)"),
    "no pixels": (np.zeros((0, 4, 3), np.uint8), "shape (0, 4, 3)"),
}


@pytest.mark.parametrize(("data", "phrase"), BAD.values(), ids=BAD.keys())
def test_a_bad_image_says_why_in_one_line(data, phrase):
    with pytest.raises(BadImage) as caught:
        decode(data, 8)
    assert phrase in caught.value.reason
    assert "\n" not in str(caught.value)


@given(st.integers(0, 2**31), st.sampled_from([JPEG, PNG]))
@settings(max_examples=60, deadline=None)
def test_damaged_files_are_bad_images_or_images_and_nothing_else(seed, data):
    damaged = bytearray(data)
    rng = np.random.default_rng(seed)
    for place in rng.integers(0, len(data), 8):
        damaged[place] = rng.integers(256)
    with contextlib.suppress(BadImage):
        assert decode(bytes(damaged), 8).shape == (3, 8, 8)


def test_pillows_warnings_reach_nobody():
    bomb = raw_png(10_000, 9_000, 8, 0, b"")  # Pillow warns above 89 megapixels
    code = (
        "import contextlib, sys; from limbeck.data.decode import BadImage, decode\n"
        "with contextlib.suppress(BadImage): decode(sys.stdin.buffer.read(), 8)"
    )
    done = subprocess.run([sys.executable, "-W", "always", "-c", code], input=bomb, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")


def test_decoding_in_threads_leaves_the_warning_filters_as_they_were():
    before = list(warnings.filters)
    threads = [threading.Thread(target=lambda: [decode(PNG, 8) for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before


# --- many at once, and the short way for small plain JPEGs ---------------------------------------------------


def by_pillow_alone(data: bytes | np.ndarray, size: int) -> np.ndarray | str:
    """What comes of an image without the short way, or why nothing does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limbeck.data.decode, "_plain_jpeg", lambda data: None)
        try:
            return decode(data, size)
        except BadImage as error:
            return error.reason


def same(found: np.ndarray | str, expected: np.ndarray | str) -> bool:
    if isinstance(expected, str) or isinstance(found, str):
        return isinstance(found, str) and found == expected
    return bool((found == expected).all())


JPEGS = {
    "plain": encoded(noise(1, 32), "JPEG"),
    "of another quality": encoded(noise(2, 32), "JPEG", quality=40),
    "progressive": encoded(noise(3, 32), "JPEG", progressive=True),
    "optimized": encoded(noise(4, 32), "JPEG", optimize=True),
    "with restarts": encoded(noise(5, 32), "JPEG", restart_marker_blocks=1),
    "not subsampled": encoded(noise(6, 32), "JPEG", subsampling=0),
    "commented": encoded(noise(7, 32), "JPEG", comment=b"a comment"),
    "larger": encoded(noise(8, 50), "JPEG"),
    "much larger": encoded(noise(9, 200), "JPEG"),
    "oblong": encoded(noise(10, 64)[:32], "JPEG"),
    "grey": encoded(noise(11, 32, 1)[..., 0], "JPEG"),
    "CMYK": encoded(Image.fromarray(noise(12, 32)).convert("CMYK"), "JPEG"),
    "EXIF": encoded(
        noise(13, 32), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    ),
    "with a profile": encoded(noise(14, 32), "JPEG", icc_profile=b"x" * 200),
}


@pytest.mark.parametrize("data", JPEGS.values(), ids=JPEGS.keys())
def test_the_short_way_gives_the_bytes_that_pillow_gives(data):
    assert same(decode(data, 32), by_pillow_alone(data, 32))


def test_the_short_way_is_taken():
    taken = {name for name, data in JPEGS.items() if limbeck.data.decode._plain_jpeg(data)}
    assert set(JPEGS) - taken == {"grey", "CMYK", "EXIF", "with a profile"}


@given(st.integers(0, 2**31), st.sampled_from(sorted(JPEGS)), st.booleans(), st.integers(1, 4))
@settings(max_examples=300, deadline=None)
def test_a_damaged_jpeg_gives_the_same_either_way(seed, name, in_its_head, faults):
    damaged = bytearray(JPEGS[name])
    rng = np.random.default_rng(seed)
    for place in rng.integers(0, 200 if in_its_head else len(damaged), faults):
        damaged[place] = rng.integers(256)
    data = bytes(damaged[: rng.integers(1, len(damaged))]) if seed % 5 == 0 else bytes(damaged)
    images, bad = decode_all([JPEGS["plain"], data, JPEGS["plain"]], 32)
    assert same(bad.get(1, images[1]), by_pillow_alone(data, 32))
    assert same(images[2], by_pillow_alone(JPEGS["plain"], 32))


def test_many_at_once_are_each_what_one_is():
    contents = [*JPEGS.values(), *(data for data, _ in BAD.values()), noise(3, 32), PNG, BadImage("is gone"), JPEG]
    contents += [data for data, _ in COLOURS.values()]
    images, bad = decode_all(contents, 32)
    assert images.dtype == np.uint8
    assert images.shape == (len(contents), 3, 32, 32)
    assert images.flags.c_contiguous
    for place, content in enumerate(contents):
        if isinstance(content, BadImage):
            assert bad[place] == "is gone"
        else:
            assert same(bad.get(place, images[place]), by_pillow_alone(content, 32))
        if place in bad:
            assert not images[place].any()
