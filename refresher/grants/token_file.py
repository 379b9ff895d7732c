"""The token file that a record calls for: derived from the record, and from nothing else. Pure."""

from contextlib import suppress
from typing import Final

import shim._token as token_file
from refresher.common.errors import StorageError
from refresher.grants import policy, token_rejection
from refresher.grants.envelope import SealedSecret
from refresher.grants.record import Grant, Moved, Record, Tombstone
from shim._token import Problem, TokenFile

__all__ = ["derive", "fitted", "left_out", "problem_of", "rejection_of", "state_of"]

_LARGEST: Final = 256 * 1024
"""Bytes of a token file."""

_SHORT: Final = 1000


def derive(record: Record) -> bytes | None:
    """Return the token file of ``record``, of 256 KiB at most; ``None`` if no exchange has ended yet.

    Raises ``StorageError`` if the access token alone is too long for it.
    """
    token = _token_file(record)
    return None if token is None else fitted(token)[0]


def left_out(record: Record) -> str:
    """Return what the token file of ``record`` leaves out because it is too long, as a clause; "" if nothing."""
    if (
        isinstance(record, Grant)
        and isinstance(sealed := record.access_token, SealedSecret)
        and not sealed.part.is_open
    ):
        return ""  # it was said when the record was written
    token = _token_file(record)
    with suppress(StorageError):
        return "" if token is None else fitted(token)[1]
    return ""


def _token_file(record: Record) -> TokenFile | None:
    if isinstance(record, Moved):
        return None  # the other store publishes
    if isinstance(record, Tombstone):
        return TokenFile(
            name=record.name,
            grant_id=record.grant_id,
            generation=record.generation,
            state="removed",
            access_token=None,
            token_type="Bearer",  # noqa: S106  a token type, no password
            issued_at=record.removed_at,
            expires_at=None,
            scope=record.scope,
            origins=record.origins,
            error=None,
        )
    if record.access_token is None and record.failure is None:
        return None
    return TokenFile(
        name=record.name,
        grant_id=record.grant_id,
        generation=record.generation,
        state=state_of(record),
        access_token=None if record.access_token is None else record.access_token.reveal(),
        token_type=record.token_type,
        issued_at=record.issued_at,
        expires_at=record.expires_at,
        scope=record.scope,
        origins=record.origins,
        error=problem_of(record),
        server_url=record.server_url,
    )


def fitted(token: TokenFile) -> tuple[bytes, str]:
    """Render the token file, without a description and a scope that are too long for it; return also a clause on that.

    Agents refuse a larger file, and would lose the access token too. Raises ``StorageError`` as ``derive`` does.
    """
    data, clause = token_file.render(token), ""
    if len(data) > _LARGEST and token.error is not None and len(token.error.description) > _SHORT:
        shorter = token.error._replace(description=f"{token.error.description[:_SHORT]}...")
        data, clause = token_file.render(token := token._replace(error=shorter)), "a shortened description of the error"
    if len(data) > _LARGEST and token.scope is not None:
        # A part of a scope would be another scope.
        data = token_file.render(token := token._replace(scope=None))
        clause = f"{clause} and no scope" if clause else "no scope"
    if len(data) <= _LARGEST:
        return data, clause and f"the token file has {clause}, because it would be larger than {_LARGEST // 1024} KiB"
    long = "access token" if len(token.access_token or "") > _LARGEST // 2 else "list of origins"
    raise StorageError(
        f"the {long} of {token.name} is too long for a token file of {_LARGEST // 1024} KiB, and is not published: "
        "request a smaller scope at the next login"
    )


def rejection_of(grant: Grant) -> Problem | None:
    """Return the problem of a grant whose tokens a server refuses, or ``None``."""
    description = token_rejection.explain(grant)
    if grant.token_rejected is None or description is None:
        return None
    return Problem("token_rejected", description, grant.token_rejected.at, None)


def state_of(grant: Grant) -> str:
    """Return the published state of a grant."""
    if policy.needs_person(grant):
        return "reauthorization_required"
    return "active" if problem_of(grant) is None else "failing"


def problem_of(grant: Grant) -> Problem | None:
    """Return the published problem of a grant, or ``None``."""
    failure = grant.failure
    if failure is None:
        return rejection_of(grant)
    was_live = policy.has_access_token(grant) and failure.at < policy.expected_expiry(grant)
    # "Too early" is no problem for agents: their token is valid, and a refused token would have caused a demand.
    if failure.outcome == "too_early" and grant.refusals == 0 and was_live:
        return rejection_of(grant)
    return Problem(failure.code, failure.description, failure.at, policy.retry_at(grant))
