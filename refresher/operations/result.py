"""What became of one name in one run, and how grave it is (DESIGN section 5)."""

from collections.abc import Iterable
from typing import Final, Literal

import msgspec

__all__ = ["EXIT_CODES", "Result", "Word", "exit_code"]

Word = Literal[
    "rotated",
    "adopted",
    "not_due",
    "too_early",
    "transient",
    "client_rejected",
    "in_doubt",
    "reauthorization_required",
    "lock_busy",
    "storage_failed",
    "invalid_grant_file",
    "interrupted",
]

EXIT_CODES: Final[dict[Word, int]] = {
    "rotated": 0,
    "adopted": 0,
    "not_due": 0,
    "too_early": 0,
    "transient": 4,
    "client_rejected": 4,
    "in_doubt": 5,
    "reauthorization_required": 3,
    "lock_busy": 6,
    "storage_failed": 4,
    "invalid_grant_file": 2,
    "interrupted": 130,
}

_GRAVEST_FIRST: Final = (130, 3, 5, 2, 4, 6)


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """An immutable event: it is told after the lock is released, so nobody who hears it can harm a rotation."""

    name: str
    outcome: Word
    generation: int | None
    detail: str


def exit_code(results: Iterable[Result]) -> int:
    """Return the exit code of the gravest outcome; 0 where all is well."""
    codes = {EXIT_CODES[result.outcome] for result in results}
    return next((code for code in _GRAVEST_FIRST if code in codes), 0)
