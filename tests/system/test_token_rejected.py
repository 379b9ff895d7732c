"""An authorization server that renews each token, and a resource server that refuses each of them."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx
import pytest

from refresher.common import clocks
from refresher.grants import policy
from shim import FileTokenSource
from shim.httpx import BearerAuth
from tests.support.command import Command, wait_until
from tests.support.daemon import heard, stopped
from tests.support.listener import Listening
from tests.support.token_server import TokenServer

Daemon = Callable[..., subprocess.Popen[str]]

LIFE = 32.0
"""Seconds: agents that demand each token get one every 8 s, and one is due after 24 s."""


class Resource(Listening):
    """Answers 401 while ``refuses``, else 200."""

    def __init__(self) -> None:
        self.refuses = True
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(401 if server.refuses else 200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  http.server's signature
                return

        super().__init__(Handler)


@pytest.fixture
def resource() -> Iterator[Resource]:
    """A resource server that refuses every token."""
    with Resource() as running:
        yield running


@pytest.fixture
def server() -> Iterator[TokenServer]:
    """An authorization server that always renews."""
    with TokenServer(lambda _: LIFE) as running:
        yield running


def use(refresher: Command, resource: Resource) -> int:
    """Send a request as an agent does; return the status of the answer."""
    source = FileTokenSource("linear", tokens_dir=refresher.tokens, demands_dir=refresher.state / "demands")
    with httpx.Client(auth=BearerAuth(source, wait=0)) as client:
        return client.get(resource.url).status_code


def rotated(refresher: Command, generation: int) -> dict[str, Any]:
    """Run once when a demand for a newer token than that before ``generation`` is followed; return the result."""

    def is_followed() -> bool:
        return policy.decide(refresher.grant("linear"), clocks.now(), demanded=True) == policy.Rotate(
            "first" if generation == 1 else "demanded"
        )

    wait_until(is_followed, f"a demand leads to generation {generation}")
    result: dict[str, Any] = refresher("run-once", "--json").results["linear"]
    assert result["generation"] == generation
    return result


def refused_twice(refresher: Command, resource: Resource, server: TokenServer) -> None:
    """Import linear, and have an agent refused two of its tokens in a row; refresher has not seen the second demand."""
    refresher.import_grant("linear", server.grant("linear", server_url=f"{resource.url}/mcp"))
    for generation in (1, 2):
        assert rotated(refresher, generation)["outcome"] == "rotated"
        assert use(refresher, resource) == 401
        assert (refresher.state / f"demands/linear.{generation}").read_text() == resource.url


def test_every_page_says_that_a_server_refuses_each_token(
    refresher: Command, resource: Resource, server: TokenServer
) -> None:
    """If it failed, a grant whose every token is refused would look healthy, while agents can do nothing."""
    refused_twice(refresher, resource, server)
    words = f"linear's tokens are refused by {resource.url}; 'refresher login linear' usually helps"
    result = rotated(refresher, 3)
    assert result["outcome"] == "token_rejected"
    assert words in result["detail"]
    again = refresher("run-once", "--json")
    assert (again.code, again.outcome) == (4, "token_rejected"), "only the rotation says so"
    token = refresher.token("linear")
    assert token.error is not None
    assert (token.state, token.error.code, token.error.description) == ("failing", "token_rejected", words)
    (grant,) = json.loads(refresher("status", "--json").stdout)["grants"]
    assert (grant["state"], grant["error"]["code"], grant["failures"]) == ("failing", "token_rejected", 0)
    assert words in refresher("status").stdout
    record = refresher.grant("linear")
    assert (record.failures, record.failure) == (0, None), "the backoff of refreshes changes"


def test_tokens_that_expire_too_soon_for_a_script_are_not_refused(refresher: Command) -> None:
    """If it failed, a script with a long --min-valid would make a healthy login look as if a server refused it."""
    with TokenServer(lambda _: 8) as server:
        refresher.import_grant("linear", server.grant("linear"))

        def is_demanded_often() -> bool:
            refresher("token", "linear", "--min-valid", "7.9", "--wait", "3")
            return refresher.grant("linear").demanded > 1

        wait_until(is_demanded_often, "two tokens in a row are demanded")
        assert (refresher.grant("linear").token_rejected, refresher.token("linear").state) == (None, "active")


def test_a_new_login_ends_the_rejection(refresher: Command, resource: Resource, server: TokenServer) -> None:
    """If it failed, a grant would be reported as refused after the login that repaired it."""
    refused_twice(refresher, resource, server)
    rotated(refresher, 3)
    refresher.import_grant("linear", server.grant("linear", server_url=f"{resource.url}/mcp"), "--replace")
    assert refresher("run-once", "--json").outcome == "rotated"
    assert (refresher.token("linear").state, refresher.token("linear").error) == ("active", None)


def test_the_service_names_the_grant_stays_ready_and_recovers(
    refresher: Command, daemon: Daemon, resource: Resource, server: TokenServer
) -> None:
    """If it failed, an alarm would restart a service that works, or never end after the server accepts tokens again."""
    refused_twice(refresher, resource, server)
    process = daemon()
    heard(process, "token_rejected")
    wait_until(lambda: _health(refresher).get("token_rejected") == ["linear"], "the page names the grant")
    shown = refresher("health")
    assert shown.code == 0, shown.stdout
    assert "tokens refused: linear" in shown.stdout
    health = _health(refresher)
    assert (health["ready"], health["waiting"], health["reauthorization_required"]) == (True, [], [])
    resource.refuses = False
    wait_until(lambda: refresher.token("linear").generation >= 4, "the next scheduled rotation")
    wait_until(lambda: _health(refresher)["token_rejected"] == [], "the page does not name the grant any more")
    assert (refresher.token("linear").state, refresher.token("linear").error) == ("active", None)
    assert use(refresher, resource) == 200
    stopped(refresher, process)


def _health(refresher: Command) -> dict[str, Any]:
    health: dict[str, Any] = json.loads(refresher("health", "--json").stdout)
    return health


def _a_fifo(path: Path) -> None:
    os.mkfifo(path)


def _a_link(path: Path) -> None:
    elsewhere = path.parent.parent / "elsewhere"
    elsewhere.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(elsewhere)


def _too_long(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" " * 1024)


def _another_origin(path: Path) -> None:
    path.write_text("https://bank.example/?call=+15550100")


@pytest.mark.parametrize("change", [_a_fifo, _a_link, _too_long, _another_origin])
def test_a_demand_that_holds_something_else_is_a_demand_that_names_nobody(
    refresher: Command, resource: Resource, server: TokenServer, change: Callable[[Path], None]
) -> None:
    """If it failed, an agent could block refresher, or write its own words into the messages to a person."""
    refused_twice(refresher, resource, server)
    demand = refresher.state / "demands/linear.2"
    if change is _a_fifo:
        demand.unlink()
    change(demand)
    result = rotated(refresher, 3)
    assert result["outcome"] == "token_rejected"
    assert "linear's tokens are refused (agents demand each new one before it is due)" in result["detail"]
