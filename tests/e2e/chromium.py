"""A headless Chromium driven over its own pipe (DevTools protocol): real clicks, keys, viewports and screenshots."""

import base64
import contextlib
import fcntl
import itertools
import json
import os
import shutil
import subprocess
import threading
import time
from queue import Empty, Queue

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MISSING = "Chromium is not there: install the package chromium"
_FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
          "--disable-background-networking", "--disable-component-update", "--disable-extensions", "--disable-sync",
          "--force-color-profile=srgb", "--font-render-hinting=none", "--remote-debugging-pipe")
_KEYS = {"Tab": (9, ""), "Enter": (13, "\r"), "Escape": (27, ""), " ": (32, " "), "ArrowRight": (39, ""), "ArrowDown": (40, ""),
         "Home": (36, "")}


class Chromium:
    """A browser with a profile of its own; ``page()`` gives a tab."""

    def __init__(self, folder):
        commands, self._to = _high(os.pipe())
        self._from, answers = _high(os.pipe())
        # the browser reads descriptor 3 and writes descriptor 4
        shell = f'exec "$@" 3<&{commands} 4>&{answers}'
        self.process = subprocess.Popen(
            ["bash", "-c", shell, "bash", CHROMIUM, *_FLAGS, f"--user-data-dir={folder}", "about:blank"],
            pass_fds=(commands, answers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(commands)
        os.close(answers)
        self._numbers, self._lock = itertools.count(1), threading.Lock()
        self._answers, self._listeners = {}, {}
        threading.Thread(target=self._read, daemon=True).start()

    def call(self, method, session=None, timeout=30, **parameters):
        number, answer = next(self._numbers), Queue(1)
        self._answers[number] = answer
        message = {"id": number, "method": method, "params": parameters, **({"sessionId": session} if session else {})}
        with self._lock:
            os.write(self._to, json.dumps(message).encode() + b"\0")
        try:
            said = answer.get(timeout=timeout)
        except Empty:
            raise TimeoutError(f"{method} was not answered in {timeout} s") from None
        assert "error" not in said, f"{method}: {said['error']}"
        return said["result"]

    def _read(self):
        left = b""
        with contextlib.suppress(OSError):
            while part := os.read(self._from, 1 << 16):
                *messages, left = (left + part).split(b"\0")
                for message in map(json.loads, messages):
                    if "id" in message:
                        self._answers.pop(message["id"]).put(message)
                    elif message.get("sessionId") in self._listeners:
                        self._listeners[message["sessionId"]](message["method"], message["params"])

    def page(self, url="about:blank", width=1280, height=900, **media):
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session, target)
        self._listeners[session] = page.heard
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        page.size(width, height)
        page.media(**media)
        if url != "about:blank":
            page.go(url)
        return page

    def close(self):
        with contextlib.suppress(Exception):
            self.call("Browser.close", timeout=5)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
        os.close(self._to)
        os.close(self._from)


def _high(pair):
    """A pipe's descriptors, moved out of the way of 3 and 4."""
    moved = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in pair)
    for end in pair:
        os.close(end)
    return moved


class Page:
    """A tab. ``errors``: what its console and its network told that should not be; ``requests``: every address it asked for."""

    def __init__(self, browser, session, target):
        self._browser, self._session, self._target = browser, session, target
        self.errors, self.requests = [], []

    def call(self, method, **parameters):
        return self._browser.call(method, self._session, **parameters)

    def heard(self, method, said):
        if method == "Runtime.exceptionThrown":
            details = said["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Log.entryAdded" and said["entry"]["level"] == "error":
            self.errors.append(f"{said['entry']['text']} {said['entry'].get('url', '')}")
        elif method == "Runtime.consoleAPICalled" and said["type"] in ("error", "warning"):
            self.errors.append(str([a.get("value", a.get("description")) for a in said["args"]]))
        elif method == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"])

    def go(self, url):
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def size(self, width, height, scale=1, touch=False):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=touch)

    def media(self, scheme="light", motion="no-preference"):
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme},
                                                          {"name": "prefers-reduced-motion", "value": motion}])

    def eval(self, script):
        """The value of a JavaScript expression; a promise is awaited."""
        said = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in said, said["exceptionDetails"].get("exception", {}).get("description", said)
        return said["result"].get("value")

    def until(self, script, seconds=20):
        """The first true value of an expression; fails with the page's text."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                value = self.eval(script)
            except AssertionError as error:  # the page is being replaced
                value = None
                if "context" not in str(error).lower():
                    raise
            if value:
                return value
            if time.monotonic() > deadline:
                text = self.eval("document.body.innerText")
                raise AssertionError(f"never true: {script}\nerrors: {self.errors}\n{text[:1500]}")
            time.sleep(0.05)

    def click(self, selector):
        """A real click in the middle of an element, scrolled into view first."""
        x, y = self.until(f"""(() => {{ const e = document.querySelector({selector!r}); if (!e) return null;
            e.scrollIntoView({{block: "center", behavior: "instant"}}); const r = e.getBoundingClientRect();
            return r.width ? [r.x + r.width / 2, r.y + r.height / 2] : null; }})()""")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key, times=1, shift=False):
        code, text = _KEYS[key]
        for _ in range(times):
            for kind in ("keyDown", "keyUp"):
                self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, code=key,
                          modifiers=8 if shift else 0, **({"text": text} if text and kind == "keyDown" else {}))

    def type(self, text):
        self.call("Input.insertText", text=text)

    def screenshot(self, path, full=False):
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=full, optimizeForSpeed=False)
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self):
        self._browser.call("Target.closeTarget", targetId=self._target)
