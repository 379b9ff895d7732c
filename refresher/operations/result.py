"""The result of a run for one grant, and the exit code of a run."""

from collections.abc import Iterable
from typing import Final, Literal, assert_never

import msgspec

from refresher.common import clocks, text
from refresher.common.clocks import Moment
from refresher.grants import accounts, policy, refresh_life, token_rejection
from refresher.grants.policy import Wait
from refresher.grants.record import FailureKind, Grant

__all__ = [
    "ASK",
    "EXIT_CODES",
    "Result",
    "ResultCode",
    "certificate_ends",
    "command_after_removal",
    "create_commands",
    "exit_code",
    "is_denied",
    "login_ends",
    "may_log_in",
    "new_client_command",
    "repair_command",
]

ResultCode = (
    FailureKind
    | Literal[
        "rotated",
        "adopted",
        "not_due",
        "token_rejected",
        "lock_busy",
        "storage_failed",
        "invalid_grant_file",
        "interrupted",
    ]
)

EXIT_CODES: Final[dict[ResultCode, int]] = {
    "rotated": 0,
    "adopted": 0,
    "not_due": 0,
    "too_early": 0,
    "token_rejected": 4,
    "transient": 4,
    "client_rejected": 4,
    "in_doubt": 5,
    "reauthorization_required": 3,
    "lock_busy": 6,
    "storage_failed": 4,
    "invalid_grant_file": 2,
    "interrupted": 130,
}

ASK: Final = "no login helps: ask those who run the identity provider"

_MOST_SERIOUS_FIRST: Final = (130, 3, 5, 2, 4, 6)


class Result(msgspec.Struct, frozen=True):
    """What a run did for one grant; it is logged and printed after the lock is released."""

    name: str
    outcome: ResultCode
    generation: int | None
    """``None`` if the run ended before the decision to exchange."""
    detail: str

    @classmethod
    def from_decision(cls, grant: Grant, rest: Wait, *, adopted: bool = False) -> "Result":
        """Return the result of the decision not to exchange."""
        code: ResultCode = rest.reason
        if code == "not_due" and adopted:
            code = "adopted"
        elif code != "not_due" and policy.needs_person(grant):
            code = "reauthorization_required"
        return _with_rejection(cls(grant.name, code, grant.generation, _explain(grant, rest)), grant)

    @classmethod
    def at_rest(cls, name: str, generation: int, due: float) -> "Result":
        """Return the result of a grant of which nothing is known but that it needs nothing before ``due``."""
        return cls(name, "not_due", generation, _not_due(_wait(due)))

    @classmethod
    def after_exchange(cls, before: Grant, after: Grant) -> "Result":
        """Return the result of an exchange that turned ``before`` into ``after``."""
        now = clocks.now()
        if after.generation > before.generation:
            life = text.span(policy.expected_expiry(after) - now.wall)
            next_rotation = text.span(max(policy.due_at(after) - now.wall, 0))
            detail = f"valid for {life}; next rotation in {next_rotation}"
            if (named := accounts.other_account_named(before, after)) is not None and after.account is not None:
                detail += (
                    f"; warning: the server now names {named}, and the login is for {accounts.shown(after.account)}: "
                    f"check whose tokens these are, and {_what_to_do(after)} if they are not yours"
                )
            return _with_rejection(cls(after.name, "rotated", after.generation, detail), after)
        decision = policy.decide(after, now)
        if isinstance(decision, Wait):
            return cls.from_decision(after, decision)
        code = "transient" if after.failure is None else after.failure.outcome
        return cls(after.name, code, after.generation, _last_error(after))


def exit_code(results: Iterable[Result]) -> int:
    """Return the exit code of the most serious outcome; 0 if all is well."""
    codes = {EXIT_CODES[result.outcome] for result in results}
    return next((code for code in _MOST_SERIOUS_FIRST if code in codes), 0)


def login_ends(grant: Grant, now: Moment) -> str:
    """Return the warning that the login of ``grant`` or its client ends, and what to do before."""
    end = refresh_life.next_end(grant, now)
    left = 0.0 if end is None else end.left
    when = f"in {text.span(left)}, at {text.clock_time(now.wall + left)}"
    if end is not None and end.kind == "client_secret":
        what = "client secret" if grant.client_secret is not None else "registration of the client"
        return (
            f"the {what} expires {when}, and no rotation can prolong it: before then, log in with a new client: "
            f"'{new_client_command(grant)}'"
        )
    return f"the server ends this login {when}, and no rotation can prolong it: before then, {_what_to_do(grant)}"


def certificate_ends(name: str, path: str, at: float, now: Moment) -> str:
    """Return the warning that the client certificate of the grant ``name`` ends or has ended, and what to do."""
    left = at - now.wall
    expires = f"expires in {text.span(left)}" if left > 0 else f"expired {text.span(left)} ago"
    return (
        f"the client certificate in {path} {expires}, at {text.clock_time(at)}: put a new one there, and check it with "
        f"'refresher run-once {name} --force'; no new login is needed"
    )


def _wait(until: float) -> str:
    return text.span(max(until - clocks.now().wall, 0))


def _not_due(wait: str) -> str:
    return f"next rotation in {wait}"


def _explain(grant: Grant, rest: Wait) -> str:
    """Return why there is no exchange now, and what happens next."""
    wait = "" if rest.until is None else _wait(rest.until)
    match rest.reason:
        case "not_due" | "too_early" if not grant.renewable:
            return f"the server issued no refresh token; in {wait}, {_what_to_do(grant)}"
        case "not_due":
            return _not_due(wait)
        case "reauthorization_required" if is_denied(grant):
            return f"{_last_error(grant)}; {ASK}; next attempt in {wait}"
        case "reauthorization_required" if _repair_of_source(grant) is not None:
            return _last_error(grant)  # it names the command
        case "reauthorization_required":
            return f"{_last_error(grant)}; {_what_to_do(grant)}"
        case "transient" | "client_rejected" | "too_early" if policy.needs_person(grant):
            times = "twice" if grant.refusals == 2 else f"{grant.refusals} times"
            mend = f"{_what_to_do(grant)}, with a client that the server accepts"
            if grant.assertion is not None:
                mend = "check the assertion and the client with those who run the server"
            return f"{_last_error(grant)}; the server refused {times} in a row: {mend}; next attempt in {wait}"
        case "in_doubt":
            use = "" if not policy.has_access_token(grant) else "the access token stays in use until it expires; "
            return f"{_last_error(grant)}; the refresh token may be spent; {use}next attempt in {wait}"
        case "too_early":
            return f"the server refuses to refresh before the access token expires; next attempt in {wait}"
        case "client_rejected" if policy.is_forgotten(grant):
            return (
                f"{_last_error(grant)}; the server may have forgotten the client that refresher registered: "
                f"{_what_to_do(grant)}, which registers a new one; next attempt in {wait}"
            )
        case "transient" | "client_rejected":
            return f"{_last_error(grant)}; next attempt in {wait}"
        case _:
            assert_never(rest.reason)


def _what_to_do(grant: Grant) -> str:
    """Return the command with which a person repairs the grant."""
    login = f"log in again with '{_login_again(grant)}'"
    if grant.login is not None:
        return login
    again = f"import it again with '{_import_again(grant)}'"
    return f"{login}, or {again}" if may_log_in(grant) else again


def repair_command(grant: Grant) -> str:
    """Return the command that replaces the grant by a new login or import, or brings it back in another way."""
    if is_denied(grant):
        return f"refresher run-once {grant.name} --force"
    if (repair := _repair_of_source(grant)) is not None:
        return repair
    return _login_again(grant) if may_log_in(grant) else _import_again(grant)


def create_commands(name: str) -> str:
    """Return the commands with which a person makes a grant of which nothing is known but its name."""
    return f"'refresher login {name} URL' or 'refresher import {name} --from FILE'"


def command_after_removal(grant: Grant) -> str:
    """Return the command that makes a removed grant again, of the same kind."""
    return f"{_login_again(grant)} URL" if may_log_in(grant) else _import_again(grant)


def is_denied(grant: Grant) -> bool:
    """Whether an administrator does not allow the grant: no login helps."""
    return grant.assertion is not None and grant.dead and _code(grant) == "access_denied"


def may_log_in(grant: Grant) -> bool:
    """Whether a login may replace ``grant``. If it was imported, the login must find the server of ``server_url``."""
    has_server = grant.server_url is not None and (grant.refresh_token is not None or not grant.renewable)
    return grant.login is not None or has_server


def _repair_of_source(grant: Grant) -> str | None:
    """Return the command that brings back the grant whose token ``grant`` needs, if that is the cause."""
    if grant.assertion is None or _code(grant) != "source_reauthorization_required":
        return None
    return grant.assertion.repair


def _code(grant: Grant) -> str:
    return "" if grant.failure is None else grant.failure.code


def new_client_command(grant: Grant) -> str:
    """Return the command that registers a new client for the grant."""
    return f"{_login_again(grant)} --new-client"


def _login_again(grant: Grant) -> str:
    return f"refresher login {grant.name}"


def _import_again(grant: Grant) -> str:
    return f"refresher import {grant.name} --replace --from FILE"


def _with_rejection(result: Result, grant: Grant) -> Result:
    """Return the result that says that a server refuses the tokens of ``grant``, unless ``result`` is as serious."""
    refused = token_rejection.explain(grant)
    if refused is None or EXIT_CODES[result.outcome] != 0:
        return result
    return msgspec.structs.replace(result, outcome="token_rejected", detail=f"{refused}; {result.detail}")


def _last_error(grant: Grant) -> str:
    return "no attempt yet" if grant.failure is None else grant.failure.description
