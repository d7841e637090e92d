"""What a framework has measured, as scalars: numbers only, and never what the hooks record at its source."""

import numbers
import sys


def pass_on(log, metrics, step, rename=str, left_out=()):
    """Call `log(rename(tag), value, step)` for each number in `metrics` ({tag: value}) that is not in `left_out`."""
    torch = sys.modules.get("torch")
    for tag, value in list(metrics.items()):
        is_number = isinstance(value, numbers.Number) or (isinstance(value, torch.Tensor) and value.numel() == 1)
        if is_number and tag not in left_out:
            log(rename(tag), value, step)


def has_writer(loggers):
    """Whether one of these loggers writes with SummaryWriter: its scalars are mirrored already, and would come twice."""
    return any("TensorBoard" in kind.__name__ for logger in loggers for kind in type(logger).__mro__)
