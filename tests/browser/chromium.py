"""Debian's Chromium, headless, spoken to over its DevTools protocol: JSON messages that end in NUL, through two pipes.

Through pipes, not a port: nobody else can speak to it, no WebSocket is needed, and it ends when we do.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time

PROGRAM = shutil.which("chromium")
START_SECONDS = 60.0
CALL_SECONDS = 60.0
#: Told by the page itself, before anything of it runs.
_WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => {
  window.violations.push(event.violatedDirective + " " + event.blockedURI);
});
window.alert = () => window.violations.push("alert");
"""


class Chromium:
    """One browser; `page()` opens a tab."""

    def __init__(self):
        self.profile = tempfile.mkdtemp(prefix="gpuwatch-chromium-")
        to_browser, ours_out = os.pipe()
        ours_in, from_browser = os.pipe()
        self._in, self._out = ours_in, ours_out
        flags = [
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--mute-audio"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-proxy-server"),
            *("--disable-extensions", "--remote-debugging-pipe", f"--user-data-dir={self.profile}", "about:blank"),
        ]
        # Chromium reads descriptor 3 and writes descriptor 4; the pipes' own numbers are above both by then.
        script = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
        self.process = subprocess.Popen(
            ["bash", "-c", script, "bash", PROGRAM, *flags],
            pass_fds=(to_browser, from_browser),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._number = 0
        self._heard = b""
        self._answers = {}
        self.pages = {}
        self.call("Browser.getVersion", seconds=START_SECONDS)

    def call(self, method, session=None, seconds=CALL_SECONDS, **parameters):
        """One command; its result. Fails when the browser says that it failed, or does not answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + seconds
        while self._number not in self._answers:
            self.listen(deadline - time.monotonic())
            assert time.monotonic() < deadline, f"{method} was not answered"
        answer = self._answers.pop(self._number)
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def listen(self, seconds):
        """Takes in what has arrived, or arrives within `seconds`."""
        ready, _, _ = select.select([self._in], [], [], max(0.0, seconds))
        if not ready:
            return
        data = os.read(self._in, 1 << 20)
        assert data, "the browser has ended"
        *messages, self._heard = (self._heard + data).split(b"\0")
        for text in messages:
            message = json.loads(text)
            if "id" in message:
                self._answers[message["id"]] = message
            elif message.get("sessionId") in self.pages:
                self.pages[message["sessionId"]].hear(message["method"], message["params"])

    def page(self, url, *, width=1280, height=800, dark=False):
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self.pages[session] = Page(self, session, target)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        page.call("Page.addScriptToEvaluateOnNewDocument", source=_WATCH)
        page.look(width=width, height=height, dark=dark)
        page.go(url)
        return page

    def close(self):
        for descriptor in (self._in, self._out):
            os.close(descriptor)
        try:
            self.process.wait(10)  # it ends when its pipes do
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, 9)
            self.process.wait(20)
        shutil.rmtree(self.profile, ignore_errors=True)


class Page:
    """A tab: what it asked for, what went wrong in it, and what it shows."""

    def __init__(self, browser, session, target):
        self._browser, self._session, self._target = browser, session, target
        self.requests = []
        self.errors = []

    def call(self, method, **parameters):
        return self._browser.call(method, self._session, **parameters)

    def hear(self, method, params):
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")

    def go(self, url):
        self.call("Page.navigate", url=url)
        self.wait("document.readyState == 'complete'")

    def look(self, *, width=1280, height=800, dark=False):
        """The size of the window and the colours that its user prefers."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def value(self, expression):
        """What an expression is in the page, as JSON; a promise is waited for."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, expression, seconds=40.0):
        """The first true value of an expression."""
        deadline = time.monotonic() + seconds
        while True:
            value = self.value(expression)
            if value:
                return value
            assert time.monotonic() < deadline, f"never: {expression}\n{self.text()}\n{self.errors}"
            self._browser.listen(0.1)

    def text(self):
        return self.value("document.body ? document.body.innerText : ''")

    def shows(self, *parts, seconds=40.0):
        """Waits until all of `parts` stand on the page, wherever its lines break."""
        text = "document.body.innerText.replace(/\\s+/g, ' ')"
        self.wait(f"{json.dumps(parts)}.every((part) => {text}.includes(part))", seconds)

    def press(self, key, code=0, text=""):
        named = {"key": key, "windowsVirtualKeyCode": code, "text": text}
        self.call("Input.dispatchKeyEvent", type="keyDown", **named)
        self.call("Input.dispatchKeyEvent", type="keyUp", **named)

    def picture(self, path, *, whole=False):
        """A PNG of the window, or of the whole page."""
        size = self.value("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]") if whole else None
        clip = {"clip": {"x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1}} if size else {}
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole, **clip)
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self):
        self._browser.call("Target.closeTarget", targetId=self._target)
        self._browser.pages.pop(self._session, None)
