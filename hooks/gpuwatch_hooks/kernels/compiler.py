"""NVRTC, the CUDA compiler as a library: found beside torch, which ships it, and called by ctypes. It needs no device."""

import ctypes
import glob
import os
import re
import sys

#: What the source is compiled with, beside its architecture. No fast-math: NaN, Inf and denormals are what it looks for.
OPTIONS = ("--std=c++14",)
_SUCCESS = 0


class CompilerError(Exception):
    """There is no usable compiler here, or it refused; the text says why, in one sentence."""


def candidates():
    """Paths and names of libnvrtc, the likeliest first: loaded already, beside torch, the toolkit's, the linker's."""
    found = _loaded()
    torch = sys.modules.get("torch")
    if torch is not None and getattr(torch, "__file__", None):
        home = os.path.dirname(torch.__file__)
        packages = os.path.dirname(home)
        found += _newest(os.path.join(home, "lib", "libnvrtc*.so*"))
        found += _newest(os.path.join(packages, "nvidia", "*", "lib", "libnvrtc.so*"))
    found += _newest(os.path.join(sys.prefix, "lib", "libnvrtc.so*"))  # conda
    for root in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"):
        if root:
            found += _newest(os.path.join(root, "lib64", "libnvrtc.so*"))
    found += ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2"]
    return list(dict.fromkeys(found))


def _loaded():
    """The library that the process has loaded already, if it has one: surely of the right version."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
            paths = [line.split(None, 5)[5].strip() for line in maps if "libnvrtc" in line]
    except (OSError, IndexError):
        return []
    return [path for path in dict.fromkeys(paths) if _is_compiler(path)]


def _newest(pattern):
    found = [path for path in glob.glob(pattern) if _is_compiler(path)]
    return sorted(found, key=lambda path: [int(n) for n in re.findall(r"\d+", os.path.basename(path))], reverse=True)


def _is_compiler(path):
    """Not the built-in functions, the alternative compiler, or the statically linked parts of it."""
    name = os.path.basename(path)
    return name.startswith("libnvrtc") and "builtins" not in name and ".alt" not in name and os.path.exists(path)


class Compiler:
    """One NVRTC library. `version` is (major, minor); `architectures` the compute capabilities it knows, as 80, 90 ..."""

    def __init__(self, path):
        try:
            self._library = ctypes.CDLL(path)
            major, minor, count = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
            self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
            self._call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
            known = (ctypes.c_int * count.value)()
            self._call("nvrtcGetSupportedArchs", known)
        except (OSError, AttributeError) as error:
            raise CompilerError("%s cannot be used: %s" % (path, error)) from None
        self.path = path
        self.version = (major.value, minor.value)
        self.architectures = sorted(known)

    def target(self, capability):
        """(option, True) for a device of compute capability such as 90; False when its driver has to finish the work.

        A device that is newer than the compiler gets PTX for the newest that both know. CompilerError for one too old.
        """
        if capability in self.architectures:
            return "sm_%d" % capability, True
        older = [known for known in self.architectures if known < capability]
        if not older:
            raise CompilerError("NVRTC %d.%d no longer knows compute capability %d" % (*self.version, capability))
        return "compute_%d" % older[-1], False

    def compile(self, source, target, options=OPTIONS):
        """(code, log) of CUDA C `source` for a `target`: a cubin for sm_90, PTX for compute_90. Seconds, without the GIL."""
        program = ctypes.c_void_p()
        self._call("nvrtcCreateProgram", ctypes.byref(program), source.encode(), b"gpuwatch.cu", 0, None, None)
        try:
            given = [b"--gpu-architecture=" + target.encode()] + [option.encode() for option in options]
            array = (ctypes.c_char_p * len(given))(*given)
            status = self._library.nvrtcCompileProgram(program, len(given), array)
            log = self._result(program, "nvrtcGetProgramLog").rstrip(b"\0").decode("utf-8", "replace")
            if status != _SUCCESS:
                raise CompilerError("NVRTC %d.%d refused the kernel (%d): %s" % (*self.version, status, log[:300]))
            return self._result(program, "nvrtcGetCUBIN" if target.startswith("sm_") else "nvrtcGetPTX"), log
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def _result(self, program, getter):
        size = ctypes.c_size_t()
        self._call(getter + "Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(getter, program, buffer)
        return buffer.raw

    def _call(self, name, *arguments):
        status = getattr(self._library, name)(*arguments)
        if status != _SUCCESS:
            raise CompilerError("%s failed with %d" % (name, status))


def find():
    """The first usable compiler among the candidates. Raises CompilerError when there is none."""
    for path in candidates():
        try:
            return Compiler(path)
        except CompilerError:
            continue
    raise CompilerError("no NVRTC library was found beside torch, in CUDA_HOME or by the linker")
