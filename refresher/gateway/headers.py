"""Which headers pass: none of the connection, no login of the agent, and no challenge of the server."""

import re
from collections.abc import Iterable, Mapping
from typing import Final, Protocol

from multidict import CIMultiDict

__all__ = ["for_agent", "for_server", "has_events", "is_readable", "is_writable", "wants_events"]

_OF_CONNECTION: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)

# Cookies of several servers would mix under the one host of the gateway. A Referer can hold a key.
_NOT_TO_SERVER: Final = _OF_CONNECTION | {
    "authorization",
    "content-length",
    "cookie",
    "expect",
    "host",
    "origin",
    "proxy-authorization",
    "referer",
}
_NOT_TO_AGENT: Final = _OF_CONNECTION | {
    "alt-svc",
    "authentication-info",
    "proxy-authenticate",
    "proxy-authentication-info",
    "set-cookie",
    "www-authenticate",
}

# aiohttp refuses to write the control characters, and leaves out what is not UTF-8.
_NOT_WRITABLE: Final = re.compile("[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]")
_CHARSET: Final = re.compile(r"charset\s*=\s*(?!\"?utf-?8\b)", re.IGNORECASE | re.ASCII)


class _Headers(Protocol):
    def items(self) -> Iterable[tuple[str, str]]: ...

    def getall(self, key: str, default: list[str], /) -> list[str]: ...


def for_server(headers: _Headers, authorization: str, length: int | None) -> CIMultiDict[str]:
    """Return the headers of a request as its server gets them. ``length``: of a body whose length is known."""
    passed = _without(headers, _NOT_TO_SERVER)
    passed["Authorization"] = authorization
    if length is not None:
        passed["Content-Length"] = str(length)
    return passed


def for_agent(headers: _Headers) -> CIMultiDict[str]:
    """Return the headers of an answer as its agent gets them."""
    return _without(headers, _NOT_TO_AGENT)


def _without(headers: _Headers, dropped: frozenset[str]) -> CIMultiDict[str]:
    named = headers.getall("Connection", [])
    if named:
        dropped = dropped | {word.strip().lower() for value in named for word in value.split(",")}
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in dropped)


def is_writable(headers: _Headers, reason: str | None = None) -> bool:
    """Whether headers, and the reason of an answer, can be passed on without a change."""
    texts = [text for header in headers.items() for text in header]
    return _NOT_WRITABLE.search("".join((reason or "", *texts))) is None


def wants_events(method: str, headers: Mapping[str, str]) -> bool:
    """Whether a request asks for a stream of events, in which an ``endpoint`` event can be."""
    return method == "GET" and "text/event-stream" in headers.get("Accept", "")


def has_events(method: str, headers: _Headers) -> bool:
    """Whether a client can find an ``endpoint`` event in an answer. No client looks for one after a POST."""
    return method == "GET" and any("event-stream" in kind.lower() for kind in headers.getall("Content-Type", []))


def is_readable(headers: _Headers) -> bool:
    """Whether an answer has one content type, and its bytes are its text in UTF-8."""
    kinds = set(headers.getall("Content-Type", []))
    codings = ",".join(headers.getall("Content-Encoding", [])).lower().split(",")
    is_plain = all(coding.strip() in ("", "identity") for coding in codings)
    return is_plain and len(kinds) == 1 and not any(map(_CHARSET.search, kinds))
