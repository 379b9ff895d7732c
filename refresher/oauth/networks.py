"""Which network an address belongs to, and which networks the connections of a context may reach.

A server can name any address: that of a service of this machine, of its network, or of a cloud's metadata service.
"""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final

__all__ = ["Limit", "Network", "connected", "limited", "network_of", "network_of_literal", "permit"]

_NAT64: Final = ip_network("64:ff9b::/96")
_LOCAL_NAT64: Final = ip_network("64:ff9b:1::/48")


class Network(IntEnum):
    """A network, the farthest first: a server may name addresses on its own network and on each farther one."""

    PUBLIC = 0
    PRIVATE = 1
    """Every address that is not of the public Internet and of no other kind here (RFC 6890)."""
    LINK_LOCAL = 2
    LOOPBACK = 3

    def __str__(self) -> str:
        """Return the words of a message."""
        return ("the public Internet", "a private network", "the link-local network", "this machine")[self]


def network_of(address: str) -> Network:
    """Return the network of a numeric address, as ``getaddrinfo`` returns it."""
    ip = ip_address(address)
    if isinstance(ip, IPv6Address):
        # These reach the IPv4 address that they contain.
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64:
            inner = IPv4Address(int(ip) & 0xFFFF_FFFF)
        if inner is not None:
            return network_of(str(inner))
        if ip.is_site_local or ip in _LOCAL_NAT64 or (ip.teredo is not None):
            return Network.PRIVATE
    # Linux connects an unspecified address to this machine.
    if ip.is_loopback or ip.is_unspecified:
        return Network.LOOPBACK
    if ip.is_link_local:
        return Network.LINK_LOCAL
    return Network.PUBLIC if ip.is_global and not ip.is_multicast and not ip.is_reserved else Network.PRIVATE


def network_of_literal(host: str) -> Network | None:
    """Return the network of a host that is an address in any form, or ``localhost``; ``None`` for other names.

    ``127.1``, ``2130706433`` and ``0x7f.1`` are addresses too: the resolver of the system reads them as such.
    """
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return Network.LOOPBACK
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return None
    return max(network_of(str(entry[4][0])) for entry in found)


@dataclass
class Limit:
    """How near the networks may be that a context connects to, and what became of it."""

    nearest: Network
    refused: Network | None = None
    """The network of an address that was not connected to."""
    reached: Network | None = None
    """The farthest network that was connected to."""


_LIMIT: Final[ContextVar[Limit | None]] = ContextVar("limit", default=None)


@contextmanager
def limited(limit: Limit) -> Iterator[None]:
    """Apply ``limit`` to all connections that a ``RequestLoop`` makes in this context."""
    token = _LIMIT.set(limit)
    try:
        yield
    finally:
        _LIMIT.reset(token)


def permit(address: str) -> None:
    """Raise ``OSError`` if the context must not connect to this numeric address."""
    limit = _LIMIT.get()
    if limit is not None and (network := network_of(address)) > limit.nearest:
        limit.refused = network
        raise PermissionError(f"its address is on {network}")


def connected(address: str) -> None:
    """Note that the context is connected to this numeric address."""
    if (limit := _LIMIT.get()) is not None:
        network = network_of(address)
        limit.reached = network if limit.reached is None else min(limit.reached, network)
