"""Redirects, metadata and edited records that name another token endpoint (I8)."""

import json
import re
import signal
import socket
from collections.abc import Callable

import pytest

from tests.conftest import need
from tests.support.command import Command, wait_until
from tests.support.daemon import running
from tests.support.oidc import OIDC
from tests.support.parts import no_strace
from tests.support.proxied import is_accepted, live_grants_behind_proxies, outcomes, set_token_endpoint
from tests.support.proxy import Proxy, answers, passes
from tests.support.raw_server import RawServer
from tests.support.token_server import TokenServer

Start = Callable[..., OIDC]


def foreign_server() -> RawServer:
    """Return another server, which records each connection, with or without a request."""
    return RawServer(lambda *_: None, marker=b"")


def test_a_redirect_to_another_origin_is_never_requested(refresher: Command, own_oidc: Start) -> None:
    """If it failed, one forged redirect of a token endpoint could send refresh tokens to another server (I8)."""
    server = own_oidc()
    with foreign_server() as foreign:
        there = [f"Location: {foreign.token_endpoint}"]
        redirects = [answers(status, b"", there) for status in ("302 Found", "303 See Other")]
        redirects += [answers(status, b"", there) for status in ("307 Temporary Redirect", "308 Permanent Redirect")]
        with live_grants_behind_proxies(refresher, server, {"linear": redirects[0]}) as proxies:
            proxies["linear"].faults.extend(redirects[1:])
            before = refresher.token("linear").access_token
            for _ in redirects:
                done = refresher("run-once", "--force", "--json")
                assert (done.code, outcomes(done)) == (4, {"linear": "transient"}), done.stdout
                assert "redirect" in done.results["linear"]["detail"]
                assert refresher.grant("linear").doubt is None
                assert refresher.token("linear").access_token == before
            assert is_accepted(refresher, server, "linear")
            # Without the redirect, the grant rotates: no person is needed, and no refresh token was spent.
            done = refresher("run-once", "--force", "--json")
            assert (done.code, outcomes(done)) == (0, {"linear": "rotated"}), done.stdout
        assert foreign.requests == []
    assert (server.log()["presented_twice"], len(server.requests())) == (0, 2)


def test_metadata_never_changes_the_token_endpoint_of_a_grant(refresher: Command, own_oidc: Start) -> None:
    """If it failed, an attacker who changes a metadata document could receive every refresh token (I8)."""
    server = own_oidc()

    def metadata(connection: socket.socket, _: bytes) -> None:
        other = foreign.token_endpoint.removesuffix("/token")
        body = json.dumps({"issuer": other, "token_endpoint": foreign.token_endpoint}).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)

    with (
        foreign_server() as foreign,
        RawServer(metadata, marker=b"\r\n\r\n") as issuer,
        Proxy(server.endpoints["token_endpoint"], passes, answers("404 Not Found", b"it has moved")) as proxy,
    ):
        endpoints = {"issuer": issuer.token_endpoint.removesuffix("/token"), "token_endpoint": proxy.url}
        refresher.import_grant("linear", server.mint() | endpoints)
        tokens = {refresher.refresh_token("linear")}
        assert refresher("run-once").code == 0
        tokens.add(refresher.refresh_token("linear"))
        # A client could look for a new endpoint if it gets a 404, or if the host is down.
        assert outcomes(refresher("run-once", "--force", "--json")) == {"linear": "transient"}
        proxy.down()
        assert outcomes(refresher("run-once", "--force", "--json")) == {"linear": "transient"}
        assert is_accepted(refresher, server, "linear")
        proxy.up()
        assert outcomes(refresher("run-once", "--force", "--json")) == {"linear": "rotated"}
        assert foreign.requests == []
        assert not [request for request in issuer.requests if any(token.encode() in request for token in tokens)]
        assert refresher.grant("linear").token_endpoint == proxy.url
    assert server.log()["presented_twice"] == 0


CHANGED = [
    "http://192.0.2.1/token",
    "http://as.invalid/token",
    "http://127.0.0.1.as.invalid/token",
    "https://as.invalid/token#part",
    "ftp://as.invalid/token",
    "https://user@as.invalid/token",
]


@pytest.mark.parametrize("endpoint", CHANGED)
def test_an_endpoint_that_was_changed_by_hand_is_not_even_looked_up(refresher: Command, endpoint: str) -> None:
    """If it failed, an edited record would send a refresh token unencrypted, or stop every other grant (I8)."""
    need(no_strace())
    trace = refresher.home / "trace"
    with TokenServer(lambda _: 3600) as server:
        live = {"access_token": "a-live-access-token", "expires_in": 3600}
        refresher.import_grant("linear", server.grant("linear", **live))
        refresher.import_grant("other", server.grant("other"))
        set_token_endpoint(refresher, "linear", endpoint)
        prefix = ("strace", "-f", "-qq", "-o", str(trace), "-e", "trace=connect,sendto,sendmsg,sendmmsg")
        done = refresher.finish(refresher.start("run-once", "--force", "--json", prefix=prefix))
        # A DNS lookup would use the network, or a local socket.
        reached = re.findall(r"sa_family=(AF_UNIX|AF_INET6?).*?(?:htons\((\d+)\)|})", trace.read_text())
        assert set(reached) == {("AF_INET", server.token_endpoint.split(":")[2].partition("/")[0])}
    assert (done.code, outcomes(done)) == (4, {"linear": "transient", "other": "rotated"}), done.stdout
    assert "nothing was sent: the token_endpoint must" in done.results["linear"]["detail"]
    token = refresher.token("linear")
    assert (token.state, token.access_token) == ("failing", live["access_token"])
    assert (list(server.asked), refresher.grant("linear").doubt) == (["other"], None)
    assert refresher.leftovers() == []


def test_a_daemon_keeps_running_with_a_record_whose_endpoint_is_not_allowed(refresher: Command) -> None:
    """If it failed, one invalid record would stop the daemon, and no grant would be rotated."""
    with TokenServer(lambda _: 3600) as server:
        for name in ("linear", "other"):
            refresher.import_grant(name, server.grant(name))
        set_token_endpoint(refresher, "linear", "ftp://as.invalid/token")
        with running(refresher) as process:
            tokens = [refresher.state / f"tokens/{name}.json" for name in ("linear", "other")]
            wait_until(
                lambda: all(token.exists() for token in tokens) or process.poll() is not None,
                "both token files are published",
            )
            assert process.poll() is None, "the daemon has ended"
            process.send_signal(signal.SIGTERM)
            done = refresher.finish(process)
    assert done.code == 0
    assert (refresher.token("linear").state, refresher.token("other").state) == ("failing", "active")
    assert list(server.asked) == ["other"]
