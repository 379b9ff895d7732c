"""Authorization servers that cannot be reached: nothing listens, no such host, no trusted certificate, a proxy refuses."""

import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.command import Command
from tests.support.keys import server_context
from tests.support.oidc import OIDC
from tests.support.proxied import fingerprint, outcomes, presented_at, set_token_endpoint
from tests.support.proxy import (
    Fault,
    Proxy,
    answers,
    closes_before,
    cuts_handshake,
    resets_before,
    speaks_no_tls,
    tunnels,
)

Start = Callable[..., OIDC]

PAGE = b"<html><title>Welcome to our network</title>Please accept our terms.</html>"
HTML = ["Content-Type: text/html"]


class Authority(NamedTuple):
    """A self-signed certificate for two hosts, and the context of a server with it."""

    certificate: Path
    context: ssl.SSLContext


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    certificate = tmp_path_factory.mktemp("authority") / "certificate.pem"
    return Authority(certificate, server_context(certificate, "localhost", "as.invalid"))


CASES: dict[str, tuple[Sequence[Fault], str]] = {
    "nothing listens": ((), "localhost"),
    "no such host": ((), "as.invalid"),
    "unknown authority": ((), "localhost"),
    "certificate for another host": ((), "127.0.0.1"),
    "handshake cut": ((cuts_handshake,), "localhost"),
    "no TLS": ((speaks_no_tls,), "localhost"),
}


@pytest.mark.parametrize("case", CASES)
def test_an_unreachable_server_puts_no_grant_in_doubt(
    refresher: Command, oidc: OIDC, authority: Authority, case: str
) -> None:
    """If it failed, a DNS failure would put every grant in doubt, or a refresh token would go to another server (I8)."""
    faults, host = CASES[case]
    trusting = ("--ca-file", str(authority.certificate))
    with Proxy(oidc.endpoints["token_endpoint"], *faults, tls=authority.context) as proxy:
        endpoint = proxy.url.replace("localhost", host)
        more = {"token_endpoint": endpoint, "access_token": "a-live-access-token", "expires_in": 3600}
        refresher.import_grant("linear", oidc.mint() | more)
        token = fingerprint(refresher, "linear")
        if case == "nothing listens":
            proxy.down()
        options = () if case == "unknown authority" else trusting
        done = refresher(*options, "run-once", "--force", "--json")
        assert (done.code, outcomes(done)) == (4, {"linear": "transient"}), done.stdout
        assert "nothing was sent" in done.results["linear"]["detail"]
        assert proxy.requests == []
        grant, published = refresher.grant("linear"), refresher.token("linear")
        assert (grant.doubt, grant.generation, fingerprint(refresher, "linear")) == (None, 0, token)
        assert (published.state, published.access_token) == ("failing", "a-live-access-token")
        assert refresher.leftovers() == []
        if case == "nothing listens":
            proxy.up()
        if endpoint != proxy.url:
            set_token_endpoint(refresher, "linear", proxy.url)
        done = refresher(*trusting, "run-once", "--force", "--json")
        assert (done.code, outcomes(done)) == (0, {"linear": "rotated"}), done.stdout
    assert oidc.introspect(refresher.token("linear").access_token)["active"]
    assert len(presented_at(oidc, token)) == 1


def test_a_proxy_of_the_environment_never_receives_a_token(
    refresher: Command, oidc: OIDC, authority: Authority
) -> None:
    """If it failed, a company proxy that refuses connections would put every grant in doubt, or read its tokens (I8)."""
    trusting = ("--ca-file", str(authority.certificate))
    refusals = [answers("407 Proxy Authentication Required", PAGE, HTML), answers("502 Bad Gateway", PAGE, HTML)]
    refusals += [closes_before, resets_before, answers("200 OK", b"")]
    with (
        Proxy(oidc.endpoints["token_endpoint"], tls=authority.context) as server,
        Proxy(server.url, *refusals, tunnels) as gateway,
    ):
        refresher.import_grant("linear", oidc.mint() | {"token_endpoint": "https://as.invalid/token"})
        token = refresher.refresh_token("linear")
        environment = {"HTTPS_PROXY": gateway.url.removesuffix("/token")}
        for _ in refusals:
            done = refresher(*trusting, "run-once", "--force", "--json", environment=environment)
            assert (done.code, outcomes(done)) == (4, {"linear": "transient"}), done.stdout
            assert "nothing was sent" in done.results["linear"]["detail"]
            assert refresher.grant("linear").doubt is None
        assert server.connections == 0
        done = refresher(*trusting, "run-once", "--force", "--json", environment=environment)
        assert (done.code, outcomes(done)) == (0, {"linear": "rotated"}), done.stdout
        assert len(server.requests) == 1
        assert gateway.requests[0].startswith(b"CONNECT as.invalid:443 ")
        seen = b"".join(gateway.requests)
        assert token.encode() not in seen
        assert b"refresh_token" not in seen
    assert oidc.introspect(refresher.token("linear").access_token)["active"]
