"""`gpuwatch.compare_int8(model, inputs)`: what int8 in the linear layers brings to a model's forward pass, measured."""

import copy
import time
import warnings

from . import session as sessions
from . import untraced


class Int8Result:
    """`speedup_ratio`: int8's forward passes a second over float32's; `error_ratio`: relative L2 difference of the outputs."""

    def __init__(self, speedup_ratio, error_ratio):
        self.speedup_ratio = speedup_ratio
        self.error_ratio = error_ratio

    def __repr__(self):
        return "Int8Result(%.2fx, outputs %.2f %% off)" % (self.speedup_ratio, 100 * self.error_ratio)


def compare_int8(model, *inputs, rounds=20):
    """Compare `model(*inputs)` with a copy whose linear layers are quantised dynamically to int8; an Int8Result.

    `model` (a torch.nn.Module with its weights in float32 on the CPU) is not touched: two copies of it run in eval mode,
    without gradients, alternately, `rounds` times. The result is recorded with the run for `gpuwatch advise`. Raises
    ValueError for a model elsewhere, and ImportError where torch has no dynamic quantisation any more.
    """
    import torch

    if any(parameter.device.type != "cpu" for parameter in model.parameters()):
        raise ValueError("dynamic int8 runs on the CPU: give a copy of the model that is there")
    plain = copy.deepcopy(model).eval()
    quantised = _quantised(plain)
    with torch.no_grad():
        expected, got = _flat(plain(*inputs)), _flat(quantised(*inputs))
        error = float((got - expected).norm() / expected.norm())
        ratios = []
        for _ in range(rounds):
            slow, fast = _seconds(plain, inputs), _seconds(quantised, inputs)
            ratios.append(slow / fast)
    result = Int8Result(sorted(ratios)[len(ratios) // 2], error)
    sessions.current().meta({"int8_speedup_ratio": result.speedup_ratio, "int8_output_error_ratio": result.error_ratio})
    return result


untraced.hide(compare_int8)


def _quantised(model):
    import torch

    try:
        from torch.ao.quantization import quantize_dynamic
    except ImportError:
        raise ImportError("this torch has no dynamic quantisation any more; it has moved to the package torchao") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that torchao takes over
        return quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)


def _flat(output):
    import torch

    while not isinstance(output, torch.Tensor):
        output = next(iter(output.values())) if isinstance(output, dict) else output[0]
    return output.float().reshape(-1)


def _seconds(model, inputs):
    began = time.perf_counter()
    model(*inputs)
    return time.perf_counter() - began
