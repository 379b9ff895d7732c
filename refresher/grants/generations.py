"""Which generations there can be: what another place says of a generation is believed only if it is possible. Pure."""

from refresher.grants.record import Grant, Moved, Record

__all__ = ["can_be_later", "last_known"]


def last_known(record: Record | None) -> tuple[float, int]:
    """Return when the record got its generation, in epoch seconds, and the generation."""
    if record is None:
        return 0.0, 0
    if isinstance(record, Grant):
        return record.last_rotation_at or record.authorized_at, record.generation
    return record.moved_at if isinstance(record, Moved) else record.removed_at, record.generation


def can_be_later(seen: int, since: float, generation: int, now: float) -> bool:
    """Whether there can be the generation ``seen`` at ``now``, if that of epoch second ``since`` was ``generation``."""
    # At most one a second. The difference in both directions: the clock may have been set back since.
    return seen - generation <= abs(now - since) + 1
