"""Kinds of damage to a file."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

__all__ = ["DAMAGES", "LARGE", "elsewhere"]

LARGE: Final = 100 * 1024 * 1024


def elsewhere(path: Path) -> Path:
    """Return where the content of ``path`` is moved to; secrets are allowed there."""
    return path.parent.parent.parent / f"{path.parent.name}.{path.stem}.import.json"


def _rewritten(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.write_bytes(change(path.read_bytes()))

    return damage


def _replaced(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.rename(elsewhere(path))
        make(path)

    return damage


DAMAGES: Final[dict[str, Callable[[Path], object]]] = {
    "emptied": _rewritten(lambda whole: whole[:0]),
    "zeros": _rewritten(lambda whole: bytes(len(whole))),
    "one-byte": _rewritten(lambda whole: whole[:1]),
    "half": _rewritten(lambda whole: whole[: len(whole) // 2]),
    "without-its-end": _rewritten(lambda whole: whole[:-2]),
    "later-version": _rewritten(lambda whole: re.sub(rb'"version": ?[0-9]+', b'"version":99', whole)),
    "no-json": _rewritten(lambda whole: b"no JSON" + whole),
    "binary": _rewritten(lambda whole: bytes(range(256)) + whole),
    "nested": _rewritten(lambda whole: whole[:11] + b"[" * 50_000 + whole[11:]),
    "nested-in-a-key": _rewritten(lambda whole: b'{"version":2,"checksum":"","record":' + b"[" * 50_000 + whole[:0]),
    "sparse": lambda path: os.truncate(path, LARGE),
    "large": _rewritten(lambda whole: whole.rstrip() + b" " * LARGE),
    "directory": _replaced(lambda path: path.mkdir(mode=0o700)),
    "fifo": _replaced(lambda path: os.mkfifo(path, 0o600)),
    "link": _replaced(lambda path: path.symlink_to(elsewhere(path))),
    "dangling-link": _replaced(lambda path: path.symlink_to("nowhere")),
    "unreadable": lambda path: path.chmod(0),
    "another-s": lambda path: path.write_bytes(path.with_name("linear.json").read_bytes()),
}
"""The key is also a valid name of a grant."""
