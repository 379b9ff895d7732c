"""Try an access token at the server that it is for, without an effect there."""

import http.client
import json
import logging
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Callable
from typing import Final
from urllib.parse import unquote, urlsplit
from uuid import uuid4

from refresher.common.errors import ConfigError
from refresher.oauth.proxies import proxy_for
from refresher.oauth.tls import ssl_context
from shim._challenge import refusal_of

__all__ = ["LONGEST", "is_refused"]

log = logging.getLogger(__name__)

LONGEST: Final = 3.0
"""Seconds for one try, with name resolution and both requests."""

_LOOK: Final = 0.1
_METHOD_NOT_ALLOWED: Final = 405

# A GET changes nothing at any API. An MCP server authenticates it, and then refuses it, for the session is unknown:
# without this header, servers of the MCP SDK for Python open a session, and without sessions they would open a stream
# for a client that accepts one. A server that answers 405 may not have looked at the token (FastMCP without sessions):
# it gets the message "ping", which does nothing (MCP, base protocol).
_HEADERS: Final = {"Accept": "application/json", "User-Agent": "refresher"}
_PING_HEADERS: Final = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
_PING: Final = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "ping"}).encode()


def is_refused(
    url: str, authorization: str, *, ca_file: str | None, timeout: float, stopping: Callable[[], bool]
) -> bool:
    """Whether the server at ``url`` answers that the token is invalid: a 401, or ``invalid_token`` in a challenge.

    No answer within ``timeout`` seconds and any other answer mean no. It follows no redirect and reads no body. Raises
    ``ConfigError`` if the trusted certificates cannot be used.
    """
    answers: list[bool | ConfigError] = []

    def ask() -> None:
        try:
            answers.append(_ask(url, authorization, ca_file, ends))
        except ConfigError as error:
            answers.append(error)
        except Exception:  # noqa: BLE001  a server can fail in any way
            answers.append(False)

    ends = time.monotonic() + timeout
    # A thread that nobody waits for, because a resolver and a slow server can take longer.
    thread = threading.Thread(target=ask, name="probe", daemon=True)
    thread.start()
    while thread.is_alive() and not stopping() and (left := ends - time.monotonic()) > 0:
        thread.join(min(left, _LOOK))
    answer = answers[0] if answers else False
    if isinstance(answer, ConfigError):
        raise answer
    return answer


def _ask(url: str, authorization: str, ca_file: str | None, ends: float) -> bool:
    headers = _HEADERS | {"Authorization": authorization, "Mcp-Session-Id": uuid4().hex}
    status, challenges = _head("GET", url, headers, b"", ca_file, ends)
    if status == _METHOD_NOT_ALLOWED:
        status, challenges = _head("POST", url, headers | _PING_HEADERS, _PING, ca_file, ends)
    refusal = refusal_of(status, challenges, authorization)
    return refusal is not None and not refusal.lacks_scope


def _head(
    method: str, url: str, headers: dict[str, str], body: bytes, ca_file: str | None, ends: float
) -> tuple[int, list[str]]:
    """Return the status of the response and its challenges."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    target = url.partition("://")[2][len(parts.netloc) :].partition("#")[0]
    target = target if target.startswith("/") else f"/{target}"
    tls = ssl_context(ca_file) if parts.scheme == "https" else None
    # Without a port, http.client would take the last part of an IPv6 address for one.
    port = parts.port or (80 if tls is None else 443)
    timeout = max(ends - time.monotonic(), _LOOK)
    proxy = proxy_for(parts.scheme, host)
    if proxy is None:
        connection = _connection(host, port, tls, timeout)
    else:
        via = urlsplit(proxy)
        if via.scheme != "http" or not via.hostname:
            log.warning("did not try the token at %s: it uses HTTP proxies only; add the server to NO_PROXY", host)
            raise OSError
        credentials = f"{unquote(via.username or '')}:{unquote(via.password or '')}".encode()
        login = {"Proxy-Authorization": f"Basic {b64encode(credentials).decode()}"} if via.username else {}
        connection = _connection(via.hostname, via.port or 80, tls, timeout)
        if tls is not None:
            connection.set_tunnel(host, port, login)
        else:
            target, headers = f"http://{parts.netloc}{target}", headers | login | {"Host": parts.netloc}
    try:
        connection.request(method, target, body or None, headers)
        response = connection.getresponse()
        return response.status, response.headers.get_all("WWW-Authenticate") or []
    finally:
        connection.close()


def _connection(host: str, port: int, tls: ssl.SSLContext | None, timeout: float) -> http.client.HTTPConnection:
    if tls is not None:
        return http.client.HTTPSConnection(host, port, timeout=timeout, context=tls)
    return http.client.HTTPConnection(host, port, timeout=timeout)
