"""What the path of a request means: the key, the grant, the origin, and the rest, which goes to the server."""

import re
from typing import Final, NamedTuple
from urllib.parse import unquote, urljoin, urlsplit

from refresher.gateway.failures import Failure
from shim._origins import origin_of_url
from shim._token import TokenFile, is_name

__all__ = ["KEY_PREFIX", "Destination", "Target", "choose", "parse", "relocate"]

KEY_PREFIX: Final = "RGK-"
"""Each key begins with it, and no name of a grant does: it has capital letters."""

_USAGE: Final = "use /NAME/PATH or /KEY/NAME/PATH, with the name of a grant"
_TARGET: Final = re.compile(r'[!$-~"]+', re.ASCII)  # printable, without a space and '#'
_METADATA: Final = re.compile(r"/\.well-known/(oauth-|openid-configuration)", re.IGNORECASE)
_SLASHES: Final = re.compile(r"/+(?:\./+)*")
_DOTS: Final = frozenset({".", ".."})


class Target(NamedTuple):
    """A parsed request target."""

    key: str | None
    name: str
    prefix: str
    """``/KEY/NAME`` or ``/NAME``, as the agent wrote it."""
    rest: str
    """The path and the query after the prefix, byte for byte; it begins with a slash."""


class Destination(NamedTuple):
    """Where a request goes."""

    origin: str
    """One of the grant's."""
    rest: str
    prefix: str
    """The prefix under which ``origin`` is."""
    base: str
    """The prefix of the grant."""
    origins: tuple[str, ...]
    """All of the grant."""


def parse(target: str) -> Target | Failure:
    """Return what a request target names."""
    if not target.startswith("/"):
        return Failure(400, "no_proxy", f"the gateway is not an open proxy: {_USAGE}")
    if not _TARGET.fullmatch(target):
        return Failure(400, "bad_path", "the path has a character that must be percent-encoded")
    path, mark, query = target.partition("?")
    key = None
    first, _, rest = path[1:].partition("/")
    prefix = f"/{first}"
    if first.startswith(KEY_PREFIX):
        key, path = first, path[len(prefix) :]
        first, _, rest = path[1:].partition("/")
        prefix = f"{prefix}/{first}"
    if not is_name(first) or _METADATA.match(target):
        return Failure(404, "not_found", f"there is nothing at this path: {_USAGE}")
    if rest.startswith(KEY_PREFIX):  # no server may see it
        return Failure(400, "bad_path", f"the key stands before the name: {_USAGE}")
    rest = f"/{rest}"
    if _METADATA.search(_SLASHES.sub("/", unquote(rest))):
        return Failure(404, "not_found", "the gateway logs in for you: it has no OAuth metadata, and needs none")
    return Target(key, first, prefix, f"{rest}{mark}{query}")


def choose(target: Target, token: TokenFile) -> Destination | Failure:
    """Return where a request for a grant goes: the origin of ``/@HOST/``, else the only one or that of its server."""
    origins = token.origins
    hosts = ", ".join(f"/{target.name}/@{origin.partition('://')[2]}/" for origin in origins)
    if target.rest.startswith("/@"):
        path, mark, query = target.rest.partition("?")
        host, _, rest = path[2:].partition("/")
        named = [origin for origin in origins if origin.partition("://")[2] == host.lower()]
        if not named:  # a path of the server that begins so needs the host before it
            return Failure(404, "which_server", f"the login of {target.name} is not for this host; use one of {hosts}")
        prefix = f"{target.prefix}/@{host}"
        return Destination(max(named), f"/{rest}{mark}{query}", prefix, target.prefix, origins)  # https above http
    default = None if token.server_url is None else origin_of_url(token.server_url)
    if default not in origins:
        default = origins[0] if len(origins) == 1 else None
    if default is None:
        return Failure(404, "which_server", f"{target.name} is a login for several servers; use one of {hosts}")
    return Destination(default, target.rest, target.prefix, target.prefix, origins)


def relocate(address: str, of: Destination) -> str | None:
    """Return an address that a server sent, put under the prefix; ``None`` if it leads out of the grant's origins.

    An agent resolves what this returns, with its key: so no dot segment is left in it, in any spelling.
    """
    address = address.strip()
    if "\\" in address or not all("!" <= char <= "~" for char in address):
        return None
    try:
        absolute = urljoin(of.origin + of.rest, address)
        parts = urlsplit(absolute)
    except ValueError:
        return None
    origin = origin_of_url(absolute)
    if origin not in of.origins or any(unquote(segment) in _DOTS for segment in parts.path.split("/")):
        return None
    rest = absolute.partition("://")[2][len(parts.netloc) :]
    rest = rest if rest.startswith("/") else f"/{rest}"
    named = origin != of.origin or rest.startswith("/@")  # which without a host would name one
    return f"{of.base}/@{origin.partition('://')[2]}{rest}" if named else of.prefix + rest
