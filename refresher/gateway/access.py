"""Who may send a request: no web page; over TCP, who has a key; over a unix socket, who runs as an allowed user."""

import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from refresher.common.browsers import is_foreign, is_served
from refresher.gateway.failures import Failure
from refresher.gateway.keys import Keys
from refresher.gateway.routes import Target

__all__ = ["Access", "peer_uid"]

_CREDENTIALS: Final = struct.Struct("3i")  # pid, uid, gid

_HOST: Final = Failure(
    421, "wrong_host", "address the gateway by an IP address, as localhost, or by a name of --listen-host"
)
_BROWSER: Final = Failure(
    403, "web_page", "a web page or a browser sent this request; the gateway is for programs only"
)
_NO_KEY: Final = Failure(403, "no_key", "give a key as 'Authorization: Bearer KEY' or in the path, /KEY/NAME/")
_WRONG_KEY: Final = Failure(403, "wrong_key", "the gateway does not know this key; a person must add one")


def peer_uid(connection: Any) -> int | None:
    """Return the user of the program at the other end of a unix socket; ``None`` if the system does not say."""
    try:
        data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    except (OSError, AttributeError):
        return None
    return int(_CREDENTIALS.unpack(data)[1])


class Access(NamedTuple):
    """The rules of one address."""

    keys: Keys
    hosts: frozenset[str] = frozenset({"localhost"})
    """The names by which requests may address the gateway, besides IP addresses."""
    users: frozenset[int] | None = None
    """Of a unix socket: the users who need no key."""
    add_key: str = "refresher gateway key add AGENT"
    """The command that makes a key."""

    def refusal(self, headers: Mapping[str, str], hosts: Sequence[str], connection: Any) -> Failure | None:
        """Return why a request is refused, whatever it asks for. ``hosts``: its ``Host`` headers."""
        if self.users is not None:  # no web page reaches a unix socket, so its Host does not matter
            uid = peer_uid(connection)
            if uid not in self.users:
                return Failure(403, "wrong_user", f"user {uid} may not use this socket; see --allow-uid")
        elif not all(is_served(host, self.hosts) for host in hosts):
            return _HOST
        # Browsers send the first for each request to a loopback address, and only they do.
        return _BROWSER if "sec-fetch-site" in headers or is_foreign(headers) else None

    def key_refusal(self, headers: Mapping[str, str], target: Target) -> Failure | None:
        """Return why a request for a grant is refused."""
        text = target.key
        if text is None:
            if self.users is not None:
                return None
            kind, _, value = headers.get("authorization", "").partition(" ")
            text = value.strip() if kind.lower() == "bearer" else ""
        if not text:
            return _NO_KEY._replace(command=self.add_key)
        key = self.keys.find(text)
        if key is None:
            return _WRONG_KEY._replace(command=self.add_key)
        if not key.may_use(target.name):
            return Failure(403, "not_allowed", f"the key of {key.agent} is not for {target.name}")
        return None
