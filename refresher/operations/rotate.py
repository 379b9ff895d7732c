"""Rotate: one locked transaction, from what is on the disk to what readers see (DESIGN section 5)."""

import logging
from collections.abc import Callable
from typing import assert_never

import msgspec

from refresher.common import clocks
from refresher.common.errors import DirectoryError, GrantFileError, Interrupted, LockBusy, StorageError
from refresher.grants import policy, transition
from refresher.grants.outcome import GrantDead, ResourceRefused, Rotated
from refresher.grants.policy import Rest, Rotate
from refresher.grants.record import Doubt, Grant, Stored
from refresher.oauth.exchange import DEADLINE, Exchanged, exchange
from refresher.operations import explanation, remove
from refresher.operations.result import EXIT_CODES, Result, Word
from refresher.storage import backups, demands, lock, records, recovery
from refresher.storage.demands import Demands
from refresher.storage.directories import Directories
from refresher.storage.journal import Attempt, write_record
from refresher.storage.publishing import current, is_stale, publish, published_generation

__all__ = ["Order", "Terms", "rotate"]

log = logging.getLogger(__name__)


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for: a rotation of ``name`` if it is due, or by ``force`` beyond generation ``seen``."""

    name: str
    seen: int
    force: bool = False
    horizon: float = 0.0


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """How an order is carried out.

    ``stopping`` is asked until something is spent, and never after: from then on the transaction runs to its end.
    """

    ca_file: str | None
    stopping: Callable[[], bool]
    deadline: float = DEADLINE
    """Seconds for the exchange."""
    lock_wait: float = lock.WAIT
    """Seconds for the lock."""


def rotate(directories: Directories, order: Order, terms: Terms) -> Result | None:
    """Carry out ``order``, or adopt what somebody else did meanwhile; never raises for what a grant can suffer.

    Returns ``None`` where there is no grant (any more).
    """
    name = order.name
    try:
        directories.prepare()
        with lock.held(directories.lock(name), stopping=terms.stopping, wait=terms.lock_wait):
            return _locked(directories, order, terms)
    except LockBusy as busy:
        return _adopted_meanwhile(directories, order) or _result(name, "lock_busy", None, str(busy))
    except GrantFileError as error:
        return _result(name, "invalid_grant_file", None, str(error))
    except (StorageError, DirectoryError) as error:
        return _result(name, "storage_failed", None, str(error))
    except Interrupted:
        return _result(name, "interrupted", None, "interrupted before anything was spent; nothing was changed")
    except Exception as error:  # noqa: BLE001  see below
        # A fault of ours in one grant must not keep the others from their rotation. No trace: it could quote.
        fault = f"a fault in refresher itself ({type(error).__name__}); please report it"
        return _result(name, "storage_failed", None, fault)


def _adopted_meanwhile(directories: Directories, order: Order) -> Result | None:
    try:
        record = records.load(directories, order.name).record
    except GrantFileError:
        return None
    if record is None or record.generation <= order.seen:
        return None
    return _result(order.name, "adopted", record.generation, "another process rotated it")


def _locked(directories: Directories, order: Order, terms: Terms) -> Result | None:
    name = order.name
    now = clocks.now()
    stored = recovery.resolve(directories, name, now)
    asked = demands.pending(directories)
    if not isinstance(stored.record, Grant):
        if stored.record is not None:
            if is_stale(directories, stored.record):
                remove.clear_copies(directories, name)  # it was cut off before it was told, and perhaps before this
            publish(directories, stored.record)
        asked.settle(directories, name, keep=range(0))
        return None
    grant = stored.record
    if (newer := backups.caught_up(directories, grant, now)) is not None:
        log.warning(
            "%s: restored from a backup? Its record is of generation %d, but readers have generation %d",
            name,
            grant.generation,
            newer.generation,
        )
        grant = newer
        stored = write_record(directories, name, stored, grant)
    if policy.is_adrift(grant, now):
        grant = msgspec.structs.replace(grant, doubt=Doubt(since=now, replay_over=True))
        stored = write_record(directories, name, stored, grant)
    adopted = grant.generation > order.seen
    demanded = asked.ask_beyond(name, current(directories, grant))
    decision = policy.decide(
        grant,
        clocks.now(),
        demanded=demanded,
        # What somebody has just fetched is new enough for whoever waited for the lock.
        force=order.force and not adopted,
        horizon=0.0 if adopted else order.horizon,
    )
    match decision:
        case Rest():
            result = explanation.rested(grant, decision, adopted=adopted)
        case Rotate():
            if terms.stopping():
                raise Interrupted
            changed = _exchange(directories, stored, grant, terms, demanded=demanded)
            result = explanation.changed(grant, changed)
            grant = changed
        case _:
            assert_never(decision)
    return _shown(directories, grant, asked, result)


def _shown(directories: Directories, grant: Grant, asked: Demands, result: Result) -> Result:
    """Publish, settle the demands, and say so where readers cannot see what ``result`` says."""
    name, held = grant.name, current(directories, grant)
    try:
        # An agent that demanded an older generation has not seen the newer one: show it again.
        visible = publish(directories, grant, again=asked.are_others(name, held))
    except StorageError as error:
        # Saved, and so nothing is lost; a graver word of the grant itself stands.
        word: Word = "storage_failed" if EXIT_CODES[result.outcome] == 0 else result.outcome
        return msgspec.structs.replace(
            result, outcome=word, detail=f"{result.detail}; saved, but {error}; the next run publishes it"
        )
    asked.settle(directories, name, keep=range(0) if grant.dead else held)
    if visible:
        return result
    unseen = "NOT published: the token file is of a later generation (was grants/ restored from a backup?)"
    return msgspec.structs.replace(result, detail=f"{result.detail}; {unseen}")


def _exchange(directories: Directories, stored: Stored, grant: Grant, terms: Terms, *, demanded: bool) -> Grant:
    """Reserve, declare, exchange, persist. Nothing is logged from the request to the durable answer."""
    # A restored backup must not take readers back to a generation that they have seen.
    generation = max(grant.generation, published_generation(directories, grant.name)) + 1
    attempt = Attempt(directories, grant.name, stored)
    attempt.reserve(grant, clocks.now())
    answered = exchange(grant, ca_file=terms.ca_file, hooks=attempt, demanded=demanded, deadline=terms.deadline)
    try:
        changed = _after(grant, answered, demanded=demanded, generation=generation)
    except Exception:
        # A fault of ours must not cost the only copy of a token: the intent stays, the answer too.
        if answered.raw is not None:
            attempt.keep_answer(answered.raw.reveal().encode("latin-1"), clocks.now().wall)
        attempt.close()
        raise
    if isinstance(answered.outcome, GrantDead):
        there = records.load(directories, grant.name)
        if there.checksum != stored.checksum and isinstance(there.record, Grant):
            # Somebody wrote without the lock; the verdict was on a token that is no longer ours.
            attempt.abandon()
            return there.record
        if answered.doubt is None:
            changed = _with_hint(changed, backups.hint(directories, grant))
    attempt.persist(changed, until_saved=isinstance(answered.outcome, Rotated))
    return changed


def _with_hint(dead: Grant, hint: str) -> Grant:
    if dead.failure is None or not hint:
        return dead
    told_more = msgspec.structs.replace(dead.failure, description=dead.failure.description + hint)
    return msgspec.structs.replace(dead, failure=told_more)


def _after(grant: Grant, answered: Exchanged, *, demanded: bool, generation: int) -> Grant:
    return transition.after(
        msgspec.structs.replace(
            grant,
            doubt=answered.doubt,
            # Refused without one as well: then it was not the reason, and the next attempt sends it again.
            resource_refused=answered.resource_refused
            or (grant.resource_refused and not isinstance(answered.outcome, ResourceRefused)),
        ),
        answered.outcome,
        first_sent=answered.first_sent,
        last_sent=answered.last_sent,
        now=clocks.now(),
        demanded=demanded,
        generation=generation,
    )


def _result(name: str, outcome: Word, generation: int | None, detail: str) -> Result:
    return Result(name=name, outcome=outcome, generation=generation, detail=detail)
