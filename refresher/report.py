"""Results and grants for a person as a table, for a program as JSON."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import click
import msgspec

from refresher import clocks, policy, words
from refresher.errors import GrantFileError
from refresher.grant import Grant
from refresher.overview import Entry
from refresher.publish import state_of
from refresher.result import EXIT_CODES, Result

__all__ = ["results_json", "results_table", "status_json", "status_table"]

_COLOURS = {0: "green", 4: "yellow", 6: "yellow", 5: "magenta", 3: "red", 2: "red", 130: "yellow"}
_STATE_COLOURS = {"active": "green", "failing": "yellow"}

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


def results_json(results: Sequence[Result], exit_code: int) -> str:
    """Return the stable JSON of a run."""
    return json.dumps({"results": [msgspec.structs.asdict(result) for result in results], "exit_code": exit_code})


def results_table(results: Sequence[Result]) -> str:
    """Return a table of a run."""
    rows = [
        (
            result.name,
            click.style(result.outcome, fg=_COLOURS[EXIT_CODES[result.outcome]]),
            "-" if result.generation is None else str(result.generation),
            result.detail,
        )
        for result in results
    ]
    return _table(("NAME", "OUTCOME", "GENERATION", "DETAIL"), rows)


def status_json(entries: Iterable[Entry]) -> str:
    """Return the stable JSON of ``status``; times are epoch seconds."""
    return json.dumps({"grants": [_grant_json(name, grant) for name, grant in entries]})


def _grant_json(name: str, grant: Grant | GrantFileError) -> dict[str, Any]:
    fields: dict[str, Any] = {"name": name, **dict.fromkeys(_STATUS_KEYS)}
    if isinstance(grant, GrantFileError):
        return fields | {
            "state": "invalid_grant_file",
            "error": {"code": "invalid_grant_file", "description": str(grant)},
        }
    failure = grant.failure
    return fields | {
        "state": state_of(grant),
        "generation": grant.generation,
        "issued_at": grant.issued_at if grant.access_token is not None else None,
        "expires_at": grant.expires_at,
        "next_rotation_at": _next_rotation_at(grant),
        "last_rotation_at": grant.last_rotation_at,
        "failures": grant.failures,
        "error": None
        if failure is None
        else {
            "code": failure.code,
            "description": failure.description,
            "at": failure.at,
            "retry_at": failure.retry_at,
        },
        "issuer": grant.issuer,
        "resource": grant.resource,
        "scope": grant.scope,
        "origins": list(grant.origins),
    }


def status_table(entries: Iterable[Entry]) -> str:
    """Return a table of grants."""
    rows = [_status_row(name, grant) for name, grant in entries]
    return _table(("NAME", "STATE", "GENERATION", "TIME LEFT", "NEXT ROTATION", "LAST ERROR"), rows)


def _status_row(name: str, grant: Grant | GrantFileError) -> tuple[str, ...]:
    if isinstance(grant, GrantFileError):
        return (name, click.style("invalid_grant_file", fg="red"), "-", "-", "-", str(grant))
    state = state_of(grant)
    now = clocks.now().wall
    planned = _next_rotation_at(grant)
    return (
        name,
        click.style(state, fg=_STATE_COLOURS.get(state, "red")),
        str(grant.generation),
        _time_left(grant, now),
        "-" if planned is None else "now" if planned <= now else f"in {words.span(planned - now)}",
        "-" if grant.failure is None else grant.failure.description,
    )


def _time_left(grant: Grant, now: float) -> str:
    if grant.access_token is None:
        return "no token yet"
    if grant.expires_at is None:
        return "unknown"
    left = grant.expires_at - now
    return words.span(left) if left > 0 else f"expired {words.span(left)} ago"


def _next_rotation_at(grant: Grant) -> float | None:
    now = clocks.now()
    decision = policy.decide(grant, now)
    if not grant.renewable:
        return None
    if isinstance(decision, policy.Rest):
        return decision.until
    return min(policy.due_at(grant), now.wall) if grant.access_token is not None else grant.authorized_at


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    every = [tuple(click.style(title, bold=True) for title in head), *rows]
    widths = [max(len(click.unstyle(row[column])) for row in every) for column in range(len(head) - 1)]
    return "\n".join(_line(row, widths) for row in every)


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    cells = (cell + " " * (width - len(click.unstyle(cell))) for cell, width in zip(row, widths, strict=False))
    return "  ".join((*cells, row[-1]))
