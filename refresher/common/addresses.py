"""Addresses of this machine as a person writes them: ``HOST:PORT``."""

import re
from typing import Final

from refresher.common.errors import ConfigError

__all__ = ["DEFAULT_ADDRESS", "Address", "host_name", "parse_address", "shown_address"]

Address = tuple[str, int]
"""Host and port of the health endpoint."""

DEFAULT_ADDRESS: Final[Address] = ("127.0.0.1", 9464)

_ADDRESS: Final = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9.-]+)):(?P<port>\d{1,5})", re.ASCII)
_HOST_NAME: Final = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?", re.ASCII)


def parse_address(text: str) -> Address:
    """Return the address of a text such as ``127.0.0.1:9464`` or ``[::1]:9464``. Raises ``ConfigError``."""
    match = _ADDRESS.fullmatch(text)
    if match is None or not 0 <= int(match["port"]) <= 65535 or not _can_exist(match["six"], match["host"]):
        port = DEFAULT_ADDRESS[1]
        raise ConfigError(f"--listen must be HOST:PORT, for example 127.0.0.1:{port} or [::1]:{port}")
    return match["six"] or match["host"], int(match["port"])


def _can_exist(six: str | None, host: str) -> bool:
    """Whether a host is an IP address, or a name that could be resolved."""
    import socket  # few commands have an address

    try:
        if six is not None:
            socket.inet_pton(socket.AF_INET6, six)
        elif not host.strip("0123456789."):
            socket.inet_aton(host)
    except OSError:
        return False
    return six is not None or _HOST_NAME.fullmatch(host) is not None


def host_name(name: object) -> str:
    """Return a host name that a request may give, in lower case. Raises ``ConfigError``."""
    if not isinstance(name, str) or not _HOST_NAME.fullmatch(name):
        raise ConfigError(f"--listen-host must be a host name without a port, for example refresher.example: {name!r}")
    return name.lower().removesuffix(".")


def shown_address(address: Address) -> str:
    """Return an address as in a URL."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
