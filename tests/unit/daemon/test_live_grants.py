"""The stream of the page, in one process, with records on the disk."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from refresher.common import clocks
from refresher.config import resolve
from refresher.daemon import live_grants
from refresher.daemon.live_grants import LiveGrants
from refresher.operations.import_grant import store_grant
from refresher.operations.import_request import parse
from refresher.operations.remove import remove
from refresher.storage.directories import Directories
from refresher.storage.file_store import FileStore
from tests.support.unreachable import LIVE

LONGEST = 60.0


@pytest.fixture
def directories(tmp_path: Path) -> Directories:
    """The directories of an empty state."""
    return resolve({"state_dir": str(tmp_path / "state")}, None).directories


def store(directories: Directories, *names: str, replace: bool = False) -> None:
    for name in names:
        fields = {**LIVE, "refresh_token": f"the-refresh-token-of-{name}-{time.monotonic_ns()}"}
        grant = parse(name, json.dumps(fields).encode(), clocks.now())
        store_grant(FileStore(directories), grant, replace=replace, if_absent=False, stopping=lambda: False)


class Viewed(NamedTuple):
    """An event of a stream."""

    kind: str
    data: dict[str, Any]

    @property
    def names(self) -> list[str]:
        return [grant["name"] for grant in self.data["grants"]]


class Viewer:
    """Reads the events of a stream."""

    def __init__(self, parts: AsyncIterator[bytes]) -> None:
        self._parts = parts
        self.heartbeats = 0

    async def next(self) -> Viewed:
        async with asyncio.timeout(LONGEST):
            async for part in self._parts:
                assert part.endswith(b"\n\n")
                if part == b":\n\n":
                    self.heartbeats += 1
                    continue
                kind, data = part.decode().splitlines()[:2]
                return Viewed(kind.removeprefix("event: "), json.loads(data.removeprefix("data: ")))
        raise EOFError


@asynccontextmanager
async def viewing(live: LiveGrants, allowed: Callable[[], bool] = lambda: True) -> AsyncIterator[Viewer]:
    parts = live.stream(allowed)
    try:
        yield Viewer(parts)
    finally:
        await parts.aclose()  # type: ignore[attr-defined]


@pytest.mark.asyncio
async def test_a_stream_begins_with_all_grants_and_goes_on_with_what_changes(directories: Directories) -> None:
    """If it failed, the page would show what is not so, until somebody reloads it."""
    live = LiveGrants(lambda: FileStore(directories))
    async with viewing(live) as viewer:
        empty = await viewer.next()
        assert (empty.kind, empty.data["grants"], empty.data["overdue"]) == ("snapshot", [], False)
        assert abs(empty.data["now"] - time.time()) < LONGEST
        store(directories, "linear", "notion")
        live.changed({"linear", "notion"})
        change = await viewer.next()
        assert (change.kind, change.names, change.data["removed"]) == ("change", ["linear", "notion"], [])
        (linear, _) = change.data["grants"]
        assert (linear["state"], linear["origins"], linear["advice"]) == ("active", ["https://mcp.example"], None)
        assert not {str(LIVE["access_token"]), "the-refresh-token"} & set(json.dumps(change.data).split('"'))
        live.changed({"linear", "nobody"})  # nothing of it is different
        store(directories, "notion", replace=True)
        live.changed({"notion"})
        assert (await viewer.next()).names == ["notion"]
        remove(FileStore(directories), "linear", stopping=lambda: False)
        directories.record("notion").write_bytes(b"damaged")
        live.changed(None)
        change = await viewer.next()
        assert (change.names, change.data["removed"]) == (["notion"], ["linear"])
        assert change.data["grants"][0]["state"] == "invalid_grant_file"
        async with viewing(live) as other:
            assert [(await other.next()).names] == [["notion"]]


@pytest.mark.asyncio
async def test_many_grants_come_in_parts_and_a_slow_reader_gets_the_last_state(
    directories: Directories, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, ten thousand grants or a stalled browser would use up the memory of refresher."""
    monkeypatch.setattr(live_grants, "_PART", 4)
    names = [f"grant-{number}" for number in range(10)]
    store(directories, *names)
    live = LiveGrants(lambda: FileStore(directories))
    async with viewing(live) as slow, viewing(live) as viewer:
        first = await slow.next()
        assert (first.kind, first.names) == ("snapshot", names[:4])
        parts = [await viewer.next()]
        while sum(len(part.names) for part in parts) < len(names):
            parts.append(await viewer.next())
        assert [part.kind for part in parts] == ["snapshot", "change", "change"]
        assert [name for part in parts for name in part.names] == names
        for generation in (1, 2):
            store(directories, "grant-0", "grant-9", replace=True)
            live.changed({"grant-0", "grant-9"})
            seen = await viewer.next()
            assert [grant["generation"] for grant in seen.data["grants"]] == [generation] * 2
        late = [await slow.next() for _ in range(3)]
        assert [name for part in late for name in part.names] == [*names[4:], "grant-0", "grant-9"]
        assert [grant["generation"] for part in late for grant in part.data["grants"]] == [0] * 5 + [2] * 3
        monkeypatch.setattr(live_grants, "_MOST_PENDING", 2)
        store(directories, *names[:3], replace=True)
        live.changed(set(names[:3]))
        while (seen := await viewer.next()).kind != "snapshot":
            pass
        assert (seen.names, (await slow.next()).kind) == (names[:4], "snapshot"), "it begins anew"


@pytest.mark.asyncio
async def test_a_long_text_of_a_server_is_cut(directories: Directories, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, a server could fill the memory of refresher with the page of each browser."""
    monkeypatch.setattr(live_grants, "fields_of", lambda *_: {"scope": "s" * 10**6, "origins": ["o" * 2000] * 100})
    store(directories, "linear")
    async with viewing(LiveGrants(lambda: FileStore(directories))) as viewer:
        (row,) = (await viewer.next()).data["grants"]
    assert row["scope"] == "s" * 997 + "..."
    assert [len(origin) for origin in row["origins"]] == [1000] * 20


@pytest.mark.asyncio
async def test_nothing_is_kept_while_nobody_looks(directories: Directories, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, a page that was opened once would cost memory and processor time for ever."""
    store(directories, "linear")
    live = LiveGrants(lambda: FileStore(directories))

    def nothing_kept() -> bool:
        return not live._rows and live._keeping is None and live._reported.empty()

    live.changed({"linear"})
    assert nothing_kept()
    async with viewing(live) as viewer, viewing(live) as other:
        assert (await viewer.next()).names == (await other.next()).names == ["linear"]
        assert not nothing_kept()
        live.changed({"linear"})
    assert nothing_kept()
    async with viewing(live) as viewer:
        assert (await viewer.next()).names == ["linear"]


@pytest.mark.asyncio
async def test_a_quiet_stream_has_a_heartbeat_and_ends_when_its_reader_may_not_read(
    directories: Directories, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, a proxy would cut the stream, or a token that was withdrawn would still show the grants."""
    monkeypatch.setattr(live_grants, "_HEARTBEAT", 0.01)
    live = LiveGrants(lambda: FileStore(directories))
    async with viewing(live, lambda: viewer.heartbeats < 3) as viewer:
        await viewer.next()
        with pytest.raises(EOFError):
            await viewer.next()
        assert viewer.heartbeats == 3


@pytest.mark.asyncio
async def test_a_disk_error_and_an_internal_error_do_not_stop_the_page(
    directories: Directories, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If it failed, the page would show old states until the next start of refresher."""
    monkeypatch.setattr(live_grants, "_PAUSE", 0.01)
    store(directories, "linear")
    attempts: list[Directories] = []

    def counted() -> FileStore:
        attempts.append(directories)
        return FileStore(directories)

    live = LiveGrants(counted)
    directories.grants.rename(directories.state / "away")
    directories.grants.write_bytes(b"not a directory")
    async with viewing(live) as viewer:
        waiting = asyncio.ensure_future(viewer.next())
        while len(attempts) < 3:
            await asyncio.sleep(0.01)
        assert not waiting.done()
        directories.grants.unlink()
        (directories.state / "away").rename(directories.grants)
        assert (await waiting).names == ["linear"]
        with monkeypatch.context() as context:
            context.setattr(live_grants, "_row", lambda *_: 1 / 0)
            live.changed({"linear"})
            with pytest.raises(EOFError):
                await viewer.next()
    assert caplog.messages == ["page: internal error (ZeroDivisionError); please report it"]
    async with viewing(live) as viewer:
        assert (await viewer.next()).names == ["linear"]
