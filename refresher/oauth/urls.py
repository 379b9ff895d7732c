"""Which addresses may be talked to (I8): TLS or loopback for a refresh token, named origins for an access token."""

import re
from ipaddress import IPv6Address, ip_address
from typing import Final
from urllib.parse import SplitResult, urlsplit

from shim._origins import origin_of

__all__ = ["BadURL", "endpoint", "is_loopback", "origin"]

_SCHEMES: Final = ("https", "http")


_NAME: Final = re.compile(r"[a-z0-9._-]+")


class BadURL(ValueError):
    """An address that cannot be used; the message completes a sentence that begins with its name."""


def endpoint(url: str) -> str:
    """Return the token endpoint's address, unchanged; a refresh token goes there by TLS, or over loopback.

    Raises ``BadURL``.
    """
    parts = _split(url)
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        raise BadURL("must be https: a refresh token never crosses a network in the clear")
    if parts.fragment or "#" in url:
        raise BadURL("must have no fragment (RFC 6749 section 3.2)")
    return url


def origin(url: str) -> str:
    """Return ``scheme://host[:port]`` in lower case, without a default port.

    Raises ``BadURL``.
    """
    parts = _split(url)
    # Spelled by the reader's own function: it is what requests are compared with.
    return origin_of(parts.scheme, parts.hostname or "", parts.port)


def is_loopback(host: str) -> bool:
    """Whether ``host`` is this machine: 127.0.0.0/8, ::1, or ``localhost`` (RFC 6761 section 6.3)."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _split(url: str) -> SplitResult:
    # urlsplit drops tabs and line breaks silently: what is checked must be what is stored.
    if not url.isascii() or any(char <= " " or char == "\x7f" for char in url):
        raise BadURL("must be plain ASCII without spaces (write an international host name in its xn-- form)")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise BadURL("is not a URL") from None
    if parts.scheme not in _SCHEMES or not parts.hostname or port == 0:
        raise BadURL("must be a URL that begins with https:// (or http://)")
    if "@" in parts.netloc:
        raise BadURL("must not hold a user name or password")
    if parts.netloc.lower() != _host(parts.hostname) + (f":{port}" if port is not None else ""):
        raise BadURL("has a host that programs read in different ways")
    return parts


def _host(hostname: str) -> str:
    """Return a host as it must be written: a plain name, or an address that has one spelling."""
    if ":" in hostname:
        try:
            return f"[{IPv6Address(hostname).compressed}]"
        except ValueError:
            raise BadURL("has an IPv6 address that is none") from None
    if not _NAME.fullmatch(hostname):
        raise BadURL("has characters in its host that no host has")
    return hostname
