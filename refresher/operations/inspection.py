"""What is to be done about one name, by what lies on the disk, without the lock."""

import msgspec

from refresher.common import clocks
from refresher.grants import policy
from refresher.grants.policy import Decision, Rest
from refresher.grants.record import Grant, Record
from refresher.oauth import urls
from refresher.storage import publishing, records
from refresher.storage.demands import Demands
from refresher.storage.directories import Directories, Opened

__all__ = ["Look", "look", "server_of"]


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen of a name."""

    name: str
    record: Record | None
    decision: Decision | None
    """``None`` where there is no grant."""
    unpublished: bool
    """Readers do not see what they should."""
    unsettled: bool
    """That, or an attempt left something, or a demand is decided and still there."""

    @property
    def needs_lock(self) -> bool:
        """Whether there is something to do that only the holder of the lock may do."""
        return self.unsettled or (self.decision is not None and not isinstance(self.decision, Rest))

    @property
    def server(self) -> str:
        """The authorization server in whose queue the name waits."""
        return server_of(self.record) if isinstance(self.record, Grant) else ""

    @property
    def generation(self) -> int:
        """The generation that was there; -1 where there was none."""
        return -1 if self.record is None else self.record.generation


def server_of(grant: Grant) -> str:
    """Return the authorization server of ``grant``; nothing where somebody has put there what is no address."""
    try:
        return urls.origin(grant.token_endpoint)
    except urls.BadURL:
        return ""


def look(
    directories: Directories,
    name: str,
    *,
    unfinished: bool,
    asked: Demands,
    force: bool = False,
    horizon: float = 0.0,
    opened: Opened | None = None,
) -> Look:
    """Look at ``name``; ``unfinished``: an attempt left something there, or is under way.

    ``opened``: the directories, by whoever looks at many. Raises ``GrantFileError``.
    """
    record = records.load(directories, name, opened).record
    if not isinstance(record, Grant):
        untold = record is not None and publishing.is_stale(directories, record, opened)
        return Look(name=name, record=record, decision=None, unpublished=untold, unsettled=unfinished or untold)
    now = clocks.now()
    demanded = decided = False
    if asked.concern(name):
        current = publishing.current(directories, record)
        demanded = asked.ask_beyond(name, current)
        decided = asked.are_others(name, current) or (demanded and record.dead)
    unpublished = publishing.is_stale(directories, record, opened)
    return Look(
        name=name,
        record=record,
        decision=policy.decide(record, now, demanded=demanded, force=force, horizon=horizon),
        unpublished=unpublished,
        unsettled=unfinished
        or unpublished
        or decided
        or records.spill_of(record) is not None
        or policy.is_adrift(record, now),
    )
