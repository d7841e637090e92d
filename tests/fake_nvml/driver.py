"""Builds the fake libnvidia-ml.so.1 and writes the scenario that it plays; README.md says what a scenario can hold.

fake = FakeDriver(tmp_path, gpus=[h100(0), h100(1)])
subprocess.Popen([...], env={**os.environ, **fake.environment})
fake.gpus[1].faults.append("hang nvmlDeviceGetPowerUsage"); fake.write()      # a running process sees it within 1 ms
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import struct
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import pynvml

HERE = Path(__file__).resolve().parent
H100_STATIC = json.loads((HERE / "h100" / "nvml_static.json").read_text())
H100_SERIES = json.loads((HERE / "h100" / "nvml_series.json").read_text())["series"]
XID, DOUBLE_BIT_ECC, CLOCKS = 8, 2, 16  # kinds of events
H100_RESERVED_BYTES = H100_STATIC["memory_v2"]["reserved"]


@dataclass
class Device:
    """One GPU or MIG device: `lines` say what it answers, `faults` what goes wrong, `migs` are its MIG devices."""

    uuid: str
    lines: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    processes: list[str] = field(default_factory=list)
    migs: list[Device] = field(default_factory=list)
    events: list[str] = field(default_factory=list)

    def get(self, key, *numbers):
        """The device answers `key` with these numbers from now on."""
        self.lines = [line for line in self.lines if not line.startswith(f"get {key} ")]
        self.lines.append(f"get {key} {' '.join(map(str, numbers))}")

    def process(self, pid, used_bytes, *, kind="c", sm_percent=None, instances=None):
        """A process that uses `used_bytes` ("na": the driver does not say) and, if given, keeps the SMs busy."""
        tail = f" - - {instances[0]} {instances[1]}" if instances else ""
        self.processes.append(f"process {kind} {pid} {used_bytes}{tail}")
        if sm_percent is not None:
            self.processes.append(f"busy {pid} {sm_percent} 0 0 0")

    def report(self, kind, data, *, at="-"):
        """The driver reports an event of `kind` (NVML's bit) once the scenario is in force: XID and the Xid, for instance."""
        self.events.append(f"event {len(self.events) + 1} {at} {kind} {data}")

    def text(self):
        own = [f"text nvmlDeviceGetUUID {self.uuid}", *self.lines, *self.faults, *self.processes, *self.events]
        return "\n".join([*own, *(f"mig\n{mig.text()}" for mig in self.migs)])


class FakeDriver:
    """The library in a folder of its own, and its scenario beside it."""

    def __init__(self, folder, gpus, *, hide=()):
        self.folder = Path(folder)
        self.scenario = self.folder / "scenario.txt"
        self.counts = self.folder / "calls.counts"
        self.library_folder = build(hide=tuple(hide))
        self.gpus = list(gpus)
        self.driver_version = H100_STATIC["driver"]
        self.generation = 1
        self.faults = []  # of the driver as a whole: "error nvmlInitWithFlags 9"
        self.process_struct_bytes = 24
        self.epoch = time.monotonic()
        self.write()

    @property
    def environment(self):
        return {
            "LD_LIBRARY_PATH": str(self.library_folder),
            "FAKE_NVML_SCENARIO": str(self.scenario),
            "FAKE_NVML_COUNTS": str(self.counts),
        }

    def write(self):
        """Puts the scenario in force: replaces the file in one step, and waits until the library has had to look."""
        lines = [
            f"epoch {self.epoch:.6f}",
            f"generation {self.generation}",
            f"process_struct_bytes {self.process_struct_bytes}",
            f"text nvmlSystemGetDriverVersion {self.driver_version}",
            f"text nvmlSystemGetNVMLVersion 13.{self.driver_version}",
            f"get nvmlSystemGetCudaDriverVersion {H100_STATIC['cuda_driver']}",
            *self.faults,
            *(f"gpu\n{gpu.text()}" for gpu in self.gpus),
        ]
        fresh = self.scenario.with_suffix(".new")
        fresh.write_text("\n".join(lines) + "\n")
        fresh.replace(self.scenario)
        time.sleep(0.003)

    def reload(self):
        """The driver is unloaded and loaded again: every call says Uninitialized until the next nvmlInit."""
        self.generation += 1
        self.write()

    def calls(self):
        """How often each entry point was called so far, by every process with this environment together."""
        data = self.counts.read_bytes() if self.counts.exists() else b""
        rows = struct.iter_unpack("<56sQ", data)
        return {name.rstrip(b"\0").decode(): count for name, count in rows if count}


def h100(index=0):
    """A GPU that answers what the recorded H100 answered while idle; `index` gives it a UUID and a bus of its own."""
    device = Device(uuid=f"GPU-{index:08x}-1111-2222-3333-444444444444")
    recorded, chosen = H100_STATIC["getters"], H100_STATIC["args"]
    for name, answer in recorded.items():
        numbers = _numbers(answer.get("value"))
        if numbers and name not in _COMPUTED:
            device.get(name, *numbers)
    for name in ("Name", "VbiosVersion", "BoardPartNumber", "InforomImageVersion", "Serial"):
        device.lines.append(f"text nvmlDeviceGet{name} {recorded['nvmlDeviceGet' + name]['value']}")
    device.lines.append(f"text nvmlDeviceGetPciInfo_v3 00000000:00:{index + 6:02X}.0")
    memory, bar1 = H100_STATIC["memory_v2"], recorded["nvmlDeviceGetBAR1MemoryInfo"]["value"]
    device.get("memory", memory["total"], memory["reserved"], memory["used"])
    device.get("nvmlDeviceGetBAR1MemoryInfo", bar1["bar1Total"], bar1["bar1Used"])
    for number, clock in enumerate(("GRAPHICS", "SM", "MEM", "VIDEO")):
        device.get(f"nvmlDeviceGetClockInfo:{number}", chosen[f"clock_{clock}"]["value"])
        device.get(f"nvmlDeviceGetMaxClockInfo:{number}", chosen[f"maxclock_{clock}"]["value"])
    device.get("nvmlDeviceGetTemperature:0", chosen["temp_gpu"]["value"])
    for threshold in range(4):
        device.get(f"nvmlDeviceGetTemperatureThreshold:{threshold}", chosen[f"temp_threshold_{threshold}"]["value"])
    for number, direction in enumerate(("pcie_tx", "pcie_rx")):
        device.get(f"nvmlDeviceGetPcieThroughput:{number}", chosen[direction]["value"])
    for severity, lifetime in ((0, 0), (0, 1), (1, 0), (1, 1)):
        value = chosen[f"ecc_{severity}_{lifetime}"]["value"]
        device.get(f"nvmlDeviceGetTotalEccErrors:{severity}:{lifetime}", value)
    for policy in range(6):
        violation = chosen[f"violation_{policy}"]["value"]
        device.get(f"nvmlDeviceGetViolationStatus:{policy}", violation["referenceTime"], violation["violationTime"])
    for field_id, result, value_type, value in chosen["fields"]["value"]:
        if result == 0 and (value or value_type):  # type 0 with value 0: an id that the driver passed over
            device.get(f"field:{field_id}", value, value_type)
    for metric in GPM_METRICS:  # supported there; its values are not in the recording, which was of an idle GPU
        device.get(f"gpm:{metric}", 0)
    return device


#: SM active, SM occupancy, tensor active, DRAM active
GPM_METRICS = (2, 3, 5, 10)

#: Getters of the recording that other lines of the scenario answer.
_COMPUTED = {
    "nvmlDeviceGetBAR1MemoryInfo", "nvmlDeviceGetIndex", "nvmlDeviceGetMemoryInfo", "nvmlDeviceGetMinorNumber",
    "nvmlDeviceGetPciInfo", "nvmlDeviceGetPciInfo_v3",
}  # fmt: skip


def _numbers(value):
    if isinstance(value, dict):
        value = list(value.values())
    values = value if isinstance(value, list) else [value]
    return values if 0 < len(values) <= 4 and all(isinstance(v, int) for v in values) else []


def replay(device, *, first_seconds=0.0, last_seconds=1e9, speed=1.0, pid=None):
    """Plays the recorded series on `device` from the scenario's epoch on; `pid` stands for the recorded job's pid."""
    rows = [row for row in H100_SERIES if first_seconds <= row["t"] < last_seconds]
    times = [(row["t"] - rows[0]["t"]) / speed for row in rows]
    total = H100_STATIC["memory_v2"]["total"]
    for key in ("memory", "nvmlDeviceGetUtilizationRates", "nvmlDeviceGetPowerUsage", "nvmlDeviceGetTemperature:0",
                "nvmlDeviceGetClockInfo:1", "nvmlDeviceGetTotalEnergyConsumption", "field:83"):  # fmt: skip
        device.lines = [line for line in device.lines if not line.startswith(f"get {key} ")]
    for at, until, row in zip(times, [*times[1:], 1e9], rows, strict=True):
        device.lines += [
            # The recording asked version 1, which counts what is reserved as used.
            f"at {at:.4f} memory {total} {H100_RESERVED_BYTES} {row['used'] - H100_RESERVED_BYTES}",
            f"at {at:.4f} nvmlDeviceGetUtilizationRates {row['util'][0]} {row['util'][1]}",
            f"at {at:.4f} nvmlDeviceGetPowerUsage {row['power_mw']}",
            f"at {at:.4f} nvmlDeviceGetTemperature:0 {row['temp']}",
            f"at {at:.4f} nvmlDeviceGetClockInfo:1 {row['sm']}",
            f"at {at:.4f} nvmlDeviceGetTotalEnergyConsumption {row['energy_mj']}",
            f"at {at:.4f} field:83 {row['energy_mj']} 3",
        ]
        for recorded_pid, used in row["procs"]:
            device.processes.append(f"process c {pid or recorded_pid} {used} {at:.4f} {until:.4f}")
        for recorded_pid, _stamp, sm, memory, encoder, decoder in row["pu"]:
            device.processes.append(f"busy {pid or recorded_pid} {sm} {memory} {encoder} {decoder} {at:.4f} {until:.4f}")
    return rows


def mig_h100(index=0, slices=2):
    """An H100 cut into `slices` MIG devices of 10 GB; the whole GPU no longer says how busy it is."""
    gpu = h100(index)
    gpu.get("nvmlDeviceGetMigMode", 1, 1)
    gpu.get("nvmlDeviceGetMaxMigDeviceCount", 7)
    gpu.lines = [line for line in gpu.lines if not line.startswith("get nvmlDeviceGetUtilizationRates ")]
    name = H100_STATIC["getters"]["nvmlDeviceGetName"]["value"]
    for number in range(slices):
        mig = Device(uuid=f"MIG-{index:08x}-5555-6666-7777-{number:012d}")
        mig.lines.append(f"text nvmlDeviceGetName {name} MIG 1g.10gb")
        mig.get("memory", 10 << 30, 16 << 20, (number + 1) << 30)
        mig.get("nvmlDeviceGetGpuInstanceId", number + 7)
        mig.get("nvmlDeviceGetComputeInstanceId", 0)
        gpu.migs.append(mig)
    return gpu


@functools.cache
def build(hide=()):
    """The folder with libnvidia-ml.so.1, compiled once for each set of symbols that a driver of that age lacks."""
    sources = sorted(HERE.glob("*.[ch]"))
    text = "".join(path.read_text() for path in sources)
    own = set(re.findall(r"\bnvml[A-Z]\w+", text)) | {
        f"{name}_v{n}" for name in re.findall(r"LISTS\((\w+)", text) for n in (2, 3)
    }
    known = set(re.findall(r'_nvmlGetFunctionPointer\("(\w+)"', Path(pynvml.__file__).read_text()))
    digest = hashlib.sha256(repr((text, sorted(known), hide)).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"gpuwatch-fake-nvml-{os.getuid()}-{digest}"
    if (folder / "libnvidia-ml.so.1").exists():
        return folder
    folder.mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        stubs, symbols, library = (Path(scratch) / name for name in ("stubs.c", "symbols.map", "libnvidia-ml.so.1"))
        # Whatever else a client may ask for exists and says that this device does not support it.
        stubs.write_text("".join(f"int {name}(void) {{ return 3; }}\n" for name in sorted(known - own)))
        hidden = f"local: {' '.join(f'{name};' for name in hide)}" if hide else ""
        symbols.write_text(f"{{ global: *; {hidden} }};\n")
        compiled = [str(path) for path in sources if path.suffix == ".c"]
        flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", f"-Wl,--version-script={symbols}"]
        subprocess.run(["cc", *flags, "-o", library, *compiled, stubs, "-lm", "-lpthread"], check=True, timeout=120)
        library.replace(folder / "libnvidia-ml.so.1")
    return folder
