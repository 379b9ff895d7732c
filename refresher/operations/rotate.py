"""Rotate: one transaction on a grant that is held, from its record to the token that readers see.

The steps are those of ``refresher/ARCHITECTURE.md``: hold, recover, decide, begin, exchange, persist, publish, release.
How a store makes each of them is not known here (``storage/store.py``).
"""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final, NamedTuple

import msgspec

from refresher.common import clocks
from refresher.common.errors import DirectoryError, GrantFileError, Interrupted, LockBusy, StorageError
from refresher.grants import policy, refresh_life, transition
from refresher.grants.outcome import GrantRejected, ResourceRefused, TokensIssued
from refresher.grants.policy import Rotate, Wait
from refresher.grants.record import Grant, Record, Stored
from refresher.grants.sources import is_renewed
from refresher.grants.token_file import left_out
from refresher.oauth.http_client import DEADLINE
from refresher.oauth.token_request import TokenRequestResult, request_tokens
from refresher.operations import sources
from refresher.operations.cycles import MAX_DEPTH
from refresher.operations.events import Emit, Event, as_one, change_of_state, emitting, happened, ignore, recoveries
from refresher.operations.inspection import Inspection
from refresher.operations.result import EXIT_CODES, Result, ResultCode, login_ends
from refresher.operations.sources import Supply
from refresher.storage.store import WAIT, Demanded, Held, Store

__all__ = ["Order", "Terms", "rotate", "rotate_sources"]

log = logging.getLogger(__name__)

_SOURCE_WAIT: Final = 4.0
"""Seconds for the lock of a source at least; less than what makes a server count as slow (``work_queue.py``)."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What to do: rotate ``name`` if it is due, or with ``force`` until it is beyond generation ``seen``."""

    name: str
    seen: int
    force: bool = False
    horizon: float = 0.0
    """Seconds to the next run: what becomes due before then is rotated now."""
    unfinished: bool = False
    """An inspection found files of an attempt."""
    demanded: frozenset[int] = frozenset()
    """The generations for which an inspection found a demand."""

    @classmethod
    def after(cls, found: Inspection, *, force: bool = False, horizon: float = 0.0) -> "Order":
        """Return the order that follows from an inspection."""
        return cls(
            name=found.name,
            seen=found.generation,
            force=force,
            horizon=horizon,
            unfinished=found.unfinished,
            demanded=found.demanded,
        )


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """How to do it. ``stopping`` is called only before the exchange starts."""

    ca_file: str | None
    stopping: Callable[[], bool]
    deadline: float = DEADLINE
    """Seconds for the exchange."""
    lock_wait: float = WAIT
    """Seconds for the lock."""
    warned: set[str] = msgspec.field(default_factory=set)
    """The warnings that this process has logged, and logs only once."""
    sent: set[str] = msgspec.field(default_factory=set)
    """The names whose refresh token this process has sent, and whose answer it has not saved yet."""
    emit: Emit = ignore
    """Takes what happened, after the lock is released."""
    feeding: tuple[str, ...] = ()
    """The names that wait for this rotation, because they need its token."""


def rotate(store: Store, order: Order, terms: Terms) -> Result | None:
    """Carry out ``order``, or adopt what another process did meanwhile; return ``None`` if there is no grant.

    This raises nothing: a failure of any kind is a result.
    """
    with emitting(terms.emit) as events:
        return _rotate(store, order, terms, events)


def _rotate(store: Store, order: Order, terms: Terms, events: list[Event]) -> Result | None:
    name = order.name

    def fail(outcome: ResultCode, detail: str) -> Result:
        events.append(happened(name, "failed", detail, outcome=outcome))
        return Result(name, outcome, None, detail)

    try:
        store.prepare()
        seen = sources.read_unheld(store, name)
        result = _attempt(store, seen, order, terms, events)
        if result is None or result.outcome != "transient" or not sources.rotates_source_next(store, seen):
            return result
        before = len(events)
        result = _attempt(store, sources.read_unheld(store, name), order, terms, events)
        if result is not None and result.outcome == "rotated":
            # That a token of its source was refused meanwhile is nobody's business.
            events[:] = as_one(events[:before], events[before:])
        return result
    except LockBusy as busy:
        return _adopted_meanwhile(store, order) or fail("lock_busy", str(busy))
    except GrantFileError as error:
        return fail("invalid_grant_file", str(error))
    except (StorageError, DirectoryError) as error:
        return fail("storage_failed", f"{error} ('refresher doctor' looks for the cause)")
    except Interrupted:
        return Result(name, "interrupted", None, "interrupted before anything was spent; nothing was changed")
    except Exception as error:  # noqa: BLE001  a bug in one grant must not stop the rotation of the others
        # Without the trace: it could quote a secret.
        return fail("storage_failed", f"internal error ({type(error).__name__}); please report it")
    finally:
        terms.sent.discard(name)


def _attempt(store: Store, seen: Grant | None, order: Order, terms: Terms, events: list[Event]) -> Result | None:
    rotate_sources(store, seen, order, terms)
    began = time.monotonic()
    with sources.files_read(store, seen, terms.ca_file):
        supply = sources.supply(store, seen)
        with store.held(order.name, stopping=terms.stopping, wait=terms.lock_wait) as held:
            return _Rotation(held, order, terms, events, time.monotonic() - began, supply).run()


def rotate_sources(store: Store, grant: Grant | None, order: Order, terms: Terms) -> None:
    """Rotate the grants whose tokens ``order`` needs, if they are due, before ``grant`` is held."""
    if grant is None or grant.assertion is None or grant.name in terms.feeding or len(terms.feeding) > MAX_DEPTH:
        return
    force = order.force and grant.generation <= order.seen
    found = sources.orders(store, grant, clocks.now(), force=force, horizon=order.horizon)
    if found:
        store.give_way(grant.name)
    # A process that holds a source brings the token that is needed here, so this waits for it.
    lock_wait = max(terms.lock_wait, _SOURCE_WAIT)
    terms = msgspec.structs.replace(terms, feeding=(*terms.feeding, grant.name), lock_wait=lock_wait)
    for source in found:
        if terms.stopping():
            return
        first = Order(name=source.name, seen=source.seen, force=source.force, horizon=order.horizon)
        result = rotate(store, first, terms)
        if result is None or result.outcome in ("adopted", "not_due"):
            continue
        # A failure is also what the grant says, and its own inspection: here it is only said once.
        said = f"{source.name} {result.outcome}"
        if result.outcome == "rotated" or said not in terms.warned:
            terms.warned.add(said)
            log.info("%s: %s: %s (needed by %s)", result.name, result.outcome, result.detail, grant.name)


def _adopted_meanwhile(store: Store, order: Order) -> Result | None:
    try:
        record = store.load(order.name).record
    except GrantFileError:
        return None
    if record is None or record.generation <= order.seen:
        return None
    return Result(order.name, "adopted", record.generation, "another process rotated it")


class _Rotation(NamedTuple):
    """The transaction on one grant."""

    held: Held
    order: Order
    terms: Terms
    events: list[Event]
    """What has happened so far."""
    waited: float
    """Seconds for the lock, with what is read before it."""
    supply: Callable[[Grant], Supply]
    """Returns what the grant presents."""

    def run(self) -> Result | None:
        """Recover, decide, exchange if that is the decision, and publish."""
        stored = self.held.recover(unfinished=self.order.unfinished, report=recoveries(self.order.name, self.events))
        if not isinstance(stored.record, Grant):
            self._publish_removal(stored.record)
            return None
        grant = stored.record
        adopted = grant.generation > self.order.seen
        demands = self.held.demanded(grant, self.order.demanded)
        supply = self.supply(grant)
        decision = policy.decide(
            grant,
            clocks.now(),
            demanded=demands.counts,
            # A token that another process has just fetched is new enough for a caller that waited for the lock.
            force=self.order.force and not adopted,
            horizon=0.0 if adopted else self.order.horizon,
            # Of the grant that is held: another process may have presented the tokens of these sources already.
            renewed=is_renewed(grant, supply.sources),
        )
        if isinstance(decision, Wait):
            stale = demands.needs_newer or self.held.is_stale(grant)
            decided = Result.from_decision(grant, decision, adopted=adopted)
            result, failed = self._publish(grant, demands, decided)
            if failed:
                self.events.append(
                    happened(grant.name, "failed", result.detail, generation=grant.generation, outcome="storage_failed")
                )
            elif stale and not self.held.is_stale(grant):
                self.events.append(happened(grant.name, "published", generation=grant.generation))
            return self._finish(grant, result)
        if self.terms.stopping():
            raise Interrupted
        late = max(clocks.now().wall - policy.due_at(grant), 0.0) if decision == Rotate("due") else None
        changed, seconds, is_ours = self._exchange(
            stored,
            grant,
            supply,
            # After a restored backup, readers must not get a generation that they have seen.
            generation=max(grant.generation, demands.current.stop - 1) + 1,
            demanded=demands.counts,
            forced=decision == Rotate("forced"),
            # Only a second demand in a row is reported, so that a first one is never opened.
            reason=demands.reason() if demands.counts and grant.demanded > 0 else None,
        )
        result = Result.after_exchange(grant, changed)
        if not is_ours:
            # Another refresher holds the grant now, and emits the event of its rotation.
            is_later = changed.generation > grant.generation
            outcome: ResultCode = "adopted" if is_later else "lock_busy"
            detail = result.detail if is_later else "another refresher has taken over this grant"
            result = msgspec.structs.replace(result, outcome=outcome, detail=detail)
            return self._finish(changed, self._publish(changed, demands, result)[0])
        result, _ = self._publish(changed, demands, result)
        self.events.append(
            happened(
                grant.name,
                "rotated" if changed.generation > grant.generation else "failed",
                result.detail,
                generation=changed.generation,
                outcome=result.outcome,
                demanded=demands.counts,
                exchange_seconds=seconds,
                lock_seconds=self.waited,
                late_seconds=late,
            )
        )
        return self._finish(changed, result)

    def _exchange(
        self,
        stored: Stored,
        grant: Grant,
        supply: Supply,
        *,
        generation: int,
        demanded: bool,
        forced: bool,
        reason: str | None,
    ) -> tuple[Grant, float, bool]:
        """Begin, exchange, persist; nothing is logged from the request to the durable answer.

        Return the grant after it, the seconds of the exchange alone, and whether the stored grant has its outcome.
        """
        attempt = self.held.begin(stored, grant, partial(self.terms.sent.add, grant.name))
        began = time.monotonic()
        exchanged = request_tokens(
            grant,
            ca_file=self.terms.ca_file,
            hooks=attempt,
            demanded=demanded,
            deadline=self.terms.deadline,
            presented=supply.presented,
        )
        seconds = time.monotonic() - began
        try:
            changed = _after(grant, exchanged, demanded=demanded, generation=generation, forced=forced, reason=reason)
            changed = sources.noted(changed, supply, renewed=isinstance(exchanged.outcome, TokensIssued))
        except Exception:
            # A bug must not lose the only copy of a token: the intent stays, and the answer is kept.
            if exchanged.raw is not None:
                attempt.keep_answer(exchanged.raw.reveal().encode("latin-1"), clocks.now().wall)
            attempt.close()
            raise
        if isinstance(exchanged.outcome, GrantRejected):
            if (there := self.held.changed_meanwhile(stored)) is not None:
                # The server refused a token that is not in the record any more.
                attempt.abandon()
                return there, seconds, True
            if exchanged.doubt is None and grant.refresh_token is not None:
                changed = _with_hint(changed, self.held.backup_hint(grant))
        issued = isinstance(exchanged.outcome, TokensIssued)
        settled = attempt.persist(changed, until_saved=issued)
        self.terms.sent.discard(grant.name)
        return settled, seconds, issued or _failed_at(settled) == _failed_at(changed)

    def _finish(self, grant: Grant, result: Result) -> Result:
        """Note what has changed, and warn if the login or its client ends."""
        self.events.extend(change_of_state(self.held.before, grant))
        self._warn_of_end(grant)
        return result

    def _publish(self, grant: Grant, demands: Demanded, result: Result) -> tuple[Result, bool]:
        """Publish ``grant`` and settle the demands; add to ``result`` if readers cannot see it.

        Return the result, and whether the disk failed.
        """
        try:
            # Published again if an agent has not seen it, so that the agent reads.
            visible = self.held.publish(grant, again=demands.needs_newer)
        except StorageError as error:
            # The record is saved, so nothing is lost; a more serious outcome of the grant itself stays.
            failed = msgspec.structs.replace(
                result,
                outcome="storage_failed" if EXIT_CODES[result.outcome] == 0 else result.outcome,
                detail=f"{result.detail}; saved, but {error}",
            )
            return failed, True
        if pending := demands.generations:
            # Read again: a demand for the generation that is published now is a new one.
            keep = range(0) if grant.dead else self.held.demanded(grant, ()).current
            if settled := pending.difference(keep):
                self.events.append(happened(grant.name, "demanded", generation=max(settled)))
            self.held.remove_demands(pending, keep=keep, warned=self.terms.warned)
        if clause := left_out(grant):
            result = msgspec.structs.replace(result, detail=f"{result.detail}; {clause}")
        if visible:
            return result, False
        unseen = "NOT published: the token file is of a later generation (was grants/ restored from a backup?)"
        return msgspec.structs.replace(result, detail=f"{result.detail}; {unseen}"), False

    def _warn_of_end(self, grant: Grant) -> None:
        """Warn of the end of a login or its client, once for each time ahead: the record keeps the last one."""
        now = clocks.now()
        warning, end = refresh_life.next_warning(grant, now), refresh_life.next_end(grant, now)
        if warning is None or end is None or warning.seconds > 0:
            return
        # If the record cannot be written, the process remembers its warning.
        if (given := f"{grant.grant_id} {end.kind} {warning.ahead}") not in self.terms.warned:
            self.terms.warned.add(given)
            log.warning("%s: %s", grant.name, message := login_ends(grant, now))
            self.events.append(happened(grant.name, "login_ending", message, generation=grant.generation))
        with suppress(GrantFileError, StorageError):
            self.held.note(grant, end_warned=warning.ahead)

    def _publish_removal(self, tombstone: Record | None) -> None:
        """Finish a removal that was cut off before its readers saw it."""
        if tombstone is not None:
            if self.held.is_stale(tombstone):
                self.held.delete_copies()
            self.held.publish(tombstone)
        self.held.remove_demands(None, keep=range(0), warned=self.terms.warned)


def _after(
    grant: Grant,
    exchanged: TokenRequestResult,
    *,
    demanded: bool,
    generation: int,
    forced: bool,
    reason: str | None,
) -> Grant:
    return transition.apply(
        msgspec.structs.replace(
            grant,
            doubt=exchanged.doubt,
            # If the request without it was refused too, it was not the reason, and the next attempt sends it again.
            resource_refused=exchanged.resource_refused
            or (grant.resource_refused and not isinstance(exchanged.outcome, ResourceRefused)),
            omits_client_id=exchanged.client_id_refused or grant.omits_client_id,
        ),
        exchanged.outcome,
        sent=exchanged.sent,
        now=clocks.now(),
        demanded=demanded,
        generation=generation,
        forced=forced,
        reason=reason,
    )


def _failed_at(grant: Grant) -> float | None:
    """Return when the last exchange failed: no two attempts fail at one time, so it identifies the outcome."""
    return None if grant.failure is None else grant.failure.at


def _with_hint(dead: Grant, hint: str) -> Grant:
    if dead.failure is None or not hint:
        return dead
    failure = msgspec.structs.replace(dead.failure, description=dead.failure.description + hint)
    return msgspec.structs.replace(dead, failure=failure)
