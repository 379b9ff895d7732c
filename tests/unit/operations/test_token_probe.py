"""Trying a token: certificates, proxies, and a server that sends slowly."""

import logging
import socket
from pathlib import Path

import pytest

from refresher.common.errors import ConfigError
from refresher.operations.token_probe import is_refused
from tests.support.keys import server_context
from tests.support.proxy import Connection, Proxy, answers, tunnels

NOWHERE = "http://127.0.0.1:9"
REFUSES = answers("401 Unauthorized", b"", ['WWW-Authenticate: Bearer error="invalid_token"'])


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def refused(url: str, ca_file: Path | None = None, *, timeout: float = 60.0) -> bool:
    return is_refused(
        url,
        "Bearer a-token",
        ca_file=None if ca_file is None else str(ca_file),
        timeout=timeout,
        stopping=lambda: False,
    )


def test_the_certificates_of_the_configuration_are_trusted(tmp_path: Path) -> None:
    """If it failed, a token could be sent to a server that nobody has verified, or never be tried at a private one."""
    trusted = tmp_path / "ca.pem"
    with Proxy(NOWHERE, otherwise=REFUSES, tls=server_context(trusted, "localhost")) as server:
        url = server.url.replace("http://127.0.0.1", "https://localhost")
        assert not refused(url)
        assert server.requests == []
        assert refused(url, trusted)
        assert b"Authorization: Bearer a-token\r\n" in server.requests[0]
    with pytest.raises(ConfigError, match="cannot read"):
        refused(url, tmp_path / "none.pem")


def test_a_proxy_is_used_as_for_a_rotation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, no token could be tried from a network that needs a proxy, and a revoked one would be printed."""
    trusted = tmp_path / "ca.pem"
    context = server_context(trusted, "mcp.invalid")
    with Proxy(NOWHERE, otherwise=REFUSES, tls=context) as server, Proxy(server.url, otherwise=tunnels) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("http://", "http://user:pass%20word@"))
        assert refused("https://mcp.invalid/mcp?key=1", trusted)
        assert proxy.requests[0].startswith(b"CONNECT mcp.invalid:443 HTTP/1.")
        assert b"\r\nProxy-Authorization: Basic dXNlcjpwYXNzIHdvcmQ=\r\n" in proxy.requests[0]
        assert server.requests[0].startswith(b"GET /mcp?key=1 HTTP/1.1\r\n")
        assert b"Proxy-Authorization" not in server.requests[0]
    with Proxy(NOWHERE, otherwise=REFUSES) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        assert refused("http://mcp.invalid:81/mcp?key=1")
        assert proxy.requests[0].startswith(b"GET http://mcp.invalid:81/mcp?key=1 HTTP/1.1\r\n")
        assert b"\r\nHost: mcp.invalid:81\r\n" in proxy.requests[0]
        monkeypatch.setenv("NO_PROXY", "mcp.invalid")
        assert not refused("http://mcp.invalid:81/mcp")
        assert len(proxy.requests) == 1


def test_a_proxy_that_it_cannot_use_is_named(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """If it failed, a person would believe that --verify works."""
    monkeypatch.setattr(logging.getLogger("refresher"), "propagate", True)
    monkeypatch.setenv("ALL_PROXY", "socks5://user:password@127.0.0.1:9")
    assert not refused("https://mcp.invalid/mcp?key=1")
    # A set: another test of the process can have added a handler of its own.
    assert set(caplog.messages) == {
        "did not try the token at mcp.invalid: it uses HTTP proxies only; add the server to NO_PROXY"
    }


def test_an_ipv6_address_without_a_port_is_one_host() -> None:
    """If it failed, the token would be sent to the host and the port that the address seems to consist of."""
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as other:
        other.setblocking(False)
        assert not refused(f"http://[::1:{other.getsockname()[1]}]/mcp")
        with pytest.raises(BlockingIOError):
            other.accept()


def test_a_server_that_sends_slowly_ends_in_time() -> None:
    """If it failed, a server that sends one byte a second would hold up the helper until its program kills it."""

    def drips(connection: Connection) -> None:
        connection.request()
        for byte in b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer\r\n" * 100:
            connection.client.sendall(bytes([byte]))
            connection.pause(0.05)  # this is the fault, not a wait

    with Proxy(NOWHERE, otherwise=drips) as server:
        assert not refused(server.url, timeout=0.3)
