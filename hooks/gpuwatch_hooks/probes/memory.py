"""What torch's caching allocator holds on the device of the optimizer's tensors."""

import sys


class MemoryProbe:
    """Reads the allocator's counters (no call into the driver, no synchronisation); nothing before CUDA is in use."""

    name = "memory"

    def install(self, recorder):
        """Nothing to patch."""
        self._session = recorder.session
        self._failures = {}  # device index -> out-of-memory errors so far
        self._observed = False

    def after(self, part):
        torch = sys.modules["torch"]
        if not (getattr(torch.cuda, "_initialized", True) and torch.cuda.is_initialized()):  # its flag: two calls less
            return
        device = next((p.device for p in part.entry.parameters if p.device.type == "cuda"), None)
        index = torch.cuda.current_device() if device is None else device.index
        if not self._observed:
            self._observed = True
            self._begin(torch, index)
        # torch.cuda.memory_stats flattens and sorts some 70 entries in Python first; this is what it starts from
        stats = torch._C._cuda_memoryStats(index)
        part.set("torch_device_index", float(index))
        part.set("torch_allocated_bytes", float(stats["allocated_bytes"]["all"]["current"]))
        part.set("torch_allocated_peak_bytes", float(stats["allocated_bytes"]["all"]["peak"]))
        part.set("torch_reserved_bytes", float(stats["reserved_bytes"]["all"]["current"]))
        failures = stats.get("num_ooms", 0)
        before = self._failures.get(index, failures)
        self._failures[index] = failures
        if failures > before:  # the loop has caught the error
            text = "torch's allocator on device %d failed %d time(s), and the loop went on" % (index, failures - before)
            self._session.event("out_of_memory", part.step, 1.0, text)

    def _begin(self, torch, index):
        from .. import on_demand  # not before CUDA is in use: it brings gzip, pickle and tempfile

        on_demand.at_out_of_memory(self._session)
        properties = torch.cuda.get_device_properties(index)
        facts = {"device_name": properties.name, "device_memory_bytes": properties.total_memory}
        self._session.meta({**facts, "device_compute_capability": "%d.%d" % (properties.major, properties.minor)})
