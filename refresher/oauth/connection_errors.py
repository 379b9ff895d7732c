"""Describe why a connection broke, with host and port."""

import errno
import os
import re
import socket
import ssl
from collections.abc import Iterator, Sequence
from typing import Final
from urllib.parse import urlsplit

from refresher.common.errors import RefresherError
from refresher.common.secret import Secret, mask
from refresher.oauth.proxies import proxy_for

__all__ = ["reason", "refuses_certificate", "too_slow"]

# RFC 8446 section 6.2: the alerts by which a server refuses a client's certificate, or the lack of one.
_ABOUT_CERTIFICATE: Final = r"ALERT_(?:\w+_)?CERTIFICATE|ALERT_UNKNOWN_CA"
_LONGEST_CHAIN: Final = 20
_PYTHON_WORDS: Final = re.compile(r"\[Errno -?\d+\] ?|\[\w+(: \w+)?\] ?| ?\(_ssl\.c:\d+\)")

_BY_ERRNO: Final = {
    errno.ECONNREFUSED: "connection refused",
    errno.ECONNRESET: "connection reset",
    errno.ECONNABORTED: "connection reset",
    errno.EPIPE: "connection reset",
    errno.ENETUNREACH: "network is unreachable",
    errno.ENETDOWN: "network is unreachable",
    errno.EHOSTUNREACH: "host is unreachable",
    errno.ETIMEDOUT: "timed out",
}
_TRUST: Final = "to trust it, name it with --ca-file"
_BY_VERIFY_CODE: Final = {  # openssl verify(1), "Diagnostics"
    9: "it is not valid yet: check the clock of this machine",
    10: "it has expired",
    18: f"it is self-signed; {_TRUST}",
    19: f"its issuer is self-signed; {_TRUST}",
    20: f"its issuer is unknown; {_TRUST}",
    21: f"its issuer is unknown; {_TRUST}",
    23: "it is revoked",
    62: "it is for another host",
    64: "it is for another host",
}
_BY_TLS_REASON: Final = {  # by the first pattern that OpenSSL's name of the error contains
    "WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE|HTTP_REQUEST|PACKET_LENGTH_TOO_LONG": "does not speak TLS: is it http://?",
    "PROTOCOL": "supports no TLS version that refresher supports",
    _ABOUT_CERTIFICATE: "refused the TLS handshake over the client certificate",
    "ALERT": "refused the TLS handshake",
    "": "the TLS connection failed",
}
_NO_ANSWER: Final = "closed the connection without an answer"
_BY_PROTOCOL_ERROR: Final = {  # by the first pattern that the text of a RemoteProtocolError contains
    "^Server disconnected": _NO_ANSWER,
    "^peer closed connection": "the answer breaks off",
    r"\\x15\\x03": "speaks TLS: is it https://?",  # a TLS alert, RFC 8446 section 5.1
    "": "does not answer in HTTP",
}
# By the names of the classes, because httpx and httpx2 have each their own.
_BY_CLASS: Final = {
    "ConnectTimeout": "timed out while connecting",
    "ReadTimeout": "timed out waiting for the answer",
    "WriteTimeout": "timed out while sending",
    "DecodingError": "the answer is compressed and damaged",
    "LocalProtocolError": "the request cannot be written as HTTP",
}


def reason(errors: Sequence[BaseException], known: tuple[Secret | None, ...], url: str) -> str:
    """Return why the connection to ``url`` broke, for example ``HOST:PORT: connection refused``.

    ``errors``: the last first. No text of others is in it that could hold one of the ``known`` secrets, or any token.
    """
    chain = list(_chain(errors))
    for error in chain:
        if isinstance(error, RefresherError):
            return str(error)
        if type(error).__name__ == "ProxyError":
            return f"{_proxy(url)}: refused to connect to {_place(url)}: {mask(str(error), known)}"
        if (words := _words(error)) is None:
            continue
        if error is chain[0] and isinstance(error, OSError):
            return words  # the libraries wrap each error of a connection: this one comes from refresher or its disk
        if urlsplit(url).scheme == "http" and words in ("connection reset", _NO_ANSWER):
            words += " (does the server require https://?)"
        at_proxy = not isinstance(error, ssl.SSLError) and type(chain[0]).__name__ in ("ConnectError", "ConnectTimeout")
        return f"{(at_proxy and _proxy(url)) or _place(url)}: {words}"
    foreign = next((text for error in chain if (text := _PYTHON_WORDS.sub("", str(error)))), "the connection broke")
    return f"{_place(url)}: {mask(foreign, known)}"


def too_slow(url: str, seconds: float) -> str:
    """Return the message that no complete answer came from ``url`` within ``seconds``."""
    return f"{_place(url)}: no complete answer within {seconds:.0f} s"


def refuses_certificate(errors: Sequence[BaseException]) -> bool:
    """Whether the server ended the TLS handshake because it requires another client certificate."""
    return any(
        isinstance(error, ssl.SSLError) and re.search(_ABOUT_CERTIFICATE, error.reason or "")
        for error in _chain(errors)
    )


def _words(error: BaseException) -> str | None:
    """Return what one error of a chain says; ``None`` if only its cause says it."""
    match error:
        case ssl.SSLCertVerificationError():
            why = _BY_VERIFY_CODE.get(error.verify_code)
            return "the certificate is not trusted" + (f": {why}" if why else "")
        case ssl.SSLWantReadError() | ssl.SSLWantWriteError():
            return None
        case ssl.SSLEOFError():
            return "closed the connection during the TLS handshake"
        case ssl.SSLError():
            return _look_up(_BY_TLS_REASON, error.reason or "")
        case socket.gaierror(errno=socket.EAI_AGAIN):
            return "the name server does not answer"
        case socket.gaierror() | UnicodeError():
            return "no such host"
        case TimeoutError(errno=None):
            # One with a text is of refresher itself.
            return str(error) or "timed out"
        case OSError(errno=int(number)):
            return _BY_ERRNO.get(number) or os.strerror(number).lower()
        case ImportError():
            return "a SOCKS proxy needs the Python package socksio"
        case _ if type(error).__name__ == "RemoteProtocolError":
            return _look_up(_BY_PROTOCOL_ERROR, str(error))
        case _:
            return _BY_CLASS.get(type(error).__name__)


def _look_up(table: dict[str, str], text: str) -> str:
    return next(words for pattern, words in table.items() if re.search(pattern, text))


def _place(url: str) -> str:
    parts = urlsplit(url)
    host = parts.hostname or ""
    return f"{f'[{host}]' if ':' in host else host}:{parts.port or (443 if parts.scheme == 'https' else 80)}"


def _proxy(url: str) -> str:
    """Return the proxy to ``url``, without the password that its address may contain; "" if there is none."""
    parts = urlsplit(url)
    proxy = proxy_for(parts.scheme, parts.hostname or "")
    return f"proxy {_place(proxy)}" if proxy else ""


def _chain(errors: Sequence[BaseException]) -> Iterator[BaseException]:
    """Yield each error and what led to it, the nearest first."""
    for last in errors:
        error: BaseException | None = last
        # Longer than the chain of any library; the limit ends a chain that is a loop.
        for _ in range(_LONGEST_CHAIN):
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            if error is None:
                break
            yield error
            error = error.__cause__ or error.__context__
