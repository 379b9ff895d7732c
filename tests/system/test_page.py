"""The page of the daemon over HTTP: what it serves, to whom, and how it follows what happens."""

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import httpx
import pytest

from tests.support.command import Command, wait_until
from tests.support.daemon import heard, running, stopped
from tests.support.token_server import TokenServer
from tests.support.unreachable import LIVE

TOKEN: Final = "a-token-of-the-page-1"
PAGES: Final = ("/", "/page.css", "/page.js", "/stream", "/history?name=linear")
HEADERS: Final = {
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; frame-ancestors 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
    "server": "refresher",
}


def url_of(process: subprocess.Popen[str]) -> str:
    """Return the URL of the page, from the log."""
    found = re.search(r"(http://\S+)/healthz, ", heard(process, "/healthz")[-1])
    assert found is not None
    return found[1].replace("0.0.0.0", "127.0.0.1")


def statuses(url: str, **headers: str) -> set[int]:
    """Return the statuses of all pages that show grants."""
    found = set()
    for path in PAGES:
        with httpx.stream("GET", f"{url}{path}", headers=headers, trust_env=False, timeout=60) as answer:
            found.add(answer.status_code)
    return found


@contextmanager
def viewed(url: str) -> Iterator[Iterator[tuple[str, dict[str, Any]]]]:
    """Open the stream, and give its events."""

    def events(lines: Iterator[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        for line in lines:
            if line.startswith("event: "):
                yield line.removeprefix("event: "), json.loads(next(lines).removeprefix("data: "))

    with httpx.stream("GET", f"{url}/stream", trust_env=False, timeout=60) as answer:
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        yield events(answer.iter_lines())


def test_the_page_follows_what_happens(refresher: Command) -> None:
    """If it failed, a person who looks at the page would not see a rotation, a login or a removal."""
    with TokenServer(lambda _: 3600.0) as server:
        refresher.bring("linear", server.grant("linear"))
        with running(refresher, "--listen", "127.0.0.1:0") as process:
            url = url_of(process)
            page = httpx.get(f"{url}/", trust_env=False, verify=False, timeout=60)
            assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
            assert {name: page.headers[name] for name in HEADERS} == HEADERS
            assert "access-control-allow-origin" not in page.headers
            for name in re.findall(r'(?:href|src)="([^"]+)"', page.text):
                assert httpx.get(f"{url}/{name}", trust_env=False, verify=False, timeout=60).status_code == 200
            with viewed(url) as events:
                kind, data = next(events)
                assert (kind, [grant["name"] for grant in data["grants"]]) == ("snapshot", ["linear"])
                while data["grants"][0]["generation"] < 1:
                    kind, data = next(events)
                refresher.bring("notion", LIVE)
                while [grant["name"] for grant in data["grants"]] != ["notion"]:
                    kind, data = next(events)
                assert (kind, data["grants"][0]["advice"]) == ("change", None)
                (shown,) = json.loads(refresher("status", "--json", "notion").stdout)["grants"]
                assert data["grants"][0] == shown | {"advice": None}
                refresher("remove", "notion")
                while data.get("removed") != ["notion"]:
                    kind, data = next(events)
            stopped(refresher, process)


def test_a_stop_and_a_reload_do_not_wait_for_an_open_page(refresher: Command) -> None:
    """If it failed, a browser that nobody closed would delay each stop until the supervisor kills."""
    refresher.bring("linear", LIVE)
    with running(refresher, "--listen", "127.0.0.1:0") as process, viewed(url_of(process)) as events:
        next(events)
        process.send_signal(signal.SIGHUP)
        heard(process, "configuration reloaded")
        assert "stopped" in stopped(refresher, process)
        with suppress(httpx.TransportError):  # no more than the end of the stream
            assert list(events) == []


def test_another_machine_needs_the_token(refresher: Command) -> None:
    """If it failed, everybody in the network could read whose accounts these are."""
    refresher.bring("linear", LIVE)
    file = refresher.home / "page-token"
    file.write_text(f"{TOKEN}\n")
    file.chmod(0o600)
    config = refresher.home / ".config/refresher/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('listen = "0.0.0.0:0"\n')
    with running(refresher) as process:
        line = heard(process, "/healthz")[-1]
        assert "and no page: at this address it needs page_token_file" in line
        url = line.split()[3].removesuffix("/healthz,").replace("0.0.0.0", "127.0.0.1")
        assert statuses(url) == {403}
        refused = httpx.get(f"{url}/", trust_env=False, verify=False, timeout=60).text
        assert "set page_token_file (--page-token-file" in refused
        assert httpx.get(f"{url}/readyz", trust_env=False, verify=False, timeout=60).status_code == 200
        config.write_text('listen = "0.0.0.0:0"\npage_token_file = "../../page-token"\n')
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: statuses(url) == {401}, "the token is in use")
        asked = httpx.get(f"{url}/", trust_env=False, verify=False, timeout=60)
        assert asked.headers["www-authenticate"] == 'Basic realm="refresher", charset="UTF-8"'
        assert statuses(url, authorization="Bearer a-wrong-token-of-somebody") == {401}
        assert statuses(url, authorization=f"Bearer {TOKEN}") == {200}
        assert httpx.get(f"{url}/", auth=("me", TOKEN), trust_env=False, verify=False, timeout=60).status_code == 200
        assert httpx.get(f"{url}/readyz", trust_env=False, verify=False, timeout=60).status_code == 200
        file.chmod(0o644)
        assert "page-token: other users can read it; run 'chmod 600' on it" in heard(process, "page token")[-1]
        assert statuses(url, authorization=f"Bearer {TOKEN}") == {403}
        log = stopped(refresher, process)
        assert "a-wrong-token-of-somebody" not in log
        assert TOKEN not in log


@pytest.mark.parametrize("how", ["option", "environment"])
def test_a_token_is_asked_for_on_this_machine_too(refresher: Command, how: str) -> None:
    """If it failed, other users of a shared machine could read the page although it has a token."""
    file = refresher.home / "page-token"
    file.write_text(TOKEN)
    file.chmod(0o600)
    arguments = ("--page-token-file", str(file)) if how == "option" else ()
    environment = {} if arguments else {"REFRESHER_PAGE_TOKEN_FILE": str(file)}
    with running(refresher, "--listen", "127.0.0.1:0", *arguments, environment=environment) as process:
        url = url_of(process)
        assert statuses(url) == {401}
        assert statuses(url, authorization=f"Bearer {TOKEN}") == {200}
        stopped(refresher, process)


def test_another_website_cannot_use_the_page(refresher: Command) -> None:
    """If it failed, a website that a person visits could read their grants, or hold the streams of the page."""
    with running(refresher, "--listen", "127.0.0.1:0") as process:
        url = url_of(process)
        assert statuses(url, **{"Sec-Fetch-Site": "cross-site"}) == {403}
        assert statuses(url, Host="attacker.example") == {421}
        assert statuses(url, **{"Sec-Fetch-Site": "same-origin"}) == {200}
        stopped(refresher, process)
