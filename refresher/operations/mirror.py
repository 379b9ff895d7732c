"""Mirror: publish on this host what a database holds, and take the demands of its agents there.

It exchanges nothing and needs no record: the token files are in the database as they are.
"""

import logging
import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from refresher.common.errors import GrantFileError, LockBusy, StorageError
from refresher.common.throttle import Throttle
from refresher.grants.encoding import open_kept
from refresher.storage import demands, lock
from refresher.storage.publishing import Publisher, read_published
from shim._token import TokenFile, parse, render
from shim.errors import TokenFileError

if TYPE_CHECKING:
    from refresher.storage.directories import Directories
    from refresher.storage.postgres.changes import Changes, Copy
    from refresher.storage.postgres.database import Database

__all__ = ["Mirror"]

log = logging.getLogger(__name__)

_FORWARD_AGAIN: Final = 10.0
"""Seconds after which a demand that stays is sent once more: the database may have been restored."""

_FINAL: Final = ("reauthorization_required", "removed")


class _Shown(NamedTuple):
    """What this host shows of a grant."""

    generation: int
    state: str


class Mirror:
    """The token files of one host, made equal to those in the database.

    ``mirrors``: whether this host needs the tokens of a name. ``shown`` is called with each token file that readers see
    now, with ``None`` in its place when it was withdrawn. ``unreadable`` is called with a name whose token file in the
    database cannot be opened or used, with what is published here, and why.
    """

    def __init__(
        self,
        database: "Database",
        changes: "Changes",
        publisher: Publisher,
        mirrors: Callable[[str], bool],
        shown: Callable[[str, TokenFile | None], None] = lambda _name, _token: None,
        unreadable: Callable[[str, TokenFile | None, str], None] = lambda _name, _there, _why: None,
    ) -> None:
        self._database = database
        self._changes = changes
        self._publisher = publisher
        self._mirrors = mirrors
        self._notify_shown = shown
        self._notify_unreadable = unreadable
        self._shown: dict[str, _Shown] = {}
        self._forwarded: dict[tuple[str, int], float] = {}
        self._failed: dict[str, Copy] = {}
        """What could not be published yet."""
        self._said = Throttle()

    @property
    def _directories(self) -> "Directories":
        return self._publisher.directories  # with the keys of now

    def publish(self, names: Collection[str] = ()) -> None:
        """Publish what has changed: all, the first time; or ``names`` alone. Raises ``StorageError``."""
        if names:
            for copy in self._changes.of(names):
                self._show(copy)
            return
        again, self._failed = self._failed, {}
        # Read again: it may be sealed with another key by now.
        for copy in self._changes.of(again) if again else ():
            self._show(copy)
        _, copies = self._changes.read()
        for copy in copies:
            try:
                self._show(copy)
            except Exception as error:  # noqa: BLE001  the other names must not miss their change
                self._failed[copy.name] = copy
                self._warn(copy.name, f"internal error ({type(error).__name__}); please report it")

    def _show(self, copy: "Copy") -> None:
        """Publish one token file, or withdraw it if this host does not need it any more."""
        try:
            data = open_kept(copy.data, copy.name, self._directories.keys.published, "token_file")
        except GrantFileError as error:
            self._failed[copy.name] = copy
            self._refuse(copy.name, f"the token file in the database cannot be opened: {error}")
            return
        try:
            token = parse(data)
        except TokenFileError as error:
            self._refuse(copy.name, f"the token file in the database cannot be used: {error}")
            return
        if token.name != copy.name:
            self._refuse(copy.name, f"the token file in the database is that of {token.name!r}: it is not published")
            return
        if not self._mirrors(token.name):
            there = read_published(self._directories, token.name)
            if there is None or there.grant_id != token.grant_id or there.state == "removed":
                return
            token = there._replace(state="removed", access_token=None, error=None)
            data = render(token)
        try:
            with self._publishing():
                visible = self._publisher.publish_copy(token, data)
            if not visible:
                self._report_later(token)
                return
        except (StorageError, LockBusy) as error:
            # Later again; the other names must not wait for it.
            self._failed[copy.name] = copy
            self._warn(copy.name, str(error))
            return
        self._shown[token.name] = _Shown(token.generation, token.state)
        self._notify_shown(token.name, None if token.state == "removed" else token)

    def _refuse(self, name: str, why: str) -> None:
        """Say that a token file cannot be published, if this host needs it."""
        self._warn(name, why)
        if self._mirrors(name):
            there = read_published(self._directories, name)
            if there is None or there.state != "removed":
                self._notify_unreadable(name, there, why)

    def _report_later(self, token: TokenFile) -> None:
        """Report that this host has a later generation: the database was restored from a backup.

        Not if the database has got it meanwhile, or gets it from a spill of this host.
        """
        from refresher.storage.postgres import changes, spills

        there = read_published(self._directories, token.name)
        if there is None or there.grant_id != token.grant_id or next(spills.find(self._directories, token.name), None):
            return
        if there.generation > (known := changes.generation_of(self._database, token.name)):
            changes.report_seen(self._database, there)
            self._warn(
                token.name,
                f"the database has generation {known}, and this host has published {there.generation}: was the "
                "database restored from a backup? This host keeps its token",
            )

    def take_demands(self) -> None:
        """Take the demands of this host to the database, and remove the answered ones. Raises ``StorageError``."""
        found = demands.pending(self._directories, self._shown)
        found.warn(set())
        now = time.monotonic()
        for name, generations in found.by_name.items():
            shown = self._shown[name]
            if shown.state in _FINAL:
                demands.remove(self._directories, name, generations, keep=range(0), warned=set())
                continue
            current = range(shown.generation, shown.generation + 1)
            if others := generations.difference(current):
                # An agent that demands another generation has not seen this one: it reads a file that is new.
                self._show_again(name)
                demands.remove(self._directories, name, frozenset(others), keep=range(0), warned=set())
            if shown.generation in generations and shown.generation > demands.barred_until(self._directories, name):
                key = (name, shown.generation)
                if self._forwarded.get(key, float("-inf")) < now - _FORWARD_AGAIN:
                    self._forward(name, shown.generation)
                    self._forwarded[key] = now
        if len(self._forwarded) > len(found.by_name):
            self._forwarded = {key: at for key, at in self._forwarded.items() if key[0] in found.by_name}

    def _forward(self, name: str, generation: int) -> None:
        from refresher.storage.postgres.changes import demand

        reason = None
        if (there := read_published(self._directories, name)) is not None:
            current = range(generation, generation + 1)
            reason = demands.reason(self._directories, there, frozenset(current), current)
        demand(self._database, name, generation, reason)

    def _show_again(self, name: str) -> None:
        if (there := read_published(self._directories, name)) is not None:
            with suppress(StorageError, LockBusy), self._publishing():
                self._publisher.publish_copy(there, render(there), again=True)

    def _publishing(self) -> AbstractContextManager[None]:
        return lock.held(self._directories.publish_lock, stopping=lambda: False)

    def _warn(self, name: str, message: str) -> None:
        if self._said.is_new(name, message):
            log.warning("%s: %s", name, message)
