"""Files of one attempt that come back beside another: a copy, a backup, a file system that is mounted late."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from refresher.grants.record import Grant
from tests.conftest import need
from tests.support.command import Command, wait_until
from tests.support.parts import injecting, no_strace
from tests.support.token_server import TokenServer


@pytest.fixture
def server() -> Iterator[TokenServer]:
    """A token endpoint that forgives nothing: it counts what comes twice."""
    with TokenServer(lambda _: 3600) as running:
        yield running
        assert running.reused == 0, "a spent refresh token was sent"


class Relics:
    """The files of a rotation that was cut off by ``fault``; the record has gone on since by itself."""

    def __init__(self, refresher: Command, server: TokenServer, fault: str, name: str = "linear") -> None:
        self._made = refresher.directories
        self._name = name
        call, _, how = fault.partition(":")
        fields = server.grant(name, access_token=f"access-token-of-{name}", expires_in=3600)
        refresher.bring(name, fields, replace=True)
        refresher.finish(refresher.start("run-once", name, "--force", prefix=injecting(call, how)))
        made = (self._made.next(name), self._made.intent(name), self._made.fresh(name).with_name(f"{name}.next.1"))
        there = [*made, *(self._made.spill.glob("*") if self._made.spill.exists() else [])]
        self._files = {path: path.read_bytes() for path in there if path.exists()}
        assert self._files, f"{fault} left nothing"
        assert refresher("run-once").code in (0, 5)
        self.fields = fields

    def come_back(self, *suffixes: str, under: str | None = None) -> list[Path]:
        """Put back what ends in one of ``suffixes``, as files of ``under`` where another name is given."""
        back = []
        for path, data in self._files.items():
            if path.parent == self._made.spill or path.name.endswith(suffixes):
                place = path.with_name(path.name.replace(self._name, under or self._name, 1))
                place.touch(mode=0o600)
                place.write_bytes(data)
                back.append(place)
        assert back
        return back


@pytest.fixture(autouse=True)
def _spilling(refresher: Command) -> None:
    need(no_strace())
    refresher.environment["REFRESHER_SPILL_DIR"] = str(refresher.home / "spill")


def settled(refresher: Command, before: Grant, *aside: str) -> None:
    """Insist that the record is as it was, and that nothing lies about but what was set ``aside``, also later."""
    for _ in range(2):
        done = refresher("run-once", before.name, "--json")
        assert (done.code, done.outcome) == (0, "not_due"), done.stdout
        assert refresher.grant(before.name) == before
        there = [name for name in refresher.leftovers() if name.startswith(f"{before.name}.")]
        assert sorted(name.rpartition(".aside.")[0] for name in there) == sorted(aside), there
        assert all(name in done.stderr for name in there) or _ == 1, "nobody was told where it is"


SAVED = "rename:signal=KILL:when=1"
SENT = "recvfrom:signal=KILL:when=1"
SPILLED = "rename:error=EIO"


@pytest.mark.parametrize(
    ("fault", "aside"),
    [(SAVED, ["linear.next"]), (SENT, []), (SPILLED, ["linear.next", "linear.next.1"])],
    ids=["an answer", "a request", "a spill"],
)
@pytest.mark.parametrize("between", ["rotation", "import", "removal"])
def test_what_a_later_record_has_left_behind_is_never_adopted(
    refresher: Command, server: TokenServer, fault: str, aside: list[str], between: str
) -> None:
    """If it failed, a copy of last week's files would take the place of today's login (I6)."""
    relics = Relics(refresher, server, fault)
    if between == "rotation" and fault != SENT:
        assert refresher("run-once", "--force", "--json").outcome == "rotated"
    else:
        if between == "removal":
            assert refresher("remove", "linear").code == 0
        refresher.bring(
            "linear", server.grant("linear", access_token="another-access-token", expires_in=3600), replace=True
        )
    before = refresher.grant("linear")
    back = relics.come_back(".next", ".intent", ".next.1")
    settled(refresher, before, *aside)
    # The spill is found by the intent alone: set aside where it is.
    spilled = [path for path in back if path.parent == refresher.directories.spill]
    for path in spilled:
        assert [other.name.rpartition(".aside.")[0] for other in path.parent.iterdir()] == [path.name]
    assert refresher("run-once", "--force", "--json").outcome == "rotated"


def test_the_answer_of_another_grant_is_never_adopted(refresher: Command, server: TokenServer) -> None:
    """If it failed, a file under a wrong name would give one account's login to another's agents."""
    relics = Relics(refresher, server, SAVED)
    refresher.bring("notion", server.grant("notion", access_token="token-of-notion", expires_in=3600))
    before = refresher.grant("notion")
    relics.come_back(".next", ".intent", under="notion")
    settled(refresher, before, "notion.next", "notion.intent")


def test_the_files_of_a_removed_grant_bring_nothing_back(refresher: Command, server: TokenServer) -> None:
    """If it failed, what a person has removed would rotate again."""
    relics = Relics(refresher, server, SAVED)
    assert refresher("remove", "linear").code == 0
    relics.come_back(".next", ".intent")
    done = refresher("run-once", "--json")
    assert (done.code, done.results) == (0, {})
    assert [name.rpartition(".aside.")[0] for name in refresher.leftovers()] == ["linear.next"]
    assert refresher.token("linear").state == "removed"
    assert "removed" in refresher("run-once", "linear").stderr


@pytest.mark.parametrize("kill", ["rename:signal=KILL:when=1", "unlink:signal=KILL:when=1"])
@pytest.mark.parametrize("command", ["import", "remove"])
def test_a_daemon_settles_what_the_kernel_has_killed(
    refresher: Command, server: TokenServer, command: str, kill: str
) -> None:
    """If it failed, an import or a removal that ran out of memory would wait for the daemon's next start (I4)."""
    old = server.grant("linear", access_token="the-old-access-token", expires_in=3600)
    new = server.grant("linear", access_token="the-new-access-token", expires_in=3600)
    source = str(refresher.write_import("linear", new))
    refresher.bring("linear", old)
    process = refresher.start("run")
    try:
        wait_until(lambda: refresher.token("linear").access_token == "the-old-access-token", "the daemon watches")
        arguments = ("import", "linear", "--replace", "--from", source) if command == "import" else ("remove", "linear")
        call, _, how = kill.partition(":")
        assert refresher.finish(refresher.start(*arguments, prefix=injecting(call, how))).code == -9
        token = "the-new-access-token" if command == "import" else None
        wait_until(lambda: refresher.token("linear").access_token == token, "the daemon has finished it")
        wait_until(lambda: refresher.leftovers() == [], "nothing lies about")
    finally:
        process.terminate()
        refresher.finish(process)
    assert server.asked == {}
