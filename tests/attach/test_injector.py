"""The injector on real interpreters: the text runs, the target never notices, and our own death at any instant does no harm."""

import itertools
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from gpuwatch.attach import detour, injector, ptrace
from gpuwatch.attach.elf import find_symbols
from gpuwatch.attach.entry import InjectError
from gpuwatch.attach.injector import inject
from gpuwatch.attach.machines import aarch64_frame, here, x86_64_frame
from gpuwatch.attach.maps import load_bias, open_mapped, read_maps
from tests.attach.conftest import until

pytestmark = pytest.mark.skipif(here() is None, reason="the ptrace injector is built for x86-64 and aarch64")
FRAME = {"x86_64": x86_64_frame, "aarch64": aarch64_frame}.get(os.uname().machine)

#: `make attach-kills` asks for 200.
KILLS = int(os.environ.get("GPUWATCH_ATTACH_KILLS", "40"))
PYENV = Path.home() / ".pyenv" / "versions"
INTERPRETERS = ["3.9", "3.10", "3.11", "3.12", "3.13", "3.13t", "debian"]


def interpreter(version):
    if version == "debian":
        return Path("/usr/bin/python3") if Path("/usr/bin/python3").exists() else None
    if version == "3.13t" and os.environ.get("GPUWATCH_TEST_PYTHON_3_13T"):
        return Path(os.environ["GPUWATCH_TEST_PYTHON_3_13T"])
    number, threaded = version.rstrip("t"), "t" * version.endswith("t")
    candidates = [*sorted(PYENV.glob(f"{number}.*[0-9]{threaded}/bin/python")), shutil.which(f"python{version}")]
    return next((path for path in candidates if path and Path(path).exists()), None)


def note(path, text):
    """A payload that appends one line to a file and lets nothing escape."""
    return lambda *_: f"try:\n with open({str(path)!r}, 'a') as f: f.write('{text}\\n')\nexcept BaseException: pass\n"


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("version", INTERPRETERS)
def test_text_runs_in_every_interpreter(version, launch, tmp_path):
    python = interpreter(version)
    if python is None:
        pytest.skip(f"no Python {version} on this machine")
    target = launch("busy.py", python=python)
    for number in range(10):
        inject(target.pid, note(tmp_path / "ran", number))
        until(lambda number=number: lines(tmp_path / "ran") == [str(n) for n in range(number + 1)])
    assert target.poll() is None


@pytest.mark.parametrize("storm", ["allocate", "collect", "reimport", "threads", "signals", "fork"])
def test_storms_survive_it(storm, launch, tmp_path):
    target = launch("storm.py", storm)
    for number in range(15):
        inject(target.pid, note(tmp_path / "ran", number))
        until(lambda number=number: len(set(lines(tmp_path / "ran"))) == number + 1)  # a forked child may run it, too
    assert target.poll() is None


def test_an_interrupted_sleep_goes_on_with_the_rest_of_its_time(launch, tmp_path):
    target = launch("busy.py", "sleep", 1.5)
    time.sleep(0.3)
    inject(target.pid, note(tmp_path / "ran", "x"))
    word, seconds = target.stdout.readline().split()
    assert word == "slept"
    assert 1.5 <= float(seconds) < 2.5
    until(lambda: lines(tmp_path / "ran") == ["x"])


def test_a_sleep_of_a_length_is_not_begun_anew_each_time(launch, tmp_path):
    """The kernel goes on with such a call by another one, which knows how much is left (restart_syscall)."""
    target = launch("busy.py", "nap", 3)
    began, number = time.monotonic(), 0
    while time.monotonic() < began + 2.0:
        inject(target.pid, note(tmp_path / "ran", "x"))
        number += 1
        time.sleep(0.1)
    word, seconds = target.stdout.readline().split()
    assert word == "slept"
    assert 3.0 <= float(seconds) < 4.5  # from the beginning each time: 5
    until(lambda: lines(tmp_path / "ran") == ["x"] * number)


def test_a_stopped_target_runs_it_when_it_continues(launch, tmp_path):
    target = launch("busy.py")
    os.kill(target.pid, signal.SIGSTOP)
    until(lambda: " T " in Path(f"/proc/{target.pid}/stat").read_text())
    inject(target.pid, note(tmp_path / "ran", "x"))
    until(lambda: " T " in Path(f"/proc/{target.pid}/stat").read_text())
    assert lines(tmp_path / "ran") == []
    os.kill(target.pid, signal.SIGCONT)
    until(lambda: lines(tmp_path / "ran") == ["x"])


def matmul_counts(report):
    words = report.read_text().split() if report.exists() else []
    return (int(words[0]), int(words[1])) if len(words) == 2 else (0, 0)


def call_cbrt(pid, rounds):
    """The same detour, but through libm's cbrt, which uses vector registers as Py_AddPendingCall of another build might."""
    mappings = read_maps(pid)
    libm = next(m for m in mappings if os.path.basename(m.path).startswith("libm.so") and m.offset == 0)
    with open_mapped(pid, libm) as file:
        found = find_symbols(file, ["cbrt"])
    entry = injector.resolve(pid)._replace(
        add_pending_call=found.addresses["cbrt"] + load_bias(mappings, libm.path, found.first_load_vaddr)
    )
    original, injector.resolve = injector.resolve, lambda _pid: entry._replace(free=original(pid).free)
    try:
        for _ in range(rounds):
            inject(pid, lambda *_: "")
            time.sleep(0.002)
    finally:
        injector.resolve = original


def test_a_matrix_product_under_way_is_not_changed_by_a_bit(launch, tmp_path):
    target = launch("matmul.py", tmp_path / "counts")
    call_cbrt(target.pid, 60)
    good, bad = until(lambda: matmul_counts(tmp_path / "counts"))
    assert bad == 0
    assert good > 0


def test_twin_without_the_vector_registers_the_product_is_wrong(launch, tmp_path, monkeypatch):
    monkeypatch.setattr(type(here()), "set_vectors", lambda *_: None)
    target = launch("matmul.py", tmp_path / "counts")
    call_cbrt(target.pid, 60)
    until(lambda: matmul_counts(tmp_path / "counts")[1] > 0)


def inject_and_die(pid, after_calls):
    """Inject from a child process that SIGKILLs itself before its n-th ptrace call. True when it was killed."""
    child = os.fork()
    if child == 0:
        real, made = ptrace._libc.ptrace, 0

        class Dying:
            @staticmethod
            def ptrace(*arguments):
                nonlocal made
                if made == after_calls:
                    os.kill(os.getpid(), signal.SIGKILL)
                made += 1
                return real(*arguments)

        ptrace._libc = Dying
        try:
            inject(pid, lambda *_: "pass")
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("script", ["busy.py", "matmul.py"])
def test_the_attacher_killed_before_every_call_it_makes_leaves_the_target_alive(script, launch, tmp_path):
    target = launch(script, tmp_path / "counts")
    killed = 0
    for _round in range(3):
        for calls in itertools.count():
            died = inject_and_die(target.pid, calls)
            assert target.poll() is None, f"the target died when we were killed before ptrace call {calls}"
            if not died:
                break
            killed += 1
    assert killed >= 40
    inject(target.pid, note(tmp_path / "ran", "x"))
    until(lambda: lines(tmp_path / "ran") == ["x"])
    if script == "matmul.py":
        assert matmul_counts(tmp_path / "counts")[1] == 0


@pytest.mark.parametrize("script", ["busy.py", "storm.py"])
def test_the_attacher_killed_from_outside_at_random_instants(script, launch, tmp_path):
    target = launch(script, *(["threads"] if script == "storm.py" else []))
    generator = random.Random(1)
    for _ in range(KILLS):
        child = os.fork()
        if child == 0:
            try:
                while True:
                    inject(target.pid, lambda *_: "pass")
            finally:
                os._exit(0)
        time.sleep(generator.uniform(0.0, 0.01))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert target.poll() is None
    inject(target.pid, note(tmp_path / "ran", "x"))
    until(lambda: "x" in lines(tmp_path / "ran"))


def test_twin_without_the_frame_the_target_dies_with_the_attacher(launch, monkeypatch):
    real = FRAME.build
    monkeypatch.setattr(FRAME, "build", lambda *arguments: bytes(len(real(*arguments))))
    target = launch("busy.py")
    for calls in itertools.count():
        if not inject_and_die(target.pid, calls) or target.poll() is not None:
            break
    assert until(target.poll) < 0


def test_a_process_that_is_not_python_is_refused_in_a_sentence():
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        with pytest.raises(InjectError, match="not a Python process"):
            inject(sleeper.pid, lambda *_: "pass")
    finally:
        sleeper.kill()
        sleeper.wait()


def test_a_process_that_is_gone_is_an_oserror():
    ended = subprocess.Popen(["true"])
    ended.wait()
    with pytest.raises(OSError):
        inject(ended.pid, lambda *_: "pass")


def test_another_process_with_the_same_number_is_left_alone(launch):
    target = launch("busy.py")
    with pytest.raises(InjectError, match="another one has its number"):
        inject(target.pid, lambda *_: "raise SystemExit", start_ticks=1)
    time.sleep(0.05)
    assert target.poll() is None


def test_a_call_that_faults_says_where_and_changes_nothing(launch, tmp_path, monkeypatch):
    target = launch("busy.py")
    right = injector.resolve
    monkeypatch.setattr(injector, "resolve", lambda pid: right(pid)._replace(add_pending_call=16))
    with pytest.raises(InjectError, match=r"while filing the call \(signal 11, code 1, at 0x10, address 0x10"):
        inject(target.pid, lambda *_: "pass")
    monkeypatch.setattr(injector, "resolve", right)
    inject(target.pid, note(tmp_path / "ran", "x"))
    until(lambda: lines(tmp_path / "ran") == ["x"])


def test_a_fault_before_anything_was_called_is_tried_again(launch, tmp_path, monkeypatch):
    target = launch("busy.py")
    right, tries = injector.resolve(target.pid), []

    def sometimes_wrong(thread, memory, entry, timeout_seconds):
        tries.append(entry)
        wrong = entry._replace(code=entry.code._replace(system_call=16)) if len(tries) < 3 else right
        return detour.Detour(thread, memory, wrong, timeout_seconds)

    monkeypatch.setattr(injector, "Detour", sometimes_wrong)
    inject(target.pid, note(tmp_path / "ran", "x"))
    assert len(tries) == 3
    until(lambda: lines(tmp_path / "ran") == ["x"])


def test_a_thread_that_is_not_on_its_own_stack_is_not_written_to(launch, monkeypatch):
    target = launch("busy.py")
    right, seen = injector.resolve, []
    monkeypatch.setattr(injector, "resolve", lambda pid: right(pid)._replace(stack=range(4096, 8192)))
    monkeypatch.setattr(injector.time, "sleep", seen.append)
    with pytest.raises(InjectError, match="not on its own stack"):
        inject(target.pid, lambda *_: "pass")
    assert len(seen) == 4  # it was asked for again, a moment later each time
    assert target.poll() is None


def test_a_signal_of_the_jobs_own_that_looks_like_a_fault_reaches_it(launch, tmp_path):
    """SIGSEGV sent by somebody is not a fault of our call: the job's handler hears it, and the text runs."""
    target = launch("storm.py", "faults")
    for number in range(30):
        inject(target.pid, note(tmp_path / "ran", number))
        until(lambda number=number: len(lines(tmp_path / "ran")) == number + 1)
    assert target.poll() is None


def test_a_handler_that_returns_on_the_way_is_not_taken_for_the_end(launch, tmp_path):
    """Each signal that comes while the call is being made ends in an rt_sigreturn of its own."""
    target = launch("storm.py", "alarms")
    for number in range(60):
        inject(target.pid, note(tmp_path / "ran", number))
    until(lambda: len(lines(tmp_path / "ran")) == 60)
    assert target.poll() is None


def test_signals_that_come_faster_than_they_can_be_passed_on_cost_a_second_and_no_more(launch):
    target = launch("storm.py", "flood")
    began = time.monotonic()
    try:
        inject(target.pid, lambda *_: "pass")  # on a fast machine it gets through
    except InjectError as error:
        assert "did not come back in 1 s" in str(error)  # noqa: PT017  # either way out is right
    assert time.monotonic() - began < 20
    time.sleep(0.1)
    assert target.poll() is None
