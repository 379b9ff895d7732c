"""What became of one name in one run, and how grave it is (DESIGN section 5)."""

from collections.abc import Iterable
from typing import Final, Literal, assert_never

import msgspec

from refresher.common import clocks, text
from refresher.grants import policy
from refresher.grants.policy import Wait
from refresher.grants.record import Grant

__all__ = ["EXIT_CODES", "Result", "ResultCode", "exit_code"]

ResultCode = Literal[
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

EXIT_CODES: Final[dict[ResultCode, int]] = {
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
    outcome: ResultCode
    generation: int | None
    detail: str

    @classmethod
    def without_exchange(cls, name: str, outcome: ResultCode, detail: str, generation: int | None = None) -> "Result":
        """Return the result of a run that did not come as far as an exchange."""
        return cls(name=name, outcome=outcome, generation=generation, detail=detail)

    @classmethod
    def from_decision(cls, grant: Grant, rest: Wait, *, adopted: bool = False) -> "Result":
        """Return the result for a grant that was left as it is."""
        if rest.reason == "not_due":
            word: ResultCode = "adopted" if adopted else "not_due"
        elif policy.needs_person(grant):
            word = "reauthorization_required"
        else:
            word = rest.reason
        return cls(name=grant.name, outcome=word, generation=grant.generation, detail=_explained(grant, rest))

    @classmethod
    def after_exchange(cls, before: Grant, after: Grant) -> "Result":
        """Return the result of an exchange that made ``after`` of ``before``."""
        if after.generation > before.generation:
            ends = policy.expected_expiry(after) - clocks.now().wall
            due = policy.due_at(after) - clocks.now().wall
            detail = f"valid for {text.span(ends)}; next rotation in {text.span(max(due, 0))}"
            return cls(name=after.name, outcome="rotated", generation=after.generation, detail=detail)
        rest = policy.decide(after, clocks.now())
        if isinstance(rest, Wait):
            return cls.from_decision(after, rest)
        word: ResultCode = "transient" if after.failure is None else after.failure.outcome
        return cls(name=after.name, outcome=word, generation=after.generation, detail=_failure(after))


def exit_code(results: Iterable[Result]) -> int:
    """Return the exit code of the gravest outcome; 0 where all is well."""
    codes = {EXIT_CODES[result.outcome] for result in results}
    return next((code for code in _GRAVEST_FIRST if code in codes), 0)


def _explained(grant: Grant, rest: Wait) -> str:
    """Return in words why nothing is exchanged, and what ends the wait."""
    wait = "" if rest.until is None else text.span(max(rest.until - clocks.now().wall, 0))
    match rest.reason:
        case "not_due" | "too_early" if not grant.renewable:
            return f"the server gave no refresh token; in {wait} a person must log in again: {_anew(grant)}"
        case "not_due":
            return f"next rotation in {wait}"
        case "reauthorization_required":
            return f"{_failure(grant)}; a person must log in again: {_anew(grant)}"
        case "transient" | "client_rejected" | "too_early" if policy.needs_person(grant):
            return (
                f"{_failure(grant)}; refused {grant.refusals} times in a row, so a person must look at it: "
                f"{_anew(grant)}, as a client that the server accepts; next attempt in {wait}"
            )
        case "in_doubt":
            used = "" if grant.access_token is None else "the access token is used to its end; "
            return f"{_failure(grant)}; the refresh token may be spent, {used}next attempt in {wait}"
        case "too_early":
            return f"the server refuses while the access token lives; next attempt in {wait}"
        case "transient" | "client_rejected":
            return f"{_failure(grant)}; next attempt in {wait}"
        case _:
            assert_never(rest.reason)


def _anew(grant: Grant) -> str:
    """Return the command by which a person makes it good."""
    if grant.login is None and (grant.server_url is None or (grant.refresh_token is None and grant.renewable)):
        return f"'refresher import {grant.name} --replace --from FILE'"  # no login has made it, and none can
    return f"'refresher login {grant.name}'"


def _failure(grant: Grant) -> str:
    return "no attempt yet" if grant.failure is None else grant.failure.description
