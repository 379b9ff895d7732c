"""What became of a grant, told to a person."""

from typing import assert_never

from refresher.common import clocks, text
from refresher.grants import policy
from refresher.grants.policy import Rest
from refresher.grants.record import Grant
from refresher.operations.result import Result, Word

__all__ = ["changed", "explain", "rested"]


def rested(grant: Grant, rest: Rest, *, adopted: bool = False) -> Result:
    """Return the result for a grant that was left as it is."""
    if rest.because == "not_due":
        word: Word = "adopted" if adopted else "not_due"
    elif policy.needs_person(grant):
        word = "reauthorization_required"
    else:
        word = rest.because
    return Result(name=grant.name, outcome=word, generation=grant.generation, detail=explain(grant, rest))


def changed(before: Grant, after: Grant) -> Result:
    """Return the result of an exchange that made ``after`` of ``before``."""
    if after.generation > before.generation:
        ends = policy.end_of_life(after) - clocks.now().wall
        due = policy.due_at(after) - clocks.now().wall
        detail = f"valid for {text.span(ends)}; next rotation in {text.span(max(due, 0))}"
        return Result(name=after.name, outcome="rotated", generation=after.generation, detail=detail)
    rest = policy.decide(after, clocks.now())
    if isinstance(rest, Rest):
        return rested(after, rest)
    word: Word = "transient" if after.failure is None else after.failure.outcome
    return Result(name=after.name, outcome=word, generation=after.generation, detail=_failure(after))


def explain(grant: Grant, rest: Rest) -> str:
    """Return in words why nothing is exchanged, and what ends the wait."""
    wait = "" if rest.until is None else text.span(max(rest.until - clocks.now().wall, 0))
    match rest.because:
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
            assert_never(rest.because)


def _anew(grant: Grant) -> str:
    """Return the command by which a person makes it good."""
    if grant.login is None and (grant.server_url is None or (grant.refresh_token is None and grant.renewable)):
        return f"'refresher import {grant.name} --replace --from FILE'"  # no login has made it, and none can
    return f"'refresher login {grant.name}'"


def _failure(grant: Grant) -> str:
    return "no attempt yet" if grant.failure is None else grant.failure.description
