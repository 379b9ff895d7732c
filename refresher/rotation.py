"""Rotate: one locked transaction, from what is on the disk to what readers see (DESIGN section 5)."""

from collections.abc import Callable
from typing import assert_never

import msgspec

from refresher import clocks, consequence, demands, leftovers, lock, policy, store, told
from refresher.attempt import Attempt
from refresher.directories import Directories
from refresher.errors import GrantFileError, Interrupted, LockBusy, StorageError
from refresher.exchange import Exchanged, exchange
from refresher.grant import Grant, Stored
from refresher.outcome import GrantDead, Rotated, Unintelligible
from refresher.policy import Rest, Rotate
from refresher.publish import publish, published_generation
from refresher.result import Result, Word

__all__ = ["Order", "rotate"]


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for: a rotation of ``name`` if it is due, or by ``force`` beyond generation ``seen``."""

    name: str
    seen: int
    force: bool = False
    horizon: float = 0.0


def rotate(directories: Directories, order: Order, *, ca_file: str | None, stopping: Callable[[], bool]) -> Result:
    """Carry out ``order``, or adopt what somebody else did meanwhile; never raises for what a grant can suffer.

    ``stopping`` is asked until something is spent, and never after: from then on the transaction runs to its end.
    """
    name = order.name
    try:
        directories.ensure()
        with lock.held(directories.lock(name), stopping=stopping):
            return _locked(directories, order, ca_file=ca_file, stopping=stopping)
    except LockBusy as busy:
        return _adopted_meanwhile(directories, order) or _result(name, "lock_busy", None, str(busy))
    except GrantFileError as error:
        return _result(name, "invalid_grant_file", None, str(error))
    except StorageError as error:
        return _result(name, "storage_failed", None, str(error))
    except Interrupted:
        return _result(name, "interrupted", None, "interrupted before anything was spent; nothing was changed")


def _adopted_meanwhile(directories: Directories, order: Order) -> Result | None:
    try:
        record = store.load(directories, order.name).record
    except GrantFileError:
        return None
    if record is None or record.generation <= order.seen:
        return None
    return _result(order.name, "adopted", record.generation, "another process rotated it")


def _locked(directories: Directories, order: Order, *, ca_file: str | None, stopping: Callable[[], bool]) -> Result:
    name = order.name
    stored = leftovers.resolve(directories, name, clocks.now())
    grant = stored.record
    asked = demands.pending(directories)
    if not isinstance(grant, Grant):
        if grant is not None:
            publish(directories, grant)
        asked.settle(directories, name, keep=None)
        return _result(name, "not_due", None, "it was removed")
    adopted = grant.generation > order.seen
    demanded = grant.generation in asked.of(name)
    decision = policy.decide(
        grant,
        clocks.now(),
        demanded=demanded,
        force=order.force and not adopted,
        horizon=order.horizon,
    )
    match decision:
        case Rest():
            # An agent that demanded an older generation has not seen the newer one: show it again.
            visible = publish(directories, grant, again=bool(asked.of(name) - {grant.generation}))
            asked.settle(directories, name, keep=None if grant.dead else grant.generation)
            return told.rested(grant, decision, adopted=adopted, visible=visible)
        case Rotate():
            if stopping():
                raise Interrupted
            changed = _exchange(directories, stored, grant, ca_file=ca_file, demanded=demanded)
            try:
                visible = publish(directories, changed)
            except StorageError as error:
                return _result(
                    name, "storage_failed", changed.generation, f"saved, but {error}; the next run publishes"
                )
            asked.settle(directories, name, keep=None if changed.dead else changed.generation)
            return told.changed(grant, changed, visible=visible)
        case _:
            assert_never(decision)


def _exchange(directories: Directories, stored: Stored, grant: Grant, *, ca_file: str | None, demanded: bool) -> Grant:
    """Reserve, declare, exchange, persist. Nothing is logged from the request to the durable answer."""
    # A restored backup must not take readers back to a generation that they have seen.
    generation = max(grant.generation, published_generation(directories, grant.name)) + 1
    attempt = Attempt(directories, grant.name, stored)
    attempt.reserve(grant, clocks.now())
    answered = exchange(grant, ca_file=ca_file, before_first_byte=attempt.mark)
    try:
        changed = _after(grant, answered, demanded=demanded, generation=generation)
    except Exception:
        # A fault of ours must not cost the only copy of a token: the intent stays, the answer too.
        if answered.raw is not None:
            attempt.keep_answer(answered.raw.reveal().encode("latin-1"), clocks.now().wall)
        raise
    if isinstance(answered.outcome, Unintelligible):
        attempt.keep_answer(answered.outcome.answer.reveal().encode("latin-1"), clocks.now().wall)
    if isinstance(answered.outcome, GrantDead):
        current = store.load(directories, grant.name)
        if current.checksum != stored.checksum and isinstance(current.record, Grant):
            # Somebody wrote without the lock; the verdict was on a token that is no longer ours.
            attempt.abandon()
            return current.record
    attempt.persist(changed, until_saved=isinstance(answered.outcome, Rotated))
    return changed


def _after(grant: Grant, answered: Exchanged, *, demanded: bool, generation: int) -> Grant:
    return consequence.after(
        grant,
        answered.outcome,
        first_sent=answered.first_sent,
        last_sent=answered.last_sent,
        now=clocks.now(),
        demanded=demanded,
        generation=generation,
    )


def _result(name: str, outcome: Word, generation: int | None, detail: str) -> Result:
    return Result(name=name, outcome=outcome, generation=generation, detail=detail)
