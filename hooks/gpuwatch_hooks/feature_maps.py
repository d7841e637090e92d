"""`feature_maps(module)`: what a layer makes of its input, as a picture in TensorBoard every so many training steps."""

import contextlib

from . import discovery, images, logging_session, notices, snapshot

MAX_FAULTS = 3
_taken_tags = set()


class FeatureMaps:
    """What `feature_maps` returns; close it, or use it as a context manager. Nothing here raises."""

    def __init__(self, handle):
        self._handle = handle

    def close(self):
        """Take the hook off the module. Idempotent."""
        handle, self._handle = self._handle, None
        if handle is not None:
            handle.remove()

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.close()


class _Hook:
    """A forward hook of one module.

    A model that carries it must still go through pickle, torch.save and copy.deepcopy, and load where gpuwatch is not
    installed: a copy gets a hook of the standard library that does nothing.
    """

    def __init__(self, tag, every):
        self.tag = tag
        self.every = every
        self.forwards = 0
        self.faults = 0
        self.handle = None

    def __reduce__(self):
        return getattr, (contextlib.nullcontext(), "__exit__")

    def __call__(self, module, _inputs, output):
        import torch

        if _is_compiling(torch):  # so the compiler finds nothing here to trace, to guard or to break at
            return
        try:
            if not module.training or _is_no_forward(torch):
                return
            self.forwards += 1
            if (self.forwards - 1) % self.every == 0:
                self.send(output, torch)
        except Exception as error:
            self.faults += 1
            notices.say_once("%s is left out: %s" % (self.tag, error))
            if self.faults >= MAX_FAULTS:
                self.handle.remove()

    def send(self, output, torch):
        session = logging_session.current()
        if session is None:
            self.handle.remove()  # over: this process records nothing any more
            return
        maps = images.fit_maps(_maps_of(_first_tensor(output, torch)))
        if not maps.numel():
            return
        *_, height, width = images.grid_shape(maps.shape)
        if session.has_media_room(maps.numel() * maps.element_size()):
            taken = snapshot.take(maps)
            shape = (1, height, width, 1)
            session.media("feature_maps", self.tag, session.step, shape, lambda: images.grid(taken.read()), taken.size_bytes)


def feature_maps(module, every=100, name=None):
    """Send a grid of `module`'s activations to TensorBoard at its first training-mode forward and every `every`-th after it.

    Of an output N,C,H,W the first sample's channels, one small grey map each (at most 64), every map from its own smallest
    value (black) to its largest (white); of N,T,F the first sample as one map; of N,F the batch as one map. The tag is
    feature_maps/NAME, by default the layer's path in the model. Returns a handle with close().

    Skipped: evaluation, activation checkpointing's recomputation, regions under torch.compile (there a hook must be in place
    before the first call, and would cut the graph). Saving, pickling and copying the model go on as before; copies carry
    no hook of ours. An argument of a wrong type is told once on stderr and ignored.
    """
    try:
        return FeatureMaps(_hooked(module, every, name))
    except Exception as error:
        notices.say_once("feature_maps() is left out: %s" % error)
        return FeatureMaps(None)


def _hooked(module, every, name):
    """The handle of a hook on `module`. Raises TypeError or ValueError, in a user's words."""
    from torch import nn

    if not isinstance(module, nn.Module):
        raise TypeError("a torch.nn.Module is needed, not %s" % type(module).__name__)
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError("every is a whole number from 1 on, not %r" % (every,))
    hook = _Hook("feature_maps/" + _unique(name or discovery.path_in_sight(module) or type(module).__name__), every)
    hook.handle = module.register_forward_hook(hook)
    return hook.handle


def _unique(name):
    tag, number = str(name), 2
    while tag in _taken_tags:
        tag, number = "%s.%d" % (name, number), number + 1
    _taken_tags.add(tag)
    return tag


def _is_compiling(torch):
    known = getattr(torch.compiler, "is_compiling", None)  # since torch 2.3
    return known() if known is not None else torch._dynamo.is_compiling()


def _is_no_forward(torch):
    """Whether this is a trace, a recomputation, the capture of a CUDA graph, or a region whose operations somebody counts."""
    if torch.jit.is_tracing() or torch._C._current_graph_task_id() != -1:
        return True
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
        return True
    # Selective checkpointing replays the operations that it saw: one more of ours in the first pass would shift them all.
    return torch._C._len_torch_dispatch_stack() > 0


def _first_tensor(output, torch):
    if isinstance(output, torch.Tensor):
        return output
    values = output.values() if isinstance(output, dict) else output if isinstance(output, (list, tuple)) else ()
    for value in values:
        if isinstance(value, torch.Tensor):
            return value
    raise TypeError("the module returns %s, not a tensor" % type(output).__name__)


def _maps_of(output):
    """[K, H, W]: the 2-D maps of an activation, as feature_maps() documents."""
    output = snapshot.plain(output)
    if output.dim() == 5:
        return output[0, :, output.shape[2] // 2]  # the middle slice of a volume
    if output.dim() == 4:
        return output[0]
    if output.dim() == 3:
        return output[:1]
    if output.dim() == 2:
        return output[None]
    raise ValueError("an activation of shape %s is no feature map" % (tuple(output.shape),))
