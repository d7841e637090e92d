"""The statistics kernels alone, as multiples of one read of every gradient: torch.sum on the CPU, the memory's speed on a GPU.

Without a CUDA device the CPU's kernel is measured; with one, the fused kernel too, beside what people write instead.
"""

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "hooks"))

import torch
from gpuwatch_hooks.kernels import cpu, nvrtc, triton_kernel

from tests.bench.harness import Bench
from tests.gpu import pretended

BLOCK = [(768, 256), (768,), (256, 256), (256,), (1024, 256), (1024,), (256, 1024), (256,), (256,), (256,), (256,), (256,)]
CPU_SHAPES = [(2000, 256), *BLOCK * 12, (2000, 256), (2000,)]  # 147 tensors, 10.5 M entries


def gpt2_shapes(layers, width, words=50257, positions=1024):
    """Parameters of a GPT-2: 12 x 768 has 124 M, 48 x 1600 has 1.5 B."""
    shapes = [(words, width), (positions, width)]
    for _ in range(layers):
        shapes += [(width,), (width,), (width, 3 * width), (3 * width,), (width, width), (width,), (width,), (width,)]
        shapes += [(width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    return [*shapes, (width,), (width,)]


def random(shapes, device, dtype=torch.float32, zeros=False):
    torch.manual_seed(0)
    tensors = [torch.randn(shape, device=device).mul_(1e-3) for shape in shapes]
    return [(tensor.relu_() if zeros else tensor).to(dtype) for tensor in tensors]


def cpu_milliseconds(functions, rounds):
    """Median of each in the thread's processor time, all in turn in every round, so that a slow moment falls on all of them."""
    times = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            began = time.thread_time()
            function()
            times[name].append(1000 * (time.thread_time() - began))
    return {name: statistics.median(found[2:]) for name, found in times.items()}


def on_the_cpu(bench):
    """L2, sum, sum of magnitudes, largest, zeros of every tensor, over one torch.sum of the same tensors."""
    torch.set_num_threads(1)
    rounds = 8 if bench.quick else 40
    rows = []
    for label, zeros in (("normal", False), ("half of them zeros", True)):
        tensors = random(CPU_SHAPES, "cpu", zeros=zeros)
        found = cpu_milliseconds(
            {
                "torch.sum of each": lambda tensors=tensors: [tensor.sum() for tensor in tensors],
                "always on: norms and non-finite": lambda tensors=tensors: cpu.norms(tensors),
                "table: 7 columns": lambda tensors=tensors: cpu.table(tensors),
                "histograms of 64 buckets": lambda tensors=tensors: cpu.histograms(tensors),
                "count_nonzero of each": lambda tensors=tensors: [torch.count_nonzero(tensor) for tensor in tensors],
                "norm().item() of each": lambda tensors=tensors: [tensor.norm().item() for tensor in tensors],
                "abs().mean().item() of each": lambda tensors=tensors: [tensor.abs().mean().item() for tensor in tensors],
            },
            rounds,
        )
        one = found["torch.sum of each"]
        rows += [(label, name, value, value / one) for name, value in found.items()]
        limit = {"at_most": 6.0}
        bench.number(f"CPU table over one torch.sum, entries {label}", found["table: 7 columns"] / one, "x", **limit)
        bench.number(f"CPU norms over one torch.sum, entries {label}", found["always on: norms and non-finite"] / one, "x")
    entries = sum(torch.Size(shape).numel() for shape in CPU_SHAPES)
    bench.table(
        f"CPU, 1 thread, {len(CPU_SHAPES)} float32 tensors, {entries / 1e6:.1f} M entries (medians of processor time)",
        ("entries", "what", "ms", "x torch.sum"),
        rows,
    )


# ---------------------------------------------------------------------------------------------------------------- a GPU
def gpu_milliseconds(function, rounds):
    """(median on the device by events, median of the host's time) of one call."""
    for _ in range(5):
        function()
    device, host = [], []
    for _ in range(rounds):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        began = time.perf_counter()
        function()
        host.append(1000 * (time.perf_counter() - began))
        end.record()
        torch.cuda.synchronize()
        device.append(start.elapsed_time(end))
    return statistics.median(device), statistics.median(host)


def bytes_a_millisecond(rounds):
    """How fast this device reads: a sum over 4 GiB, or over what fits."""
    free, _ = torch.cuda.mem_get_info()
    source = torch.empty(min(pretended.smaller(1 << 30, 1 << 16), free // 8), dtype=torch.float32, device="cuda").uniform_()
    return 4 * source.numel() / gpu_milliseconds(source.sum, rounds)[0]


def kernels(bench):
    """{name: Fused} of the fused kernels that can be had here; why another cannot is said."""
    found = {}
    for name, module in (("NVRTC", nvrtc), ("Triton", triton_kernel)):
        try:
            found[name] = module.load(torch.cuda.current_device())
        except Exception as error:
            if name == "NVRTC":
                bench.failed("the fused kernel by NVRTC", error)
            else:
                print(f"left out: the kernel by {name} ({error})", file=sys.stderr)
    return found


def observers(tensors, fused):
    """What is compared, by name; ours first."""
    ours = {}
    for name, kernel in fused.items():
        ours[f"gpuwatch by {name}, all statistics"] = lambda kernel=kernel: kernel.measure(tensors)
        ours[f"gpuwatch by {name}, with 64-bucket histograms"] = lambda kernel=kernel: kernel.measure(tensors, histograms=True)
        ours[f"gpuwatch by {name}, update ratio of every 31st entry"] = lambda kernel=kernel: moved(kernel, tensors)
    return ours | {
        "torch._foreach_norm": lambda: torch._foreach_norm(tensors),
        "foreach L2 and Linf": lambda: (torch._foreach_norm(tensors), torch._foreach_norm(tensors, float("inf"))),
        "abs().mean().item() of each": lambda: [tensor.abs().mean().item() for tensor in tensors],
        "histc of each": lambda: [torch.histc(tensor.float(), 64) for tensor in tensors],
    }


def moved(kernel, tensors):
    strides = [31 if tensor.numel() > 4096 else 1 for tensor in tensors]
    return kernel.followed.compare(kernel.followed.keep(tensors, strides), tensors)


LIMITS = {  # what the kernel by NVRTC may take over one read: without and with histograms
    "124 M fp32": (1.4, 1.5),
    "1.5 B bf16": (1.1, 1.35),
}


def on_a_gpu(bench):
    rounds = pretended.smaller(10 if bench.quick else 30, 1)
    fused = kernels(bench)
    speed = bytes_a_millisecond(rounds)
    small, large = pretended.smaller(((12, 768), (48, 1600)), ((1, 8, 50, 10), (2, 8, 50, 10)))
    cases = [("124 M fp32", gpt2_shapes(*small), torch.float32), ("124 M bf16", gpt2_shapes(*small), torch.bfloat16)]
    cases += [("1.5 B bf16", gpt2_shapes(*large), torch.bfloat16)]
    rows = []
    for label, shapes, dtype in cases:
        try:
            rows += measured_case(bench, label, shapes, dtype, fused, speed, rounds)
        except Exception as error:
            bench.failed(f"kernels, {label}", error)
        torch.cuda.empty_cache()
    target = next((kernel.facts["kernel_target"] for kernel in fused.values()), "no kernel")
    title = f"{torch.cuda.get_device_name()}, reads {speed / 1e9:.2f} TB/s, {target} (medians)"
    bench.table(title, ("gradients", "what", "GPU ms", "host ms", "x one read"), rows)


def measured_case(bench, label, shapes, dtype, fused, speed, rounds):
    """Rows of the table for tensors of these shapes."""
    size = sum(torch.Size(shape).numel() for shape in shapes) * dtype.itemsize
    if size * 3 > torch.cuda.mem_get_info()[0]:
        print(f"left out: {label} does not fit", file=sys.stderr)
        return []
    tensors = random(shapes, "cuda", dtype)
    floor = size / speed
    rows = [(label, "one read", floor, 0.0, 1.0)]
    for name, function in observers(tensors, fused).items():
        device, host = gpu_milliseconds(function, min(rounds, 5) if "of each" in name else rounds)
        rows.append((label, name, device, host, device / floor))
        if name.startswith("gpuwatch"):
            limits = LIMITS.get(label, (None, None)) if "NVRTC" in name else (None, None)
            limit = limits[0] if "all statistics" in name else limits[1] if "histograms" in name else None
            bench.number(f"{name}, {label}, over one read", device / floor, "x", at_most=limit)
            if label == "124 M fp32":
                most = 150 if "update" not in name else None
                bench.number(f"{name}, {label}, host", 1000 * host, "us", at_most=most, note="same addresses")
    return rows


def main():
    device = {"--device": {"choices": ["cpu", "cuda", "both"], "default": "both"}}
    bench = Bench("kernels", "Statistics of gradients, alone", options=device)
    if bench.options.device != "cuda":
        on_the_cpu(bench)
    if bench.options.device != "cpu" and torch.cuda.is_available():
        on_a_gpu(bench)
    return bench.finish()


if __name__ == "__main__":
    raise SystemExit(main())
