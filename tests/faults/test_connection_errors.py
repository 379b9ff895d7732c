"""A connection that breaks says why in plain words, with host and port: each word against a real counterpart."""

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
from tests.support.keys import certificate
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

PYTHON = ("Error", "Errno", "_ssl", "SSL:", "Timeout", "httpx", "httpcore", "Exception")


def says(data: bytes) -> Fault:
    """Answer with bytes, and close."""

    def say(connection: Connection) -> None:
        connection.request()
        connection.client.sendall(data)

    return say


def alerts(connection: Connection) -> None:
    """Answer as a TLS server that is asked in the clear: an alert, with a line feed in it as chance has it."""
    connection.request()
    connection.client.sendall(b"\x15\x03\x01\x00\x02\x02\x46\r\n\r\n")


def closes_at_once(connection: Connection) -> None:
    """Close in the middle of the TLS handshake."""
    connection.plain.recv(65536)


def by_refresher(url: str, ca_file: str | None) -> str:
    """Return what a rotation says."""
    outcome = request_tokens(grant(token_endpoint=url), ca_file=ca_file, hooks=Recording(), deadline=2).outcome
    assert not isinstance(outcome, ClientRejected)
    return describe(outcome)


def by_login(url: str, ca_file: str | None) -> str:
    """Return what a login says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("refresher.login.http_client.TIMEOUT", 2.0)
        with pytest.raises(ServerAway) as raised:
            anyio.run(fetch, ca_file, httpx2.Request("POST", url, content=b"refresh_token=x"))
    return str(raised.value)


BOTH = pytest.mark.parametrize("ask", [by_refresher, by_login])
Ask = Callable[[str, str | None], str]


def insist(said: str, url: str, words: str) -> None:
    """Insist on host, port and words, and on no word of Python or OpenSSL."""
    place = url.split("/")[2]
    assert f"{place}: {words}" in said, said
    assert not [word for word in PYTHON if word in said], said


@BOTH
def test_a_port_at_which_nobody_listens(ask: Ask) -> None:
    """If it failed, a server that is down would be shown as an error of Python."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for host in ("127.0.0.1", "localhost"):
        insist(ask(f"http://{host}:{port}/token", None), f"http://{host}:{port}", "connection refused")


@BOTH
def test_a_host_that_does_not_exist(ask: Ask) -> None:
    """If it failed, a typing error in a host would be shown as an error of Python."""
    insist(ask("https://as.invalid/token", None), "https://as.invalid:443", "no such host")


@BOTH
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (refuses, "connection reset"),
        (resets_before, "connection reset (does the server require https://?)"),
        (closes_before, "closed the connection without an answer (does the server require https://?)"),
        (says(b"220 mail.example ESMTP\r\n\r\n"), "does not answer in HTTP"),
        (alerts, "speaks TLS: is it https://?"),
        (hangs, "no complete answer within 2 s"),
    ],
    ids=lambda value: "" if isinstance(value, str) else getattr(value, "__name__", "says"),
)
def test_a_server_in_the_clear_that_fails(ask: Ask, fault: Fault, words: str) -> None:
    """If it failed, nobody could tell a server that resets from one that is slow, cut off or no HTTP server."""
    with Proxy("http://127.0.0.1:9/token", fault) as server:
        insist(ask(server.url, None), server.url, words)


@pytest.mark.parametrize("head", [b"Content-Length: 100", b"Transfer-Encoding: chunked"])
def test_an_answer_to_a_login_that_breaks_off(head: bytes) -> None:
    """If it failed, half of a server's metadata would be shown as an error of Python."""
    with Proxy("http://127.0.0.1:9/token", says(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n5\r\nab")) as server:
        insist(by_login(server.url, None), server.url, "the answer breaks off")


class Certificates:
    """Certificates of servers, each with its context."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def __call__(self, name: str = "localhost", **options: Any) -> tuple[str, ssl.SSLContext]:
        """Return the path of a new certificate, and a server's context with it."""
        path = self._place / f"{len(list(self._place.iterdir()))}.pem"
        certificate(path, name, **options)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path, path.with_suffix(".key"))
        return str(path), context


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    """Return what makes certificates."""
    return Certificates(tmp_path)


@BOTH
# httpcore leaves a socket open for the garbage collector where a deadline cuts a TLS handshake.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (speaks_no_tls, "does not speak TLS: is it http://?"),
        (closes_at_once, "closed the connection during the TLS handshake"),
        (refuses, "connection reset"),
        (closes_before, "closed the connection without an answer"),
        (hangs, "no complete answer within 2 s"),
    ],
)
def test_a_server_that_should_speak_tls_and_fails(
    ask: Ask, certificates: Certificates, fault: Fault, words: str
) -> None:
    """If it failed, an address with the wrong scheme would be shown as an error of OpenSSL."""
    trusted, context = certificates()
    with Proxy("http://127.0.0.1:9/token", fault, tls=context) as server:
        insist(ask(server.url, trusted), server.url, words)
    gc.collect()


@BOTH
def test_certificates_that_are_not_trusted(ask: Ask, certificates: Certificates) -> None:
    """If it failed, a certificate's fault would be shown in OpenSSL's words, and nobody would know what to do."""
    _, self_signed = certificates()
    other_file, other = certificates("other.example")
    expired_file, expired = certificates(lives=timedelta(days=-1))
    authority, _ = certificates("authority")
    _, issued = certificates(issuer=Path(authority))
    for context, trusted, words in (
        (self_signed, None, "it is self-signed; to trust it, name it with --ca-file"),
        (other, other_file, "it is for another host"),
        (expired, expired_file, "it has expired"),
        (issued, None, "its issuer is unknown; to trust it, name it with --ca-file"),
    ):
        with Proxy("http://127.0.0.1:9/token", tls=context) as server:
            insist(ask(server.url, trusted), server.url, f"the certificate is not trusted: {words}")


@BOTH
def test_a_tls_server_that_is_asked_in_the_clear(ask: Ask, certificates: Certificates) -> None:
    """If it failed, http:// in the place of https:// would look like a server that is down."""
    _, context = certificates()
    with Proxy("http://127.0.0.1:9/token", tls=context) as server:
        url = server.url.replace("https://", "http://")
        said = ask(url, None)
    insist(said, url, "")
    assert "https://?" in said, said


@BOTH
def test_a_proxy_is_named_where_the_fault_is_its_own(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, a company's proxy that is down would be taken for a server that is, or show its password."""
    with Proxy("http://127.0.0.1:9/x", answers("407 Proxy Authentication Required", b"")) as gate:
        place = gate.url.split("/")[2]
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:the-password-of-it@{place}")
        said = ask("https://as.invalid/token", None)
        insist(said, gate.url, "refused to connect to as.invalid:443: 407 Proxy Authentication Required")
        gate.down()
        said = ask("https://as.invalid/token", None)
        insist(said, gate.url, "connection refused")
        assert f"proxy {place}" in said
        assert "password" not in said


def test_what_fails_on_this_side_names_no_server() -> None:
    """If it failed, a full disk would be shown as the fault of a server."""

    hooks = Recording(OSError(28, "No space left on device"))
    with Proxy("http://127.0.0.1:9/token", closes_before) as server:
        outcome = request_tokens(grant(token_endpoint=server.url), ca_file=None, hooks=hooks).outcome
    assert isinstance(outcome, NotSent)
    assert outcome.description == "nothing was sent: no space left on device"
