"""Whether a web page sent a request: the names in ``Host``, and what a browser says of the origin."""

import ipaddress
import re
from collections.abc import Mapping
from typing import Final

__all__ = ["is_foreign", "is_served"]

_HOST: Final = re.compile(r"(?:\[(?P<six>[^\]]*)\]|(?P<name>[^:]*))(?::\d*)?", re.ASCII)


def is_served(host: str, names: frozenset[str]) -> bool:
    """Whether a ``Host`` header is absent or empty, an IP address, or one of ``names``.

    Else a web page could read the answer, with a name of its own that leads to this address.
    """
    host = host.strip()
    match = _HOST.fullmatch(host)
    name = host if match is None else match["six"] or match["name"] or ""
    if name.lower().removesuffix(".") in ("", *names):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_foreign(headers: Mapping[str, str]) -> bool:
    """Whether a page of another origin sent the request, as far as the browser says."""
    origin = headers.get("origin")
    return (
        headers.get("sec-fetch-site") in ("cross-site", "same-site")
        # A browser that is not connected to this machine by TLS sends no other header.
        or (origin is not None and origin.partition("://")[2] != headers.get("host"))
    )
