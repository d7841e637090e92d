"""The Triton kernel, compiled for a device by what Triton brings along: neither the device nor a C compiler is needed for it.

It happens in another process, because Triton's front end is Python, which would take the training thread's interpreter lock
for seconds, and because a compiler that dies must not take the job with it. What comes back are finished programs (cubins)
that the driver loads as it loads NVRTC's: Triton's own launcher, which wants a C compiler on the user's machine, is not used.
"""

import base64
import json
import os
import subprocess
import sys

from . import triton_source
from .binary import Binary, Kernel

COMPILE_SECONDS = 180.0
#: Arguments that Triton appends to those of the source, addresses of scratch memory that these kernels do not ask for.
SCRATCH_ARGUMENTS = 2
#: Before it the compiler was called in another way.
OLDEST = (3, 3)
_MOST_SHARED_BYTES = 48 * 1024

#: What the other process runs, isolated from the environment (-I -S): the job's own search path comes with the request.
_CHILD = r"""
import base64, importlib.util, json, os, sys, tempfile
given = json.load(sys.stdin)
sys.path[:] = given["path"]
os.nice(10)
with tempfile.TemporaryDirectory(prefix="gpuwatch-triton-") as folder:
    os.environ["TRITON_CACHE_DIR"] = os.path.join(folder, "cache")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    file = os.path.join(folder, "gpuwatch_triton.py")
    with open(file, "w") as out:
        out.write(given["source"])
    spec = importlib.util.spec_from_file_location("gpuwatch_triton", file)
    module = sys.modules["gpuwatch_triton"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = {}
    for name, (function, fixed, warps) in given["kernels"].items():
        function = getattr(module, function)
        signature = {argument: "constexpr" if argument in fixed else "i64" for argument in function.arg_names}
        source = ASTSource(fn=function, signature=signature, constexprs=fixed)
        done = triton.compile(source, target=GPUTarget("cuda", given["capability"], 32), options={"num_warps": warps})
        scratch = [getattr(done.metadata, kind + "_scratch_size", 0) for kind in ("global", "profile")]
        made[name] = {
            "symbol": done.metadata.name,
            "threads": 32 * done.metadata.num_warps,
            "shared_bytes": done.metadata.shared,
            "scratch_bytes": sum(scratch),
            "code": base64.b64encode(done.asm["cubin"]).decode(),
        }
    json.dump(made, sys.stdout)
"""


class TritonError(Exception):
    """There is no usable Triton here, or it refused; the text says why, in one sentence."""


def version():
    """Of the Triton that this process would import, as text, without importing it. Raises TritonError when there is none."""
    import importlib.metadata
    import importlib.util

    if importlib.util.find_spec("triton") is None:
        raise TritonError("Triton is not installed")
    try:
        found = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        raise TritonError("the Triton that is installed says no version") from None
    if tuple(int(part) for part in found.split(".")[:2]) < OLDEST:
        raise TritonError("Triton %s is older than %d.%d" % (found, *OLDEST))
    return found


def compiled(capability):
    """The kernels for a device of this compute capability (90 ...) as bytes, for `unpacked`. Seconds, in another process."""
    if not sys.executable:
        raise TritonError("the interpreter's own program is not known, so Triton cannot be run beside the job")
    given = {
        "path": [os.path.abspath(entry) for entry in sys.path],
        "source": triton_source.SOURCE,
        "kernels": triton_source.KERNELS,
        "capability": capability,
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GPUWATCH", "TRITON", "PYTHON"))}
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _CHILD],
            input=json.dumps(given).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            timeout=COMPILE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise TritonError("Triton could not be run: %s" % error) from None
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["it said nothing"]
        raise TritonError("Triton failed with exit status %d: %s" % (done.returncode, said[-1][:200]))
    return done.stdout


def unpacked(raw):
    """[Binary] from what `compiled` returned. Raises TritonError when it asks for what is not given."""
    found = []
    for name, made in json.loads(raw).items():
        if made["shared_bytes"] > _MOST_SHARED_BYTES or made["scratch_bytes"]:
            raise TritonError("Triton's %s wants more memory than every device has" % name)
        kernel = Kernel(made["symbol"], made["threads"], made["shared_bytes"], SCRATCH_ARGUMENTS)
        found.append(Binary(base64.b64decode(made["code"]), {name: kernel}))
    return found
