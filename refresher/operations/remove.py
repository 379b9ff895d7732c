"""Remove: delete the refresh token of a grant, and publish that it is removed."""

from collections.abc import Callable
from contextlib import suppress
from typing import Final

from refresher.common import clocks
from refresher.common.errors import GrantFileError, RefresherError, StorageError
from refresher.grants.encoding import open_secrets
from refresher.grants.record import Grant, Tombstone, with_spent
from refresher.operations import names
from refresher.operations.cycles import fed_by
from refresher.operations.events import Emit, emitting, happened, ignore, recoveries
from refresher.operations.result import command_after_removal
from refresher.storage.store import Store

__all__ = ["remove"]

_NOT_REVOKED: Final = "it stays valid at the server until you revoke it there"
_MOST_NAMED: Final = 10


def remove(
    store: Store,
    name: str,
    *,
    stopping: Callable[[], bool],
    revoke: Callable[[Grant], str] | None = None,
    emit: Emit = ignore,
) -> str:
    """Replace the grant of ``name`` by a tombstone, and publish ``removed``.

    Return whether the server still accepts it, and which grants need its token. ``revoke`` first revokes the grant at
    its server, and returns that as a sentence. ``emit`` takes what happened.

    Raises what ``revoke`` raises, ``UnknownName``, ``GrantFileError`` for a damaged record, ``LockBusy`` and
    ``Interrupted``: then the grant is unchanged. The message of ``StorageError`` says whether it was removed.
    """
    if name not in store.listing((name,)).names:
        raise names.unknown(store, name)
    # It is held over all of this: no other process rotates a grant that is being revoked.
    with emitting(emit) as events, store.held(name, stopping=stopping) as held:
        report = recoveries(name, events)
        if revoke is not None:
            _require_opened(store, name)
        stored = held.recover(giving_up=True, removing=True, unfinished=True, report=report)
        if not isinstance(grant := stored.record, Grant):
            raise names.gone(name, grant)
        at_the_server = _NOT_REVOKED if revoke is None else revoke(grant)
        spent = grant.spent
        if grant.refresh_token is not None and (revoke is not None or grant.doubt is not None):
            # A refresh token that is revoked, or in doubt, may be spent: no import may store it again.
            spent = with_spent(spent, grant.refresh_token)
        tombstone = Tombstone(
            name=name,
            grant_id=grant.grant_id,
            generation=max(grant.generation, held.seen_generation(grant)),
            begun_from=stored.checksum,
            removed_at=clocks.now().wall,
            scope=grant.scope,
            origins=grant.origins,
            spent=spent,
        )
        held.write(stored, tombstone)
        held.delete_copies()
        held.remove_demands(None, keep=range(0), warned=set())
        events.append(happened(name, "removed", at_the_server, generation=tombstone.generation))
        try:
            held.publish(tombstone)
        except StorageError as error:
            raise StorageError(f"{name} is removed, but {error}") from None
    return at_the_server + _who_needs(store, grant)


def _require_opened(store: Store, name: str) -> None:
    """Raise ``GrantFileError`` if the grant cannot be revoked because what is sealed in it cannot be opened."""
    record = store.load(name).record
    try:
        open_secrets(record)
    except GrantFileError as error:
        raise type(error)(
            f"{name} cannot be revoked at its server: {error}. Nothing was changed; 'refresher remove {name}' removes "
            "it here without its key"
        ) from None


def _who_needs(store: Store, grant: Grant) -> str:
    """Return the clause that others need the token of ``grant``, also through others; "" without one."""
    fed: list[str] = []
    with suppress(RefresherError):  # the grant is removed, and that must be said
        fed = fed_by(store, grant.name)
    if not fed:
        return ""
    more = f" and {len(fed) - _MOST_NAMED} more" if len(fed) > _MOST_NAMED else ""
    need = "needs its token, and fails" if len(fed) == 1 else "need its token, and fail"
    them = "it" if len(fed) == 1 else "them"
    return (
        f"; {', '.join(fed[:_MOST_NAMED])}{more} {need} from now on: '{command_after_removal(grant)}' brings {them} "
        f"back, and 'refresher remove' removes {them}"
    )
