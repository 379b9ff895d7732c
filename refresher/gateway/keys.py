"""The keys of agents: a file with the hash of each, which is read again when it changes."""

import hashlib
import hmac
import json
import logging
import os
import secrets
import time
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from refresher.common.errors import ConfigError
from refresher.common.reading import is_exposed, read_regular
from refresher.gateway.routes import KEY_PREFIX
from shim._token import is_name

__all__ = ["Key", "Keys", "load", "make", "render"]

log = logging.getLogger(__name__)

_VERSION: Final = 1
_LARGEST: Final = 4 * 1024 * 1024


class Key(NamedTuple):
    """The key of one agent."""

    agent: str
    names: tuple[str, ...]
    """The grants that the agent may use; empty: all."""
    sha256: str
    """Of the key, in hex digits. A key has 256 random bits, so that a slow hash would protect it no better."""
    created_at: int
    """Epoch seconds."""

    def may_use(self, name: str) -> bool:
        """Whether the agent may use the grant ``name``."""
        return not self.names or name in self.names


def make(agent: str, names: Iterable[str]) -> tuple[str, Key]:
    """Return a new key as text, and what is stored of it."""
    text = KEY_PREFIX + secrets.token_urlsafe(32)
    return text, Key(agent, tuple(names), _hash(text), int(time.time()))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def render(keys: Iterable[Key]) -> bytes:
    """Return the content of the file."""
    return json.dumps({"version": _VERSION, "keys": [key._asdict() for key in keys]}, indent=1).encode() + b"\n"


def load(path: str) -> tuple[Key, ...]:
    """Return the keys in a file; none if there is no file. Raises ``ConfigError``."""
    try:
        data, status = read_regular(path, _LARGEST)
        if is_exposed(status):
            raise ConfigError(f"other users can read or change the keys in {path}: run 'chmod 600' on it")
        return tuple(map(_parsed, _entries(json.loads(data))))
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise ConfigError(f"cannot read the keys in {path}: {error.strerror}") from None
    except (KeyError, TypeError, ValueError, RecursionError):
        raise ConfigError(f"{path} is not a file of keys: move it away, then make a new key for each agent") from None


def _entries(content: Any) -> list[Any]:
    if content["version"] != _VERSION:
        raise ValueError("another version")
    return list(content["keys"])


def _parsed(entry: dict[str, Any]) -> Key:
    key = Key(str(entry["agent"]), tuple(entry["names"]), str(entry["sha256"]), int(entry["created_at"]))
    if not all(map(is_name, key.names)):
        raise ValueError("not a name")
    return key


class Keys:
    """The keys in a file, as they are now. Without a usable file there are none."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._stamp: tuple[int, ...] | None = None
        self._keys: tuple[Key, ...] = ()

    def find(self, text: str) -> Key | None:
        """Return the key that is ``text``; ``None`` if there is none."""
        self._refresh()
        given = _hash(text)
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.sha256, given):
                found = key
        return found

    def _refresh(self) -> None:
        try:
            status = os.stat(self._path)  # noqa: PTH116  for each request
        except OSError:
            self._stamp, self._keys = None, ()  # who removes the file removes the keys
            return
        # With mode and owner: a file that others can read has no valid key any more.
        stamp = (status.st_mtime_ns, status.st_ino, status.st_size, status.st_mode, status.st_uid)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = load(self._path)
        except ConfigError as error:
            self._keys = ()
            log.warning("gateway: %s; until then no key is valid", error)
