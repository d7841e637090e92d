"""The user's own values: scalars, histograms, images, figures and text, under the user's own tags.

Every function returns at once and raises nothing into training. What a device still computes is copied asynchronously and
read on the control thread; what that thread is too far behind to take is dropped and counted. An argument that cannot be
used (a tag without a number, a tensor that is no batch of images) is told once on stderr and left out: a run that has
trained for a day must not end over a picture. Without a daemon, in a forked worker and after the end nothing happens.

`step` is the position on the tag's own axis; None means the present optimizer step.
"""

import functools
import io
import sys

from . import bins, images, logging_session, notices, snapshot, untraced, wire

MAX_STEP = 1 << 48
MAX_TEXT_BYTES = 1 << 20
DEFAULT_IMAGES = 8
#: A CPU tensor above this is binned on the caller's thread, because keeping a copy of it would be dearer than reading it.
MAX_COPIED_BYTES = 16 << 20
MAX_COMPLAINTS = 64
_complained = set()


def _safely(function):
    """The boundary of this module: bad arguments and bad luck end here, with one line on stderr for each tag."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except Exception as error:
            complain(function.__name__, str(args[0])[:80] if args else "", error)

    return untraced.hide(call)


def complain(function_name, tag, error):
    """Tell once for each function and tag what is wrong with an argument; never raises."""
    key = (function_name, tag)
    if key not in _complained and len(_complained) < MAX_COMPLAINTS:
        _complained.add(key)
        notices.say_once("%s(%r) is left out: %s" % (function_name, tag, error))


@_safely
def log(tag, value, step=None):
    """Record one number (int, float, bool, or a tensor or array of one element) for TensorBoard and Prometheus."""
    session = logging_session.current()
    if session is not None:
        session.scalar(str(tag), checked_step(session, step), number(value))


@_safely
def log_histogram(tag, tensor, step=None):
    """Record how the finite entries of `tensor` (any shape and real type) are distributed: 64 bins from smallest to largest.

    Of a DTensor, this rank's shard; of a sparse tensor, the stored values; of complex numbers, the magnitudes.
    """
    session = logging_session.current()
    if session is None:
        return
    source = snapshot.plain(_tensor(tensor))
    snapshot.refuse_capture(source)
    step, size, tag = checked_step(session, step), source.numel(), str(tag)
    on_host = source.device.type != "cuda"  # a CUDA tensor is binned where it lives: 130 numbers travel instead of it
    copied = on_host and size * source.element_size() <= MAX_COPIED_BYTES
    if not session.has_media_room(size * source.element_size() if copied else 0):
        return
    taken = snapshot.take(source if copied else bins.measure(source if source.is_cuda else source.cpu()))

    def data():
        rows, finite = bins.rows(bins.measure(taken.read()) if copied else taken.read())
        if finite < size:  # or a diverged run would look like a missing chart
            session.scalar(tag + "/nonfinite_count", step, size - finite)
        return rows

    session.media("histogram", tag, step, (bins.BINS, 3), data, taken.size_bytes)


@_safely
def log_images(tag, batch, step=None, count=DEFAULT_IMAGES, rescale=False, dataformats=None):
    """Record the first `count` images of `batch`: N,C,H,W or N,H,W,C (or one image), C = 1, 3 or 4, of any real type.

    Scaled as SummaryWriter.add_images does: uint8 as it is, everything else from 0..1, clamped. `rescale=True` stretches the
    batch from its smallest to its largest value instead, for normalised inputs. `dataformats` ("NHWC", "CHW", ...) settles a
    shape that can be read in two ways.
    """
    session = logging_session.current()
    if session is None:
        return
    source = snapshot.plain(_tensor(batch))
    order = images.order_of(source.shape, dataformats)
    view = images.fit(images.as_nchw(source, order, count), wire.MAX_MEDIA_BYTES)
    shape = tuple(view.shape[place] for place in (0, 2, 3, 1))
    if not view.numel():
        raise ValueError("the batch is empty")
    if session.has_media_room(view.numel() * view.element_size()):
        taken = snapshot.take(view)
        data = functools.partial(_pixels, taken, rescale)
        session.media("images", str(tag), checked_step(session, step), shape, data, taken.size_bytes)


def _pixels(taken, rescale):
    return images.to_uint8(taken.read(), rescale)


@_safely
def log_figure(tag, fig, step=None, close=True):
    """Record a matplotlib figure as it looks now (drawn on the caller's thread), and close it, as SummaryWriter does."""
    session = logging_session.current()
    if not callable(getattr(fig, "savefig", None)):
        raise TypeError("a figure has a savefig method, %s has none" % type(fig).__name__)
    try:
        if session is not None and session.has_media_room(0):
            picture = io.BytesIO()
            fig.savefig(picture, format="png")
            data = picture.getvalue()
            if len(data) > wire.MAX_MEDIA_BYTES:
                raise ValueError("the picture has %d bytes, %d are taken; lower its dpi" % (len(data), wire.MAX_MEDIA_BYTES))
            session.media("figure", str(tag), checked_step(session, step), (), data, len(data))
    finally:
        pyplot = sys.modules.get("matplotlib.pyplot")
        if close and pyplot is not None:
            pyplot.close(fig)


@_safely
def log_text(tag, md, step=None):
    """Record Markdown text (at most 1 MiB)."""
    session = logging_session.current()
    if session is None:
        return
    if not isinstance(md, str):
        raise TypeError("text is a str, not %s" % type(md).__name__)
    data = md.encode("utf-8", "replace")
    if len(data) > MAX_TEXT_BYTES:
        raise ValueError("the text has %d bytes, %d are taken" % (len(data), MAX_TEXT_BYTES))
    session.media("text", str(tag), checked_step(session, step), (), data, len(data))


def number(value):
    """`value` as a float, or as a snapshot that becomes one on the control thread. Raises TypeError or ValueError."""
    if isinstance(value, (str, bytes)):
        raise TypeError("a number is needed, not %r" % value[:40])
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        if value.numel() != 1:
            raise ValueError("a tensor of shape %s is not one number; log_histogram takes it" % (tuple(value.shape),))
        return float(value.detach()) if value.device.type == "cpu" else snapshot.take(value)
    return float(value.item() if hasattr(value, "item") else value)  # float() of an array of one element is an error in numpy


def checked_step(session, step):
    """`step` as an int that the daemon takes; None gives the present optimizer step."""
    step = session.step if step is None else int(step)
    if not 0 <= step <= MAX_STEP:
        raise ValueError("step %d is not a step" % step)
    return step


def _tensor(value):
    """`value` as a tensor: what torch can make one of without a copy (numpy arrays), or from nested lists of numbers."""
    import torch

    return value if isinstance(value, torch.Tensor) else torch.as_tensor(value)
