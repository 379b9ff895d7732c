"""Where a daemon is asked how it is: HOST:PORT."""

import re
from typing import Final

from refresher.common.errors import ConfigError

__all__ = ["DEFAULT", "Address", "parse", "shown"]

Address = tuple[str, int]

DEFAULT: Final[Address] = ("127.0.0.1", 9464)

_FORM: Final = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9.-]+)):(?P<port>\d{1,5})", re.ASCII)


def parse(text: str) -> Address:
    """Return the address that ``text`` names, as ``127.0.0.1:9464`` or ``[::1]:9464``. Raises ``ConfigError``."""
    match = _FORM.fullmatch(text)
    if match is None or not 0 <= int(match["port"]) <= 65535:
        raise ConfigError(f"--listen must be HOST:PORT, as 127.0.0.1:{DEFAULT[1]} or [::1]:{DEFAULT[1]}")
    return match["six"] or match["host"], int(match["port"])


def shown(address: Address) -> str:
    """Return an address as a URL has it."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
