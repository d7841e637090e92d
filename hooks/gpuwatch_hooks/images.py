"""Batches of images, and grids of feature maps, as uint8[N, H, W, C]: what TensorBoard can draw."""

import ctypes
import math

from .snapshot import PIECE_ELEMENTS

_CHANNELS = (1, 3, 4)  # grey, colour, colour with alpha
#: Layouts that are told from the shape alone, by number of dimensions; the first that fits is taken.
_ORDERS = {2: ("HW",), 3: ("CHW", "HWC", "NHW"), 4: ("NCHW", "NHWC")}
MAX_GRID_MAPS = 64
MAX_MAP_PIXELS = 64


def order_of(shape, dataformats=None):
    """The layout of a batch of this shape, such as "NCHW"; ValueError (in a user's words) when it is no batch of images."""
    if dataformats is not None:
        order = dataformats.upper()
        if sorted(order) not in (sorted("HW"), sorted("CHW"), sorted("NHW"), sorted("NCHW")) or len(order) != len(shape):
            raise ValueError("dataformats %r does not fit a tensor of shape %s" % (dataformats, tuple(shape)))
        orders = (order,)
    else:
        orders = _ORDERS.get(len(shape), ())
    for order in orders:
        if "C" not in order or shape[order.index("C")] in _CHANNELS:
            return order
    raise ValueError("a tensor of shape %s is no batch of images (N,C,H,W or N,H,W,C; C = 1, 3 or 4)" % (tuple(shape),))


def as_nchw(batch, order, count):
    """The first `count` images of `batch` (layout `order`) as a view [n, C, H, W]."""
    for letter in "NC":
        if letter not in order:
            batch, order = batch.unsqueeze(0), letter + order
    return batch.permute(*(order.index(letter) for letter in "NCHW"))[:count]


def fit(batch, max_bytes):
    """A view of `batch` [n, C, H, W] that takes at most `max_bytes` as uint8: every k-th pixel of larger images, then fewer."""
    stride = max(1, math.ceil(math.sqrt(batch[:1].numel() / max_bytes)))
    batch = batch[:, :, ::stride, ::stride]
    return batch[: max(1, max_bytes // max(1, batch[:1].numel()))]


def to_uint8(batch, rescale=False):
    """The bytes of uint8[n, H, W, C] for `batch` [n, C, H, W], a CPU tensor of any real type.

    The scaling is SummaryWriter.add_images': uint8 passes unchanged, everything else is times 255, clamped to 0..255 and
    truncated. `rescale` maps the smallest finite value of the batch to 0 and the largest to 255 instead, for inputs that were
    normalised. NaN becomes 0.
    """
    import torch

    count, channels, height, width = batch.shape
    out = torch.empty((count, height, width, channels), dtype=torch.uint8)
    scale, offset = _finite_range(batch) if rescale else (255.0, 0.0)
    for index, rows, piece in _blocks(batch):
        values = piece
        if piece.dtype != torch.uint8 or rescale:
            values = ((torch.nan_to_num(piece.to(torch.float32), 0.0) - offset) * scale).clamp_(0, 255)
        out[index, rows] = values.permute(1, 2, 0)
    return _raw_bytes(out)


def fit_maps(maps):
    """A view of the 2-D maps in `maps` [K, H, W]: at most 64 of them, thinned to at most 64 pixels a side."""
    stride = max(1, math.ceil(max(maps.shape[1:]) / MAX_MAP_PIXELS))
    return maps[:MAX_GRID_MAPS, ::stride, ::stride]


def grid_shape(shape):
    """(rows of maps, maps in a row, height, width) of the picture that `grid` makes of K, H, W = `shape` (none of them 0)."""
    count, height, width = shape
    across = min(count, max(1, math.ceil(math.sqrt(count * height / width))))
    down = math.ceil(count / across)
    return down, across, down * (height + 1) - 1, across * (width + 1) - 1


def grid(maps):
    """The bytes of one grey picture, uint8[height, width] as grid_shape says, of the maps in `maps` [K, H, W] side by side.

    Each map reaches from black (its smallest finite value) to white (its largest); a constant one is black.
    """
    import torch

    _, across, total_height, total_width = grid_shape(maps.shape)
    count, height, width = maps.shape
    out = torch.zeros(total_height, total_width, dtype=torch.uint8)
    for index in range(count):
        values = maps[index].to(torch.float32)
        scale, offset = _finite_range(values[None, None])
        top, left = index // across * (height + 1), index % across * (width + 1)
        out[top : top + height, left : left + width] = (torch.nan_to_num(values, offset) - offset).mul_(scale).clamp_(0, 255)
    return _raw_bytes(out)


def _raw_bytes(tensor):
    """The bytes of a contiguous CPU tensor; numpy, which could do the same, may not be installed in the job."""
    return ctypes.string_at(tensor.data_ptr(), tensor.numel() * tensor.element_size())


def _blocks(batch):
    """(image, slice of rows, batch[image, :, rows]) in blocks small enough to stay off torch's thread pool."""
    count, channels, height, width = batch.shape
    rows = max(1, PIECE_ELEMENTS // max(1, width * channels))
    for index in range(count):
        for top in range(0, height, rows):
            yield index, slice(top, top + rows), batch[index, :, top : top + rows]


def _finite_range(batch):
    """(scale, offset) that map the smallest finite value to 0 and the largest to 255; scale 0 when there are no two."""
    import torch

    low, high = float("inf"), float("-inf")
    for _, _, piece in _blocks(batch):
        finite = piece.masked_select(torch.isfinite(piece))
        if finite.numel():
            low, high = min(low, finite.amin().item()), max(high, finite.amax().item())
    if not low < high:
        return 0.0, 0.0 if low > high else low
    return 255.0 / (high - low), low
