"""client.js against a real collector, in Node behind a line that breaks, and in a headless Chromium that leaves its page."""

import json
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "serving"))
from collect_world import CollectServer, events_in

from beam_pipelines.cli.main import main

CLIENT = Path(__file__).parents[2] / "serving" / "clients" / "client.js"
NODE = shutil.which("node") or shutil.which("nodejs")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Web:
    """A web server of a handler function (method, path, body) -> (status, headers, content), None to break the line."""

    def __init__(self, answer):
        class Handler(BaseHTTPRequestHandler):
            def handle_any(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                said = answer(self.command, self.path, body)
                if said is None:
                    self.close_connection = True
                    return
                status, headers, content = said
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = handle_any  # noqa: N815

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.mark.skipif(NODE is None, reason="node is not there: install the package nodejs")
def test_in_node_every_event_arrives_over_a_line_that_breaks(tmp_path):
    collector = CollectServer(tmp_path)
    calls = []

    def flaky(method, path, body):
        calls.append(body)
        if len(calls) == 1:
            return None  # the request never arrives
        if len(calls) == 2:
            return 503, {"Retry-After": "0"}, b""
        answer = httpx.post(collector.url + path, content=body)
        if len(calls) == 3:
            return None  # the answer is lost
        return answer.status_code, {"Content-Type": "application/json"}, answer.content

    web = Web(flaky)
    script = f"""
      require({str(CLIENT)!r});
      const dropped = [];
      const events = beamrec.client({{url: {web.url!r}, userId: "node", waitMs: 5, minRetryMs: 20, batchSize: 3,
                                      onDrop: (e, why) => dropped.push(e.item_id + " " + why)}});
      const ids = [];
      for (let i = 0; i < 7; i++) ids.push(events.track("click", {{item_id: "i" + i}}));
      events.track("clack", {{item_id: "bad"}});
      const wait = () => events.waiting() ? setTimeout(wait, 10) : console.log(JSON.stringify([ids, dropped]));
      wait();
    """
    try:
        done = subprocess.run([NODE, "-e", script], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
    finally:
        web.close()
        collector.stop()
    ids, dropped = json.loads(done.stdout)
    assert dropped == ["bad rejected: unknown_event_type"]
    found = Counter(r["event_id"] for r in events_in(tmp_path))
    assert set(found) == set(ids) and len(ids) == 7
    assert sorted(found.values()) == [1] * 4 + [2] * 3  # the batch whose answer was lost came twice, with the same ids
    assert calls[0] == calls[1] == calls[2]


@pytest.mark.skipif(NODE is None, reason="node is not there: install the package nodejs")
def test_in_node_a_queue_is_bounded_and_gives_up():
    script = f"""
      require({str(CLIENT)!r});
      const dropped = [];
      const events = beamrec.client({{url: "http://127.0.0.1:9", userId: "u", waitMs: 0, minRetryMs: 1, maxRetryMs: 2,
                                      maxTries: 3, maxQueue: 2, onDrop: (e, why) => dropped.push(e.item_id + " " + why)}});
      for (const i of ["a", "b", "c"]) events.track("click", {{item_id: i}});
      events.flush().then(() => console.log(dropped.join(", ")));
    """
    done = subprocess.run([NODE, "-e", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "a queue_full, b gave_up, c gave_up", done.stderr


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not there: install the package chromium")
@pytest.mark.parametrize("has_key", [False, True], ids=["beacon", "with_a_key"])
def test_in_a_browser_what_waits_when_the_page_is_left_arrives(tmp_path, capsys, has_key):
    left = threading.Event()
    pages = {}

    def page(method, path, body):
        if path == "/left":
            left.set()
        return 200, {"Content-Type": "text/html"}, pages.get(path, "").encode()

    web = Web(page)
    key = ""
    if has_key:
        assert main(["keys", "add", "--role", "write_events", "--json", "--workspace", str(tmp_path / "ws")]) == 0
        key = f"""key: "{json.loads(capsys.readouterr().out)['key']}", """
    collector = CollectServer(tmp_path / "ws", "--cors-origin", web.url)
    pages["/"] = f"""<script src="{collector.url}/client.js"></script><script>
      const events = beamrec.client({{{key}url: "{collector.url}", userId: "browser", waitMs: 60000}});
      events.track("view", {{item_id: "sent", surface: "item"}});
      events.flush().then(() => {{
        events.track("click", {{item_id: "left behind"}});
        location.href = "/left";
      }});</script>"""
    browser = subprocess.Popen([CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                                "--no-first-run", f"--user-data-dir={tmp_path / 'profile'}", "--remote-debugging-port=0",
                                web.url],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        assert left.wait(60), "the browser did not get to the second page"
        deadline = time.monotonic() + 10
        while len(events_in(tmp_path / "ws")) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        browser.terminate()
        browser.wait(20)
        web.close()
        collector.stop()
    assert sorted((r["user_id"], r["event_type"], r["item_id"]) for r in events_in(tmp_path / "ws")) == [
        ("browser", "click", "left behind"), ("browser", "view", "sent")]
