"""What a rotation costs: the files that it looks at, and the syncs that it waits for."""

import re
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


def _trace(refresher: Command, calls: str, *arguments: str) -> list[str]:
    """Run the command; return its system calls below its state directory, with paths relative to it."""
    need(no_strace())
    path = refresher.home / "strace"
    prefix = ("strace", "-f", "-qq", "-y", "-s", "0", "-o", str(path), "-e", f"trace={calls}")
    done = refresher(*arguments, prefix=prefix)
    assert done.code == 0, done.stderr
    state = str(refresher.state)
    return [
        line.partition(" ")[2].lstrip().replace(f"{state}/", "")
        for line in path.read_text().splitlines()
        if state in line
    ]


@pytest.mark.parametrize("arguments", [("run-once", "linear", "--force"), ("token", "linear"), ("headers", "linear")])
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


def test_a_rotation_syncs_what_is_listed(refresher: Command, server: TokenServer) -> None:
    """If it failed, a rotation would cost more than ARCHITECTURE.md says, or a power loss could cost a token (I2)."""
    refresher.bring("linear", server.grant("linear"))
    assert refresher("run-once").code == 0
    synced = [
        match[1]
        for call in _trace(refresher, "fsync,fdatasync", "run-once", "--force")
        if (match := _SYNCED.match(call))
    ]
    page = (Path(__file__).parents[2] / "refresher/ARCHITECTURE.md").read_text()
    listed = re.findall(r"^\| \d \| `([^`]+)/?` \|", page, re.MULTILINE)
    assert [Path(path).name for path in synced] == [Path(name.replace("NAME", "linear")).name for name in listed]
    assert len(synced) == 7
