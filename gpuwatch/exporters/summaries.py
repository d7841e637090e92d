"""TensorBoard's summary values, one function a kind. Each adds to a `Summary` that becomes one event of one step.

Scalars, histograms and images are written in the old-style fields (`simple_value`, `histo`, `image`): both of TensorBoard's
loaders convert them, EventAccumulator and tbparse know nothing else, and a scalar is 26 bytes instead of 60.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_STRING

from gpuwatch.exporters import png

if TYPE_CHECKING:
    from collections.abc import Sequence

#: TensorBoard's default loader drops the description of a histogram whose data class is not set.
_LOG2_METADATA = SummaryMetadata(
    summary_description=(
        "Counts of tensor entries by magnitude. **The axis is log2 of the absolute value**: -10 is about 0.001, 0 is 1. "
        "Signs are not recorded. Zeros and magnitudes below 2^-47 are left out here; `zero_ratio` has the zeros."
    ),
    plugin_data=SummaryMetadata.PluginData(plugin_name="histograms"),
    data_class=DATA_CLASS_TENSOR,
)
_TEXT_METADATA = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
MAX_TEXT_CHARS = 64 * 1024


def add_scalar(summary: Summary, tag: str, value: float) -> None:
    """`value` as float32, which is all that TensorBoard keeps; what is too large for it becomes an infinity."""
    summary.value.add(tag=tag, simple_value=value)


def add_log2_histogram(summary: Summary, tag: str, counts: Sequence[int], first_exponent: int, *, describe: bool) -> None:
    """Our buckets of magnitudes: `counts[i]` entries with 2**(first_exponent+i) <= |x| < 2**(first_exponent+i+1).

    Drawn over the exponent, because over the value itself all but the largest entries would fall into one bar at zero.
    The first bucket, where zeros are counted, is drawn only when there is nothing else. `describe` says so
    in the tag's description, of which TensorBoard reads the first one of a tag.
    """
    start = next((i for i in range(1, len(counts)) if counts[i]), None)
    if start is None:
        start, end = 0, 0
    else:
        end = max(i for i in range(start, len(counts)) if counts[i])
    left = float(first_exponent + start)
    inner = counts[start : end + 1]
    edges = [left + i for i in range(len(inner) + 1)]
    _add_histogram(summary, tag, edges[0], edges[1:], inner, _LOG2_METADATA if describe else None)


def add_histogram(summary: Summary, tag: str, rows: Sequence[tuple[float, float, float]]) -> None:
    """A histogram that the job logged: `rows` of (left, right, count), in rising order and without gaps. May be empty."""
    if not rows:
        _add_histogram(summary, tag, 0.0, [], [])
        return
    _add_histogram(summary, tag, rows[0][0], [right for _, right, _ in rows], [count for *_, count in rows])


def _add_histogram(
    summary: Summary,
    tag: str,
    left: float,
    rights: Sequence[float],
    counts: Sequence[float],
    metadata: SummaryMetadata | None = None,
) -> None:
    """TensorBoard takes `min` for the left edge of the first bucket, and `max` for the right edge of the last one."""
    value = summary.value.add(tag=tag, metadata=metadata)
    histogram = value.histo
    lefts = [left, *rights[:-1]]
    middles = [(low + high) / 2 for low, high in zip(lefts, rights, strict=False)]
    histogram.min = left
    histogram.max = rights[-1] if rights else left
    histogram.num = float(sum(counts))
    histogram.sum = sum(middle * count for middle, count in zip(middles, counts, strict=False))
    histogram.sum_squares = sum(middle * middle * count for middle, count in zip(middles, counts, strict=False))
    histogram.bucket_limit.extend(rights)
    histogram.bucket.extend(counts)


def add_png(summary: Summary, tag: str, image: bytes) -> None:
    """A PNG file. Raises ValueError when it is none."""
    width, height, channels = png.size(image)
    value = summary.value.add(tag=tag)
    value.image.width, value.image.height, value.image.colorspace = width, height, channels
    value.image.encoded_image_string = image


def add_images(summary: Summary, tag: str, pixels: bytes, shape: Sequence[int]) -> None:
    """uint8 `pixels` of shape (N, H, W, C), as one sheet. Raises ValueError when they do not agree."""
    count, height, width, channels = shape
    flat, sheet_width, sheet_height = png.sheet(pixels, count, height, width, channels)
    add_png(summary, tag, png.encode(flat, sheet_width, sheet_height, channels))


def add_text(summary: Summary, tag: str, markdown: str) -> None:
    """Markdown, as the text page shows it; cut at MAX_TEXT_CHARS."""
    summary.value.add(tag=tag, metadata=_TEXT_METADATA, tensor=string_tensor(markdown[:MAX_TEXT_CHARS].encode()))


def string_tensor(value: bytes) -> TensorProto:
    """A scalar tensor that holds one byte string."""
    return TensorProto(dtype=DT_STRING, string_val=[value])
