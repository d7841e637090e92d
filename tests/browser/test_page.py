"""The web page of a real daemon in a real Chromium."""

import json
import math
import os
import signal
import subprocess
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import pytest

from tests.browser.chromium import Chromium
from tests.fake_nvml.driver import FakeDriver, h100
from tests.running_daemon import RunningDaemon, wait_until

GIB = 1 << 30
CANARY = "<img src=x onerror=alert(1)>"


@pytest.fixture
def daemon(tmp_path):
    with RunningDaemon(tmp_path) as running:
        yield running


def home(daemon):
    return daemon.metrics_url.removesuffix("metrics")


def asked(daemon, path):
    with urllib.request.urlopen(home(daemon) + path, timeout=20) as response:
        return json.load(response)


def unharmed(page, url):
    """No policy was broken, nothing was asked of another host, nothing failed."""
    assert page.value("window.violations") == []
    assert page.errors == []
    assert page.requests
    assert {urlsplit(request).netloc for request in page.requests if not request.startswith("data:")} == {urlsplit(url).netloc}


def filter_by(page, words):
    field = "document.querySelector('input[type=search]')"
    page.value(f"{{ {field}.value = {json.dumps(words)}; {field}.dispatchEvent(new Event('input')); }}")


#: Pixels of each plot that are not transparent; a plot that was never drawn has none.
PAINTED = """[...document.querySelectorAll("%s canvas")].map((canvas) => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  let painted = 0;
  for (let i = 3; i < data.length; i += 4) painted += data[i] > 0;
  return painted;
})"""


def test_a_run_goes_on_before_ones_eyes_and_its_finding_shows(daemon, browse, train):
    trainer = train(daemon)
    trainer.steps(5)
    page = browse(home(daemon))
    page.shows("digits", "live", "loss", "65536", "forward 30 %", "No GPU here: This daemon does not sample GPUs")
    page.wait("document.querySelector('.numbers dd').textContent === '5'")
    trainer.steps(7)
    page.wait("document.querySelector('.numbers dd').textContent === '12'")
    assert "No process on a GPU" not in page.text(), "the trainer is listed, on no GPU"
    trainer.steps(1, loss=math.nan)
    page.shows("critical: nonfinite_loss", "since step 13", "The loss became nan at step 13", "Return to a checkpoint", "NaN")
    assert page.value("document.querySelector('.findings .critical') !== null")
    unharmed(page, home(daemon))
    page.value("document.querySelector('.findings a').click()")
    page.shows("What to do", "skipped_in_a_row")
    assert page.value("document.title") == "nonfinite_loss · gpuwatch"
    unharmed(page, home(daemon))


def test_what_is_over_is_still_told(daemon, browse, train):
    trainer = train(daemon)
    trainer.steps(5)
    trainer.steps(1, loss=math.nan)
    page = browse(home(daemon))
    page.shows("critical: nonfinite_loss")
    trainer.steps(200)
    page.shows("Found before, and over: nonfinite_loss")
    page.wait("document.querySelector('.findings').hidden")


def test_a_runs_page_has_curves_layers_and_a_histogram(daemon, browse, train):
    trainer = train(daemon)
    trainer.steps(80)
    trainer.steps(3, loss=math.inf)
    wait_until(lambda: asked(daemon, "api/live")["runs"][0]["findings"])
    page = browse(home(daemon) + "#/run/digits")
    page.shows("gradient norm", "learning rate", "step time", "loss scale", "conv1.weight", "nonfinite_loss", "3 not finite")
    page.wait(f"{PAINTED % '.curves'}.filter((painted) => painted > 300).length >= 5")
    before = page.value(PAINTED % ".curves")
    assert page.value("document.querySelectorAll('.timeline .lane i').length") >= 1
    trainer.steps(40, grad_norm=900.0)
    page.wait("document.querySelector('.numbers dd').textContent === '123'")
    page.wait(f"JSON.stringify({PAINTED % '.curves'}) !== '{json.dumps(before, separators=(',', ':'))}'")
    page.value("document.querySelector('button.layer').click()")
    page.shows("share of the entries by magnitude")
    page.wait(f"({PAINTED % '.histogram'})[0] > 300")
    unharmed(page, home(daemon))


def test_layers_sort_filter_and_are_marked_by_findings(daemon, browse, train):
    trainer = train(daemon)
    trainer.steps(2)
    wait_until(lambda: any(run["step"] == 2 for run in asked(daemon, "api/live")["runs"]))
    page = browse(home(daemon) + "#/run/digits")
    page.wait("document.querySelectorAll('button.layer').length === 3")
    names = "[...document.querySelectorAll('button.layer')].map((button) => button.textContent).join(' ')"
    assert page.value(names) == "conv1.weight fc.weight fc.bias"
    heading = "[...document.querySelectorAll('th button')].find((button) => button.textContent === 'gradient norm')"
    page.value(f"{heading}.click()")
    assert page.value(names) == "fc.bias fc.weight conv1.weight", "the largest first"
    page.value(f"{heading}.click()")
    assert page.value(names) == "conv1.weight fc.weight fc.bias"
    assert page.value(f"{heading}.closest('th').getAttribute('aria-sort')") == "ascending"
    filter_by(page, "fc.")
    assert page.value(names) == "fc.weight fc.bias"
    told = {"rule": "vanishing_gradient", "severity": "warning", "layer": "fc.weight", "state": "active"}
    marked = f"""import('/web/layers.js').then(({{ Layers }}) => {{
      const layers = new Layers('run=digits');
      layers.rows = [{{ index: 0, name: 'fc.weight', elements: 6 }}, {{ index: 1, name: 'fc.bias', elements: 2 }}];
      layers.mark([{json.dumps(told)}]);
      return [...layers.root.querySelectorAll('.marks')].map((mark) => mark.className + mark.textContent);
    }})"""
    assert page.value(marked) == ["marks warning vanishing_gradient", "marks "]
    unharmed(page, home(daemon))


@pytest.fixture
def node(tmp_path):
    """A daemon over the fake driver: one GPU trains and is throttled, the other is lost."""
    gpus = [h100(0), h100(1)]
    victim = subprocess.Popen(["sleep", "600"])
    gpus[0].get("memory", 80 * GIB, GIB, 40 * GIB)
    gpus[0].get("nvmlDeviceGetUtilizationRates", 97, 30)
    gpus[0].get("nvmlDeviceGetPowerUsage", 699000)
    gpus[0].get("nvmlDeviceGetCurrentClocksEventReasons", 1 << 2)
    gpus[0].process(os.getpid(), 39 * GIB, sm_percent=95)
    gpus[0].process(victim.pid, GIB)
    gpus[1].faults.append("error * 15")
    fake = FakeDriver(tmp_path, gpus)
    with RunningDaemon(tmp_path, environ=fake.environment, sampling__gpus=True) as running:
        yield running
    victim.kill()
    victim.wait(20)


def test_gpus_have_curves_peaks_and_facts_and_processes_their_run(node, browse, train):
    train(node).steps(3)
    page = browse(home(node), width=1600, height=900)
    page.shows(
        "H100 80GB HBM3", "utilization 97 %", "peak 97 %", "peak 40.0 GiB", "699 of 700 W", "throttled: power cap", "down:"
    )
    page.shows("39.0 GiB", "sleep", "GPU 0")
    page.wait(f"{PAINTED % '.gpu'}.filter((painted) => painted > 100).length >= 2")
    assert page.value("document.querySelectorAll('article.gpu').length") == 2
    rows = "[...document.querySelectorAll('section[aria-label=Processes] tbody tr')].map((row) => row.innerText)"
    assert str(os.getpid()) in page.value(rows)[0], "the most memory first"
    assert "digits" in page.value(rows)[0]
    filter_by(page, "sleep")
    assert len(page.value(rows)) == 1
    unharmed(page, home(node))


def test_a_page_that_is_opened_late_shows_what_went_before(node, browse):
    wait_until(lambda: len(asked(node, "api/window")["seconds"]) >= 6 and asked(node, "api/window")["gpus"], 60)
    page = browse(home(node))
    page.wait("document.querySelector('article.gpu canvas') !== null")
    read = """import('/web/gpu_history.js').then(async ({ GpuHistory }) => {
      const history = new GpuHistory();
      await history.load();
      return history.seconds.length;
    })"""
    assert page.value(read) >= 6
    # The first curve that is drawn begins before the page was there.
    first = "import('/web/gpu_history.js').then(() => performance.timeOrigin / 1000)"
    assert asked(node, "api/window")["seconds"][0] < page.value(first) - 2
    unharmed(page, home(node))


def test_names_are_text_whatever_they_hold(daemon, browse, train):
    trainer = train(daemon, layers=(CANARY, "<script>alert(2)</script>"), program=CANARY)
    trainer.client.numbered("meta", facts={CANARY: CANARY, "note": "<b>bold</b>"})
    trainer.steps(1, loss=math.nan)
    url = home(daemon)
    page = browse(url)
    page.shows(CANARY, "nonfinite_loss")
    page.value("location.hash = '#/run/digits'")
    page.shows("<script>alert(2)</script>", "<b>bold</b>", CANARY)
    page.value("document.querySelector('button.layer').click()")
    page.wait("document.querySelector('.histogram figure') !== null")
    page.value(f"location.hash = '#/run/' + encodeURIComponent({json.dumps(CANARY)})")
    page.shows(CANARY, "This daemon holds no such run")
    page.value(f"location.hash = {json.dumps('#/run/' + CANARY)}")
    assert page.value("document.querySelectorAll('img, main script, main b b').length") == 0
    unharmed(page, url)


def test_every_text_of_a_snapshot_is_hostile(node, browse, train):
    """Names that the daemon would never pass on, straight into the views."""
    train(node).steps(3, loss=math.nan)
    wait_until(lambda: asked(node, "api/live")["runs"] and asked(node, "api/live")["runs"][0]["findings"], 60)
    page = browse(home(node))
    page.shows("digits", "H100", "nonfinite_loss")
    hostile = f"""(async () => {{
      const poison = (value) => {{
        if (typeof value === "string") return {json.dumps(CANARY)};
        if (Array.isArray(value)) return value.map(poison);
        if (value === null || typeof value !== "object") return value;
        return Object.fromEntries(Object.entries(value).map(([key, kept]) => [key, poison(kept)]));
      }};
      const snapshot = await (await fetch("api/live")).json();
      const poisoned = poison(snapshot);
      poisoned.runs.forEach((run) => (run.status = "live"));
      const {{ Overview }} = await import("/web/overview.js");
      const {{ GpuHistory }} = await import("/web/gpu_history.js");
      const view = new Overview({{ history: new GpuHistory() }});
      document.body.replaceChildren(view.root);
      view.update(poisoned);
      view.update(poisoned);
      const shown = document.body.innerText.split({json.dumps(CANARY)}).length;
      return [document.body.querySelectorAll("img, script").length, shown > 8];
    }})()"""
    assert page.value(hostile) == [0, True]
    assert page.value("window.violations") == []


def test_markup_in_a_page_would_be_noticed(daemon, browse):
    """The twin of the tests above: their eyes see an image, and the page's policy stops what would make one."""
    page = browse(home(daemon))
    page.shows("Training")
    made = f"document.body.append(Object.assign(document.createElement('img'), {{ src: 'x' }})); {json.dumps(CANARY)}"
    page.value(made)
    assert page.value("document.querySelectorAll('img').length") == 1
    page.wait("window.violations.length === 1")
    assert "blocked" in page.value("try { document.body.innerHTML = '<b>x</b>'; 'made' } catch (error) { 'blocked' }")
    assert "blocked" in page.value(
        "try { document.createElement('script').src = 'https://example.invalid/x.js'; 'made' } catch (error) { 'blocked' }"
    )
    asked_elsewhere = "fetch('https://example.invalid/x').then(() => 'sent', () => 'blocked')"
    assert page.value(asked_elsewhere) == "blocked"
    page.wait("window.violations.some((told) => told.startsWith('connect-src'))")


def test_a_daemon_that_restarts_is_waited_for_and_found_again(tmp_path, browse, train):
    with RunningDaemon(tmp_path) as first:
        url = home(first)
        train(first).steps(3)
        page = browse(url)
        page.shows("digits", "live")
        first.end()
    page.shows("the daemon has not answered since")
    assert page.value("document.body.classList.contains('stale')")
    with RunningDaemon(tmp_path, **{"daemon.listen": urlsplit(url).netloc}) as again:
        page.shows("restarted while you looked")
        page.wait("document.getElementById('link').className === 'live'")
        assert not page.value("document.body.classList.contains('stale')")
        train(again, run="second").steps(2)
        page.shows("second")


def test_a_page_too_many_asks_now_and_then(daemon, browse, train):
    trainer = train(daemon)
    trainer.steps(2)
    streams = [urllib.request.urlopen(f"{home(daemon)}api/events", timeout=20) for _ in range(8)]
    try:
        page = browse(home(daemon))
        page.shows("digits", "no room for another live page")
        trainer.steps(3)
        page.wait("document.querySelector('.numbers dd').textContent === '5'")
        assert page.value("window.violations") == []
    finally:
        for stream in streams:
            stream.close()


def taken(daemon, count):
    """Event streams that are held open, up to `count`, as many as the daemon lets in."""
    found = []
    for _ in range(count):
        try:
            found.append(urllib.request.urlopen(f"{home(daemon)}api/events", timeout=20))
        except urllib.error.HTTPError as refused:
            refused.close()
    return found


def test_a_hidden_page_lets_go_of_its_stream_and_takes_it_up_again(daemon, browse):
    page = browse(home(daemon))
    page.wait("document.getElementById('link').className === 'live'")
    hide = """(hidden) => {
      Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
      document.dispatchEvent(new Event("visibilitychange"));
    }"""
    streams = taken(daemon, 8)
    try:
        assert len(streams) == 7, "the page holds the eighth place"
        page.value(f"({hide})(true)")
        wait_until(lambda: streams.extend(taken(daemon, 1)) or len(streams) == 8)
        streams.pop().close()
        page.value("document.getElementById('link').textContent = 'asleep'")
        page.value(f"({hide})(false)")
        page.wait("['live', 'polling'].includes(document.getElementById('link').className)")
        page.wait("document.getElementById('link').textContent !== 'asleep'")
    finally:
        for stream in streams:
            stream.close()


@pytest.mark.parametrize(("width", "dark"), [(360, False), (360, True), (1600, False)])
def test_nothing_sticks_out_and_everything_can_be_read(node, browse, train, width, dark):
    trainer = train(
        node, layers=("encoder.layers.11.self_attention.output.dense.weight", "fc.bias"), run="a-very-long-name" * 4
    )
    trainer.steps(5)
    wait_until(lambda: asked(node, "api/live")["runs"])
    page = browse(home(node), width=width, dark=dark)
    page.shows("a-very-long-name", "H100")
    for view in ("", f"#/run/{'a-very-long-name' * 4}", "#/rule/exploding_gradient"):
        page.value(f"location.hash = '{view}'")
        page.wait("document.querySelector('main').innerText.length > 100")
        assert page.value("document.documentElement.scrollWidth") <= width, view
    ratio = """(() => {
      const rgb = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
      const light = (c) => rgb(c).map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
      const luminance = (c) => { const [r, g, b] = light(c); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
      const style = getComputedStyle(document.body);
      const probe = document.body.appendChild(document.createElement("i"));
      const contrasts = ["ink", "muted", "link", "critical", "warning", "info", "good", "peak"].map((name) => {
        probe.style.color = `var(--${name})`;
        const [a, b] = [luminance(getComputedStyle(probe).color), luminance(style.backgroundColor)].sort((x, y) => y - x);
        return [name, (a + 0.05) / (b + 0.05)];
      });
      return contrasts.filter(([, value]) => value < 4.5);
    })()"""
    assert page.value(ratio) == [], "WCAG AA asks for 4.5"


def test_the_keyboard_reaches_everything_and_shows_where_it_is(daemon, browse, train):
    train(daemon).steps(3)
    page = browse(home(daemon) + "#/run/digits")
    page.wait("document.querySelectorAll('button.layer').length === 3")
    reached = set()
    for _ in range(40):
        page.press("Tab", 9)
        told = page.value(
            "[document.activeElement.tagName, document.activeElement.textContent.slice(0, 20),"
            " getComputedStyle(document.activeElement).outlineStyle]"
        )
        if told[0] == "BODY":
            break
        assert told[2] != "none", told
        reached.add(tuple(told[:2]))
    assert {("A", "gpuwatch"), ("BUTTON", "conv1.weight"), ("BUTTON", "gradient norm"), ("A", "metrics")} <= reached


def test_a_run_that_stands_still_is_not_asked_for_again(daemon, browse, train):
    train(daemon).steps(30)
    page = browse(home(daemon) + "#/run/digits")
    page.wait("document.querySelectorAll('button.layer').length === 3")
    asked_for = lambda: sum("api/run?" in request or "api/layers?" in request for request in page.requests)  # noqa: E731
    page.value("new Promise((done) => setTimeout(done, 1500))")
    before = asked_for()
    page.value("new Promise((done) => setTimeout(done, 2500))")
    assert asked_for() == before > 0


def test_the_browser_of_these_tests_ends(tmp_path):
    browser = Chromium()
    pid = browser.process.pid
    browser.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, signal.SIG_DFL)
    assert not os.path.exists(browser.profile)
