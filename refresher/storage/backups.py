"""What tells that a record comes from a backup: then its refresh token was used up by a later rotation."""

from typing import Final

import msgspec

from refresher.common import text
from refresher.common.clocks import Moment
from refresher.common.secret import Secret
from refresher.grants import transition
from refresher.grants.record import Doubt, Grant
from refresher.storage.directories import Directories
from refresher.storage.publishing import published

__all__ = ["caught_up", "hint"]

_TO_WRITE: Final = 3600.0
"""Seconds after which no file of ours is put in its place any more, but by somebody else."""


def caught_up(directories: Directories, grant: Grant, now: Moment) -> Grant | None:
    """Return ``grant`` as far as readers' newer token tells of it; ``None`` where they have seen none.

    The token that they use is protected as after a lost answer: to its end, and then the old refresh token is tried,
    for not every server rotates.
    """
    seen = published(directories, grant.name)
    if seen is None or seen.grant_id != grant.grant_id or seen.generation <= grant.generation:
        return None
    description = (
        f"the record is of generation {grant.generation}, but readers have generation {seen.generation}: it was "
        "restored from a backup, and its refresh token may have been used since"
    )
    # An earlier doubt was about an earlier token: this one begins now.
    known = msgspec.structs.replace(grant, generation=seen.generation, doubt=None)
    if seen.access_token is not None:
        known = msgspec.structs.replace(
            known,
            access_token=Secret(seen.access_token),
            token_type=seen.token_type,
            issued_at=seen.issued_at,
            issued=None,
            expires_at=seen.expires_at,
            scope=seen.scope,
            failure=None,
        )
    return transition.doubted(known, description, doubt=Doubt(since=now, replay_over=True, restored=True), now=now)


def hint(directories: Directories, grant: Grant) -> str:
    """Return what the file of a grant that has just been refused says about where it comes from; often nothing."""
    try:
        put_there = directories.record(grant.name).stat().st_ctime
    except OSError:
        return ""
    failed = 0.0 if grant.failure is None else grant.failure.at
    written = max(grant.last_rotation_at or 0.0, grant.authorized_at, failed)
    if put_there - written < _TO_WRITE:
        return ""
    return (
        f" (its file was put there at {text.clock_time(put_there)}, long after it was written: in a backup, a refresh "
        "token is usually used up)"
    )
