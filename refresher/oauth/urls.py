"""Check URLs (I8): a refresh token needs TLS or loopback, an access token has fixed origins."""

import re
from ipaddress import IPv6Address, ip_address
from typing import Final
from urllib.parse import SplitResult, urlsplit

from shim._origins import origin_of

__all__ = ["InvalidURL", "check_endpoint", "is_loopback", "parse_origin"]

_NAME: Final = re.compile(r"[a-z0-9._-]+")


class InvalidURL(ValueError):
    """A URL that cannot be used; the message continues a sentence that begins with the name of the URL."""


def check_endpoint(url: str) -> str:
    """Return the URL of an endpoint unchanged. Raises ``InvalidURL`` unless it uses TLS or loopback."""
    parts = _split(url)
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        raise InvalidURL("must be https, because a refresh token is never sent in clear text over a network")
    if parts.fragment or "#" in url:
        raise InvalidURL("must not have a fragment (RFC 6749 section 3.2)")
    return url


def parse_origin(url: str) -> str:
    """Return ``scheme://host[:port]`` in lower case, without a default port. Raises ``InvalidURL``."""
    parts = _split(url)
    # The shim compares its requests with this spelling.
    return origin_of(parts.scheme, parts.hostname or "", parts.port)


def is_loopback(host: str) -> bool:
    """Whether ``host`` is this machine: 127.0.0.0/8, ::1 or ``localhost`` (RFC 6761 section 6.3)."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _split(url: str) -> SplitResult:
    # urlsplit silently drops tabs and line breaks, but the URL is stored as it is.
    if not url.isascii() or any(char <= " " or char == "\x7f" for char in url):
        raise InvalidURL("must be ASCII without spaces; write an international host name in its xn-- form")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise InvalidURL("is not a valid URL") from None
    host = parts.hostname or ""
    if parts.scheme not in ("https", "http") or not host or port == 0:
        raise InvalidURL("must begin with https:// or http://")
    if "@" in parts.netloc:
        raise InvalidURL("must not contain a user name or password")
    # The only accepted spelling of a host is a plain name or a compressed IPv6 address.
    if ":" in host:
        try:
            host = f"[{IPv6Address(host).compressed}]"
        except ValueError:
            raise InvalidURL("has an invalid IPv6 address") from None
    elif not _NAME.fullmatch(host):
        raise InvalidURL("has invalid characters in its host")
    if parts.netloc.lower() != host + (f":{port}" if port is not None else ""):
        raise InvalidURL("has a host that programs interpret differently")
    return parts
