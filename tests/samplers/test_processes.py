"""Processes on a GPU: the two layouts of the list, what the driver does not tell, garbage rows, who they are."""

import os
import struct
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuwatch.samplers.nvml_processes import ProcessLists, busy_ratios
from gpuwatch.samplers.process_identity import Identities, UserNames, read_stat
from tests.fake_nvml.driver import h100

PID_MAX, TOTAL = 4194304, 85520809984
ROWS = st.lists(
    st.tuples(st.integers(1, PID_MAX), st.one_of(st.none(), st.integers(2, TOTAL >> 21).map(lambda n: n << 21))),
    min_size=2,
    max_size=20,
    unique_by=lambda row: row[0],
)


def packed(rows, stride):
    layout = struct.Struct("<I4xQII" if stride == 24 else "<I4xQIIQ")
    tail = () if stride == 24 else (0,)
    return b"".join(layout.pack(pid, 2**64 - 1 if used is None else used, 2**32 - 1, 2**32 - 1, *tail) for pid, used in rows)


@given(rows=ROWS, written=st.sampled_from([24, 32]), likely=st.sampled_from([24, 32]))
def test_either_layout_is_read_whichever_was_expected(rows, written, likely):
    buffer = packed(rows, written) + bytes(1024)
    found = ProcessLists(likely).rows(buffer, len(rows), "compute", TOTAL)
    if written != likely and written == 24 and not garbage_shows(buffer, len(rows)):
        return  # read as 32 bytes it would make sense too: then the symbols of the library decide, as below
    assert found == [(pid, used, "compute") for pid, used in rows]


def garbage_shows(buffer, count):
    """Whether 24-byte rows, read 32 bytes apart, give something that cannot be."""
    rows = struct.Struct("<I4xQIIQ").iter_unpack(buffer[: 32 * count])
    return any(not 0 < pid <= PID_MAX or (used != 2**64 - 1 and used > TOTAL) for pid, used, *_ in rows)


def test_twin_one_fixed_layout_scrambles_the_other():
    rows = [(1000, 1 << 30), (1001, 2 << 30), (1002, 3 << 30)]
    read = [row[:2] for row in struct.Struct("<I4xQII").iter_unpack(packed(rows, 32)[: 24 * 3])]
    assert read[0] == rows[0]
    assert read[1:] != rows[1:]
    assert ProcessLists(24).rows(packed(rows, 32), 3, "compute", TOTAL) == [(*row, "compute") for row in rows]


def test_a_list_that_makes_no_sense_in_either_layout_is_dropped():
    garbage = bytes(range(1, 97)) * 2
    assert ProcessLists(24).rows(garbage, 4, "compute", TOTAL) is None


@pytest.mark.parametrize("hidden", [(), ("nvmlDeviceGetRunningProcessDetailList",), ("nvmlDeviceGetConfComputeMemSizeInfo",)])
@pytest.mark.parametrize("struct_bytes", [24, 32])
def test_both_layouts_from_the_driver(sampled, struct_bytes, hidden):
    """Early R535 has the first symbol and lacks the second; a list tells even where the symbols mislead."""
    gpu = h100()
    pids = [os.getpid(), os.getppid(), 1]
    for number, pid in enumerate(pids):
        gpu.process(pid, (number + 1) << 30)

    def prepare(fake):
        fake.process_struct_bytes = struct_bytes

    run = sampled([gpu], hide=hidden, prepare=prepare)
    assert {pid: process.memory_bytes for pid, process in run.gpu(0).processes.items()} == {
        pid: (number + 1) << 30 for number, pid in enumerate(pids)
    }


def test_an_older_driver_has_version_2_of_everything(sampled):
    gpu = h100()
    gpu.process(os.getpid(), 1 << 30)
    hide = [f"nvmlDeviceGet{kind}RunningProcesses_v3" for kind in ("Compute", "Graphics", "MPSCompute")]
    run = sampled([gpu], hide=[*hide, "nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetCurrentClocksEventReasons"])
    assert run.gpu(0).processes[os.getpid()].memory_bytes == 1 << 30
    assert run.value(0, "memory_reserved_bytes") is None
    assert run.value(0, "memory_used_bytes") == 503316480  # version 1 counts what is reserved
    assert run.value(0, "throttle_active", reason="power_cap") == 0


def test_memory_that_the_driver_does_not_tell_is_left_out(sampled):
    gpu = h100()
    gpu.process(os.getpid(), "na")
    gpu.process(1, 1 << 30)
    run = sampled([gpu])
    process = run.gpu(0).processes[os.getpid()]
    assert process.memory_bytes is None
    assert process.memory_peak_bytes is None
    assert run.value(0, "memory_unattributed_bytes") is None  # nobody can know it
    assert run.gpu(0).processes[1].memory_bytes == 1 << 30


def test_peak_memory_of_a_process_and_what_no_process_accounts_for(sampled):
    gpu = h100()
    total = gpu_total(gpu)
    gpu.get("memory", total, 0, 10 << 30)
    gpu.process(os.getpid(), 8 << 30)
    run = sampled([gpu])
    assert run.value(0, "memory_unattributed_bytes") == 2 << 30
    gpu.processes.clear()
    gpu.process(os.getpid(), 3 << 30)
    run.fake.write()
    run.until(lambda: run.gpu(0).processes[os.getpid()].memory_bytes == 3 << 30)
    assert run.gpu(0).processes[os.getpid()].memory_peak_bytes == 8 << 30
    gpu.processes.clear()
    run.fake.write()
    run.until(lambda: run.gpu(0).processes == {})


def gpu_total(gpu):
    return int(next(line for line in gpu.lines if line.startswith("get memory ")).split()[2])


def test_process_utilization_without_the_garbage(sampled):
    """A row of 37,100 per cent, one of 1970, one of a process that is not there: as drivers have sent them."""
    gpu = h100()
    gpu.process(os.getpid(), 1 << 30, sm_percent=40)
    gpu.process(1, 1 << 30)
    gpu.processes += [f"busy {os.getpid()} 37100 0 0 0", "busy 99999 60 0 0 0", "busy 1 50 0 0 0 - - 5"]
    run = sampled([gpu])
    run.until(lambda: run.gpu(0).processes[1].sm_utilization_ratio is not None)
    assert run.gpu(0).processes[os.getpid()].sm_utilization_ratio == 0.4
    assert run.gpu(0).processes[1].sm_utilization_ratio == 0.0  # no believable row: idle
    assert 99999 not in run.gpu(0).processes


def test_encoders_decoders_and_memory_of_a_process(sampled):
    gpu = h100()
    gpu.process(os.getpid(), 1 << 30)
    gpu.process(1, 1 << 30)
    gpu.processes += [f"busy {os.getpid()} 40 30 20 10", "busy 1 5 4 0 0"]
    gpu.get("nvmlDeviceGetEncoderUtilization", 25, 100000)
    gpu.get("nvmlDeviceGetDecoderUtilization", 35, 100000)
    run = sampled([gpu])
    run.until(lambda: run.gpu(0).processes[1].sm_utilization_ratio is not None)
    process = run.gpu(0).processes[os.getpid()]
    assert busy_of(process) == (0.4, 0.3, 0.2, 0.1)
    assert process.uses_codec
    assert busy_of(run.gpu(0).processes[1]) == (0.05, 0.04, 0.0, 0.0)
    assert not run.gpu(0).processes[1].uses_codec
    assert run.value(0, "encoder_utilization_ratio") == 0.25
    assert run.value(0, "decoder_utilization_ratio") == 0.35


def busy_of(process):
    return (
        process.sm_utilization_ratio,
        process.memory_bandwidth_utilization_ratio,
        process.encoder_utilization_ratio,
        process.decoder_utilization_ratio,
    )


@pytest.mark.parametrize("processes", [3, 200])
def test_a_driver_that_only_has_the_newer_list_of_utilization(sampled, processes):
    gpu = h100()
    gpu.get("nvmlDeviceGetProcessesUtilizationInfo", 1)
    for pid in range(100000, 100000 + processes):
        gpu.process(pid, 1 << 30)
        gpu.processes.append(f"busy {pid} 40 30 20 10")
    run = sampled([gpu], hide=["nvmlDeviceGetProcessUtilization"])
    run.until(lambda: run.gpu(0).processes[100000].sm_utilization_ratio is not None)
    assert {busy_of(process) for process in run.gpu(0).processes.values()} == {(0.4, 0.3, 0.2, 0.1)}
    assert len(run.gpu(0).processes) == processes


def test_busy_ratios_row_by_row():
    def row(pid, stamp, sm, memory=0):
        return struct.pack("<I4xQIIII", pid, stamp, sm, memory, 0, 0)

    now, since = 2_000_000_000, 1_000_000_000
    rows = [
        row(1, now - 5, 30),
        row(2, since, 40),  # not newer than what we have seen
        row(3, now - 4, 101),
        row(4, now - 4, 5, memory=808),
        row(5, now - 3, 60),  # not on this GPU
        row(6, now + 3_600_000_000, 10),  # from the future
    ]
    ratios, newest = busy_ratios(b"".join(rows), len(rows), since, now, {1, 2, 3, 4, 6})
    assert ratios == {1: (0.3, 0.0, 0.0, 0.0)}
    assert newest == now - 3
    twin = {pid: sm for pid, _, sm, *_ in struct.iter_unpack("<I4xQIIII", b"".join(rows))}
    assert twin[3] > 100  # which is what the driver said


@given(data=st.binary(max_size=640))
def test_any_bytes_give_ratios_between_0_and_1(data):
    count = len(data) // 32
    ratios, newest = busy_ratios(data, count, 10, 20, set(range(2**16)))
    assert all(0 <= ratio <= 1 for busy in ratios.values() for ratio in busy)
    assert newest <= 20 + 10_000_000


def test_a_process_that_computes_and_draws_counts_once(sampled):
    gpu = h100()
    gpu.process(os.getpid(), 1 << 30, kind="c")
    gpu.process(os.getpid(), 1 << 30, kind="g")
    gpu.process(1, 1 << 20, kind="g")
    run = sampled([gpu])
    assert {pid: process.kind for pid, process in run.gpu(0).processes.items()} == {os.getpid(): "compute", 1: "graphics"}


def test_two_hundred_processes(sampled):
    """More than the first buffer holds: it grows, and every row arrives."""
    gpu = h100()
    for pid in range(100000, 100200):
        gpu.process(pid, pid << 12, sm_percent=1)
    run = sampled([gpu])
    assert {pid: process.memory_bytes for pid, process in run.gpu(0).processes.items()} == {
        pid: pid << 12 for pid in range(100000, 100200)
    }
    run.until(lambda: run.gpu(0).processes[100100].sm_utilization_ratio == 0.01)


def test_who_a_process_is(sampled):
    secret = "--password=canary-7261"
    environment = {**os.environ, "SLURM_JOB_ID": "4711"}
    job = subprocess.Popen([sys.executable, "-c", "input()", secret], stdin=subprocess.PIPE, env=environment)
    try:
        gpu = h100()
        gpu.process(job.pid, 1 << 30)
        run = sampled([gpu])
        process = run.gpu(0).processes[job.pid]
        assert process.command == os.path.basename(os.path.realpath(sys.executable))
        assert process.slurm_job_id == "4711"
        run.until(lambda: run.gpu(0).processes[job.pid].user == UserNames().name(os.getuid()))
        assert process.start_ticks == read_stat(job.pid)[1] > 0
        assert "canary" not in repr(process)
    finally:
        job.kill()
        job.communicate()


def test_a_pid_that_was_given_anew_is_another_process():
    identities = Identities()
    first = subprocess.Popen(["sleep", "60"])
    try:
        known = identities.of({first.pid})[first.pid]
        assert known[1] == "sleep"
        identities._known[first.pid] = (known[0] - 1, "older", *known[2:])  # as if the pid had been somebody else's
        assert identities.of({first.pid})[first.pid][1] == "older"  # twin: without a second look it stays so
        assert identities.of({first.pid}, recheck=True)[first.pid] == known
        assert identities.of(set()) == {}
    finally:
        first.kill()
        first.wait(10)
    assert identities.of({first.pid}) == {}


def test_container_and_job_from_the_control_group(monkeypatch):
    from gpuwatch.samplers import process_identity

    digest = "0123456789ab" + "c" * 52
    for cgroup, container, job in [
        (f"0::/system.slice/docker-{digest}.scope\n", digest[:12], ""),
        (f"0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-{digest}.scope\n", digest[:12], ""),
        (f"0::/docker/{digest}\n", digest[:12], ""),
        (f"0::/kubepods/besteffort/pod12/{digest}\n", digest[:12], ""),
        ("0::/system.slice/slurmstepd.scope/job_987/step_0/user/task_0\n", "", "987"),
        ("9:freezer:/slurm/uid_1000/job_55/step_batch\n", "", "55"),
        ("0::/user.slice/user-1000.slice\n", "", ""),
        ("0::/builds/job_12/x\n", "", ""),
    ]:
        real = process_identity._read_file

        def read(path, cgroup=cgroup, real=real):
            if path.endswith("/cgroup"):
                return cgroup.encode()
            return b"" if path.endswith("/environ") else real(path)

        with monkeypatch.context() as patched:
            patched.setattr(process_identity, "_read_file", read)
            assert Identities().of({os.getpid()})[os.getpid()][3:5] == (container, job), cgroup


UID = "01234567-89ab-cdef-0123-456789abcdef"
SLICE = f"pod{UID.replace('-', '_')}.slice"


@pytest.mark.parametrize(
    ("cgroup", "environ", "pod", "namespace"),
    [
        (
            f"0::/kubepods/burstable/pod{UID}/abc",
            {"POD_NAME": "trainer-0", "POD_NAMESPACE": "research"},
            "trainer-0",
            "research",
        ),
        (
            f"0::/kubepods.slice/kubepods-{SLICE}/cri-x.scope",
            {"HOSTNAME": "trainer-1"},
            "trainer-1",
            "",
        ),
        (f"0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-{SLICE}/x", {}, UID, ""),
        ("0::/", {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "HOSTNAME": "trainer-2", "MY_POD_NAMESPACE": "ml"}, "trainer-2", "ml"),
        ("0::/", {"HOSTNAME": "workstation", "POD_NAMESPACE": "x"}, "", ""),  # no pod: a host has a name, too
        (f"0::/kubepods/pod{UID}/abc", {"POD_NAME": 'a"b secret', "HOSTNAME": "Not_A_Pod"}, UID, ""),
    ],
)
def test_the_pod_of_a_process(monkeypatch, cgroup, environ, pod, namespace):
    from gpuwatch.samplers import process_identity

    real = process_identity._read_file
    secret = {"AWS_SECRET_ACCESS_KEY": "canary-9a41"}
    files = {
        "cgroup": cgroup.encode() + b"\n",
        "environ": b"".join(f"{name}={value}\0".encode() for name, value in {**secret, **environ}.items()),
    }
    monkeypatch.setattr(process_identity, "_read_file", lambda path: files.get(path.rpartition("/")[2]) or real(path))
    identity = Identities().of({os.getpid()})[os.getpid()]
    assert identity[5:] == (pod, namespace)
    assert "canary" not in repr(identity)


def test_the_pod_of_a_real_process_arrives_in_the_state(sampled):
    environment = {**os.environ, "KUBERNETES_SERVICE_HOST": "10.0.0.1", "POD_NAME": "trainer-7", "POD_NAMESPACE": "research"}
    job = subprocess.Popen(["sleep", "60"], env=environment)
    try:
        gpu = h100()
        gpu.process(job.pid, 1 << 30)
        run = sampled([gpu])
        process = run.gpu(0).processes[job.pid]
        assert (process.kubernetes_pod, process.kubernetes_namespace) == ("trainer-7", "research")
    finally:
        job.kill()
        job.wait(10)


def test_a_directory_service_that_hangs_delays_nobody(monkeypatch):
    from gpuwatch.samplers import process_identity

    def slow(uid):
        time.sleep(1.0)
        raise KeyError(uid)

    monkeypatch.setattr(process_identity.pwd, "getpwuid", slow)
    users = UserNames()
    began = time.monotonic()
    assert users.name(4242) == "4242"
    assert users.name(4242) == "4242"
    assert time.monotonic() - began < 0.5
