"""For all tests: where GPUWATCH_TESTS_NEED_ALL is set, as in .ci/run, a test may be skipped only for what cannot be installed.

One that is skipped because a program is missing would otherwise pass for ever without running.
"""

import os
import re
import signal

import pytest

# A shell without job control starts what it puts in the background with these ignored, and the programs under test inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)

#: A GPU, another Python or user, what the kernel forbids: reasons that no package removes.
EXCUSED = re.compile(r"\bGPU|CUDA|\broot\b|Python|user namespace|x86-64")
_skipped = []


def pytest_runtest_logreport(report):
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not EXCUSED.search(reason):
            _skipped.append(f"{report.nodeid}: {reason}")


def pytest_sessionfinish(session):
    if _skipped and os.environ.get("GPUWATCH_TESTS_NEED_ALL"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    if _skipped and os.environ.get("GPUWATCH_TESTS_NEED_ALL"):
        terminalreporter.section("skipped for what could be installed", red=True)
        for line in _skipped:
            terminalreporter.line(line)
