"""Screenshots of the page for docs/, of a simulated world with the stream running: ``make screenshots``, about four minutes.

  python tests/e2e/page_shots.py docs [--workspace DIR]     a workspace that is kept is made once
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parent))
from chromium import CHROMIUM, MISSING, Chromium
from page_world import PageServer

MAX_BYTES = 200_000
ROWS = "document.querySelectorAll('.ranked > li').length"


def beamrec(*words):
    """Runs a command; fails as it does."""
    subprocess.run([sys.executable, "-m", "beam_pipelines.cli.main", *map(str, words), "--quiet"], check=True,
                   stdout=subprocess.DEVNULL)


def make(root):
    """A published world of today, with a canary beside the champion."""
    if not (root / "store.db").exists():
        beamrec("simulate", "--users", 1500, "--items", 600, "--days", 14, "--until-now", "--workspace", root)
        beamrec("run", "--workspace", root)
    if len(list((root / "lists").glob("*.json"))) < 2:
        beamrec("recommend", "--item-cf", 1, "--popularity", 0.3, "--workspace", root)
        shadow = max((root / "lists").glob("*.json"), key=lambda path: path.stat().st_mtime).stem
        beamrec("publish", shadow, "--canary", "10%", "--workspace", root)


def shoot(page, path):
    """A screenshot that is small enough for a repository."""
    page.screenshot(path)
    size = path.stat().st_size
    print(f"{path}  {size / 1000:.0f} kB")
    assert size < MAX_BYTES, f"{path} has {size} bytes"


def user_of(server):
    """Somebody with a history."""
    users = httpx.get(server.url + "/v1/users/sample", timeout=30).json()["users"]
    return next((u["user_id"] for u in users if u["segment"] == "power"), users[0]["user_id"])


def warm(server):
    """Returns once events come through the stream: its first takes as long as its workers take to start."""
    until, somebody = time.monotonic() + 180, f"warm-up-{time.time_ns():x}"
    with httpx.Client(base_url=server.url, timeout=30) as client:
        while time.monotonic() < until:
            client.post("/v1/events", json={"user_id": somebody, "event_type": "view", "item_id": "i00001"})
            time.sleep(1)
            if client.get(f"/v1/users/{somebody}/profile").json()["features"]["session_events"]["source"] == "stream":
                return
    raise TimeoutError("no event came through the stream")


def everything(browser, server, folder):
    """All of them."""
    warm(server)
    user = user_of(server)
    page = browser.page(f"{server.url}/#/user/{user}", 1120, 880)
    page.until(f"{ROWS} >= 5")
    page.until("!!document.querySelector('.knowledge .pulse.live')", 120)
    for row in (3, 2):
        page.click(f".ranked > li:nth-child({row}) .title-button")
        page.until("!!document.querySelector('.journal li.done:first-child')", 60)
    page.eval("(document.activeElement.blur(), scrollTo(0, 0))")
    time.sleep(0.6)
    shoot(page, folder / "page.png")
    page.click(".ranked > li:nth-child(2) .actions button:last-child")
    page.until("document.querySelectorAll('#item-dialog .similar li').length > 3")
    time.sleep(0.5)
    shoot(page, folder / "page-similar.png")
    page.close()
    page = browser.page(f"{server.url}/#/compare/{user}", 1160, 820)
    page.until("document.querySelectorAll('.versus li').length > 10")
    time.sleep(0.5)
    shoot(page, folder / "page-compare.png")
    page.close()
    page = browser.page(f"{server.url}/#/health", 1160, 1060, scheme="dark")
    users = [u["user_id"] for u in httpx.get(server.url + "/v1/users/sample", timeout=30).json()["users"]]
    with httpx.Client(base_url=server.url, timeout=30) as client:
        until = time.monotonic() + 40
        while time.monotonic() < until:
            for some in [*users, f"guest-{int(time.monotonic())}"]:
                page_of = client.get("/v1/recommendations", params={"user_id": some}).json()
                first = page_of["items"][0]["item_id"]
                client.post("/v1/events", json={"user_id": some, "event_type": "view", "item_id": first, "device": "web"})
            client.post("/v1/events", json={"user_id": users[0], "event_type": "clack", "item_id": "x"})
            time.sleep(0.25)
    time.sleep(2)
    shoot(page, folder / "page-health.png")
    page.close()
    page = browser.page(f"{server.url}/#/user/{user}", 390, 844, scheme="dark")
    page.size(390, 844, 2, touch=True)
    page.until(f"{ROWS} >= 5")
    time.sleep(0.8)
    shoot(page, folder / "page-phone.png")
    page.close()


def main():
    """Makes the world, runs server and stream, takes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workspace", type=Path)
    args = parser.parse_args()
    if CHROMIUM is None:
        sys.exit(MISSING)
    with tempfile.TemporaryDirectory() as scratch:
        root = (args.workspace or Path(scratch) / "workspace").absolute()
        make(root)
        server = PageServer(root)
        stream = subprocess.Popen(
            [sys.executable, "-m", "beam_pipelines.cli.main", "stream", "--log", f"dir:{root / 'log'}",
             "--workspace", str(root), "--readers", "1", "--user-buckets", "2", "--item-buckets", "1", "--from", "latest",
             "--quiet"],
            stderr=subprocess.DEVNULL)
        browser = Chromium(Path(scratch) / "profile")
        try:
            everything(browser, server, args.folder)
        finally:
            browser.close()
            stream.terminate()
            server.stop()
            stream.wait(30)


if __name__ == "__main__":
    main()
