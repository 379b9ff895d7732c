"""A login as another program keeps it, and the file that it was read from."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from refresher.common.secret import Secret

__all__ = [
    "Damaged",
    "KeptLogin",
    "Source",
    "Unreadable",
    "epoch_seconds",
    "json_of",
    "number",
    "secret",
    "table",
    "text",
    "without_query",
]

_MILLISECONDS: Final = 100_000_000_000.0
"""A larger time is in milliseconds: as seconds it would be after the year 5000."""


class Unreadable(Exception):
    """A file is not what its program writes; the message says why in plain words."""


@dataclass(frozen=True, kw_only=True)
class KeptLogin:
    """One login; ``None`` is what the program does not keep."""

    program: str
    file: Path
    entry: str | None = None
    """The name that the program gives to the server."""
    server_url: str | None = None
    is_of: Callable[[str], bool] | None = None
    """Whether the login is for this URL, where the file holds only a hash of it."""
    client_id: str | None = None
    client_secret: Secret | None = None
    auth_method: str | None = None
    access_token: Secret | None = None
    refresh_token: Secret | None = None
    token_type: str | None = None
    id_token: Secret | None = None
    expires_at: float | None = None
    """Of the access token, in epoch seconds."""
    scope: str | None = None
    issuer: str | None = None
    token_endpoint: str | None = None

    @property
    def shown_url(self) -> str | None:
        """The address of the server without its query, which can hold a key."""
        return None if self.server_url is None else without_query(self.server_url)

    def matches(self, server: str) -> bool:
        """Whether a person can mean this login by ``server``: its URL, or its name in the program."""
        if self.server_url is None:
            return self.is_of is None or self.is_of(server)
        own = {_normal(self.server_url), _normal(without_query(self.server_url))}
        return server == self.entry or _normal(server) in own


@dataclass(frozen=True, kw_only=True)
class Damaged:
    """A file of a program that cannot be used, and why."""

    program: str
    file: Path
    problem: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """The content of a file, and how to read those beside it."""

    path: Path
    document: Any
    modified: float
    """When the file was written, in epoch seconds."""
    read: Callable[[Path], Any]
    """Returns the JSON of another file, ``None`` if there is none. Raises ``Unreadable``."""
    names: Callable[[Path], Iterable[str]]
    """Returns the names in a directory, none if there is no such directory."""


def without_query(url: str) -> str:
    """Return an address without query and fragment, and without a password."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "an invalid address"
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _normal(url: str) -> str:
    """Return an address for a comparison: scheme and host are the same in capital letters."""
    try:
        parts = urlsplit(url)
        return parts._replace(scheme=parts.scheme.lower(), netloc=parts.netloc.lower()).geturl().rstrip("/")
    except ValueError:
        return url


def json_of(data: bytes) -> Any:
    """Return what the JSON in ``data`` holds. Raises ``Unreadable``."""
    try:
        return msgspec.json.decode(data.removeprefix(b"\xef\xbb\xbf"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Unreadable("it is not valid JSON" if data.strip() else "it is empty") from None


def table(value: Any, key: str | None = None) -> Mapping[str, Any]:
    """Return an object, or the one that is its member ``key``; an empty one for anything else."""
    found = value if key is None or not isinstance(value, dict) else value.get(key)
    return found if isinstance(found, dict) else {}


def text(value: Mapping[str, Any], key: str) -> str | None:
    """Return a member that is a text and not empty."""
    found = value.get(key)
    return found if isinstance(found, str) and found else None


def secret(value: Mapping[str, Any], key: str) -> Secret | None:
    """Return a member that is a text and not empty, as a secret."""
    found = text(value, key)
    return None if found is None else Secret(found)


def number(value: Mapping[str, Any], key: str) -> float | None:
    """Return a member that is a number."""
    found = value.get(key)
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None


def epoch_seconds(time: float | None) -> float | None:
    """Return a time that a program wrote in seconds or in milliseconds."""
    return time / 1000 if time is not None and time > _MILLISECONDS else time
