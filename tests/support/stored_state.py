"""The state directory that refresher 0.1.0 wrote, copied for a test.

This module writes the envelope of a record or an intent itself, from the documented format, without code of the product: ``{"version":1,"checksum":"SHA-256 of the JSON","record":JSON}``, and after an intent's line the mark.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.support.command import Command
from tests.support.keys import certificate, key
from tests.support.token_server import TokenServer
from tests.support.vault import Vault

__all__ = [
    "KEYS",
    "NEVER_ROTATE",
    "ORIGIN",
    "OUTCOMES",
    "SPILL",
    "STORED",
    "TOMBSTONES",
    "Sealed",
    "change",
    "copied",
    "opened",
    "prepared",
]

STORED: Final = Path(__file__).parent.parent / "fixtures/state-0.1.0"

ORIGIN: Final = "http://127.0.0.1:9"
"""The address of its authorization server; nothing listens on this port."""

KEYS: Final = "/placeholder/keys"
"""The directory of the keys and certificates of its clients."""

SPILL: Final = "/placeholder/spill"
"""Its spill directory."""

TOMBSTONES: Final = ("logged-out", "removed")

OUTCOMES: Final = {
    "dead": "reauthorization_required",
    "left-sent": "in_doubt",
    "left-sent-alone": "in_doubt",
    "left-spilled-gone": "storage_failed",
    "left-unsent": "in_doubt",
    "left-unsent-alone": "in_doubt",
    "login-not-renewable": "reauthorization_required",
}
"""The outcomes of ``run-once`` for names that it does not rotate. All access tokens have expired, in another boot."""

NEVER_ROTATE: Final = ("left-spilled-gone", "login-not-renewable")

_SEALED: Final = re.compile(
    rb'\{"version":(?P<version>[123]),"checksum":"(?P<checksum>[0-9a-f]{64})","(?P<key>record|intent)":(?P<raw>\{.*\})\}\n(?P<rest>[^\n]*)',
    re.DOTALL,
)


class Sealed(NamedTuple):
    """The content of a record or intent file; ``rest``: the mark of an intent, or the end of reserved space."""

    key: str
    raw: bytes
    rest: bytes
    version: int = 1

    @property
    def fields(self) -> dict[str, Any]:
        """The JSON object."""
        fields: dict[str, Any] = json.loads(self.raw)
        return fields

    @property
    def checksum(self) -> str:
        """The checksum by which later files refer to this one."""
        return hashlib.sha256(self.raw).hexdigest()

    def data(self) -> bytes:
        """Return the file."""
        envelope = f'{{"version":{self.version},"checksum":"{self.checksum}","{self.key}":'
        return envelope.encode() + self.raw + b"}\n" + self.rest


def opened(data: bytes) -> Sealed | None:
    """Return the content of a file; ``None`` if it is neither a record nor an intent."""
    match = _SEALED.fullmatch(data)
    if match is None:
        return None
    sealed = Sealed(match["key"].decode(), match["raw"], match["rest"], int(match["version"]))
    assert sealed.checksum == match["checksum"].decode(), "the checksum is not SHA-256 over the JSON as it stands"
    return sealed


def change(path: Path, **changes: object) -> None:
    """Replace fields of a record or intent, and write it again with its checksum."""
    sealed = opened(path.read_bytes())
    assert sealed is not None
    raw = json.dumps(sealed.fields | changes, separators=(",", ":")).encode()
    path.write_bytes(sealed._replace(raw=raw).data())


def copied(state: Path, spill: Path, changes: Mapping[str, str] | None = None, *, source: Path = STORED) -> None:
    """Copy the state directory and its spill directory with private modes.

    ``changes``: texts to replace, as the address of the server. A record that changes has another checksum, so the
    intents, the successors and the spills that were begun from it name the new one.
    """
    replaced = dict(changes or {})
    # Records first: the other files name them.
    files = sorted((path for path in source.rglob("*") if path.is_file()), key=lambda path: path.suffix != ".json")
    for directory in (state, spill, *(state / name for name in ("grants", "tokens", "demands"))):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
    for path in files:
        if path.parent == source:
            continue  # README.txt
        target = (spill if path.parent.name == "spill" else state / path.parent.name) / _replaced(path.name, replaced)
        data = path.read_bytes()
        sealed = opened(data)
        if sealed is None:
            data = _replaced(data.decode("latin-1"), replaced).encode("latin-1")
        else:
            changed = sealed._replace(raw=_replaced(sealed.raw.decode(), replaced).encode())
            data = changed.data()
            if path.suffix == ".json" and changed.checksum != sealed.checksum:
                replaced |= {sealed.checksum: changed.checksum, sealed.checksum[:32]: changed.checksum[:32]}
        target.touch(mode=0o600)
        target.write_bytes(data)
        target.chmod(0o600)


def prepared(home: Path, vault: Vault, server: TokenServer) -> Command:
    """Return the command with a copy of the state directory, whose grants are those of ``server``."""
    refresher = Command(home, vault)
    spill, keys = home / "spill", home / "keys"
    refresher.environment["REFRESHER_SPILL_DIR"] = str(spill)
    keys.mkdir()
    key(keys / "client.pem")
    certificate(keys / "client.crt", "client.example")
    copied(refresher.state, spill, {ORIGIN: server.url, KEYS: str(keys), SPILL: str(spill)})
    vault.learn_from(refresher.state)
    return refresher


def _replaced(text: str, changes: Mapping[str, str]) -> str:
    for old, new in changes.items():
        text = text.replace(old, new)
    return text
