"""The pages of kvpersist ui, in a real browser on real stores, and what must not get in."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
import servers
from axe_playwright_python.sync_playwright import Axe
from burr.core import State
from conftest import STORES
from playwright.sync_api import Browser, Page, expect, sync_playwright

from kvpersist import Persister, Store, keys
from kvpersist.backends.sqlite import SQLiteBackend
from kvpersist.inspection import Inspection
from kvpersist.ui.app import Pages

NASTY = "<script>alert(1)</script>'\"&../..%2f\u202e\x1b\0é"
IMAGES = Path(__file__).parent.parent / "docs" / "images"
VIEWPORT = {"width": 1100, "height": 750}


class Site(NamedTuple):
    """A running kvpersist ui."""

    address: str
    """With the token in it."""
    process: subprocess.Popen[str]

    @property
    def base(self) -> str:
        return self.address.partition("/?")[0]

    @property
    def token(self) -> str:
        return self.address.partition("token=")[2]

    def ask(self, path: str, *, method: str = "GET", body: str | None = None, **headers: str) -> tuple[int, str]:
        """An answer's status and text."""
        parts = urlsplit(self.base)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
        with contextlib.closing(connection):
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in {"Host": parts.netloc, **headers}.items():
                connection.putheader(name, value)
            if body is not None:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body.encode() if body is not None else None)
            response = connection.getresponse()
            return response.status, response.read().decode()

    @property
    def cookie(self) -> str:
        return f"kvpersist-{urlsplit(self.base).port}={self.token}"


@contextlib.contextmanager
def site(url: str, *options: str) -> Iterator[Site]:
    command = [sys.executable, "-m", "kvpersist.cli", "ui", url, *options]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            yield Site(line.rpartition(" ")[2].strip(), process)
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = servers.from_debian("chromium", "chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def page(browser: Browser, where: Site, **options: Any) -> Iterator[Page]:
    """A page that is at the start; there must be no error and no request to elsewhere."""
    context = browser.new_context(**{"viewport": VIEWPORT, **options})
    opened = context.new_page()
    wrong: list[str] = []
    opened.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    # A download, or going on to the next page, ends a request.
    opened.on(
        "requestfailed",
        lambda request: None if request.failure == "net::ERR_ABORTED" else wrong.append(f"failed: {request.url}"),
    )
    opened.on("dialog", lambda dialog: (wrong.append("a dialog"), dialog.dismiss()))
    opened.on(
        "request", lambda request: None if request.url.startswith(where.base) else wrong.append(f"to {request.url}")
    )
    opened.goto(where.address)
    yield opened
    assert wrong == []
    context.close()


def check_accessibility(opened: Page) -> None:
    violations = Axe().run(opened).response["violations"]
    serious = [
        (each["id"], each["nodes"][0]["html"]) for each in violations if each["impact"] in ("serious", "critical")
    ]
    assert serious == [], opened.url


def fill(url: str) -> None:
    """A chat with a failed step and one set aside, and ids and values that must stay text."""
    with Persister.from_url(url, on_conflict="rewind") as persister:
        chat: list[Any] = []
        for number in range(8):
            chat.append(
                {"role": "user" if number % 2 == 0 else "assistant", "content": f"message {number}, about rain"}
            )
            state = State({"chat": [*chat], "n": number, "score": 0.5 * number})
            persister.save("user-1", "chat-1", number, "prompt", state, "failed" if number == 5 else "completed")
        persister.rewind("user-1", "chat-1", 6)
        persister.save("user-1", "chat-2", 1, "prompt", State({}), "completed")
        persister.save(
            NASTY,
            NASTY,
            1,
            "step",
            State({NASTY: NASTY, "big": "x" * 1_000_000, "many": [*range(50_000)]}),
            "completed",
        )
        persister.save(None, "alone", 0, "step", State({}), "completed")
        persister.save("static", "con", 0, "step", State({}), "completed")
        persister.save("static", "console", 0, "step", State({}), "completed")


@pytest.fixture(scope="module", params=["sqlite", "redis"])
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    url = STORES[request.param](tmp_path_factory.mktemp("ui"))
    fill(url)
    return url


@pytest.fixture(scope="module")
def writable(filled: str) -> Iterator[Site]:
    with site(filled, "--write") as running:
        yield running


@pytest.fixture(scope="module")
def readable(filled: str) -> Iterator[Site]:
    with site(filled) as running:
        yield running


def shoot(opened: Page, name: str, folder: Path) -> None:
    """A picture for the documentation, where it is asked for."""
    target = IMAGES if os.environ.get("KVPERSIST_TEST_IMAGES") else folder
    target.mkdir(exist_ok=True)
    opened.screenshot(path=target / f"ui-{name}.png")


def test_browsing(browser: Browser, readable: Site, tmp_path: Path) -> None:
    with page(browser, readable) as opened:
        assert "token" not in opened.url
        opened.get_by_role("link", name="user-1").click()
        expect(opened.locator("tbody tr")).to_have_count(2)
        opened.get_by_label("Id starts with").fill("chat-1")
        opened.get_by_role("button", name="Find").click()
        expect(opened.locator("tbody tr")).to_have_count(1)
        opened.get_by_role("link", name="chat-1").click()
        expect(opened.locator("tbody th")).to_have_text(["6", "5", "4", "3", "2", "1", "0"])
        expect(opened.locator("tbody tr").nth(1)).to_contain_text("failed")
        shoot(opened, "steps", tmp_path)
        opened.get_by_role("link", name="With what was set aside").click()
        expect(opened.locator("tbody tr")).to_have_count(8)
        expect(opened.locator("tr.aside")).to_contain_text("set aside")
        opened.locator("tr.aside a").click()
        expect(opened.locator("dl")).to_contain_text("set aside")
        opened.go_back()
        opened.get_by_label("Before step").fill("3")
        opened.get_by_role("button", name="Go").click()
        expect(opened.locator("tbody tr:not(.aside) th")).to_have_text(["2", "1", "0"])
        opened.get_by_role("link", name="2", exact=True).click()
        expect(opened.locator("h1")).to_have_text("Step 2: prompt")
        expect(opened.locator(".tree").first).to_contain_text("message 2, about rain")
        opened.locator("summary").first.click()
        assert not opened.get_by_text("message 2, about rain").is_visible()
        opened.locator("summary").first.click()
        shoot(opened, "step", tmp_path)
        opened.get_by_role("link", name="Step 3").click()
        opened.get_by_role("link", name="What it changed").click()
        expect(opened.locator("li.added")).to_contain_text("chat[3]")
        opened.get_by_label("From").fill("0")
        opened.get_by_label("to", exact=True).fill("6")
        opened.get_by_role("button", name="Compare").click()
        expect(opened.locator("li.added")).to_have_count(6)
        shoot(opened, "diff", tmp_path)


def test_comparing_searching_and_growth(browser: Browser, readable: Site, tmp_path: Path) -> None:
    with page(browser, readable) as opened:
        opened.goto(f"{readable.base}/user-1/chat-1/")
        opened.get_by_label("Compare from step 1").check()
        opened.get_by_label("Compare to step 4").check()
        opened.get_by_role("button", name="Compare the two").click()
        expect(opened.locator("h1")).to_have_text("From step 1 to 4")
        expect(opened.locator(".changes li")).to_have_count(5)
        opened.goto(f"{readable.base}/user-1/chat-1/")
        opened.get_by_label("Search states").fill("message 4")
        opened.get_by_role("button", name="Search").click()
        expect(opened.locator("main")).to_contain_text("Found in 3 of 7 steps")
        expect(opened.locator("main")).to_contain_text("chat[4].content")
        opened.goto(f"{readable.base}/user-1/chat-1/growth")
        assert opened.get_by_role("img").is_visible()
        opened.get_by_text("The figures").click()
        expect(opened.locator("tbody tr")).to_have_count(7)
        shoot(opened, "growth", tmp_path)


def test_changing(browser: Browser, writable: Site, filled: str) -> None:
    with Persister.from_url(filled) as persister:
        for number in range(4):
            persister.save("user-1", "to change", number, "prompt", State({"n": number}), "completed")
        with page(browser, writable) as opened:
            opened.goto(f"{writable.base}/user-1/{keys.encode('to change')}/")
            opened.get_by_role("link", name="Rewind to step 2").click()
            opened.get_by_role("link", name="Leave it as it is").click()
            opened.get_by_role("link", name="Rewind to step 2").click()
            opened.get_by_role("button", name="Rewind").click()
            expect(opened.locator("tr.aside")).to_have_count(1)
            assert persister.load("user-1", "to change")["sequence_id"] == 2
            opened.get_by_role("link", name="Fork at step 1").click()
            opened.get_by_label("Id of the new app").fill("chat-1")
            opened.get_by_role("button", name="Fork").click()
            expect(opened.get_by_role("alert")).to_contain_text("has records already")
            opened.get_by_label("Id of the new app").fill(NASTY.replace("\0", ""))
            opened.get_by_role("button", name="Fork").click()
            expect(opened.locator("tbody th")).to_have_text(["1"])
        forked = persister.load("user-1", NASTY.replace("\0", ""))
        assert (forked["state"]["n"], forked["position"], forked["status"]) == (1, "prompt", "completed")


def test_stored_text_stays_text(browser: Browser, readable: Site) -> None:
    segment = keys.encode(NASTY)
    with page(browser, readable) as opened:
        for path in ("/", f"/{segment}/", f"/{segment}/{segment}/", f"/{segment}/{segment}/search?q=alert"):
            opened.goto(readable.base + path)
            text = opened.locator("body").inner_text()
            assert "<script>alert(1)</script>" in text
            assert not {"\u202e", "\x1b", "\0"} & set(text)
        opened.goto(f"{readable.base}/{segment}/{segment}/")
        opened.locator("tbody th a").click()
        expect(opened.locator("script")).to_have_count(1)  # ours
        expect(opened.locator(".tree").first).to_contain_text("(1,000,002 characters)")
        assert opened.locator(".tree li").count() < 2_100
        expect(opened.locator("main")).to_contain_text("and 49,900 more")
        with opened.expect_download() as download:
            opened.get_by_role("link", name="Download as JSON").click()
        assert json.loads(download.value.path().read_text())["many"] == [*range(50_000)]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_all_can_use_it(browser: Browser, writable: Site, theme: Any, tmp_path: Path) -> None:
    chat = f"{writable.base}/user-1/chat-1/"
    with page(browser, writable, color_scheme=theme, viewport={"width": 360, "height": 700}) as opened:
        for address in (
            writable.base,
            f"{writable.base}/user-1/",
            chat,
            f"{chat}?aside=1",
            f"{chat}step/{keys.sequence_name(3)}prompt",
            f"{chat}diff?a=1&b=4",
            f"{chat}search?q=rain",
            f"{chat}growth",
            f"{chat}rewind?to=2",
            f"{chat}fork?at=2",
            f"{chat}diff",
        ):
            opened.goto(address)
            check_accessibility(opened)
            # Nothing is wider than a phone; tables scroll by themselves.
            assert opened.evaluate("document.documentElement.scrollWidth") <= 360, address
        opened.goto(chat)
        shoot(opened, f"phone-{theme}", tmp_path)
        back = opened.evaluate("getComputedStyle(document.body).backgroundColor")
        opened.get_by_role("button", name=re.compile("theme")).click()
        assert opened.evaluate("getComputedStyle(document.body).backgroundColor") != back
        opened.reload()
        assert opened.evaluate("getComputedStyle(document.body).backgroundColor") != back
        check_accessibility(opened)


def test_ids_that_look_like_something_else(browser: Browser, readable: Site) -> None:
    with page(browser, readable) as opened:
        opened.get_by_role("link", name="static").click()
        opened.get_by_label("Id starts with").fill("con")
        opened.get_by_role("button", name="Find").click()
        expect(opened.locator("tbody th")).to_have_text(["con", "console"])


def test_by_keyboard(browser: Browser, readable: Site) -> None:
    with page(browser, readable) as opened:
        opened.goto(f"{readable.base}/user-1/")
        opened.keyboard.press("Tab")
        assert opened.evaluate("document.activeElement.textContent") == "Skip to content"
        assert opened.get_by_text("Skip to content").bounding_box()["x"] >= 0
        opened.keyboard.press("Enter")
        for _ in range(8):
            opened.keyboard.press("Tab")
            if opened.evaluate("document.activeElement.textContent") == "chat-1":
                break
        assert opened.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        opened.keyboard.press("Enter")
        opened.wait_for_url("**/chat-1/")


def test_who_gets_in(readable: Site) -> None:
    host = urlsplit(readable.base).netloc
    port = urlsplit(readable.base).port
    assert readable.ask("/")[0] == 403
    assert readable.ask("/=static/style.css")[0] == 403
    assert readable.ask("/?token=wrong")[0] == 403
    assert readable.ask("/?token=")[0] == 403
    assert readable.ask("/", Cookie=f"kvpersist-{port}=wrong")[0] == 403
    assert readable.ask("/", Cookie="\xff=\xff; kvpersist")[0] == 403
    assert readable.ask(f"/?token={readable.token}")[0] == 303
    assert readable.ask(f"//evil.example/?token={readable.token}")[0] in (303, 404)
    assert readable.ask("/", Cookie=readable.cookie)[0] == 200
    foreign_hosts = ("evil.example", f"evil.example:{port}", f"127.0.0.1.evil.example:{port}")
    for foreign in (*foreign_hosts, "", f"user@127.0.0.1:{port}", "[::1", "1"):
        assert readable.ask("/", Cookie=readable.cookie, Host=foreign)[0] == 421
    for own in (f"localhost:{port}", "localhost", "10.0.0.5:80", f"[::1]:{port}"):
        assert readable.ask("/", Cookie=readable.cookie, Host=own)[0] == 200
    # Writes are not there at all.
    for name in ("rewind", "fork"):
        assert readable.ask(f"/user-1/chat-1/{name}?to=1&at=1", Cookie=readable.cookie)[0] == 404
        answer = readable.ask(
            f"/user-1/chat-1/{name}",
            method="POST",
            body="to=1&at=1&new=x",
            Cookie=readable.cookie,
            Origin=f"http://{host}",
        )
        assert answer[0] in (404, 405)


def test_writes_come_from_our_pages(writable: Site, filled: str) -> None:
    host = urlsplit(writable.base).netloc
    body = "to=1"
    for headers in (
        {},
        {"Origin": "null"},
        {"Origin": "http://evil.example"},
        {"Origin": f"https://{host}"},
        {"Origin": f"http://{host}.evil.example"},
    ):
        status, _ = writable.ask("/user-1/chat-1/rewind", method="POST", body=body, Cookie=writable.cookie, **headers)
        assert status == 403
    assert writable.ask("/user-1/chat-1/rewind", method="POST", body=body, Origin=f"http://{host}")[0] == 403
    with Persister.from_url(filled) as persister:
        assert persister.load("user-1", "chat-1")["sequence_id"] == 6
    own = {"Cookie": writable.cookie, "Origin": f"http://{host}"}
    assert writable.ask("/user-1/chat-1/rewind", method="POST", body="to=99&newest=6", **own)[0] == 400
    assert writable.ask("/user-1/chat-1/rewind", method="POST", body="to=-1&newest=6", **own)[0] == 404
    status, text = writable.ask("/user-1/chat-1/rewind", method="POST", body="to=1&newest=5", **own)
    assert status == 200
    assert "gone on meanwhile" in text
    assert writable.ask("/user-1/chat-1/rewind", method="POST", body="\xff%ff=%00", **own)[0] == 404


def test_addresses_that_lead_nowhere(readable: Site) -> None:
    for path in (
        "/nobody/nothing/",
        "/User-1/chat-1/",
        "/user-1/=none/",
        "/..%2f..%2fetc/passwd/",
        "/user-1/chat-1/step/../../../chat-2/x",
        "/user-1/chat-1/step/%2e%2e/x",
        "/user-1/chat-1/step/nonsense",
        "/user-1/chat-1/json/!parts/1",
        "/user-1/chat-1/step/%00",
        "/user-1/chat-1/step/..%2f..%2fchat-2%2fx",
        "/user-1/chat-1/json/..%2f..%2f..%2f..%2fetc%2fpasswd",
        "/=static/../app.py",
        "/=static/%2e%2e/app.py",
        "/user-1/nothing/growth",
    ):
        status, text = readable.ask(path, Cookie=readable.cookie)
        assert status in (307, 404), (path, status)
        assert "Traceback" not in text
    for query in (
        "?before=0",
        "?after=%00",
        "?after=/../..",
        "?before=99999999999999999999",
        "?before=x",
        "?after=zzzz",
    ):
        status, text = readable.ask(f"/user-1/chat-1/{query}", Cookie=readable.cookie)
        assert status in (200, 400), (query, status)
        assert "Traceback" not in text


def test_a_store_that_is_away() -> None:
    server = servers.new_redis()
    with site(f"redis://:hunter2@127.0.0.1:{server.port}?timeout=1") as running:
        status, text = running.ask("/", Cookie=running.cookie)
        assert status == 200
        server.kill()
        status, text = running.ask("/", Cookie=running.cookie)
        assert status == 503
        assert "The store failed" in text
        assert "hunter2" not in text
        assert "Traceback" not in text


def test_large_stores_cost_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """10,000 apps and 10,000 steps: what is asked of the store is what is on the page."""
    from starlette.testclient import TestClient

    url = f"sqlite://{tmp_path}/large.db"
    with Persister.from_url(url) as persister:
        persister.save("p", "a", 0, "step", State({"text": "x"}), "completed")
    with Store.from_url(url) as store:
        ((key, value),) = store.scan(values=True).entries
    with contextlib.closing(sqlite3.connect(tmp_path / "large.db")) as connection:
        first = f"{2**63 - 1}.0."
        rows = [(key.replace(first, f"{2**63 - 1 - at}.{at}."), value) for at in range(1, 10_000)]
        rows += [(key.replace("/a/", f"/app{at}/"), value) for at in range(10_000)]
        connection.executemany("INSERT INTO kvpersist VALUES (?, ?)", rows)
        connection.commit()
    looked: list[int] = []
    scan, get = SQLiteBackend.scan, SQLiteBackend.get

    def scanning(self: Any, prefix: str, **options: Any) -> Any:
        looked.append(options.get("limit") or 1000)
        return scan(self, prefix, **options)

    def getting(self: Any, key: str) -> Any:
        looked.append(1)
        return get(self, key)

    monkeypatch.setattr(SQLiteBackend, "scan", scanning)
    monkeypatch.setattr(SQLiteBackend, "get", getting)
    inspection = Inspection.from_url(url, asynchronous=True)
    application = Pages(inspection, None).application(names=frozenset({"testserver"}), token="t")
    with TestClient(application) as client:
        client.get("/?token=t")
        for path, most in (
            ("/p/", 50 + 50),
            ("/p/?prefix=app77", 50 + 50),
            ("/p/a/", 50),
            ("/p/a/?before=5000", 50),
            ("/p/a/search?q=x", 50 + 50),
            ("/p/a/growth", 51),
        ):
            looked.clear()
            answer = client.get(path)
            assert answer.status_code == 200, path
            assert sum(looked) <= most, path
        after = re.search(r'href="\?prefix=&amp;after=([^"]+)"', client.get("/p/").text)
        assert after is not None
        assert "app1043" in client.get(f"/p/?after={after[1]}").text


def test_reading_imports_no_burr(tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path}/state.db"
    fill(url)
    code = """if True:
        import sys
        from starlette.testclient import TestClient
        from kvpersist.inspection import Inspection
        from kvpersist.ui.app import Pages
        pages = Pages(Inspection.from_url(sys.argv[1], asynchronous=True), None)
        with TestClient(pages.application(names=frozenset({"testserver"}), token="t")) as client:
            app = "user-1/chat-1/"
            for path in ("?token=t", "user-1/", app, app + "search?q=x", app + "diff?a=1&b=2", app + "growth"):
                assert client.get("/" + path).status_code == 200
        assert "burr" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", code, url], check=True, timeout=60)


def test_what_is_told_when_it_listens_to_all(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kvpersist.cli", "ui", f"sqlite://{tmp_path}/state.db", "--host", "0.0.0.0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "not this machine alone" in process.stderr.readline()
        process.terminate()
        process.communicate(timeout=30)
