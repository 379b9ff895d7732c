"""Prints results and grants: as a table for a person, as JSON for a program."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import click
import msgspec

from refresher.common import clocks, text
from refresher.common.errors import GrantFileError
from refresher.grants import policy
from refresher.grants.record import Grant
from refresher.operations.inspection import ListedGrant
from refresher.operations.result import EXIT_CODES, Result
from refresher.storage.publishing import state_of

__all__ = ["results_json", "results_table", "status_json", "status_table"]

_COLOURS_OF_CODES = {0: "green", 4: "yellow", 6: "yellow", 5: "magenta", 3: "red", 2: "red", 130: "yellow"}
_COLOURS = {"active": "green", "failing": "yellow"} | {key: _COLOURS_OF_CODES[code] for key, code in EXIT_CODES.items()}

_STATUS_KEYS = (
    "state",
    "generation",
    "issued_at",
    "expires_at",
    "next_rotation_at",
    "last_rotation_at",
    "failures",
    "error",
    "issuer",
    "resource",
    "scope",
    "origins",
)
_ERROR_KEYS = ("code", "description", "at", "retry_at")


def results_json(results: Sequence[Result], exit_code: int) -> str:
    """Return the stable JSON of a run."""
    return json.dumps({"results": [msgspec.structs.asdict(result) for result in results], "exit_code": exit_code})


def results_table(results: Sequence[Result]) -> str:
    """Return a table of a run."""
    rows = [
        (result.name, result.outcome, "-" if result.generation is None else str(result.generation), result.detail)
        for result in results
    ]
    return _table(("NAME", "OUTCOME", "GENERATION", "DETAIL"), rows)


def status_json(entries: Iterable[ListedGrant]) -> str:
    """Return the stable JSON of ``status``; times are epoch seconds."""
    return json.dumps({"grants": [_grant_json(name, grant) for name, grant in entries]})


def _grant_json(name: str, grant: Grant | GrantFileError) -> dict[str, Any]:
    fields: dict[str, Any] = {"name": name} | {key: getattr(grant, key, None) for key in _STATUS_KEYS}
    if isinstance(grant, GrantFileError):
        code = "invalid_grant_file"
        return fields | {"state": code, "error": {"code": code, "description": str(grant)}}
    failure = grant.failure
    return fields | {
        "state": state_of(grant),
        "issued_at": None if grant.access_token is None else grant.issued_at,
        "next_rotation_at": _next_rotation_at(grant),
        "error": None if failure is None else {key: getattr(failure, key) for key in _ERROR_KEYS},
    }


def status_table(entries: Iterable[ListedGrant]) -> str:
    """Return a table of grants."""
    rows = [_status_row(name, grant) for name, grant in entries]
    return _table(("NAME", "STATE", "GENERATION", "TIME LEFT", "NEXT ROTATION", "LAST ERROR"), rows)


def _status_row(name: str, grant: Grant | GrantFileError) -> tuple[str, ...]:
    if isinstance(grant, GrantFileError):
        return (name, "invalid_grant_file", "-", "-", "-", str(grant))
    now = clocks.now().wall
    planned = _next_rotation_at(grant)
    return (
        name,
        state_of(grant),
        str(grant.generation),
        _time_left(grant, now),
        "-" if planned is None else "now" if planned <= now else f"in {text.span(planned - now)}",
        "-" if grant.failure is None else grant.failure.description,
    )


def _time_left(grant: Grant, now: float) -> str:
    if grant.access_token is None:
        return "no token yet"
    if grant.expires_at is None:
        return "unknown"
    left = grant.expires_at - now
    return text.span(left) if left > 0 else f"expired {text.span(left)} ago"


def _next_rotation_at(grant: Grant) -> float | None:
    now = clocks.now()
    decision = policy.decide(grant, now)
    if not grant.renewable:
        return None
    if isinstance(decision, policy.Wait):
        return decision.until
    return min(policy.due_at(grant), now.wall) if grant.access_token is not None else grant.authorized_at


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return rows below a bold head; the word in the second column has its colour."""
    *widths, _ = (max(map(len, column)) for column in zip(head, *rows, strict=True))
    layout = "  ".join((*(f"{{:{width}}}" for width in widths), "{}"))
    # A colour makes a word longer than it looks: pad by hand, and each word only once.
    bold = (
        click.style(title, bold=True) + " " * (width - len(title))
        for title, width in zip(head, (*widths, 0), strict=True)
    )
    painted = {word: click.style(word, fg=colour) + " " * (widths[1] - len(word)) for word, colour in _COLOURS.items()}
    lines = (layout.format(name, painted[word], *rest) for name, word, *rest in rows)
    return "\n".join((layout.format(*bold), *lines))
