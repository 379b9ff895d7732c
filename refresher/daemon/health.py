"""How a daemon is, as it tells whoever asks."""

import msgspec

from refresher.common import text

__all__ = ["Health"]


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """The stable JSON of ``/healthz`` and ``/readyz``; of each kind of grant, the first 100 names."""

    live: bool
    """Its loops turn."""
    ready: bool
    """They do, and no grant is ``waiting``."""
    grants: int
    fresh: int
    """How many have a live access token that is published."""
    waiting: tuple[str, ...]
    """These have none, and are to get one without a person."""
    reauthorization_required: tuple[str, ...]
    """These need a person, whether or not their last token still lives."""
    invalid_grant_file: tuple[str, ...]
    """These do as well: their records cannot be read."""

    def in_words(self) -> str:
        """Return it in one line for a person."""
        needy = (*self.reauthorization_required, *self.invalid_grant_file)
        return (
            f"{self.fresh} of {self.grants} grant{'' if self.grants == 1 else 's'} fresh"
            + (f"; waiting for a token: {text.names(self.waiting)}" if self.waiting else "")
            + (f"; waiting for a person: {text.names(needy)}" if needy else "")
        )
