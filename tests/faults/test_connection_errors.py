"""The messages of broken connections name host, port and cause in plain words; each is tested with a real server."""

import gc
import socket
import ssl
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from refresher.common.errors import ServerAway
from refresher.grants.outcome import ClientRejected, NotSent, describe
from refresher.login.http_client import fetch
from refresher.oauth.token_request import request_tokens
from tests.support.hooks import Recording
from tests.support.keys import server_context
from tests.support.proxy import (
    Connection,
    Fault,
    Proxy,
    answers,
    closes_before,
    hangs,
    refuses,
    resets_before,
    speaks_no_tls,
)
from tests.support.samples import grant

INTERNAL = ("Error", "Errno", "_ssl", "SSL:", "Timeout", "httpx", "httpcore", "Exception")


def sends(data: bytes) -> Fault:
    """Answer with bytes, and close."""

    def send(connection: Connection) -> None:
        connection.request()
        connection.client.sendall(data)

    return send


def alerts(connection: Connection) -> None:
    """Answer as a TLS server answers plain HTTP: with an alert, which here contains a line feed."""
    connection.request()
    connection.client.sendall(b"\x15\x03\x01\x00\x02\x02\x46\r\n\r\n")


def closes_at_once(connection: Connection) -> None:
    """Close in the middle of the TLS handshake."""
    connection.plain.recv(65536)


def from_rotation(url: str, ca_file: str | None, limit: float = 60) -> str:
    """Return the message of a rotation whose deadline is ``limit`` seconds."""
    outcome = request_tokens(grant(token_endpoint=url), ca_file=ca_file, hooks=Recording(), deadline=limit).outcome
    assert not isinstance(outcome, ClientRejected)
    return describe(outcome)


def from_login(url: str, ca_file: str | None, limit: float = 60) -> str:
    """Return the message of a login whose deadline is ``limit`` seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("refresher.login.http_client.TIMEOUT", limit)
        with pytest.raises(ServerAway) as raised:
            anyio.run(fetch, ca_file, httpx2.Request("POST", url, content=b"refresh_token=x"))
    return str(raised.value)


BOTH = pytest.mark.parametrize("message", [from_rotation, from_login])
Message = Callable[..., str]


def check(found: str, url: str, cause: str) -> None:
    """Check that a message has host, port and cause, and no word of Python or OpenSSL."""
    address = url.split("/")[2]
    assert f"{address}: {cause}" in found, found
    assert not [word for word in INTERNAL if word in found], found


@BOTH
def test_a_port_on_which_nothing_listens(message: Message) -> None:
    """If it failed, a user would see a Python error for a server that is down."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for host in ("127.0.0.1", "localhost"):
        check(message(f"http://{host}:{port}/token", None), f"http://{host}:{port}", "connection refused")


@BOTH
def test_a_host_that_does_not_exist(message: Message) -> None:
    """If it failed, a user would see a Python error for a misspelt host."""
    check(message("https://as.invalid/token", None), "https://as.invalid:443", "no such host")


@BOTH
@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (refuses, "connection reset"),
        (resets_before, "connection reset (does the server require https://?)"),
        (closes_before, "closed the connection without an answer (does the server require https://?)"),
        (sends(b"220 mail.example ESMTP\r\n\r\n"), "does not answer in HTTP"),
        (alerts, "speaks TLS: is it https://?"),
        (hangs, "no complete answer within 2 s"),
    ],
    ids=lambda value: "" if isinstance(value, str) else getattr(value, "__name__", "sends"),
)
def test_a_server_without_tls_that_fails(message: Message, fault: Fault, cause: str) -> None:
    """If it failed, a user could not distinguish a reset, a slow server, a lost answer and a server without HTTP."""
    with Proxy("http://127.0.0.1:9/token", fault) as server:
        check(message(server.url, None, 2 if fault is hangs else 60), server.url, cause)


@pytest.mark.parametrize("head", [b"Content-Length: 100", b"Transfer-Encoding: chunked"])
def test_a_truncated_answer_to_a_login(head: bytes) -> None:
    """If it failed, a user would see a Python error for truncated metadata."""
    with Proxy("http://127.0.0.1:9/token", sends(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n5\r\nab")) as server:
        check(from_login(server.url, None), server.url, "the answer breaks off")


class Certificates:
    """Makes certificates below ``directory``."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __call__(self, name: str = "localhost", **options: Any) -> tuple[str, ssl.SSLContext]:
        """Return the path of a new certificate, and a server's context with it."""
        path = self._directory / f"{len(list(self._directory.iterdir()))}.pem"
        return str(path), server_context(path, name, **options)


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


@BOTH
# httpcore leaves a socket to the garbage collector if a deadline ends a TLS handshake.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (speaks_no_tls, "does not speak TLS: is it http://?"),
        (closes_at_once, "closed the connection during the TLS handshake"),
        (refuses, "connection reset"),
        (closes_before, "closed the connection without an answer"),
        (hangs, "no complete answer within 2 s"),
    ],
)
def test_a_server_with_tls_that_fails(message: Message, certificates: Certificates, fault: Fault, cause: str) -> None:
    """If it failed, a user would see an OpenSSL error for an address with the wrong scheme."""
    trusted, context = certificates()
    with Proxy("http://127.0.0.1:9/token", fault, tls=context) as server:
        check(message(server.url, trusted, 2 if fault is hangs else 60), server.url, cause)
    gc.collect()


@BOTH
def test_certificates_that_are_not_trusted(message: Message, certificates: Certificates) -> None:
    """If it failed, a user would see an OpenSSL error for a certificate, without what to do next."""
    _, self_signed = certificates()
    other_file, other = certificates("other.example")
    expired_file, expired = certificates(lifetime=timedelta(days=-1))
    authority, _ = certificates("authority")
    _, issued = certificates(issuer=Path(authority))
    for context, trusted, cause in (
        (self_signed, None, "it is self-signed; to trust it, name it with --ca-file"),
        (other, other_file, "it is for another host"),
        (expired, expired_file, "it has expired"),
        (issued, None, "its issuer is unknown; to trust it, name it with --ca-file"),
    ):
        with Proxy("http://127.0.0.1:9/token", tls=context) as server:
            check(message(server.url, trusted), server.url, f"the certificate is not trusted: {cause}")


@BOTH
def test_a_plain_request_to_a_server_with_tls(message: Message, certificates: Certificates) -> None:
    """If it failed, http:// instead of https:// would look like a server that is down."""
    _, context = certificates()
    with Proxy("http://127.0.0.1:9/token", tls=context) as server:
        url = server.url.replace("https://", "http://")
        found = message(url, None)
    check(found, url, "")
    assert "https://?" in found, found


@BOTH
def test_an_error_of_a_proxy_names_the_proxy(message: Message, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, an error of a company proxy would look like one of the server, or show the proxy password."""
    with Proxy("http://127.0.0.1:9/x", answers("407 Proxy Authentication Required", b"")) as gateway:
        address = gateway.url.split("/")[2]
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:the-password-of-it@{address}")
        found = message("https://as.invalid/token", None)
        check(found, gateway.url, "refused to connect to as.invalid:443: 407 Proxy Authentication Required")
        gateway.down()
        found = message("https://as.invalid/token", None)
        check(found, gateway.url, "connection refused")
        assert f"proxy {address}" in found
        assert "password" not in found


def test_a_local_error_names_no_server() -> None:
    """If it failed, a full disk would look like an error of the server."""
    hooks = Recording(OSError(28, "No space left on device"))
    with Proxy("http://127.0.0.1:9/token", closes_before) as server:
        outcome = request_tokens(grant(token_endpoint=server.url), ca_file=None, hooks=hooks).outcome
    assert isinstance(outcome, NotSent)
    assert outcome.description == "nothing was sent: no space left on device"
