"""The real hooks in interpreters other than ours: every module loads from memory, and nothing stays where it cannot work."""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from gpuwatch.attach import attacher
from gpuwatch.attach.machines import here
from gpuwatch.attach.process import children, read_process
from tests.attach.conftest import TARGETS, ask, run_of, until
from tests.attach.test_injector import INTERPRETERS, interpreter
from tests.running_daemon import RunningDaemon, wait_until

pytestmark = pytest.mark.skipif(here() is None, reason="the ptrace injector is built for x86-64 and aarch64")
#: Root file systems (debootstrap's, a container image's) whose /usr/bin/python3 is of this version, with torch.
ROOTS = {version: os.environ.get(f"GPUWATCH_TEST_ROOT_{version.replace('.', '_')}", "") for version in ("3.13", "3.14")}
#: Interpreters that have a torch of their own, for instance of virtual environments.
WITH_TORCH = {
    version: os.environ.get(f"GPUWATCH_TEST_TORCH_{version.replace('.', '_')}", "") for version in ("3.9", "3.10", "3.12")
}


@pytest.mark.parametrize("version", INTERPRETERS)
def test_without_torch_it_says_so(version, launch):
    python = interpreter(version)
    if python is None:
        pytest.skip(f"no Python {version} on this machine")
    target = launch("fake_torch.py", python=python)
    outcome = attacher.apply(target.pid, "begin", {"told": None}, timeout_seconds=30)
    assert (outcome.answer, outcome.sentence) == ("failed", "torch is not loaded in it"), outcome


@pytest.mark.parametrize("version", INTERPRETERS)
def test_every_module_of_the_hooks_loads(version, launch):
    """In a process whose torch is an empty module: all is loaded, the installation fails, and all is taken out again."""
    python = interpreter(version)
    if python is None:
        pytest.skip(f"no Python {version} on this machine")
    target = launch("fake_torch.py", "module", python=python, stderr=subprocess.PIPE)
    for _ in range(2):
        outcome = attacher.apply(target.pid, "begin", {"told": None}, timeout_seconds=30)
        assert outcome.sentence == "the hooks could not be installed; its standard error says why", outcome
    said = target.stderr.readline()
    assert "torch" in said
    assert "SyntaxError" not in said
    assert attacher.apply(target.pid, "end", {}, timeout_seconds=30).answer == "absent"


@pytest.fixture
def in_root(tmp_path):
    """`in_root(version, *options)`: trains.py under that Python in its own root, and a daemon whose socket lies in there."""
    with contextlib.ExitStack() as stack:

        def start(version, *options):
            root = Path(ROOTS[version])
            if not ROOTS[version] or os.geteuid() != 0:
                name = f"GPUWATCH_TEST_ROOT_{version.replace('.', '_')}"
                pytest.skip(f"no Python {version} with torch: {name} names a root file system that has one (as root)")
            folder = Path(root, "var/tmp", f"gpuwatch-test-{os.getpid()}")
            folder.mkdir(mode=0o700)
            stack.callback(shutil.rmtree, folder)
            shutil.copy(TARGETS / "trains.py", folder)
            environ = {"PATH": "/usr/sbin:/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
            inside = "/" + str(folder.relative_to(root))
            call = ["chroot", str(root), "/usr/bin/python3", *options, f"{inside}/trains.py"]
            process = subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ)
            stack.callback(process.communicate, timeout=10)
            stack.callback(process.kill)
            assert process.stdout.readline() == "ready\n"
            assert ".".join(map(str, read_process(process.pid).python)) == version
            return process, stack.enter_context(RunningDaemon(folder, logdir=str(tmp_path / "runs")))

        yield start


def attach_and_detach_three_times(target, daemon, method="auto"):
    before = ask(target, "look")
    options = {"told": None, "socket": str(daemon.socket), "run": "elsewhere"}
    for _ in range(3):
        outcome = attacher.apply(target.pid, "begin", options, method=method, timeout_seconds=30)
        assert outcome.answer == "installed", outcome
        assert outcome.stopped_microseconds > 0
        step = ask(target, "loop")["step"]
        until(lambda step=step: ask(target, "loop")["step"] > step + 3)
        wait_until(lambda: (r := run_of(target, daemon)) and r.status == "live" and r.step > 3)
        assert attacher.apply(target.pid, "end", {}, method=method, timeout_seconds=30).answer == "detached"
        assert ask(target, "look") == before
    assert not children(target.pid)


@pytest.mark.parametrize("version", WITH_TORCH)
def test_another_python_with_its_own_torch(version, launch, tmp_path):
    if not WITH_TORCH[version]:
        pytest.skip(f"no Python {version} with torch: GPUWATCH_TEST_TORCH_{version.replace('.', '_')} names one")
    with RunningDaemon(tmp_path) as daemon:
        attach_and_detach_three_times(launch("trains.py", "fp16", python=WITH_TORCH[version]), daemon)


def test_python_3_13_with_its_own_torch(in_root):
    attach_and_detach_three_times(*in_root("3.13"))


@pytest.mark.parametrize("method", ["remote-debug", "ptrace"])
def test_python_3_14_by_its_own_interface_and_by_ours(method, in_root):
    attach_and_detach_three_times(*in_root("3.14"), method)


def test_python_3_14_whose_owner_said_no(in_root):
    target, daemon = in_root("3.14", "-X", "disable-remote-debug")
    outcome = attacher.apply(target.pid, "begin", {"told": None, "socket": str(daemon.socket)}, timeout_seconds=10)
    assert outcome.answer == "failed"
    assert "its owner said no" in outcome.sentence
    assert ask(target, "look")["modules"] == []
