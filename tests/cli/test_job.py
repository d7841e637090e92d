"""The command under `gpuwatch run` cannot be told from the bare command: exit status, signals, stdin, terminal, job control."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import ROOT

#: What `gpuwatch run` does with its command, without the daemon.
DRIVER = """
import os, sys
from gpuwatch.cli.job import CannotStartError, Job, end_like
try:
    job = Job(sys.argv[1:], dict(os.environ))
except CannotStartError as error:
    print(error, file=sys.stderr)
    sys.exit(error.code)
status = job.wait(lambda: None)
job.release()
print("after", file=sys.stderr)
end_like(status)
"""
#: A signal that came twice would have come by then.
SECOND_TIME_SECONDS = 0.2
#: Says when it is ready, then each signal's name as often as it comes, and each line that it reads, to the end of input.
#: The wake-up descriptor counts what the kernel delivers; a Python handler runs once for two that come close together.
COUNTER = """
import os, select, signal
read, write = os.pipe()
os.set_blocking(write, False)
for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGQUIT"):
    signal.signal(getattr(signal, name), lambda number, frame: None)
signal.set_wakeup_fd(write)
print("ready", flush=True)
while True:
    ready = select.select([0, read], [], [])[0]
    if read in ready:
        for number in os.read(read, 100):
            print(signal.Signals(number).name, flush=True)
    elif line := os.read(0, 1000):
        print("read", line.decode().strip(), flush=True)
    else:
        break
"""


def wrapped(*command):
    return [sys.executable, "-c", DRIVER, *command]


def started(*command, prefix=(), **options):
    process = subprocess.Popen(
        [*prefix, *wrapped(*command)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        **options,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def child_of(pid):
    """The command, or the shell's job; not the sentinel."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            if Path(f"/proc/{child}/comm").read_text() != "gpuwatch-signal\n":
                return int(child)
        time.sleep(0.01)
    raise AssertionError("no child")


def state_of(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("code", [0, 1, 3, 255])
def test_exit_code_is_the_commands(code):
    assert subprocess.run(wrapped("sh", "-c", f"exit {code}"), timeout=30, check=False).returncode == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGABRT, signal.SIGSEGV, 40])
def test_dies_by_the_signal_that_killed_the_command(number):
    result = subprocess.run(wrapped("sh", "-c", f"kill -{int(number)} $$"), timeout=30, check=False)
    assert result.returncode == -number


def test_stdin_and_stdout_are_the_commands_own():
    result = subprocess.run(wrapped("cat"), input=b"one\0two\n" * 1000, capture_output=True, timeout=30, check=True)
    assert result.stdout == b"one\0two\n" * 1000


def rest_of(process):
    """What the command prints from here to its end, after a line of input."""
    process.stdin.write("bye\n")
    process.stdin.close()
    out = process.stdout.read()  # not communicate: that forgets what readline has read ahead
    assert process.wait(30) == 0
    process.stdout.close()
    return out


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGQUIT"])
def test_a_signal_sent_to_us_alone_reaches_the_command_once(name):
    process = started(sys.executable, "-c", COUNTER)
    process.send_signal(getattr(signal, name))
    assert process.stdout.readline() == name + "\n"
    time.sleep(SECOND_TIME_SECONDS)
    assert rest_of(process) == "read bye\n"


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_a_signal_sent_to_the_whole_group_reaches_the_command_once(name):
    process = started(sys.executable, "-c", COUNTER, start_new_session=True)
    for _ in range(3):
        os.killpg(process.pid, getattr(signal, name))
        assert process.stdout.readline() == name + "\n"
        time.sleep(SECOND_TIME_SECONDS)
    process.send_signal(getattr(signal, name))  # what went to the group before is not mistaken for this
    assert process.stdout.readline() == name + "\n"
    assert rest_of(process) == "read bye\n"


def test_twin_without_the_sentinel_it_comes_twice(monkeypatch):
    blind = DRIVER.replace(
        "try:\n",
        "from gpuwatch.cli.sentinel import Sentinel\nimport time\nSentinel.has_seen = lambda *_: time.sleep(0.1)\ntry:\n",
        1,
    )
    monkeypatch.setitem(globals(), "DRIVER", blind)
    process = started(sys.executable, "-c", COUNTER, start_new_session=True)
    os.killpg(process.pid, signal.SIGTERM)
    time.sleep(SECOND_TIME_SECONDS)
    assert rest_of(process) == "SIGTERM\n" * 2 + "read bye\n"


def test_under_timeout_the_command_hears_of_it_once():
    """`timeout` signals its child and then the group, here because it was itself told to end."""
    process = started(sys.executable, "-c", COUNTER, prefix=["timeout", "100"])
    process.terminate()
    assert process.stdout.readline() == "SIGTERM\n"
    time.sleep(SECOND_TIME_SECONDS)
    process.stdin.write("bye\n")
    process.stdin.close()
    assert process.stdout.read() == "read bye\n"
    process.wait(30)
    process.stdout.close()


def test_a_job_that_signals_its_parent_does_not_mean_itself():
    to_parent = 'print("ready", flush=True)\nos.kill(os.getppid(), signal.SIGUSR1)'
    process = started(sys.executable, "-c", COUNTER.replace('print("ready", flush=True)', to_parent))
    time.sleep(SECOND_TIME_SECONDS)
    assert rest_of(process) == "read bye\n"


def test_the_sentinel_goes_with_us_and_holds_nothing_open():
    process = started(sys.executable, "-c", COUNTER)
    (sentinel,) = (
        int(child)
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        if Path(f"/proc/{child}/comm").read_text() == "gpuwatch-signal\n"
    )
    assert os.listdir(f"/proc/{sentinel}/fd") == []
    process.kill()
    process.wait(20)
    wait_until(lambda: not Path(f"/proc/{sentinel}").exists())
    process.stdin.close()
    process.stdout.close()


def test_a_command_that_signals_its_own_group_is_not_signalled_twice():
    # Several times, since two signals that come at the same instant are one.
    again = 'print("ready", flush=True)\nimport time\nfor _ in range(5): os.kill(0, signal.SIGTERM); time.sleep(0.05)'
    process = started(sys.executable, "-c", COUNTER.replace('print("ready", flush=True)', again), start_new_session=True)
    time.sleep(SECOND_TIME_SECONDS)
    assert rest_of(process) == "SIGTERM\n" * 5 + "read bye\n"


def test_the_command_has_our_signal_mask_and_python_leaves_no_ignored_pipe():
    bare = subprocess.run(["grep", "Sig[BI]", "/proc/self/status"], capture_output=True, text=True, timeout=30, check=True)
    under = subprocess.run(
        wrapped("grep", "Sig[BI]", "/proc/self/status"), capture_output=True, text=True, timeout=30, check=True
    )
    assert under.stdout == bare.stdout


def test_descriptors_that_the_caller_opened_reach_the_command():
    read_end, write_end = os.pipe()
    subprocess.run(wrapped("bash", "-c", f"echo kept >&{write_end}"), pass_fds=[write_end], timeout=30, check=True)
    os.close(write_end)
    assert os.read(read_end, 100) == b"kept\n"
    os.close(read_end)


@pytest.mark.parametrize(
    ("command", "code", "sentence"),
    [
        ("no-such-command", 127, "no-such-command: command not found"),
        ("./train.py", 127, "./train.py: command not found; for a Python script: gpuwatch run -- python ./train.py"),
        ("./plain.py", 126, "./plain.py: not executable; for a Python script: gpuwatch run -- python ./plain.py"),
        ("./orphan", 126, "./orphan: the interpreter named in its first line does not exist"),
    ],
)
def test_a_command_that_cannot_start_ends_as_in_a_shell(tmp_path, command, code, sentence):
    (tmp_path / "plain.py").write_text("print(1)\n")
    (tmp_path / "orphan").write_text("#!/no/such/interpreter\n")
    (tmp_path / "orphan").chmod(0o755)
    result = subprocess.run(wrapped(command), cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
    assert (result.returncode, result.stderr) == (code, sentence + "\n")


def test_a_script_without_a_first_line_is_run_by_sh(tmp_path):
    script = tmp_path / "train"
    script.write_text("echo from sh $1\n")
    script.chmod(0o755)
    for command in (["./train", "x"], ["train", "x"]):
        result = subprocess.run(
            wrapped(*command),
            cwd=tmp_path,
            env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        assert result.stdout == "from sh x\n"


class Terminal:
    """An interactive shell with job control on a pseudo-terminal, as a user has one."""

    def __init__(self, environ):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(
                "/bin/bash", ["bash", "--norc", "--noprofile", "--noediting", "-i"], {**os.environ, **environ, "PS1": "$ "}
            )
        self.seen = ""
        self.expect(r"\$ ")

    def type(self, text):
        os.write(self.fd, text.encode())

    def expect(self, pattern, seconds=20):
        deadline = time.monotonic() + seconds
        while not (match := re.search(pattern, self.seen)):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.fd], [], [], left)[0]:
                raise AssertionError(f"no {pattern!r} in {self.seen!r}")
            self.seen += os.read(self.fd, 65536).decode(errors="replace")
        self.seen = self.seen[match.end() :]
        return match

    def close(self):
        os.kill(self.pid, signal.SIGKILL)
        os.close(self.fd)
        os.waitpid(self.pid, 0)


@pytest.fixture
def terminal(tmp_path):
    (tmp_path / "driver.py").write_text(DRIVER)
    (tmp_path / "counter.py").write_text(COUNTER)
    (tmp_path / "sleeper.py").write_text("import time\nprint('ready', flush=True)\ntime.sleep(60)\n")
    programs = {name.upper(): f"{sys.executable} {tmp_path / name}.py" for name in ("counter", "sleeper")}
    shell = Terminal({"RUN": f"{sys.executable} {tmp_path / 'driver.py'}", "PYTHONPATH": str(ROOT), **programs})
    yield shell
    shell.close()


def test_ctrl_c_on_a_terminal_reaches_the_command_once(terminal):
    terminal.type("$RUN $COUNTER; echo status=$?\n")
    terminal.expect("ready")
    for _ in range(5):
        terminal.type("\x03")
        terminal.expect("SIGINT")
        time.sleep(SECOND_TIME_SECONDS)
    terminal.type("hello\n")
    assert "SIGINT" not in terminal.expect(r"(?s)(.*)read hello").group(1)
    terminal.type("\x04")
    terminal.expect("status=0")


def test_ctrl_c_ends_a_command_that_does_not_handle_it_as_if_bare(terminal):
    terminal.type("$RUN $SLEEPER\n")
    terminal.expect("ready\r\n")
    terminal.type("\x03")
    terminal.expect(r"\$ ")
    terminal.type("echo status=$?\n")
    terminal.expect("status=130")


def test_ctrl_z_stops_and_fg_goes_on(terminal):
    terminal.type("$RUN $COUNTER; echo status=$?\n")
    terminal.expect("ready")
    ours = child_of(terminal.pid)
    command = child_of(ours)
    terminal.type("\x1a")
    terminal.expect("status=148")  # 128 + SIGTSTP: the list goes on when the shell has the terminal back
    # Until it has noticed that it is stopped, the command may still take a line from the terminal.
    wait_until(lambda: state_of(command) == state_of(ours) == "T")
    terminal.type("fg\n")
    wait_until(lambda: state_of(command) == state_of(ours) == "S")
    terminal.type("again\n")
    terminal.expect("read again")
    terminal.type("\x04")
    wait_until(lambda: not Path(f"/proc/{ours}").exists())
