import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gpuwatch.exporters import png

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def decoded(data):
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 2, 3, 4]), st.randoms(use_true_random=False))
def test_pillow_reads_the_pixels_that_were_written(width, height, channels, random):
    pixels = random.randbytes(width * height * channels)
    data = png.encode(pixels, width, height, channels)
    image = decoded(data)
    assert (image.size, image.mode, image.tobytes()) == ((width, height), MODES[channels], pixels)
    assert png.size(data) == (width, height, channels)


@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 3]), st.randoms(use_true_random=False))
def test_every_image_stands_whole_on_the_sheet(count, height, width, channels, random):
    images = [random.randbytes(height * width * channels) for _ in range(count)]
    pixels, sheet_width, sheet_height = png.sheet(b"".join(images), count, height, width, channels)
    sheet = decoded(png.encode(pixels, sheet_width, sheet_height, channels))
    columns = (sheet_width + 1) // (width + 1)
    for number, image in enumerate(images):
        left, top = number % columns * (width + 1), number // columns * (height + 1)
        assert sheet.crop((left, top, left + width, top + height)).tobytes() == image
    assert sheet_height == -(-count // columns) * (height + 1) - 1


def test_a_sheet_of_squares_is_nearly_square():
    _, width, height = png.sheet(bytes(64 * 64), 64, 8, 8, 1)
    assert (width, height) == (71, 71)


@pytest.mark.parametrize(
    ("pixels", "width", "height", "channels"), [(b"", 0, 0, 1), (b"x", 1, 1, 5), (b"xx", 1, 1, 1), (b"", 1 << 20, 1, 1)]
)
def test_what_is_no_image(pixels, width, height, channels):
    with pytest.raises(ValueError, match="pixels"):
        png.encode(pixels, width, height, channels)


@pytest.mark.parametrize("data", [b"", b"GIF89a" + bytes(40), b"\x89PNG\r\n\x1a\n", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_what_is_no_png(data):
    with pytest.raises(ValueError, match="PNG"):
        png.size(data)
