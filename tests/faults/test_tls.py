"""TLS on the way to the token endpoint: whom it trusts, what it shows, and how it ends."""

import json
import socket
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from refresher.common.errors import ConfigError
from refresher.grants.outcome import ClientRejected, NotSent, Rotated, Unintelligible
from refresher.oauth.exchange import Exchanged, exchange
from refresher.oauth.tls import trusted
from tests.support.hooks import Recording
from tests.support.keys import certificate
from tests.support.raw_server import RawServer
from tests.support.samples import grant

GOOD = json.dumps({"access_token": "a-new-access-token", "refresh_token": "a-new-refresh-token"}).encode()


class _Encrypted:
    """How a server wraps its connections, with a certificate of its own."""

    def __init__(self, tmp_path: Path) -> None:
        self.certificate = tmp_path / "localhost.pem"
        certificate(self.certificate, "localhost")
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(self.certificate, self.certificate.with_suffix(".key"))

    def __call__(self, connection: socket.socket) -> ssl.SSLSocket:
        encrypted = self.context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        try:
            encrypted.do_handshake()
        except ssl.SSLError:
            # What is not read yet would turn the end into a reset, which overtakes the alert.
            with suppress(OSError), socket.socket(fileno=encrypted.detach()) as plain:
                plain.settimeout(30)
                plain.shutdown(socket.SHUT_WR)
                while plain.recv(65536):
                    pass
            raise
        return encrypted

    def ask(self, server: RawServer, hooks: Recording | None = None, **changes: Any) -> Exchanged:
        """Exchange with ``server``, trusting it."""
        sent = grant(token_endpoint=server.token_endpoint.replace("http://127.0.0.1", "https://localhost"), **changes)
        return exchange(sent, ca_file=str(self.certificate), hooks=hooks or Recording())


def _answers(data: bytes) -> Any:
    return lambda connection, _: connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + data)


def test_a_ca_file_is_trusted_and_nothing_else(tmp_path: Path) -> None:
    """If it failed, private authorities could not be used, or a refresh token would go to an unknown server (I8)."""
    encrypted = _Encrypted(tmp_path)
    with RawServer(_answers(GOOD), wrap=encrypted) as server:
        there = server.token_endpoint.replace("http://127.0.0.1", "https://localhost")
        unknown = exchange(grant(token_endpoint=there), ca_file=None, hooks=Recording())
        assert isinstance(unknown.outcome, NotSent), "it went to a server that nobody vouches for"
        assert server.requests == []
        known = encrypted.ask(server)
        assert isinstance(known.outcome, Rotated), known.outcome
    with pytest.raises(ConfigError, match="nowhere"):
        trusted(str(tmp_path / "nowhere.pem"))


@pytest.mark.parametrize(
    ("version", "shown", "kind"),
    [
        # RFC 5246 section 7.4.6 has one alert for this and for much else.
        (ssl.TLSVersion.TLSv1_2, None, NotSent),
        (ssl.TLSVersion.TLSv1_2, "another's", ClientRejected),
        (ssl.TLSVersion.TLSv1_3, None, ClientRejected),
        (ssl.TLSVersion.TLSv1_3, "another's", ClientRejected),
    ],
)
def test_a_server_that_wants_another_certificate_puts_nothing_in_doubt(
    tmp_path: Path, version: ssl.TLSVersion, shown: str | None, kind: type[ClientRejected | NotSent]
) -> None:
    """If it failed, a certificate that ran out would stop a grant for an hour as if an answer had been lost."""
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
        (GOOD, Rotated),
        (GOOD[:-4], Unintelligible),
        (b"access_token=a-new-access-token&refresh_token=a-new-refr", Unintelligible),
    ],
)
def test_an_answer_that_ends_without_a_farewell_is_whole_only_where_it_shows_it(
    tmp_path: Path, body: bytes, kind: type
) -> None:
    """If it failed, whoever can cut a connection could have the half of a refresh token stored (I6)."""
    encrypted, hooks = _Encrypted(tmp_path), Recording()
    # RFC 8446 section 6.1 wants a close_notify; Python's close sends none.
    with RawServer(_answers(body), wrap=encrypted) as server:
        answered = encrypted.ask(server, hooks)
    assert isinstance(answered.outcome, kind), answered.outcome
    assert len(hooks.answers) == (kind is Unintelligible)
