"""Where the keys of sealed grants come from: a file, a credential of systemd, the keyring of the system, or a command.

A setting names a source, never a key. A key is read when it is first needed, once a process, and is never written or
logged. What cannot be read is tried again a few seconds later: a key management service may come back.
"""

import base64
import binascii
import os
import re
import shlex
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from refresher.common.errors import ConfigError, KeyUnavailable
from refresher.common.reading import is_exposed, read_named
from refresher.grants.envelope import KEY_BYTES, Key

if TYPE_CHECKING:
    from concurrent.futures import Future
    from subprocess import Popen

__all__ = ["KeyRing", "Role", "Source", "parse_source"]

Role = Literal["current", "previous"]
"""What a key is for: to seal and to read, or to read alone."""

_FORMS: Final = "file:PATH, systemd:NAME, keyring:SERVICE or command:PROGRAM ARGUMENTS"
_WAIT: Final = 10.0
"""Seconds for a command or a keyring to give the key."""

_RETRY_AFTER: Final = 5.0
"""Seconds for which a failure to read a key is not tried again: a thousand grants must not ask a thousand times."""

_LARGEST: Final = 4096
_USER: Final = "refresher"
_HEX_LENGTH: Final = 2 * KEY_BYTES
_TEXT: Final = {*range(0x20, 0x7F), *b"\t\n\v\f\r"}


class Source(NamedTuple):
    """What a setting names, in the form ``kind:what``."""

    kind: str
    what: str

    def __str__(self) -> str:
        # For messages: the arguments of a command can name what is nobody's business.
        return f"{self.kind}:{shlex.split(self.what)[0] if self.kind == 'command' else self.what}"


def parse_source(setting: str, given: str | None, directory: Path | None = None) -> Source | None:
    """Return the source that the setting of that name gives; ``None`` if it is not given or empty.

    ``directory``: what a path is relative to. Raises ``ConfigError``, which never quotes ``given``: it may be a key.
    """
    if not given:
        return None
    kind, colon, what = given.partition(":")
    if not colon or kind not in _READERS or not what.strip() or "\0" in what:
        raise ConfigError(f"{setting} must name where the key comes from: {_FORMS}; it is never the key itself")
    if _is_key(what.strip()):
        raise ConfigError(f"{setting} holds a key: name where the key comes from, {_FORMS}; it is never the key itself")
    if kind == "file":
        try:
            what = str((directory or Path()).joinpath(Path(what).expanduser()).absolute())
        except (RuntimeError, OSError):
            raise ConfigError(f"{setting} is not a path: there is no home or working directory for it") from None
    elif kind == "systemd" and ("/" in what or what.startswith(".")):
        raise ConfigError(f"{setting}: systemd:NAME needs the name of a credential, without a slash")
    elif kind == "command":
        try:
            words = shlex.split(what)
        except ValueError:
            words = []
        if not words:
            raise ConfigError(f"{setting}: the command has a quote that does not end, or is empty")
    return Source(kind, what)


class KeyRing:
    """The keys of one process: ``envelope.Keys``.

    ``current`` seals what is written, without it writes are plain. ``previous`` can still be read. ``published``: keys
    of their own for the token files in a database, which hosts of agents have too.
    """

    def __init__(
        self, current: Source | None = None, previous: Source | None = None, published: "KeyRing | None" = None
    ) -> None:
        self._sources: Final = (current, previous)
        self._settings = ("encryption_key", "previous_encryption_key")
        self._own_published: Final = published
        self._current = None if current is None else _LoadedKey(current)
        self._keys = tuple(filter(None, (self._current, None if previous is None else _LoadedKey(previous))))

    @property
    def has_current(self) -> bool:
        """Whether writes are sealed."""
        return self._current is not None

    @property
    def has_previous(self) -> bool:
        """Whether a key is named that can only be read with."""
        return self._sources[1] is not None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, KeyRing):
            return NotImplemented
        return (self._sources, self._own_published) == (other._sources, other._own_published)

    def __hash__(self) -> int:
        return hash((self._sources, self._own_published))

    @property
    def credentials(self) -> set[str]:
        """The names of the credentials of systemd that are keys."""
        own = {each.what for each in self._sources if each is not None and each.kind == "systemd"}
        return own if self._own_published is None else own | self._own_published.credentials

    @cached_property
    def published(self) -> "KeyRing":
        """The keys of the token files in a database: each key opens them, and this one seals without another for it."""
        ring = KeyRing() if self._own_published is None else KeyRing(*self._own_published._sources)  # noqa: SLF001
        ring._settings = ("published_key", "previous_published_key")  # noqa: SLF001
        ring._current = ring._current or self._current  # noqa: SLF001
        # The current one first: a key that is also named as a previous one is current.
        ring._keys = tuple(dict.fromkeys(filter(None, (ring._current, *ring._keys, *self._keys))))  # noqa: SLF001
        return ring

    @property
    def is_certain(self) -> bool:
        """Whether what these keys do not open cannot be opened by the service either.

        Others may not see a credential of systemd or a keyring, or run a command: these count once they were read.
        """
        return all(each.source.kind == "file" or each.is_loaded for each in self._keys)

    def load(self) -> None:
        """Read the keys of each write of a store in a database. Raises ``KeyUnavailable``."""
        self.current()
        self.published.current()

    def current(self) -> Key | None:
        """Return the key of each write; ``None``: writes are plain. Raises ``KeyUnavailable``."""
        return None if self._current is None else self._current.get()

    def find(self, key_id: str) -> Key:
        """Return the key that opens what has ``key_id``. Raises ``KeyUnavailable``."""
        problems = []
        for each in self._keys:
            try:
                if (key := each.get()).id == key_id:
                    return key
            except KeyUnavailable as error:
                problems.append(str(error))
            else:
                problems.append(f"{each.source} has the key {key.id}")
        setting, previous = self._settings
        why = "; ".join(dict.fromkeys(problems)) or f"no {setting} is configured"
        raise KeyUnavailable(
            f"it is sealed with the key {key_id}, which is not here: {why}. Name that key as {setting} or "
            f"{previous}; 'refresher encryption status' shows which grants need which"
        )

    def known(self) -> dict[str, Role]:
        """Return the ids of the keys that can be read, each with its role."""
        found: dict[str, Role] = {}
        for each in self._keys:
            with suppress(KeyUnavailable):
                found.setdefault(each.get().id, "current" if each is self._current else "previous")
        return found

    def problems(self, *, published: bool = True) -> list[str]:
        """Return why each key that cannot be read cannot, also those of what is ``published``."""
        found = []
        for each in self.published._keys if published else self._keys:  # noqa: SLF001
            try:
                each.get()
            except KeyUnavailable as error:
                found.append(str(error))
        return list(dict.fromkeys(found))


class _LoadedKey:
    """The key of one source, once it was read."""

    def __init__(self, source: Source) -> None:
        self.source: Final = source
        self._lock = threading.Lock()
        self._key: Key | None = None
        self._failed_at = float("-inf")
        self._took = 0.0
        self._problem = ""

    @property
    def is_loaded(self) -> bool:
        """Whether the key was read."""
        return self._key is not None

    def get(self) -> Key:
        """Return the key. Raises ``KeyUnavailable``."""
        if (key := self._key) is not None:
            return key
        with self._lock:  # one command for all threads
            began = time.monotonic()
            # A source that is slow to fail must not take all the time of those who wait for others.
            if self._key is None and began - self._failed_at >= max(_RETRY_AFTER, 2 * self._took):
                try:
                    self._key = _parse(_READERS[self.source.kind](self.source.what))
                except (OSError, ValueError, ImportError, RuntimeError) as error:
                    why = getattr(error, "strerror", None) or error
                    self._problem = f"cannot read the key {self.source}: {why}"
                    self._failed_at = time.monotonic()
                    self._took = self._failed_at - began
            if self._key is None:
                raise KeyUnavailable(self._problem)
            return self._key


def _parse(data: bytes) -> Key:
    """Return the key in ``data``: 32 bytes, or the same in hex or base64. Raises ``ValueError``."""
    # A text of that length is a password, or a shorter key in hex.
    if len(data) == KEY_BYTES and not set(data) <= _TEXT:
        return _made(data)
    text = data.strip()
    with suppress(ValueError):
        if len(text) == _HEX_LENGTH:
            return _made(bytes.fromhex(text.decode("ascii")))
    with suppress(binascii.Error, ValueError):
        raw = base64.b64decode(text.replace(b"-", b"+").replace(b"_", b"/"), validate=True)
        if len(raw) == KEY_BYTES:
            return _made(raw)
    raise ValueError("it is no key of 256 bits, in base64, hex or 32 bytes: 'openssl rand -base64 32' makes one")


def _is_key(text: str) -> bool:
    """Whether a text is a key itself: 32 bytes in base64, whose last character is "=", or in hex."""
    looks_like_it = text.endswith("=") or re.fullmatch(r"[0-9A-Fa-f]*", text) is not None
    try:
        return looks_like_it and _parse(text.encode()) is not None
    except (ValueError, ImportError):
        return False


def _made(key: bytes) -> Key:
    if not any(key):
        raise ValueError("all its bytes are zero: 'openssl rand -base64 32' makes a key")
    try:
        return Key(key)
    except ImportError:
        raise ImportError("sealed grants need the package cryptography: pip install 'refresher[service]'") from None


def _from_file(path: str) -> bytes:
    found = read_named(path, _LARGEST)
    if is_exposed(found.status):
        raise ValueError("other users can read it: run 'chmod 600' on it")
    if found.status.st_uid not in (0, os.geteuid()):
        uid = found.status.st_uid
        raise ValueError(f"it belongs to another user ({uid}): run refresher as that user, or name a file of this one")
    return found.data


def _from_systemd(name: str) -> bytes:
    if not (directory := os.environ.get("CREDENTIALS_DIRECTORY")):
        raise ValueError(
            "CREDENTIALS_DIRECTORY is not set: only a service of systemd with LoadCredentialEncrypted= has it"
        )
    return read_named(os.path.join(directory, name), _LARGEST).data  # noqa: PTH118


def _from_keyring(service: str) -> bytes:
    from concurrent.futures import Future

    try:
        import keyring
    except ImportError:
        raise ImportError("the package keyring is missing: pip install 'refresher[keyring]'") from None

    def ask(answer: Future[str | None]) -> None:
        try:
            answer.set_result(keyring.get_password(service, _USER))
        except Exception as error:  # noqa: BLE001  a back end of somebody else
            answer.set_exception(error)

    # A keyring that is locked asks a person, who may not be there: one question at a time.
    if (answer := _asked.get(service)) is None:
        answer = _asked[service] = Future()
        threading.Thread(target=ask, args=(answer,), daemon=True, name="keyring").start()
    try:
        problem = answer.exception(_WAIT)
    except TimeoutError:
        raise ValueError(f"the keyring did not answer in {_WAIT:.0f} s: is it unlocked?") from None
    _asked.pop(service, None)
    if problem is not None:
        raise ValueError(f"the keyring refuses ({type(problem).__name__}): is it unlocked?")
    if (key := answer.result()) is None:
        raise ValueError(f"the keyring has none: 'keyring set {shlex.quote(service)} {_USER}' stores one")
    return key.encode()


_asked: Final[dict[str, "Future[str | None]"]] = {}
"""What the keyring of the system was asked and has not answered yet, by service."""


def _from_command(command: str) -> bytes:
    import subprocess  # with selectors, which a run without a command does not need

    words = shlex.split(command)
    with subprocess.Popen(  # noqa: S603  the configuration names it
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # it could quote the key
        start_new_session=True,
    ) as process:
        try:
            output = _output(process, time.monotonic() + _WAIT)
        except BaseException:
            with suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode:
        raise ValueError(f"the command failed with code {process.returncode}")
    return output


def _output(process: "Popen[bytes]", ends: float) -> bytes:
    """Return what a command prints until it ends. Raises ``ValueError`` if it is late, or prints more than a key."""
    import selectors
    from subprocess import TimeoutExpired

    output = b""
    with selectors.DefaultSelector() as selector:
        if process.stdout is not None:
            selector.register(process.stdout, selectors.EVENT_READ)
        while selector.select(max(ends - time.monotonic(), 0.0)):
            if not (more := os.read(next(iter(selector.get_map().values())).fd, _LARGEST)):
                with suppress(TimeoutExpired):
                    process.wait(max(ends - time.monotonic(), 0.0))
                    return output
                break
            output += more
            if len(output) > _LARGEST:
                raise ValueError(f"the command prints more than {_LARGEST} bytes")
    raise ValueError(f"the command did not end in {_WAIT:.0f} s")


_READERS: Final[dict[str, Callable[[str], bytes]]] = {
    "file": _from_file,
    "systemd": _from_systemd,
    "keyring": _from_keyring,
    "command": _from_command,
}
