"""The stream of the page: what is shown of each grant, and each change of it, while somebody looks.

All streams of an address share one copy of the rows. It is read when the first stream opens, and dropped with the last.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any, Final

import msgspec

from refresher.common import clocks
from refresher.common.errors import GrantFileError, RefresherError
from refresher.daemon.background import Background, Busy
from refresher.grants.record import Grant
from refresher.operations import certificates
from refresher.operations.grant_report import advice, fields_of, is_overdue
from refresher.operations.inspection import read_grants
from refresher.storage import last_run
from refresher.storage.store import Store

__all__ = ["LiveGrants"]

log = logging.getLogger(__name__)

_PART: Final = 100
_MOST_PENDING: Final = 1000
_LONGEST_TEXT: Final = 1000
_LONGEST_LIST: Final = 20
_PAUSE: Final = 0.5
_HEARTBEAT: Final = 15.0
_FULL_INTERVAL: Final = 60.0
_FULL_SHARE: Final = 0.02


class _Viewer:
    """One open stream, and what it has not sent yet: a slow reader gets only the last state."""

    def __init__(self) -> None:
        self.names: tuple[str, ...] | None = None
        """The names of its snapshot, shared by all streams; ``None`` until it begins."""
        self.sent = 0
        """How many of them it has sent."""
        self.pending: Final[dict[str, None]] = {}
        """The names that have changed since."""
        self.awake: Final = asyncio.Event()

    def note(self, name: str) -> None:
        """Note that a row has changed."""
        if self.names is None:
            return
        self.pending[name] = None
        if len(self.pending) > _MOST_PENDING:
            self.names = None  # a new snapshot needs less memory
            self.pending.clear()


class LiveGrants:
    """The rows of all grants, for the streams in one event loop; only ``changed`` is for other threads."""

    def __init__(self, store: Callable[[], Store]) -> None:
        self._store: Final = store
        self._background: Final = Background()
        self._rows: Final[dict[str, bytes]] = {}
        self._names: tuple[str, ...] | None = None
        """The names of all rows; ``None`` if they have to be collected."""
        self._viewers: Final[set[_Viewer]] = set()
        self._reported: Final[SimpleQueue[Collection[str] | None]] = SimpleQueue()
        self._keeping: asyncio.Task[None] | None = None
        self._begun = self._overdue = False

    def changed(self, names: Collection[str] | None) -> None:
        """Note which grants have changed; ``None``: perhaps all. It costs nothing while nobody looks. Never waits."""
        if self._keeping is not None:
            self._reported.put(names)

    async def stream(self, allowed: Callable[[], bool]) -> AsyncIterator[bytes]:
        """Yield server-sent events: all rows in parts, then each change, as long as it is ``allowed``."""
        self._viewers.add(viewer := _Viewer())
        if self._keeping is None:
            self._keeping = asyncio.ensure_future(self._keep())
        try:
            while allowed() and not self._keeping.done():
                if self._begun and (event := self._event(viewer)) is not None:
                    yield event
                    continue
                viewer.awake.clear()
                try:
                    async with asyncio.timeout(_HEARTBEAT):
                        await viewer.awake.wait()
                except TimeoutError:
                    yield b":\n\n"
        finally:
            self._viewers.discard(viewer)
            if not self._viewers:
                self._forget()

    def _event(self, viewer: _Viewer) -> bytes | None:
        """Return the next part of what a viewer has not seen; ``None`` if it has seen all."""
        kind, fields = "change", {"now": time.time()}
        if viewer.names is None:
            kind, fields["overdue"] = "snapshot", self._overdue
            if self._names is None:
                self._names = tuple(self._rows)
            viewer.names, viewer.sent = self._names, 0
        names = viewer.names[viewer.sent : viewer.sent + _PART]
        viewer.sent += len(names)
        if not names and kind == "change":
            viewer.names = ()
            names = tuple(islice(viewer.pending, _PART))
            for name in names:
                del viewer.pending[name]
            if not names:
                return None
        grants = [msgspec.Raw(row) for name in names if (row := self._rows.get(name)) is not None]
        removed = [name for name in names if name not in self._rows]
        data = msgspec.json.encode({**fields, "grants": grants, **({"removed": removed} if kind == "change" else {})})
        return b"event: %s\ndata: %s\n\n" % (kind.encode(), data)

    def _forget(self) -> None:
        """Keep nothing: nobody looks any more."""
        if self._keeping is not None:
            self._keeping.cancel()
            self._keeping = None
        self._begun, self._names = False, None
        self._rows.clear()
        self._reports()

    async def _keep(self) -> None:
        """Read all rows, then those that change; from time to time all, since some change only with the clock."""
        full_at = float("-inf")
        while True:
            names = self._reports()
            try:
                if names is None or time.monotonic() >= full_at:
                    started = time.monotonic()
                    listing = await self._background.run(lambda: self._store().listing().names)
                    await self._read([*listing, *(self._rows.keys() - set(listing))])
                    self._begun = True
                    self._wake()
                    full_at = time.monotonic() + max(_FULL_INTERVAL, (time.monotonic() - started) / _FULL_SHARE)
                else:
                    await self._read(sorted(names))
            except (RefresherError, Busy):
                full_at = float("-inf")  # the log has it from the rotation; try again
            except Exception as error:  # noqa: BLE001  the streams end, and a browser opens them again
                log.warning("page: internal error (%s); please report it", type(error).__name__)
                self._wake()
                return
            await asyncio.sleep(_PAUSE)

    async def _read(self, names: Sequence[str]) -> None:
        for start in range(0, len(names), _PART):
            part = names[start : start + _PART]
            self._overdue, rows = await self._background.run(partial(_read, self._store(), part))
            for name, row in rows.items():
                if row == (before := self._rows.get(name)):
                    continue
                if before is None or row is None:
                    self._names = None
                if row is None:
                    del self._rows[name]
                else:
                    self._rows[name] = row
                for viewer in self._viewers:
                    viewer.note(name)
            self._wake()

    def _wake(self) -> None:
        for viewer in self._viewers:
            viewer.awake.set()

    def _reports(self) -> set[str] | None:
        """Return the names that have been reported since the last call; ``None``: perhaps all have changed."""
        names: set[str] | None = set()
        with suppress(Empty):
            while True:
                reported = self._reported.get_nowait()
                names = None if names is None or reported is None else names | set(reported)
        return names


def _read(store: Store, names: Sequence[str]) -> tuple[bool, dict[str, bytes | None]]:
    """Return whether the last run is overdue, and the row of each name as JSON; ``None`` if there is no grant."""
    late = last_run.is_overdue(store.directories, clocks.now().wall)
    found = read_grants(store, names)
    # All certificates at once: each could be on a file system that does not answer.
    with certificates.reading(grant for grant in found.values() if isinstance(grant, Grant)):
        return late is True, {name: None if grant is None else _row(name, grant, late) for name, grant in found.items()}


def _row(name: str, grant: Grant | GrantFileError, late: bool | None) -> bytes:
    overdue = isinstance(grant, Grant) and is_overdue(grant, late)
    return msgspec.json.encode(_short(fields_of(name, grant, overdue) | {"advice": advice(grant)}))


def _short(value: Any) -> Any:
    """Return a value with the first part of each long text and list: a server may name a scope of 1 MiB."""
    if isinstance(value, str):
        return value if len(value) <= _LONGEST_TEXT else f"{value[: _LONGEST_TEXT - 3]}..."
    if isinstance(value, dict):
        return {key: _short(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_short(each) for each in value[:_LONGEST_LIST]]
    return value
