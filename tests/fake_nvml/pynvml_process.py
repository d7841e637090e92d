"""The real pynvml in a process of its own, asked from a test while the scenario changes under it."""

import json
import os
import select
import subprocess
import sys

CODE = """
import json, sys
import pynvml as n
def plain(v):
    if hasattr(v, "_fields_"):
        return {f: plain(getattr(v, f)) for f, *_ in v._fields_}
    if isinstance(v, (list, tuple)) or hasattr(v, "_length_"):
        return [plain(x) for x in v]
    return vars(v) if hasattr(v, "__dict__") else v
names = {"n": n}
for line in sys.stdin:
    try:
        answer = {"value": plain(eval(line, names))}
    except n.NVMLError as error:
        answer = {"error": error.value}
    print(json.dumps(answer), flush=True)
"""


class NvmlFailure(Exception):
    """pynvml raised; `code` is NVML's."""

    def __init__(self, code):
        super().__init__(f"NVML error {code}")
        self.code = code


class PynvmlProcess:
    """`ask("n.nvmlDeviceGetCount()")` evaluates in the process, where `n` is pynvml and `h` the handles."""

    def __init__(self, environment):
        self.process = subprocess.Popen(
            [sys.executable, "-c", CODE],
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait(10)
        self.process.stdin.close()
        self.process.stdout.close()

    def begin(self):
        """nvmlInit, and handles of all GPUs in `h`."""
        self.ask("n.nvmlInit()")
        count = self.ask("n.nvmlDeviceGetCount()")
        self.ask(f"globals().update(h=[n.nvmlDeviceGetHandleByIndex(i) for i in range({count})])")
        return count

    def ask(self, expression, timeout_seconds=20.0):
        """The value, as JSON knows it. Raises NvmlFailure, or TimeoutError when the call does not return in time."""
        self.send(expression)
        return self.answer(timeout_seconds)

    def send(self, expression):
        self.process.stdin.write(expression + "\n")
        self.process.stdin.flush()

    def answer(self, timeout_seconds=20.0):
        ready, _, _ = select.select([self.process.stdout], [], [], timeout_seconds)
        if not ready:
            raise TimeoutError
        answer = json.loads(self.process.stdout.readline())
        if "error" in answer:
            raise NvmlFailure(answer["error"])
        return answer["value"]
