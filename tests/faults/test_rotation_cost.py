"""What a rotation costs: the files that it looks at, and the syncs that it waits for."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.conftest import need
from tests.support.command import Command
from tests.support.parts import no_strace
from tests.support.token_server import TokenServer

_SYNCED: Final = re.compile(r"f(?:data)?sync\(\d+<([^>]*)>")


@pytest.fixture
def server() -> Iterator[TokenServer]:
    """A token endpoint that issues tokens for an hour."""
    with TokenServer(lambda _: 3600) as running:
        yield running


def _trace(refresher: Command, calls: str, *arguments: str, code: int = 0) -> list[str]:
    """Run the command; return its system calls below its state directory, with paths relative to it."""
    need(no_strace())
    path = refresher.home / "strace"
    prefix = ("strace", "-f", "-qq", "-y", "-s", "0", "-o", str(path), "-e", f"trace={calls}")
    done = refresher(*arguments, prefix=prefix)
    assert done.code == code, done.stderr
    state = str(refresher.state)
    return [
        line.partition(" ")[2].lstrip().replace(f"{state}/", "")
        for line in path.read_text().splitlines()
        if state in line
    ]


@pytest.mark.parametrize(
    "arguments",
    [("run-once", "linear", "--force"), ("token", "linear", "--wait", "1h"), ("headers", "linear", "--wait", "1h")],
)
def test_a_rotation_of_one_name_looks_at_no_other_grant(
    refresher: Command, server: TokenServer, arguments: tuple[str, ...]
) -> None:
    """If it failed, a rotation would cost more with each grant that is stored beside it."""
    for name in ("linear", "notion"):
        refresher.bring(name, server.grant(name))
    calls = _trace(refresher, "%file,getdents64", *arguments)
    assert len(server.asked["linear"]) == 1, "it was not rotated"
    assert any("grants/linear.json" in call for call in calls)
    assert [call for call in calls if "notion" in call or re.match(r"getdents64\(\d+<(grants|tokens)>", call)] == []


def test_an_import_of_a_directory_looks_at_each_record_once(refresher: Command) -> None:
    """If it failed, an import of many grants would cost more for each grant that is stored."""
    fields = {"token_endpoint": "http://127.0.0.1:1/token", "client_id": "client", "server_url": "https://mcp.example"}
    refresher.import_grant("stored", {**fields, "refresh_token": "a-stored-token"})
    (source := refresher.home / "imports").mkdir()
    for number in range(4):
        written = refresher.write_import("new", {**fields, "refresh_token": f"a-new-token-{number % 3}"})
        written.rename(source / f"new-{number}.json")
    (source / "new-4.json").write_text("no JSON")
    calls = _trace(refresher, "openat,getdents64", "import", "--from", str(source), code=2)
    shutil.rmtree(source)  # no file may keep a secret
    assert [path.stem for path in sorted(refresher.directories.grants.glob("new-*.json"))] == [
        "new-0",
        "new-1",
        "new-2",
    ]
    assert len([call for call in calls if re.search(r'"grants/stored\.json"', call)]) == 1
    assert len([call for call in calls if re.match(r"getdents64\(\d+<grants>", call)]) == 2, "one listing has two calls"


def test_a_rotation_syncs_what_is_listed(refresher: Command, server: TokenServer) -> None:
    """If it failed, a rotation would cost more than ARCHITECTURE.md says, or a power loss could cost a token (I2)."""
    refresher.bring("linear", server.grant("linear"))
    assert refresher("run-once").code == 0
    synced = [
        match[1]
        for call in _trace(refresher, "fsync,fdatasync", "run-once", "--force")
        # The history syncs in its own thread, and no rotation waits for it.
        if (match := _SYNCED.match(call)) and not match[1].startswith(("events.sqlite3", str(refresher.state)))
    ]
    page = (Path(__file__).parents[2] / "refresher/ARCHITECTURE.md").read_text()
    listed = re.findall(r"^\| \d \| `([^`]+)/?` \|", page, re.MULTILINE)
    assert [Path(path).name for path in synced] == [Path(name.replace("NAME", "linear")).name for name in listed]
    assert len(synced) == 7
