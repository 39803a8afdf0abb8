"""A worker whose loop stands still is replaced; one that is only idle, or was stopped with its parent, is not."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import textwrap
import time

import httpx
import pytest

HANGS_S = 2.0
APP = """
import os, time

class App:
    quick_path = None
    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            while True:
                said = (await receive())["type"]
                await send({"type": f"{said}.complete"})
                if said == "lifespan.shutdown":
                    return
        if scope["path"] == "/hang":
            time.sleep(600)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": str(os.getpid()).encode()})

def create():
    return App()
"""
MAIN = """
import logging, socket
from serving.server.deal import Dealer
logging.basicConfig(format="%(message)s")
listening = socket.create_server(("127.0.0.1", 0))
print(listening.getsockname()[1], flush=True)
raise SystemExit(Dealer(listening, "hanging_app:create", 1, hangs_s={hangs_s}).run())
"""


@pytest.fixture
def dealer(tmp_path):
    (tmp_path / "hanging_app.py").write_text(APP)
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(MAIN.format(hangs_s=HANGS_S))], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"})
    url = f"http://127.0.0.1:{int(process.stdout.readline())}"
    yield process, url
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)


def pid_of(url):
    return int(httpx.get(f"{url}/", timeout=20).text)


def eventually_another(url, first, seconds=20):
    """Fails unless another worker answers within the time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError):  # it was dealt to the one that hangs
            if int(httpx.get(f"{url}/", timeout=1).text) != first:
                return
        time.sleep(0.1)
    raise AssertionError("it was never replaced")


def test_a_worker_that_hangs_says_where_and_is_replaced(dealer):
    process, url = dealer
    first = pid_of(url)
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"{url}/hang", timeout=1)
    eventually_another(url, first)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert "worker hangs" in errors and re.search(r"hanging_app.py.*in __call__", errors)


def test_one_that_does_not_even_heed_an_abort_is_replaced(dealer):
    _, url = dealer
    first = pid_of(url)
    os.kill(first, signal.SIGSTOP)
    eventually_another(url, first)


def test_idle_or_stopped_together_is_not_hanging(dealer):
    process, url = dealer
    first = pid_of(url)
    time.sleep(1.5 * HANGS_S)
    assert pid_of(url) == first
    for pid in (process.pid, first):
        os.kill(pid, signal.SIGSTOP)
    time.sleep(1.5 * HANGS_S)
    for pid in (process.pid, first):
        os.kill(pid, signal.SIGCONT)
    time.sleep(0.5)
    assert pid_of(url) == first
