"""The page of refresher in Chromium: what it shows, with axe-core in every state, and how it behaves."""

import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

from refresher.common.errors import GrantFileError
from refresher.operations.grant_report import fields_of
from tests.conftest import need
from tests.support import chromium, devtools
from tests.support.command import Command
from tests.support.daemon import heard, running, stopped
from tests.support.devtools import Browser, Tab
from tests.support.page_server import PageServer, Row, error, event, row
from tests.support.token_server import TokenServer
from tests.support.unreachable import LIVE

_HOUR: Final = 3600.0
_DAY: Final = 86400.0
_LOOKS: Final = [(width, dark) for width in (1440, 360) for dark in (False, True)]
_ODD: Final = (
    "‮مرحبا <img src=x onerror=problems.push('img')><script>problems.push('script')</script>\u2028\x00"
    + "Z\u0351\u036b\u0343\u036a\u0302" * 30
    + "W" * 400
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    need(chromium.missing())
    need(devtools.missing())
    with Browser() as started:
        yield started


@pytest.fixture
def opened(browser: Browser) -> Iterator[Callable[..., Tab]]:
    """Open the page of a server and wait until it is live; at the end no script may have failed."""
    tabs: list[Tab] = []

    def open_page(server: PageServer, **options: Any) -> Tab:
        tabs.append(Tab(browser, server.url, **options))
        tabs[-1].wait("document.body.dataset.link === 'live'")
        _wait_for_count(tabs[-1], len(server.rows))
        return tabs[-1]

    yield open_page
    for tab in tabs:
        with tab:
            pass


def every_state(now: float) -> list[Row]:
    ended = error("reauthorization_required", "the server has ended the grant (invalid_grant)", now - 5 * _HOUR)
    invalid = {
        "code": "invalid_grant_file",
        "description": "damaged.json can be read by others; run: chmod 600 damaged.json",
    }
    dead = {"expires_at": now - 5 * _HOUR, "issued_at": now - 6 * _HOUR, "next_rotation_at": None}
    unknown = dict.fromkeys(("issuer", "resource", "scope", "origins", "account", "generation", "failures"))
    return [
        row("active", now),
        row("ending", now, login_ends_at=now + 2 * _DAY, advice="refresher login ending"),
        row("secret", now, ends=[{"kind": "client_secret", "at": now + 3 * _DAY, "source": "server"}]),
        row("unused", now, ends=[{"kind": "refresh_token", "at": now + _DAY, "source": "server"}], login_ends_at=now + 40 * _DAY),
        row("failing", now, state="failing", error=error("transient", "503 Service Unavailable", now - 60, now + 200)),
        row("expired", now, state="failing", expires_at=now - 60, error=error("transient", "unreachable", now - 60, now + 2)),
        row("imported", now, issued_at=None, expires_at=None, generation=0),
        row("endless", now, expires_at=None),
        row("overdue", now, overdue=True, next_rotation_at=now - _HOUR),
        row("dead", now, state="reauthorization_required", error=ended, advice="refresher login dead", **dead),
        row("damaged", now, state="invalid_grant_file", error=invalid, **(unknown | dict.fromkeys(dead))),
    ]  # fmt: skip


def history(now: float) -> list[dict[str, Any]]:
    detail = "valid for 60 min; next rotation in 44 min"
    return [
        *(event("rotated", now - (20 - n) * _HOUR, n, outcome="rotated", detail=detail) for n in range(1, 10)),
        event("rotated", now - 10 * _HOUR, 12, outcome="rotated", detail=detail, demanded=True),
        *(
            event("failed", now - 9 * _HOUR + n, 12, outcome="transient", detail=f"no answer; next attempt in {n} s")
            for n in range(4)
        ),
        event(
            "failed", now - 5 * _HOUR, 12, outcome="reauthorization_required", detail="the server has ended the grant"
        ),
        event("state_changed", now - 5 * _HOUR, 12, state_before="active", state="reauthorization_required"),
        event("login_ending", now - 4 * _HOUR, 12, detail="the server ends this login in 59 min"),
    ]


def numbered(now: float, count: int) -> list[Row]:
    """Return grants of which every hundredth needs a person."""
    rows = [row(f"grant-{n:05}", now) for n in range(count)]
    for each in rows[50::100]:
        each |= {"state": "reauthorization_required", "advice": f"refresher login {each['name']}"}
    return rows


def open_first(tab: Tab, words: str = "New token") -> None:
    tab.evaluate("document.querySelector('.open').click()")
    tab.wait(f"document.querySelector('.details').innerText.includes({json.dumps(words)})")


def look_for_violations(tab: Tab) -> None:
    for width, dark in _LOOKS:
        tab.look(width=width, dark=dark)
        assert tab.violations() == [], (width, dark)
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), (width, dark)


def names(tab: Tab) -> list[str]:
    return list(tab.evaluate("[...document.querySelectorAll('.name')].map((name) => name.textContent)"))


def facts(tab: Tab, name: str) -> str:
    """Return the text of a grant."""
    shown: str = tab.evaluate(
        f"[...document.querySelectorAll('.grant')].find((e) => e.querySelector('.name').textContent === {json.dumps(name)}).innerText"
    )
    return shown


def search(tab: Tab, text: str) -> None:
    tab.evaluate("document.querySelector('[type=search]').focus()")
    tab.call("Input.insertText", text=text)


def _wait_for_count(tab: Tab, count: int) -> None:
    tab.wait(f"document.querySelector('[data-count=all]').textContent === '{count:,}'")


@pytest.mark.parametrize("count", [0, 1, 10_000])
def test_axe_finds_nothing_with_any_number_of_grants(opened: Callable[..., Tab], count: int) -> None:
    """If it failed, people who use a screen reader, a keyboard or low contrast could not read the page."""
    with PageServer(numbered(time.time(), count)) as server:
        look_for_violations(opened(server))


def test_axe_finds_nothing_in_any_state(opened: Callable[..., Tab]) -> None:
    """If it failed, a state, an open grant or a lost connection could not be read by everybody."""
    now = time.time()
    with PageServer(every_state(now)) as server:
        server.history["damaged"] = history(now)
        tab = opened(server)
        open_first(tab)
        look_for_violations(tab)
    tab.wait("document.body.dataset.link === 'lost'")
    look_for_violations(tab)


def test_odd_texts_stay_texts_and_break_no_layout(opened: Callable[..., Tab]) -> None:
    """If it failed, a server could run a script in the page, or hide what other grants need."""
    now = time.time()
    account = {"issuer": _ODD, "subject": _ODD, "label": _ODD}
    odd = row("n" * 64, now, state="failing", account=account, scope=_ODD, resource=f"https://{_ODD}", issuer=_ODD)
    odd |= {"error": error("transient", _ODD, 1e300, -1.0), "advice": "refresher login " + "n" * 64}
    endless = row("x", now, state="new_state", expires_at=1e300, next_rotation_at=1e300, login_ends_at=-1e300)
    with PageServer([odd, endless]) as server:
        server.history["n" * 64] = [event("failed", now - 60, outcome="transient", detail=_ODD), event(_ODD, 1e300)]
        tab = opened(server)
        open_first(tab, "WWW")
        look_for_violations(tab)
        assert tab.evaluate("document.querySelectorAll('#grants :is(img, script)').length") == 0
        assert "<img src=x" in tab.evaluate("document.querySelector('.error').textContent")
        assert facts(tab, "x").startswith("x\n")


def test_what_needs_a_person_comes_first_with_its_command(opened: Callable[..., Tab]) -> None:
    """If it failed, a person would not see at a glance what to do."""
    with PageServer(every_state(time.time())) as server:
        tab = opened(server)
        text = tab.text()
        assert text.index("2 of 11 grants need a person") < text.index("damaged")
        assert tab.evaluate("document.title") == "2 of 11 grants need a person - refresher"
        order = ["damaged", "dead", "expired", "failing", "imported", "overdue", "ending", "secret"]
        assert names(tab) == [*order, "active", "endless", "unused"]
        assert "refresher login dead" in facts(tab, "dead")
        for name, words in {
            "damaged": "Invalid grant file",
            "dead": "Needs a new login",
            "expired": "Failing, no valid token",
            "failing": "Failing, token still valid",
            "imported": "No token yet",
            "overdue": "Overdue: nobody refreshes it",
            "ending": "Fresh, login ends soon",
            "secret": "Fresh, client secret ends soon",
            "active": "40 min of 60 min left",
        }.items():
            assert words in facts(tab, name), name
        assert "Next token to expire: " in text
        assert "Grants are overdue" in text


def test_without_grants_the_page_says_how_to_begin(opened: Callable[..., Tab]) -> None:
    """If it failed, a new user would look at an empty page."""
    with PageServer() as server:
        assert "refresher login NAME URL" in opened(server).text()


def test_changes_appear_without_a_reload_and_are_announced(opened: Callable[..., Tab]) -> None:
    """If it failed, a person would look at an old state, or lose the place on the page with each change."""
    now = time.time()
    with PageServer([row("alpha", now), row("beta", now), row("gamma", now)]) as server:
        tab = opened(server)
        tab.evaluate("window.kept = true; document.querySelectorAll('.open')[2].focus(); null")
        server.send(row("gamma", now, state="failing", error=error("transient", "unreachable", now)), removed=["alpha"])
        tab.wait("document.querySelector('.name').textContent === 'gamma'")
        assert names(tab) == ["gamma", "beta"]
        assert "1 of 2 grants is failing" in tab.text()
        assert tab.evaluate("document.querySelector('[role=status]').textContent") == (
            "gamma: Failing, token still valid. alpha was removed."
        )
        assert tab.evaluate("document.activeElement.textContent") == "gamma"
        server.send(row("gamma", now))
        tab.wait("document.querySelector('h1').textContent === 'All 2 grants are fresh'")
        assert tab.evaluate("window.kept")


def test_a_grant_opens_by_keyboard_and_shows_its_day(opened: Callable[..., Tab]) -> None:
    """If it failed, nobody could see what happened last night without a mouse."""
    now = time.time()
    with PageServer([row("alpha", now, scope="mail.read")]) as server:
        server.history["alpha"] = history(now)
        tab = opened(server)
        for _ in range(20):
            tab.press("Tab")
            if tab.evaluate("document.activeElement.className") == "open":
                break
        tab.press("Enter")
        tab.wait("document.querySelector('.events li')")
        assert tab.evaluate("document.activeElement.ariaExpanded") == "true"
        lines = tab.evaluate("[...document.querySelectorAll('.events li')].map((line) => line.textContent.slice(5))")
        assert lines[0] == "The login ends soon: the server ends this login in 59 min"
        assert lines[1:3] == ["Now: Needs a new login", "Failed: the server has ended the grant"]
        assert re.fullmatch(r"Failed, 4 times since \d\d:\d\d: no answer", lines[3])
        assert lines[4:6] == ["New token, demanded by an agent", "No history of the generations 10 to 11"]
        assert lines[6].startswith("New token, 9 times since ")
        assert "mail.read" in facts(tab, "alpha")
        server.history["alpha"].append(event("removed", now))
        server.send(row("alpha", now, generation=13))
        tab.wait("document.querySelector('.events li').textContent.endsWith('Removed')")
        tab.press("Enter")
        assert tab.evaluate("document.querySelector('.details').hidden")


@pytest.mark.parametrize("secure", [True, False])
def test_a_command_is_copied(opened: Callable[..., Tab], secure: bool) -> None:
    """If it failed, the button beside a command would do nothing; over plain HTTP, a browser has no clipboard API."""
    with PageServer(every_state(time.time())) as server:
        tab = opened(server)
        tab.call("Page.bringToFront")
        if not secure:
            tab.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined}); true")
        tab.evaluate("[...document.querySelectorAll('[data-copy]')].find((b) => b.innerText.includes('dead')).focus()")
        tab.press("Enter")
        tab.wait("document.querySelector('[role=status]').textContent === 'Copied.'")
        tab.evaluate("document.querySelector('[type=search]').focus()")
        tab.call("Input.dispatchKeyEvent", type="keyDown", commands=["paste"])
        tab.wait("document.querySelector('[type=search]').value === 'refresher login dead'")


def test_times_are_right_although_the_clock_of_the_browser_is_wrong(opened: Callable[..., Tab]) -> None:
    """If it failed, a wrong clock on a laptop would show valid tokens as expired."""
    with PageServer(clock=-3 * _DAY) as server:
        server.rows["alpha"] = row("alpha", server.now)
        tab = opened(server)
        assert "40 min of 60 min left" in facts(tab, "alpha")
        assert "in 25 min" in facts(tab, "alpha")


def test_times_are_right_after_a_suspend(opened: Callable[..., Tab]) -> None:
    """If it failed, a laptop that was asleep for an hour would show an expired token as valid."""
    with PageServer([row("alpha", time.time())]) as server:
        tab = opened(server)
        assert "40 min of 60 min left" in facts(tab, "alpha")
        server.clock += _HOUR
        tab.evaluate("before = Date.now; Date.now = () => before() + 3_600_000; null")
        tab.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        tab.wait("document.querySelector('.expires').textContent.startsWith('expired 20 min ago')")


def test_a_connection_that_ends_without_a_sign_is_noticed(opened: Callable[..., Tab]) -> None:
    """If it failed, the page would say that it is live although nothing reaches it any more."""
    with PageServer([row("alpha", time.time())]) as server:
        tab = opened(server)
        server.answers = False
        tab.evaluate("before = Date.now; Date.now = () => before() + 60_000; null")
        tab.evaluate("steady = performance.now.bind(performance); performance.now = () => steady() + 60_000; null")
        tab.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        tab.wait("document.querySelector('[role=status]').textContent.endsWith('The connection to refresher is back.')")


def test_a_lost_connection_is_shown_and_comes_back_by_itself(opened: Callable[..., Tab]) -> None:
    """If it failed, a person would believe old rows, or would have to reload after each restart of refresher."""
    now = time.time()
    with PageServer([row("alpha", now)]) as server:
        tab = opened(server)
        tab.evaluate("window.kept = true")
    tab.wait("document.body.dataset.link === 'lost' && !document.querySelector('#lost').hidden")
    assert "No connection to refresher for" in tab.text()
    assert "Connection lost at" in tab.text()
    assert names(tab) == ["alpha"]
    with PageServer([row("alpha", now), row("beta", now)], port=server.port):
        tab.wait("document.body.dataset.link === 'live'")
        _wait_for_count(tab, 2)
        assert tab.evaluate("window.kept && document.querySelector('#lost').hidden")


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        ((403, "403 Forbidden: set page_token_file"), "set page_token_file. Then reload this page."),
        ((401, "401 Unauthorized"), "Reload this page, and enter the page token as the password."),
    ],
)
def test_a_refusal_says_what_to_do(opened: Callable[..., Tab], refusal: tuple[int, str], words: str) -> None:
    """If it failed, a person whose page token has changed would wait in vain."""
    with PageServer([row("alpha", time.time())]) as server:
        tab = opened(server)
        server.refusal = refusal
        server.cut()
        tab.wait(f"document.querySelector('#lost').textContent.includes({json.dumps(words)})")


def test_a_refusal_that_passes_needs_no_reload(opened: Callable[..., Tab]) -> None:
    """If it failed, a page that found all places taken would stay without grants for ever."""
    with PageServer([row("alpha", time.time())]) as server:
        tab = opened(server)
        server.refusal = (503, "503 Service Unavailable: too many pages are open; close one")
        server.cut()
        tab.wait("document.querySelector('#lost').textContent.includes('too many pages are open')")
        server.refusal = None
        tab.wait("document.body.dataset.link === 'live'")


def test_ten_thousand_grants_stay_usable(opened: Callable[..., Tab]) -> None:
    """If it failed, a large installation would freeze the browser, or could not find a grant."""
    now = time.time()
    with PageServer(numbered(now, 10_000)) as server:
        tab = opened(server)
        assert len(names(tab)) == 100
        assert "100 of 10,000 grants need a person" in tab.text()
        tab.evaluate("document.querySelector('#next').click()")
        assert names(tab)[0] == "grant-00000"
        assert "101 to 200 of 10,000" in tab.text()
        assert tab.evaluate("document.activeElement.id") == "list"
        tab.evaluate("document.querySelector('[value=person]').click()")
        assert names(tab)[-1] == "grant-09950"
        tab.evaluate("document.querySelector('[value=all]').click()")
        search(tab, "grant-0777")
        assert names(tab) == [f"grant-0777{n}" for n in range(10)]
        server.send(row("grant-07779", now, state="failing", error=error("transient", "unreachable", now)))
        tab.wait("document.querySelector('.name').textContent === 'grant-07779'")
        search(tab, "no such grant")
        assert "No grant matches." in tab.text()
        tab.evaluate("document.querySelector('[type=reset]').click()")
        tab.wait("document.querySelectorAll('.grant').length === 100")


def test_the_page_of_a_running_refresher(browser: Browser, refresher: Command) -> None:
    """If it failed, the page would not work with the server, the token and the stream of refresher itself."""
    token = "a-token-of-the-page-1"
    file = refresher.home / "page-token"
    file.write_text(token)
    file.chmod(0o600)
    options = ("--page-token-file", str(file), "--listen")
    with TokenServer(lambda _: 3600.0) as server:
        refresher.bring("linear", server.grant("linear"))
        with running(refresher, *options, "127.0.0.1:0") as process:
            address = heard(process, "the page http")[-1].strip().removesuffix("/").rpartition("//")[2]
            with Tab(browser, f"http://me:{token}@{address}/") as tab:
                tab.wait("document.querySelector('h1').textContent === 'The grant is fresh'")
                assert "of 60 min left" in facts(tab, "linear")
                open_first(tab)
                refresher.bring("notion", LIVE)
                tab.wait("document.querySelector('h1').textContent === 'All 2 grants are fresh'")
                refresher("remove", "notion")
                tab.wait("document.querySelector('h1').textContent === 'The grant is fresh'")
                stopped(refresher, process)
                tab.wait("document.body.dataset.link === 'lost'")
                with running(refresher, *options, address) as again:
                    tab.wait("document.body.dataset.link === 'live'")
                    assert tab.violations() == []
                    stopped(refresher, again)


def test_the_scripted_rows_are_those_of_refresher() -> None:
    """If it failed, the tests of the page would show rows that refresher never sends."""
    fields = fields_of("alpha", GrantFileError("damaged"), overdue=False) | {"advice": None}
    assert fields.keys() == row("alpha", 0.0).keys()
