"""Keep torch.compile out of our frames, without importing its compiler.

`torch.compiler.disable` would do, but it imports `torch._dynamo`, which takes about a second: too dear for a process that
may never train. What it rests on is in torch's C module already: a mark on the function (seen when the compiler traces a
call to it), a mark on its code (seen when the frame is entered with the compiler's frame evaluator on), and the evaluator's
own switch, held off while a hook body runs. Measured on torch 2.13: as many graphs, breaks and frames as with `disable`.
"""

import sys


def _evaluator():
    torch = sys.modules.get("torch")
    return getattr(getattr(getattr(torch, "_C", None), "_dynamo", None), "eval_frame", None)


def skip_frame(function):
    """Mark the code of `function`, a Python function, as not to be compiled; what it calls is left as it was."""
    code = getattr(function, "__code__", None)
    evaluator = _evaluator()
    if code is None or evaluator is None:
        return
    if hasattr(evaluator, "skip_code"):  # torch before 2.7
        evaluator.skip_code(code)
    elif hasattr(evaluator, "set_code_exec_strategy"):
        strategy = evaluator._FrameExecStrategy(evaluator._FrameAction.SKIP, evaluator._FrameAction.DEFAULT)
        evaluator.set_code_exec_strategy(code, strategy)


def hide(function):
    """Make the compiler call `function` as it is, in a break that it may already have there, and return it."""
    function._torchdynamo_disable = True
    skip_frame(function)
    return function


def stand_in(function, original):
    """Make the compiler trace `original` wherever it meets `function`, a wrapper of it, and return the wrapper.

    So a compiled region is the same graph with the wrapper as without it; the wrapper sees the eager calls only.
    """
    function._torchdynamo_inline = original
    skip_frame(function)
    return function


def _no_evaluator(_callback):
    return None


def switch():
    """The function that sets this thread's frame evaluator and returns the one before (None: off), or one that does nothing."""
    return getattr(_evaluator(), "set_eval_frame", _no_evaluator)
