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


def compare_int8(model, *inputs, rounds=20, by=None):
    """Compare `model(*inputs)` with a copy whose linear layers are quantised dynamically to int8; an Int8Result.

    `by`: "torch" (torch.ao's, as long as torch has it), "torchao" (the package, where it is installed), or None: the first
    of the two that is there. They differ in speed: torchao is made for torch.compile.

    `model` (a torch.nn.Module with its weights in float32 on the CPU) is not touched: two copies of it run in eval mode,
    without gradients, alternately, `rounds` times. The result is recorded with the run for `gpuwatch advise`. Raises
    ValueError for a model elsewhere or another `by`, and ImportError where what is asked for is not there.
    """
    import torch

    if any(parameter.device.type != "cpu" for parameter in model.parameters()):
        raise ValueError("dynamic int8 runs on the CPU: give a copy of the model that is there")
    if by not in (None, "torch", "torchao"):
        raise ValueError('by is "torch", "torchao" or None, not %r' % (by,))
    plain = copy.deepcopy(model).eval()
    quantised, made_by = _quantised(plain, by)
    with torch.no_grad():
        expected, got = _flat(plain(*inputs)), _flat(quantised(*inputs))
        error = float((got - expected).norm() / expected.norm())
        ratios = []
        for _ in range(rounds):
            slow, fast = _seconds(plain, inputs), _seconds(quantised, inputs)
            ratios.append(slow / fast)
    result = Int8Result(sorted(ratios)[len(ratios) // 2], error)
    facts = {"int8_speedup_ratio": result.speedup_ratio, "int8_output_error_ratio": result.error_ratio, "int8_by": made_by}
    sessions.current().meta(facts)
    return result


untraced.hide(compare_int8)


def _quantised(model, by):
    """(a copy with int8 in its linear layers, who made it: "torch" or "torchao")."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's says that torchao takes over
        if by != "torchao":
            try:
                from torch.ao.quantization import quantize_dynamic

                return quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8), "torch"
            except ImportError:
                if by == "torch":
                    raise ImportError("this torch has no dynamic quantisation any more: install torchao") from None
        try:
            from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
        except ImportError:
            raise ImportError("torchao, or one that has int8, is not installed here") from None
        quantised = copy.deepcopy(model)
        quantize_(quantised, Int8DynamicActivationInt8WeightConfig())
        return quantised, "torchao"


def _flat(output):
    import torch

    while not isinstance(output, torch.Tensor):
        output = next(iter(output.values())) if isinstance(output, dict) else output[0]
    return output.float().reshape(-1)


def _seconds(model, inputs):
    began = time.perf_counter()
    model(*inputs)
    return time.perf_counter() - began
