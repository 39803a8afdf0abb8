"""The page in a real headless Chromium over a real server: reading, acting, keys only, phones, and who sees or hears it."""

import json
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "serving"))
from chromium import CHROMIUM, MISSING, Chromium
from collect_world import events_in
from page_world import MARKUP, PageServer, PageWorld
from servers import need

from schemas.keys import SUPPRESSED, USER, row_key
from serving.api.page import POLICY
from serving.stores.base import ANY

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=MISSING)
CHECKS = (Path(__file__).parent / "page_checks.js").read_text()
LISTED = "document.querySelectorAll('.ranked > li').length"
IDS = "[...document.querySelectorAll('.ranked > li')].map(e => e.dataset.item)"
STEPS = "document.querySelector('.journal li')?.innerText ?? ''"
FOCUS = "(e => e.getAttribute('aria-label') || e.textContent || e.id)(document.activeElement)"
VIEWS = ("#/", "#/user/ann", "#/user/nobody", "#/compare/ann", "#/health")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = PageWorld(tmp_path_factory.mktemp("page") / "workspace")
    yield world
    world.store.close()


@pytest.fixture(scope="module")
def server(world):
    server = PageServer(world.workspace.root)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Chromium(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def page_of(browser, server):
    """Opens a view; what its console complains of, or asks of other hosts, fails the test."""
    opened = []

    def open_page(view="#/", expect=(), **size):
        page = browser.page(f"{server.url}/{view}", **size)
        opened.append((page, expect))
        page.until("document.querySelector('main h1') && !document.querySelector('.view > .dim:only-child')")
        return page

    yield open_page
    for page, expect in opened:
        page.close()
        assert [e for e in page.errors if not any(known in e for known in expect)] == []
        assert {r.split("/")[2] for r in page.requests if r.startswith("http")} == {server.url.split("/")[2]}


def suppressed(world, user):
    cells = world.store.read_features([row_key(USER, user)], "stream", [SUPPRESSED + ANY])[0]
    return {name[len(SUPPRESSED):] for name in cells}


def posted(world, user):
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        found = [r for r in events_in(world.workspace.root) if r["user_id"] == user]
        if found:
            return found
        time.sleep(0.1)
    return []


def test_it_offers_users_and_finds_one(page_of):
    page = page_of()
    assert set(page.until("[...document.querySelectorAll('.people strong')].map(e => e.textContent)")) == {"ann", "bob"}
    assert "casual" in page.eval("document.querySelector('.people').innerText")
    page.click("#user")
    page.type("ann")
    page.press("Enter")
    page.until(f"{LISTED} === 12")
    assert page.eval("[document.title, document.querySelector('h1').textContent]") == ["User ann · beamrec", "ann"]
    assert page.eval("document.activeElement.id") == "main"
    rows = page.eval("""[...document.querySelectorAll('.ranked > li')].map(e => [e.querySelector('.rank').textContent,
        !!e.querySelector('.tile'), e.querySelector('.reason').textContent, e.querySelector('.chip').textContent])""")
    assert [r[0] for r in rows] == [str(n) for n in range(1, 13)] and all(r[1] for r in rows)
    assert all(r[2] and r[3] for r in rows) and "Matches your taste" in {r[2] for r in rows}
    known = page.eval("document.querySelector('.knowledge').innerText")
    assert "Drama" in known and "60 %" in known and "batch, 12 h" in known and "Heat" in known
    page.click("details summary")
    table = page.until("document.querySelector('table.features')?.innerText")
    assert "active days 30d" in table and "batch, 12 h" in table
    page.click(".first > section > button")
    page.until(f"{LISTED} > 12")
    ids = page.eval(IDS)
    assert len(set(ids)) == len(ids)


def test_somebody_never_seen_gets_what_is_popular(page_of):
    page = page_of("#/user/nobody-yet")
    page.until(f"{LISTED} > 2")
    assert "Never seen before" in page.eval("document.querySelector('.title').innerText")
    assert page.eval("document.querySelector('.source .chip').textContent") in ("popular", "segment popular", "on demand")


def test_titles_are_text_and_the_page_runs_nothing_but_its_files(page_of, server):
    page = page_of("#/compare/ann")
    assert MARKUP in page.until("[...document.querySelectorAll('.name')].map(e => e.textContent)")
    assert page.eval("window.hacked") is None and page.eval("document.querySelectorAll('main img').length") == 0
    answer = httpx.get(server.url + "/")
    assert answer.headers["content-security-policy"] == POLICY and "unsafe" not in POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    for name in ("page.css", "main.js", "icon.svg", "features.json"):
        found = httpx.get(f"{server.url}/page/{name}")
        assert found.status_code == 200 and found.headers["content-encoding"] == "gzip"
        assert httpx.get(f"{server.url}/page/{name}", headers={"If-None-Match": found.headers["etag"]}).status_code == 304
    assert httpx.get(f"{server.url}/page/__init__.py").status_code == 404
    total = sum(len(httpx.get(f"{server.url}/page/{n}").read()) for n in ("main.js", "person.js", "page.css"))
    assert 5_000 < total < 60_000


def test_a_purchase_is_a_real_event_and_the_item_is_gone(page_of, world):
    page = page_of("#/user/buyer")
    page.until(f"{LISTED} > 2")
    first = page.eval(IDS)[0]
    page.click(".ranked > li:first-child .actions button:nth-child(3)")
    page.until(f"({STEPS}).includes('accepted in')")
    page.until(f"!({IDS}).includes({first!r})")
    assert "Bought" in page.eval(STEPS)
    assert page.until("document.getElementById('said').textContent")
    (event,) = posted(world, "buyer")
    assert (event["event_type"], event["item_id"], event["surface"]) == ("purchase", first, "homepage")
    assert event["page_position"] == 1 and event["request_id"] and event["model_version"] and event["device"] == "desktop"
    assert first in suppressed(world, "buyer")
    page.until(f"({STEPS}).includes('the stream is not running')", 20)


def test_a_server_that_takes_no_events_says_so(browser, world):
    server = PageServer(world.workspace.root, events=False)
    page = browser.page(f"{server.url}/#/user/reader")
    try:
        page.until(f"{LISTED} > 2")
        page.click(".ranked > li:first-child .title-button")
        page.until(f"({STEPS}).includes('not accepted: this server takes no events')")
    finally:
        page.close()
        server.stop()
    assert page.errors == [] and not posted(world, "reader")


def test_with_keys_only(page_of, world):
    page = page_of()
    page.until("!!document.querySelector('.people a')")
    page.press("Tab")
    assert page.eval(FOCUS) == "Skip to content"
    assert page.eval("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.press("Enter")
    assert page.eval("document.activeElement.id") == "main"
    page.press("Tab")
    assert page.eval("document.activeElement.closest('.people') !== null")
    page.eval("document.getElementById('user').focus()")
    page.type("typist")
    page.press("Enter")
    page.until(f"{LISTED} > 2 && document.activeElement.id === 'main'")
    for _ in range(30):
        page.press("Tab")
        if page.eval("document.activeElement.matches('.title-button')"):
            break
    title = page.eval("document.activeElement.textContent")
    page.press("Enter")
    page.until(f"({STEPS}).includes('accepted in')")
    assert title in page.eval(STEPS) and posted(world, "typist")[0]["event_type"] == "click"
    page.eval("document.querySelector('.actions button:last-child').focus()")
    page.press("Enter")
    page.until("document.getElementById('item-dialog').open")
    assert page.eval("document.activeElement.closest('dialog') !== null")
    page.press("Escape")
    page.until("!document.getElementById('item-dialog').open")
    assert page.eval(FOCUS).startswith("Similar")


def test_the_focus_stays_when_the_list_changes(page_of):
    page = page_of("#/user/focused")
    page.until(f"{LISTED} > 2")
    gone = page.eval(IDS)[0]
    page.eval("document.querySelector('.ranked > li:first-child .actions button:nth-child(3)').focus()")
    page.press("Enter")
    page.until(f"!({IDS}).includes({gone!r})")
    assert page.eval("document.activeElement.closest('.ranked') !== null")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("view", VIEWS)
def test_everybody_can_read_it(page_of, view, scheme):
    page = page_of(view, scheme=scheme)
    time.sleep(0.5)
    assert page.eval(CHECKS) == []


@pytest.mark.parametrize("view", VIEWS)
def test_a_phone_shows_it_without_scrolling_sideways(page_of, view):
    page = page_of(view, width=360, height=740)
    time.sleep(0.3)
    assert page.eval("document.documentElement.scrollWidth") <= 360
    assert page.eval(CHECKS) == []


def test_the_dialog_is_readable_too(page_of):
    page = page_of("#/user/ann", width=360, height=740)
    page.until(f"{LISTED} > 2")
    page.click(".ranked > li:nth-child(2) .actions button:last-child")
    page.until("!!document.querySelector('#item-dialog .similar')")
    assert page.eval(CHECKS) == []
    assert page.eval("document.querySelector('#item-dialog').getBoundingClientRect().width") <= 360


def test_nothing_moves_for_who_asked_for_stillness(page_of):
    page = page_of("#/user/calm", motion="reduce")
    page.until(f"{LISTED} > 2")
    page.click(".ranked > li:first-child .actions button:nth-child(3)")
    page.until(f"({STEPS}).includes('accepted in')")
    assert page.eval("document.getAnimations().length") == 0


def test_two_versions_side_by_side(page_of):
    page = page_of("#/compare/ann")
    assert "reads the champion" in page.eval("document.querySelector('.title').innerText")
    heads = page.eval("[...document.querySelectorAll('.versus h2')].map(e => e.textContent)")
    assert heads == ["champion list", "previous list"]
    left, right = page.eval("[...document.querySelectorAll('.versus ol')].map(o => [...o.children].map(e => e.dataset.item))")
    assert left == [f"i{n}" for n in range(5, 25)] and right == [f"i{n}" for n in range(20)]
    figures = page.eval("document.querySelector('.figures').innerText").replace("\n", " ")
    assert "15 of 20" in figures and "75 %" in figures and "5 places" in figures
    page.eval("(s => { s.value = '0'; s.dispatchEvent(new Event('change')); })(document.getElementById('side-1'))")
    assert "100 %" in page.eval("document.querySelector('.figures').innerText")


def test_versions_are_flipped_and_rolled_back(page_of, world):
    page = page_of("#/health")
    champion = """[...document.querySelectorAll('tbody tr')].find(r => r.innerText.includes('champion'))
        ?.querySelector('th').textContent"""
    assert page.until(champion) == "v2"
    page.click("button[aria-label='Flip homepage to v1']")
    page.until("document.getElementById('ask-dialog').open")
    assert "Everybody gets v1" in page.eval("document.getElementById('ask-dialog').innerText")
    page.press("Escape")
    page.until("!document.getElementById('ask-dialog').open")
    assert world.store.active("homepage").champion == "v2"
    page.click("button[aria-label='Flip homepage to v1']")
    page.until("document.getElementById('ask-dialog').open")
    page.press("Enter")
    page.until(f"({champion}) === 'v1'")
    assert world.store.active("homepage").champion == "v1"
    page.click("button[aria-label='Roll back homepage']")
    page.until("document.getElementById('ask-dialog').open")
    page.press("Enter")
    page.until(f"({champion}) === 'v2'")
    assert world.store.active("homepage").champion == "v2"
    assert page.until("document.getElementById('said').textContent") == "Roll back: done"


def test_health_tells_what_the_server_counted(page_of, server):
    for user in ("ann", "bob", "somebody"):
        assert httpx.get(server.url + "/v1/recommendations", params={"user_id": user}).status_code == 200
    httpx.post(server.url + "/v1/events", json=[{"user_id": "u", "event_type": "clack", "item_id": "x"}])
    page = page_of("#/health")
    text = page.until("(t => t.includes('Tiers') && t.includes('v2') && t)(document.querySelector('main').innerText)")
    assert "Ready: everything it reads answers" in text and "unknown event type" in text
    for part in ("Throughput", "list", "popular", "Coverage", "Gini", "No streaming job has written its status", "well"):
        assert part in text, part
    shares = page.eval("""Object.fromEntries([...document.querySelectorAll('.meter')].map(
        e => [e.querySelector('.meter-name').textContent, e.style.getPropertyValue('--share')]))""")
    assert 0 < float(shares["list"]) < 1 and 0 < float(shares["Gini: 0 all alike, 1 one item only"]) < 1
    before = page.eval("document.querySelector('.figures dd small').textContent")
    for _ in range(3):
        httpx.get(server.url + "/v1/recommendations", params={"user_id": "ann"})
    page.until(f"document.querySelector('.figures dd small').textContent !== {before!r}", 10)
    assert "requests/s" in page.eval("document.querySelector('.spark').getAttribute('aria-label')")


def test_similar_items(page_of):
    page = page_of("#/user/ann")
    page.until(f"{LISTED} > 2")
    title = page.eval("document.querySelector('.ranked > li:nth-child(2) .title-button').textContent")
    page.click(".ranked > li:nth-child(2) .actions button:last-child")
    page.until("document.querySelectorAll('#item-dialog .similar li').length > 2")
    assert page.eval("document.getElementById('item-title').textContent") == title
    said = page.eval("document.querySelector('#item-dialog .similar').innerText")
    assert "similarity" in said and "%" in said and "both: category" in said
    other = page.eval("document.querySelector('#item-dialog .similar .title-button').textContent")
    page.click("#item-dialog .similar .title-button")
    page.until(f"document.getElementById('item-title').textContent === {other!r}")
    assert page.eval("document.activeElement.closest('dialog') !== null")


def test_a_server_that_is_gone_is_told(browser, world, tmp_path):
    server = PageServer(world.workspace.root, events=False)
    page = browser.page(f"{server.url}/#/user/ann")
    page.until(f"{LISTED} > 2")
    server.stop()
    page.click(".tools button")
    page.eval("location.hash = '#/user/bob'")
    assert "cannot be reached" in page.until("document.querySelector('[role=alert]')?.innerText")
    page.close()


def test_a_key_is_asked_for_and_used(browser, world, tmp_path):
    from serving.api_keys import KeyFile, new_key

    text, key = new_key(("read",), "page", 0.0, 0)
    KeyFile((key,), "secret").write(tmp_path / "keys.json")
    server = PageServer(world.workspace.root, keys=tmp_path / "keys.json", anonymous=(), events=False)
    page = browser.page(f"{server.url}/#/user/ann")
    try:
        assert "API key" in page.until("document.querySelector('[role=alert]')?.innerText")
        page.click("#key-button")
        page.until("document.activeElement.id === 'key'")
        page.type(text)
        page.press("Enter")
        page.until(f"{LISTED} === 12")
        assert page.eval("localStorage.length") == 0 and text not in json.dumps(page.requests)
    finally:
        page.close()
        server.stop()


@pytest.mark.slow
def test_a_click_changes_features_and_list_with_the_stream_running(browser, tmp_path):
    need("prism")
    world = PageWorld(tmp_path / "workspace")
    server = PageServer(world.workspace.root)
    stream = subprocess.Popen(
        [sys.executable, "-m", "beam_pipelines.cli.main", "stream", "--log", f"dir:{world.workspace.root / 'log'}", "--quiet",
         "--workspace", str(world.workspace.root), "--readers", "1", "--user-buckets", "1", "--item-buckets", "1"],
        stderr=subprocess.DEVNULL)
    page = browser.page(f"{server.url}/#/user/ann")
    try:
        page.until(f"{LISTED} === 12")
        page.until("!!document.querySelector('.knowledge .pulse.live')", 90)
        clicked = page.eval(IDS)[1]
        title = page.eval("document.querySelector('.ranked > li:nth-child(2) .title-button').textContent")
        page.click(".ranked > li:nth-child(2) .title-button")
        steps = page.until(f"({STEPS}).includes('in features after') && ({STEPS})", 40)
        assert "accepted in" in steps and title in steps
        page.until(f"!({IDS}).includes({clicked!r})")
        known = page.eval("document.querySelector('.knowledge').innerText")
        assert "1 event" in known and title in known and "stream" in known
        assert page.eval("document.querySelectorAll('.ranked .moved.up, .ranked .moved.new').length") > 0
        assert page.errors == []
    finally:
        page.close()
        stream.terminate()
        server.stop()
        world.store.close()
        stream.wait(30)
