"""Image conversion against SummaryWriter's own, and the grid of feature maps pixel by pixel."""

import io

import numpy as np
import pytest
import torch
from gpuwatch_hooks import images
from PIL import Image
from torch.utils.tensorboard import summary


def pixels(batch, rescale=False):
    count, channels, height, width = batch.shape
    return np.frombuffer(images.to_uint8(batch, rescale), np.uint8).reshape(count, height, width, channels)


def grid(maps):
    *_, height, width = images.grid_shape(maps.shape)
    return np.frombuffer(images.grid(maps), np.uint8).reshape(height, width)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.uint8])
def test_scaling_is_summary_writers(channels, dtype):
    torch.manual_seed(channels)
    batch = torch.rand(1, channels, 9, 7) * 1.4 - 0.2  # also outside 0..1
    batch = (batch.clamp(0, 1) * 255).to(dtype) if dtype is torch.uint8 else batch.to(dtype)
    encoded = summary.image("x", batch[0], dataformats="CHW").value[0].image.encoded_image_string
    theirs = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    ours = pixels(images.as_nchw(batch, "NCHW", 8))[0]
    np.testing.assert_array_equal(np.broadcast_to(ours, theirs.shape), theirs)


@pytest.mark.parametrize(
    ("shape", "order"),
    [
        ((5, 3, 8, 9), "NCHW"),
        ((5, 8, 9, 3), "NHWC"),
        ((5, 8, 9, 4), "NHWC"),
        ((3, 8, 9), "CHW"),
        ((8, 9, 1), "HWC"),
        ((5, 8, 9), "NHW"),
        ((8, 9), "HW"),
    ],
)
def test_the_layout_is_told_from_the_shape(shape, order):
    assert images.order_of(shape) == order
    batch = torch.rand(shape)
    ours = pixels(images.as_nchw(batch, order, 8))
    theirs = np.moveaxis(batch.numpy(), order.index("C"), -1) if "C" in order else batch.numpy()[..., None]
    theirs = theirs if "N" in order else theirs[None]
    np.testing.assert_array_equal(ours, (theirs * np.float32(255)).clip(0, 255).astype(np.uint8))


def test_dataformats_decides_when_given_and_must_fit():
    assert images.order_of((3, 3, 3, 3), "nhwc") == "NHWC"
    for shape, dataformats in (((3, 3, 3), "NHWC"), ((3, 3), "HH"), ((4, 4, 2), "HWC"), ((2, 2), "XY")):
        with pytest.raises(ValueError, match=r"dataformats|no batch"):
            images.order_of(shape, dataformats)
    for shape in ((4,), (2, 5, 6, 7), (1, 2, 3, 4, 5), ()):
        with pytest.raises(ValueError, match="no batch of images"):
            images.order_of(shape)


def test_first_images_only():
    batch = torch.rand(20, 1, 4, 4)
    assert torch.equal(images.as_nchw(batch, "NCHW", 8), batch[:8])


def test_normalised_images_are_stretched_over_the_whole_batch():
    batch = torch.randn(4, 3, 50, 40) * 3 - 1
    batch[0, 0, 0, 0] = float("nan")
    ours = pixels(batch, rescale=True)
    finite = batch[torch.isfinite(batch)]
    theirs = (batch.double() - finite.min()) * 255 / (finite.max() - finite.min()).double()
    theirs = theirs.nan_to_num(0).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(ours[1:], theirs[1:], atol=1.01)
    assert (ours.min(), ours.max()) == (0, 255)


def test_what_does_not_fit_is_thinned():
    assert images.fit(torch.rand(8, 3, 100, 100), 70_000).shape == (2, 3, 100, 100)
    assert images.fit(torch.rand(8, 3, 100, 100), 1 << 24).shape == (8, 3, 100, 100)
    count, channels, height, width = images.fit(torch.rand(2, 1, 500, 400), 10_000).shape
    assert count == 1
    assert channels * height * width <= 10_000
    assert height / width == pytest.approx(500 / 400, rel=0.1)


def test_empty_batches_make_an_empty_picture():
    batch = images.fit(torch.rand(0, 3, 4, 4), 1000)
    assert pixels(batch, rescale=True).shape == (0, 4, 4, 3)


def test_grid_scales_each_map_by_itself():
    maps = torch.stack([torch.arange(12.0).reshape(3, 4) * scale - 5 for scale in (1.0, 1000.0, 0.001, 0.0)])
    picture = grid(maps)
    assert picture.shape == (2 * 4 - 1, 2 * 5 - 1)
    cells = [picture[top : top + 3, left : left + 4] for top in (0, 4) for left in (0, 5)]
    expected = np.floor(np.arange(12.0).reshape(3, 4) * 255 / 11)
    for cell in cells[:3]:
        np.testing.assert_allclose(cell, expected, atol=1)
    assert not cells[3].any()  # the constant map
    assert not picture[3].any()  # the gap between the rows


@pytest.mark.parametrize("shape", [(300, 500, 300), (1, 1, 1), (64, 1, 900), (3, 900, 1), (7, 65, 64)])
def test_grid_is_bounded_and_holds_every_map(shape):
    maps = images.fit_maps(torch.rand(shape))
    count, height, width = maps.shape
    assert count <= 64
    assert max(height, width) <= 64
    down, across, total_height, total_width = images.grid_shape(maps.shape)
    assert down * across >= count > (down - 1) * across
    assert len(images.grid(maps)) == total_height * total_width


def test_maps_without_a_finite_value_are_black():
    assert not grid(torch.full((3, 4, 4), float("nan"))).any()
