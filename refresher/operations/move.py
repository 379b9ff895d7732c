"""Move a grant to another store: files to a database, a database to files, or one database to another.

Three writes, each durable before the next, while the name is held in both stores:

1. the target gets an inactive copy (``Moved`` with ``arriving``), which nobody exchanges;
2. the source becomes ``Moved``, without a refresh token;
3. the copy becomes the grant of the target.

After a kill at any point, at most one side can exchange. The next move of that name goes on from there: before 2, the
source is active and the copy is replaced; after 2, the copy of the same move becomes the grant.
"""

import socket
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final, Literal

import msgspec

from refresher.common import clocks
from refresher.common.errors import ImportRefused, StorageError
from refresher.grants.record import MAX_SPENT, NO_RECORD, Grant, Moved, Record, Stored, Tombstone, with_spent
from refresher.operations import names
from refresher.operations.events import Emit, Event, emitting, happened, ignore, recoveries
from refresher.operations.import_grant import require_unshared
from refresher.storage.file_store import FileStore
from refresher.storage.store import Held, Store

__all__ = ["Outcome", "move", "place_of"]

Outcome = Literal["moved", "completed", "there"]
"""``completed``: an earlier move was cut off. ``there``: it had been moved already."""

_RESTORED: Final = "one of both was restored from a backup"


def move(source: Store, target: Store, name: str, *, stopping: Callable[[], bool], emit: Emit = ignore) -> Outcome:
    """Move the grant ``name``, or complete a move that was cut off.

    Raises ``UnknownName``, ``ImportRefused`` if the target has another grant of that name or with that refresh token,
    ``GrantFileError``, ``LockBusy``, ``Interrupted`` and ``StorageError``: then the next move goes on.
    """
    if name not in source.listing((name,)).all:
        raise names.unknown(source, name)
    source.prepare()
    target.prepare()
    with emitting(emit) as events, ExitStack() as stack:
        report = recoveries(name, events)
        leaving = stack.enter_context(source.held(name, stopping=stopping))
        # What an earlier attempt left is settled here: its journal and its spills do not move.
        stored = leaving.recover(unfinished=True, report=report)
        grant = stored.record
        if not isinstance(grant, Grant | Moved) or (isinstance(grant, Moved) and grant.arriving is not None):
            raise names.gone(name, grant)
        if isinstance(grant, Grant) and grant.doubt is not None and not isinstance(source, FileStore):
            raise ImportRefused(
                f"{name} is in doubt: another host may still have its new token. Wait until 'refresher status {name}' "
                "shows that this is over, or log in again; then move it"
            )
        stack.enter_context(target.importing(stopping=stopping))
        arriving = stack.enter_context(target.held(name, stopping=stopping))
        there = arriving.recover(unfinished=True, report=report)
        if isinstance(grant, Moved):
            return _complete(grant, arriving, there, events, f"to {place_of(target)}")
        copy = _copy_of(grant, there.record, source, target)
        require_unshared(target, copy)
        arrives = Moved(
            name=name,
            grant_id=copy.grant_id,
            generation=copy.generation,
            begun_from=NO_RECORD,
            move_id=uuid.uuid4().hex,
            moved_at=clocks.now().wall,
            place=place_of(source),
            arriving=copy,
        )
        there = arriving.write(there, arrives)
        spent = grant.spent if grant.refresh_token is None else with_spent(grant.spent, grant.refresh_token)
        left = msgspec.structs.replace(arrives, place=place_of(target), arriving=None, spent=spent)
        leaving.write(stored, left)
        _activate(copy, arriving, there, events, f"from {place_of(source)} to {place_of(target)}")
    return "moved"


def place_of(store: Store) -> str:
    """Return where ``store`` is, for a person on another machine."""
    return f"{store.place} on {socket.gethostname()}" if isinstance(store, FileStore) else store.place


def _complete(left: Moved, arriving: Held, there: Stored, events: list[Event], way: str) -> Outcome:
    """Make the copy of the move that ``left`` belongs to the grant, unless it is one."""
    record = there.record
    if isinstance(record, Moved) and record.arriving is not None and record.move_id == left.move_id:
        _activate(record.arriving, arriving, there, events, way)
        return "completed"
    if isinstance(record, Grant) and record.grant_id == left.grant_id and record.generation >= left.generation:
        return "there"
    raise names.moved(left)


def _activate(copy: Grant, arriving: Held, there: Stored, events: list[Event], way: str) -> None:
    arriving.write(there, copy)
    events.append(happened(copy.name, "moved", way, generation=copy.generation))
    try:
        arriving.publish(copy)
    except StorageError as error:
        raise StorageError(f"{copy.name} is moved, but {error}") from None


def _copy_of(grant: Grant, there: Record | None, source: Store, target: Store) -> Grant:
    """Return ``grant`` as it arrives: its generation never falls below one that the target had.

    Raises ``ImportRefused`` if the target has what must not be replaced.
    """
    here, to, own = place_of(source), place_of(target), grant.fingerprint()
    again = f"log in again: 'refresher login {grant.name} URL'"
    if there is None:
        return grant
    if isinstance(there, Grant) and there.grant_id == grant.grant_id:
        raise ImportRefused(
            f"{grant.name} is active in {here} and in {to}: {_RESTORED}; 'refresher remove' the older one, then {again}"
        )
    if isinstance(there, Grant):
        raise ImportRefused(f"{to} has another grant {grant.name}: remove it there first")
    same = there.grant_id == grant.grant_id
    arriving = there.arriving if isinstance(there, Moved) else None
    if arriving is not None and not same:
        raise names.gone(grant.name, there)  # it may be the only copy of another grant
    # A copy that an earlier try left is older than the grant, or like it.
    is_old = own in arriving.spent if arriving is not None else same and there.generation > grant.generation
    if is_old or (isinstance(there, Tombstone) and own in there.spent):
        raise ImportRefused(f"{to} has had a later refresh token of {grant.name} than {here}: {_RESTORED}; {again}")
    before = tuple(known for known in there.spent if known not in grant.spent and known != own)
    return msgspec.structs.replace(
        grant,
        generation=max(grant.generation, there.generation + (not same)),
        spent=(*before, *grant.spent)[-MAX_SPENT:],
    )
