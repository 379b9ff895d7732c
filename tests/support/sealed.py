"""Keys of sealed grants, and the secrets that are below a directory in the clear."""

import base64
import os
from pathlib import Path

from refresher.storage.keys import Source
from tests.support.command import Command
from tests.support.token_server import TokenServer

__all__ = ["in_the_clear", "key_source", "make_key", "use_keys"]


def make_key(directory: Path, name: str) -> Path:
    """Write a new key, as the documentation says, and return its file."""
    path = directory / f"{name}.key"
    path.touch(mode=0o600)
    path.write_bytes(base64.b64encode(os.urandom(32)) + b"\n")
    return path


def key_source(directory: Path, name: str) -> Source:
    """Write a new key, and return it as a setting names it."""
    return Source("file", str(make_key(directory, name)))


def use_keys(refresher: Command, current: Path | None, previous: Path | None = None) -> None:
    """Configure the keys of a command."""
    for name, path in (("ENCRYPTION_KEY", current), ("PREVIOUS_ENCRYPTION_KEY", previous)):
        refresher.environment.pop(f"REFRESHER_{name}", None)
        if path is not None:
            refresher.environment[f"REFRESHER_{name}"] = f"file:{path}"


def in_the_clear(refresher: Command, server: TokenServer, *more: str) -> list[str]:
    """Return each file of refresher outside ``tokens/`` that holds a token, or one of ``more``, in the clear."""
    secrets = {*more, *server.tokens()}
    # The default one has files of other tests.
    spill = refresher.environment.get("REFRESHER_SPILL_DIR")
    found = []
    for path in [*refresher.state.rglob("*"), *(Path(spill).rglob("*") if spill else ())]:
        if path.is_file() and refresher.tokens not in path.parents:
            data = path.read_bytes()
            found += [str(path) for secret in secrets if secret.encode() in data]
    return sorted(set(found))
