"""What a grant with an assertion needs of others: the tokens in files, and the tokens of other grants.

A source is another grant. It is rotated first, if it is due, in a whole transaction of its own: its lock is released
before that of the grant is taken. So no lock is held across two exchanges, and grants that need each other cannot wait
for each other.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import msgspec

from refresher.common import clocks
from refresher.common.clocks import Moment
from refresher.common.errors import GrantFileError, RefresherError
from refresher.common.reading import read_ahead
from refresher.common.secret import Secret
from refresher.grants import policy
from refresher.grants.assertion import ID_TOKEN, TokenSource
from refresher.grants.encoding import open_secrets
from refresher.grants.outcome import GrantRejected, NotSent
from refresher.grants.policy import Rotate, Wait
from refresher.grants.record import Grant, Moved
from refresher.grants.sources import (
    Sources,
    id_token_has_expired,
    is_refused,
    is_renewed,
    may_be_revoked,
    may_bring_id_token,
    needs_id_token,
)
from refresher.oauth import tls
from refresher.oauth.assertions import NOTHING, Presented
from refresher.oauth.client_authentication import TokenExpired, TokenMissing, client_assertion, token_in
from refresher.operations.cycles import find_cycle, sources_of
from refresher.operations.names import moved
from refresher.operations.result import ASK, create_commands, is_denied, may_log_in, repair_command
from refresher.storage.store import Store

__all__ = [
    "NO_SUPPLY",
    "SourceOrder",
    "Supply",
    "files_read",
    "noted",
    "orders",
    "read_unheld",
    "rotates_source_next",
    "supply",
    "supply_of",
]

_RECHECK: Final = 300.0
"""Seconds after which a source that needs a person is looked at again, if nothing reports that it has changed."""

_BRINGS_BACK: Final = "brings back every grant that needs it"


class SourceOrder(NamedTuple):
    """A source that is rotated first; ``force``: also if its access token is not due."""

    name: str
    seen: int
    force: bool


class Supply(NamedTuple):
    """What a rotation presents, and what it has seen of its sources."""

    presented: Presented = NOTHING
    generations: tuple[int, ...] = ()
    due_at: float | None = None
    sources: Sources = MappingProxyType({})
    repair: str | None = None
    """The command that brings back a source, if ``presented`` has a problem that needs a person."""


NO_SUPPLY: Final = Supply()


def read_unheld(store: Store, name: str) -> Grant | None:
    """Return the grant ``name`` before it is held; ``None`` for one that cannot be read, or not be opened."""
    record = None
    with suppress(GrantFileError):  # reported when it is held, after the recovery
        record = store.load(name).record
        store.load_keys()
    with suppress(GrantFileError):
        open_secrets(record)
    return record if isinstance(record, Grant) else None


def files_read(store: Store, grant: Grant | None, ca_file: str | None) -> AbstractContextManager[None]:
    """Read the keys, certificates and assertions of ``grant``, also at its identity provider, before it is held.

    Inside, its requests use what was found. A mount that does not answer must not make other processes wait, nor a
    service that gives the key of sealed grants.
    """
    names = [] if grant is None else tls.named_files(grant, ca_file)
    if grant is not None and grant.assertion is not None and grant.assertion.idp is not None:
        for source in sources_of(grant, store.load).values():
            names += [] if source is None else tls.named_files(source, ca_file)
    return read_ahead(names)


def orders(store: Store, grant: Grant, now: Moment, *, force: bool, horizon: float) -> list[SourceOrder]:
    """Return the sources that must be rotated before ``grant``, as far as they can be; none if it waits itself.

    After a failure, the backoff of a source counts, however many grants need it. ``force`` and ``horizon`` are those of
    ``grant``: what becomes due within the horizon is rotated now, as it is due before its grant.
    """
    found = sources_of(grant, store.load)
    # Only the holder of the grant knows whether a demand for it counts.
    waits = isinstance(
        policy.decide(grant, now, demanded=True, force=force, horizon=horizon, renewed=is_renewed(grant, found)),
        Wait,
    )
    due: list[SourceOrder] = []
    for name, source in () if waits else found.items():
        if source is None or source.dead:
            continue
        renewed = is_renewed(source, sources_of(source, store.load))
        if isinstance(policy.decide(source, now, horizon=horizon, renewed=renewed), Rotate):
            due.append(SourceOrder(name, source.generation, force=False))
        elif source.failure is None and (
            may_be_revoked(grant, source) or (needs_id_token(grant, name) and may_bring_id_token(source, now))
        ):
            due.append(SourceOrder(name, source.generation, force=True))
    return due


def rotates_source_next(store: Store, seen: Grant | None) -> bool:
    """Whether the next attempt of a grant rotates a source first, because its token has just been refused.

    ``seen``: the grant before the last attempt; most have no sources, and need no second look.
    """
    if seen is None or seen.assertion is None or (grant := read_unheld(store, seen.name)) is None:
        return False
    return any(
        source is not None and not source.dead and source.failure is None and may_be_revoked(grant, source)
        for source in sources_of(grant, store.load).values()
    )


def supply(store: Store, seen: Grant | None) -> Callable[[Grant], Supply]:
    """Read what a grant presents, before it is held; return what gives it to the grant that is held then."""
    found = NO_SUPPLY if seen is None else supply_of(store, seen, clocks.now())

    def given(grant: Grant) -> Supply:
        is_same = seen is not None and seen.grant_id == grant.grant_id
        return found if is_same else supply_of(store, grant, clocks.now())

    return given


def supply_of(store: Store, grant: Grant, now: Moment) -> Supply:
    """Return what ``grant`` presents, read anew; ``presented.problem`` says why there is nothing to present."""
    presented, sources, repair = NOTHING, sources_of(grant, store.load), None
    try:
        _open(sources)
        _require_no_cycle(store, grant)
        _require_not_refused(grant, sources)
        if grant.client_assertion_file is not None:
            client_assertion(grant, now.wall)
        if (assertion := grant.assertion) is not None:
            subject = _token(store, assertion.subject, sources, now)
            actor = None if assertion.actor is None else _token(store, assertion.actor, sources, now)
            presented = Presented(subject, actor, None if assertion.idp is None else sources[assertion.idp])
    except _NoToken as reason:
        presented, repair = Presented(problem=reason.outcome), reason.repair
    except TokenExpired as error:
        presented = Presented(problem=NotSent(code="assertion_expired", description=str(error)))
    except TokenMissing as error:
        presented = Presented(problem=NotSent(code="assertion_missing", description=str(error)))
    if not sources:
        return Supply(presented)
    known = [source for source in sources.values() if source is not None]
    next_due = min((policy.due_at(source) for source in known), default=now.wall)
    is_exchanged = grant.assertion is not None and grant.assertion.idp is not None
    return Supply(
        presented,
        tuple(-1 if source is None else source.generation for source in sources.values()),
        # A server's token that was made from an id_token does not depend on it any more.
        None if is_exchanged or next_due <= now.wall else next_due,
        sources,
        repair,
    )


def noted(grant: Grant, supply: Supply, *, renewed: bool) -> Grant:
    """Return ``grant`` after an attempt with ``supply``; ``renewed``: its access token was made from it."""
    if grant.assertion is None or not supply.generations:
        return grant
    changes: dict[str, Any] = {
        "source_generations": supply.generations,
        "dead_sources": tuple(name for name, source in supply.sources.items() if source is not None and source.dead),
        "repair": supply.repair,
    }
    if renewed:
        changes["source_due_at"] = supply.due_at
    return msgspec.structs.replace(grant, assertion=msgspec.structs.replace(grant.assertion, **changes))


def _open(sources: Sources) -> None:
    """Open what is sealed in the sources, so that nothing fails for want of a key once an attempt has begun."""
    for name, source in sources.items():
        try:
            open_secrets(source)
        except GrantFileError as error:
            text = f"its source {name} cannot be opened: {error}"
            raise _NoToken(NotSent(code="source_failing", description=text)) from None


def _require_no_cycle(store: Store, grant: Grant) -> None:
    if (problem := find_cycle(store, grant)) is not None:
        raise _NoToken(NotSent(code="source_cycle", description=problem))


def _require_not_refused(grant: Grant, sources: Sources) -> None:
    """Raise ``_NoToken`` if a source has nothing but a token that was refused, and can have no other."""
    assertion = grant.assertion
    if assertion is None or is_renewed(grant, sources):
        return  # another source has a newer token, and perhaps that was the refused one
    for source in sources.values():
        if source is None or not source.dead:
            continue
        is_named = assertion.repair == repair_command(source) and assertion.seen.get(source.name) == source.generation
        if is_refused(grant, source) or is_named:
            raise _unavailable(source, "has only a token that is refused")


class _NoToken(RefresherError):
    """A source has no token that can be presented now."""

    def __init__(self, outcome: NotSent | GrantRejected, repair: str | None = None) -> None:
        super().__init__(outcome.description)
        self.outcome = outcome
        self.repair = repair


def _token(store: Store, source: TokenSource, sources: Sources, now: Moment) -> Secret:
    """Return the token that a source has now. Raises ``_NoToken``, ``TokenMissing`` and ``TokenExpired``."""
    if source.file is not None:
        return Secret(token_in(source.file, "assertion", now.wall, is_jwt=source.is_jwt))
    name = source.grant or ""
    grant = sources.get(name)
    if grant is None:
        raise _NoToken(NotSent(code="source_missing", description=_why_missing(store, source)))
    if source.token_type == ID_TOKEN:
        return _id_token(grant, now)
    if grant.access_token is None or policy.remaining_lifetime(grant, now) <= 0:
        raise _unavailable(grant, "has no valid access token")
    return grant.access_token


def _why_missing(store: Store, source: TokenSource) -> str:
    name = source.grant or ""
    try:
        record = store.load(name).record
    except GrantFileError as error:
        return f"its source {name} cannot be read: {error}"
    if isinstance(record, Moved):
        return f"its source cannot be used here: {moved(record)}"
    login = f"log in at the identity provider with 'refresher login {name} URL --scope openid'"
    how = login if source.token_type == ID_TOKEN else f"create it with {create_commands(name)}"
    return f"its source {name} does not exist: {how}"


def _id_token(grant: Grant, now: Moment) -> Secret:
    if grant.id_token is None and grant.assertion is not None:
        text = f"its source {grant.name} has no id_token, and a login of its kind brings none"
        raise _needs_person(f"{text}: give the NAME of a login by a person at the identity provider", None)
    if grant.id_token is None:
        repair = repair_command(grant)
        if may_log_in(grant):
            repair += " --scope openid"
        raise _needs_person(f"its source {grant.name} has no id_token: '{repair}' brings one", repair)
    if not id_token_has_expired(grant, now):
        return grant.id_token
    if not grant.dead and grant.failure is None and not may_bring_id_token(grant, now):
        repair = repair_command(grant)
        text = f"the id_token of its source {grant.name} has expired, and a refresh brings no other"
        raise _needs_person(f"{text}: '{repair}' {_BRINGS_BACK}", repair)
    raise _unavailable(grant, "has no valid id_token")


def _unavailable(source: Grant, what: str) -> _NoToken:
    """Return the error for a source without a token: it needs a person, or is on its way."""
    why = "" if source.failure is None else f": {source.failure.description}"
    if not source.dead:
        return _NoToken(NotSent(code="source_failing", description=f"its source {source.name} {what} now{why}"))
    repair = repair_command(source)
    if is_denied(source):
        return _needs_person(f"its source {source.name} has no token{why}; {ASK}, then '{repair}'", repair)
    if source.failure is not None and source.failure.code == "source_reauthorization_required":
        return _needs_person(f"its source {source.name} has no token{why}", repair)
    return _needs_person(f"its source {source.name} needs a new login{why}. '{repair}' {_BRINGS_BACK}", repair)


def _needs_person(text: str, repair: str | None) -> _NoToken:
    rejected = GrantRejected(code="source_reauthorization_required", description=text, retry_after=_RECHECK)
    return _NoToken(rejected, repair)
