"""TLS to the token endpoint: trusted certificates, client certificates, and the end of a connection."""

import json
import socket
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from refresher.common.errors import ConfigError
from refresher.grants.outcome import ClientRejected, NotSent, TokensIssued, Unreadable
from refresher.oauth.tls import ssl_context
from refresher.oauth.token_request import TokenRequestResult, request_tokens
from shim.httpx2 import BearerAuth
from shim.mcp._endpoint import HTTPEndpoint
from tests.support.cli import WORKING_LOGIN
from tests.support.command import Command
from tests.support.hooks import Recording
from tests.support.keys import certificate, server_context
from tests.support.raw_server import RawServer
from tests.support.samples import grant

GOOD = json.dumps({"access_token": "a-new-access-token", "refresh_token": "a-new-refresh-token"}).encode()


class _Encrypted:
    """The TLS of a server with its own certificate."""

    def __init__(self, tmp_path: Path) -> None:
        self.certificate = tmp_path / "localhost.pem"
        self.context = server_context(self.certificate, "localhost")

    def __call__(self, connection: socket.socket) -> ssl.SSLSocket:
        encrypted = self.context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        try:
            encrypted.do_handshake()
        except ssl.SSLError:
            # Unread data would turn the close into a reset, which arrives before the alert.
            with suppress(OSError), socket.socket(fileno=encrypted.detach()) as plain:
                plain.settimeout(90)
                plain.shutdown(socket.SHUT_WR)
                while plain.recv(65536):
                    pass
            raise
        return encrypted

    def ask(self, server: RawServer, hooks: Recording | None = None, **changes: Any) -> TokenRequestResult:
        """Send a token request to ``server``, whose certificate is trusted."""
        sent = grant(token_endpoint=server.token_endpoint.replace("http://127.0.0.1", "https://localhost"), **changes)
        return request_tokens(sent, ca_file=str(self.certificate), hooks=hooks or Recording())


def _answers(data: bytes) -> Any:
    return lambda connection, _: connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + data)


def test_only_the_ca_file_is_trusted(tmp_path: Path) -> None:
    """If it failed, a private CA could not be used, or a refresh token would go to an unknown server (I8)."""
    encrypted = _Encrypted(tmp_path)
    with RawServer(_answers(GOOD), wrap=encrypted) as server:
        endpoint = server.token_endpoint.replace("http://127.0.0.1", "https://localhost")
        unknown = request_tokens(grant(token_endpoint=endpoint), ca_file=None, hooks=Recording())
        assert isinstance(unknown.outcome, NotSent), "it was sent to a server without a trusted certificate"
        assert server.requests == []
        known = encrypted.ask(server)
        assert isinstance(known.outcome, TokensIssued), known.outcome
    with pytest.raises(ConfigError, match="nowhere"):
        ssl_context(str(tmp_path / "nowhere.pem"))


@pytest.mark.parametrize(
    ("version", "shown", "kind"),
    [
        # RFC 5246 section 7.4.6 uses one alert for this and for many other errors.
        (ssl.TLSVersion.TLSv1_2, None, NotSent),
        (ssl.TLSVersion.TLSv1_2, "another's", ClientRejected),
        (ssl.TLSVersion.TLSv1_3, None, ClientRejected),
        (ssl.TLSVersion.TLSv1_3, "another's", ClientRejected),
    ],
)
def test_a_refused_client_certificate_puts_nothing_in_doubt(
    tmp_path: Path, version: ssl.TLSVersion, shown: str | None, kind: type[ClientRejected | NotSent]
) -> None:
    """If it failed, an expired client certificate would put a grant in doubt, as if an answer was lost."""
    encrypted = _Encrypted(tmp_path)
    encrypted.context.maximum_version = version
    encrypted.context.verify_mode = ssl.CERT_REQUIRED
    certificate(tmp_path / "known.pem", "client")
    encrypted.context.load_verify_locations(tmp_path / "known.pem")
    own: dict[str, Any] = {}
    if shown is not None:
        certificate(tmp_path / "other.pem", "client")
        own = {"client_cert": str(tmp_path / "other.pem"), "client_key": str(tmp_path / "other.key")}
    with RawServer(_answers(GOOD), wrap=encrypted) as server:
        answered = encrypted.ask(server, **own)
    assert isinstance(answered.outcome, kind), answered.outcome
    assert ("client_cert" in answered.outcome.description) == (kind is ClientRejected)
    assert answered.doubt is None


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (GOOD, TokensIssued),
        (GOOD[:-4], Unreadable),
        (b"access_token=a-new-access-token&refresh_token=a-new-refr", Unreadable),
    ],
)
def test_an_answer_without_close_notify_is_used_only_if_it_shows_its_end(
    tmp_path: Path, body: bytes, kind: type
) -> None:
    """If it failed, an attacker who cuts a connection could cause half a refresh token to be stored (I6)."""
    encrypted, hooks = _Encrypted(tmp_path), Recording()
    # RFC 8446 section 6.1 requires close_notify, but close() in Python does not send it.
    with RawServer(_answers(body), wrap=encrypted) as server:
        answered = encrypted.ask(server, hooks)
    assert isinstance(answered.outcome, kind), answered.outcome
    assert len(hooks.answers) == (kind is Unreadable)


def test_the_keys_of_a_connection_are_written_to_no_file(refresher: Command, tmp_path: Path) -> None:
    """If it failed, a variable that was set for another program would make each token readable on the network."""
    encrypted, keys = _Encrypted(tmp_path), tmp_path / "keys.log"
    environment = {"SSLKEYLOGFILE": str(keys)}
    with RawServer(_answers(GOOD), wrap=encrypted) as server:
        endpoint = server.token_endpoint.replace("http://127.0.0.1", "https://localhost")
        refresher.import_grant("x", WORKING_LOGIN | {"token_endpoint": endpoint})
        done = refresher("--ca-file", str(encrypted.certificate), "run-once", "--force", environment=environment)
    assert done.code == 0, done.stderr
    assert not keys.exists()


def test_the_keys_of_a_session_of_shim_are_written_to_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, a variable that was set for another program would make each access token readable on the network."""
    encrypted, keys = _Encrypted(tmp_path), tmp_path / "keys.log"
    monkeypatch.setenv("SSL_CERT_FILE", str(encrypted.certificate))
    monkeypatch.setenv("SSLKEYLOGFILE", str(keys))
    with RawServer(_answers(b"{}"), wrap=encrypted, marker=b"\r\n\r\n") as server:
        url = server.token_endpoint.replace("http://127.0.0.1", "https://localhost")
        verify = HTTPEndpoint(url, BearerAuth("x"), {}, True).verify
        with httpx2.Client(verify=verify, trust_env=False, timeout=60) as http:
            assert http.get(url).status_code == 200
    # Python makes the file and writes a comment, before shim can prevent that.
    assert not keys.exists() or all(line.startswith("#") for line in keys.read_text().splitlines())
