"""Makes the pictures of the documents anew, from two real trainings of about a minute.

    PYTHONPATH=. python docs/img/make.py [FOLDER]

The GPUs are a fake driver's (tests/fake_nvml), one of which plays what an H100 answered under load; training, daemon, findings
and browser are real. Needs chromium, a C compiler, Textual and scikit-learn. Writes beside itself, or to FOLDER.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gpuwatch.top.app import TopApp
from gpuwatch.top.feed import Feed
from tests.browser.chromium import Chromium
from tests.fake_nvml.driver import FakeDriver, h100, replay
from tests.running_daemon import RunningDaemon, wait_until

ROOT = Path(__file__).resolve().parents[2]
TRAINING_SECONDS = 60
PICTURES_AFTER_SECONDS = 46
BROKEN, SOUND = "digits-lr-typo", "digits-baseline"


def gpus(pids):
    """Two H100s: the recording, from where its job begins on, and one that swings under a steady load."""
    played, steady = h100(0), h100(1)
    replay(played, first_seconds=6.5, last_seconds=21.5, speed=0.28, pid=pids.get(BROKEN))
    played.lines = [line for line in played.lines if not line.startswith("get gpm:")]  # recorded while it was idle
    steady.get("nvmlDeviceGetUtilizationRates", 86, 41)
    steady.get("nvmlDeviceGetPowerUsage", 512_000)
    steady.get("nvmlDeviceGetTemperature:0", 61)
    steady.get("memory", 80 << 30, 600 << 20, 54 << 30)
    for metric, per_mille in ((2, 86_000), (3, 52_000), (5, 44_000), (10, 38_000)):
        steady.get(f"gpm:{metric}", per_mille)
    steady.get("nvmlDeviceGetClockInfo:1", 1755)
    steady.lines += ["wave nvmlDeviceGetUtilizationRates 9 7", "wave nvmlDeviceGetPowerUsage 30000 7"]
    if SOUND in pids:
        steady.process(pids[SOUND], 53 << 30, sm_percent=88)
    return [played, steady]


def train(daemon, name, break_by):
    script = [sys.executable, str(ROOT / "gpuwatch" / "demo" / "digits.py"), "--seconds", str(TRAINING_SECONDS)]
    command = [sys.executable, "-m", "gpuwatch", "run", "--quiet", "--name", name, "--", *script]
    environ = {**os.environ, "GPUWATCH_SOCKET": str(daemon.socket)}
    breaking = ["--batch-size", "128", "--break-at", "0.65", "--break-by", str(break_by)]
    return subprocess.Popen([*command, *breaking], cwd=ROOT, env=environ, stderr=subprocess.DEVNULL)


def web(url, folder):
    browser = Chromium()
    try:
        for name, path, size, dark in (
            ("web", "", {"width": 1280, "height": 940}, False),
            ("web-run", f"#/run/{BROKEN}", {"width": 1280, "height": 1180}, True),
        ):
            page = browser.page(f"{url}/{path}", dark=dark, **size)
            page.shows(BROKEN)
            page.call("Emulation.setScrollbarsHidden", hidden=True)
            page.wait("new Promise((resolve) => setTimeout(() => resolve(true), 2500))")
            page.picture(folder / f"{name}.png")
    finally:
        browser.close()


def top(daemon, folder):
    """`gpuwatch top` as Textual draws it after it has watched for a while."""
    os.environ["GPUWATCH_SOCKET"] = str(daemon.socket)
    app = TopApp(Feed(list))

    async def watch():
        async with app.run_test(size=(120, 36)) as pilot:
            await pilot.pause(PICTURES_AFTER_SECONDS)
            return app.export_screenshot(title="gpuwatch top")

    (folder / "top.svg").write_text(asyncio.run(watch()))


def printed(folder, logdir):
    """What `gpuwatch status` says of the run that went wrong, and the page of `gpuwatch report`."""
    command = [sys.executable, "-m", "gpuwatch"]
    environ = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": "110"}
    environ.pop("NO_COLOR", None)
    card = subprocess.run([*command, "status", BROKEN, "--logdir", logdir], env=environ, capture_output=True, check=True).stdout
    drawing = [sys.executable, str(Path(__file__).with_name("terminal_svg.py")), f"gpuwatch status {BROKEN}"]
    (folder / "status.svg").write_bytes(subprocess.run(drawing, input=card, capture_output=True, check=True).stdout)
    page = Path(logdir, "report.html")
    subprocess.run([*command, "report", BROKEN, "--logdir", logdir, "-o", page], capture_output=True, check=True)
    browser = Chromium()
    try:
        tab = browser.page("about:blank", width=1000, height=1600)
        tab.call("Emulation.setScrollbarsHidden", hidden=True)
        tab.go(page.as_uri())
        tab.picture(folder / "report.png")
    finally:
        browser.close()


def main():
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="gw.") as scratch:
        fake = FakeDriver(scratch, gpus({}))
        with RunningDaemon(scratch, environ=fake.environment, sampling__gpus=True) as daemon:
            jobs = [train(daemon, BROKEN, 300), train(daemon, SOUND, 1)]
            wait_until(lambda: len(daemon.runs()) == len(jobs), 60)
            fake.epoch = time.monotonic()
            fake.gpus = gpus({known.run: known.identity.pid for known in daemon.runs().values()})
            fake.write()
            top(daemon, folder)
            web(daemon.metrics_url.removesuffix("/metrics"), folder)
            for job in jobs:
                job.wait(TRAINING_SECONDS + 60)
            daemon.end()
            printed(folder, str(daemon.logdir))


if __name__ == "__main__":
    main()
