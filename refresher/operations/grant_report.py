"""What is shown of a grant: the fields of ``status --json``, shared by everything that shows grants."""

from typing import Any, Final

import msgspec

from refresher.common import clocks
from refresher.common.errors import GrantFileError
from refresher.grants import forecast, policy
from refresher.grants.forecast import End
from refresher.grants.record import Failure, Grant
from refresher.grants.token_file import rejection_of, state_of
from refresher.operations import certificates
from refresher.operations.result import new_client_command, repair_command
from shim._token import Problem

__all__ = [
    "INVALID",
    "advice",
    "ending_soon",
    "ends_of",
    "fields_of",
    "is_overdue",
    "is_soon",
    "last_error",
    "next_rotation_at",
]

INVALID: Final = "invalid_grant_file"
"""The state that is shown of a grant whose record cannot be read."""

_FIRST_RUN: Final = 120.0
_TO_CATCH_UP: Final = 60.0
_KEYS: Final = (
    *("state", "generation", "issued_at", "expires_at", "next_rotation_at", "last_rotation_at", "failures", "error"),
    *("issuer", "resource", "scope", "origins", "refresh_token_expires_at", "login_ends_at", "account"),
)
_ACCOUNT_KEYS: Final = ("issuer", "subject", "label")
_ERROR_KEYS: Final = ("code", "description", "at", "retry_at")


def fields_of(name: str, grant: Grant | GrantFileError, overdue: bool) -> dict[str, Any]:
    """Return the JSON fields of a grant; times are epoch seconds. ``overdue``: nobody refreshes it."""
    fields: dict[str, Any] = {"name": name} | {key: getattr(grant, key, None) for key in _KEYS}
    fields |= {"overdue": overdue, "ends": []}
    if isinstance(grant, GrantFileError):
        return fields | {"state": INVALID, "error": {"code": INVALID, "description": str(grant)}}
    failure = last_error(grant)
    return fields | {
        "state": state_of(grant),
        "issued_at": grant.issued_at if policy.has_access_token(grant) else None,
        "next_rotation_at": next_rotation_at(grant),
        "account": None if grant.account is None else {key: getattr(grant.account, key) for key in _ACCOUNT_KEYS},
        "error": None if failure is None else {key: getattr(failure, key) for key in _ERROR_KEYS},
        "ends": [msgspec.structs.asdict(end) for end in ends_of(grant)],
    }


def advice(grant: Grant | GrantFileError) -> str | None:
    """Return the command with which a person repairs a grant, or keeps it from an end; ``None`` if none helps now."""
    if isinstance(grant, GrantFileError):
        return None
    if grant.dead or policy.needs_person(grant) or rejection_of(grant) is not None:
        return repair_command(grant)
    # No command replaces a certificate.
    end = ending_soon(forecast.ends_of(grant))
    return None if end is None else new_client_command(grant) if end.kind == "client_secret" else repair_command(grant)


def ends_of(grant: Grant) -> list[End]:
    """Return what is known to end, the first one first; the certificate of ``grant`` is read for it."""
    return forecast.ends_of(grant, certificates.end_of(grant))


def ending_soon(ends: list[End]) -> End | None:
    """Return the first end that needs a person within 7 days or has passed; ``None`` if there is none."""
    end = forecast.first_hard_end(ends)
    return end if end is not None and is_soon(end) else None


def is_soon(end: End) -> bool:
    """Whether an end comes within 7 days, or has passed."""
    return end.at - clocks.now().wall < forecast.ENDS_SOON


def is_overdue(grant: Grant, late: bool | None) -> bool:
    """Whether nobody refreshes ``grant``; ``late``: whether a run should have come, if that is known."""
    if not grant.renewable or grant.dead:
        return False
    now = clocks.now()
    ends = policy.expected_expiry(grant) if policy.has_access_token(grant) else grant.authorized_at + _FIRST_RUN
    if late is False:
        ends += _TO_CATCH_UP  # somebody runs, and does not rotate this one: it cannot, or has too much to do
    return bool(late) or (ends < now.wall and isinstance(policy.decide(grant, now), policy.Rotate))


def last_error(grant: Grant) -> Failure | Problem | None:
    """Return the last failure, or that a server refuses the tokens; not a refusal to refresh early beside that."""
    rejection, failure = rejection_of(grant), grant.failure
    return rejection if failure is None or (rejection and failure.outcome == "too_early") else failure


def next_rotation_at(grant: Grant) -> float | None:
    """Return the epoch second of the next attempt; ``None`` if there is none."""
    now = clocks.now()
    decision = policy.decide(grant, now)
    if not grant.renewable:
        return None
    if isinstance(decision, policy.Wait):
        return decision.until
    return min(policy.due_at(grant), now.wall) if grant.access_token is not None else grant.authorized_at
