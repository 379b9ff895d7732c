"""Files of an old attempt that reappear beside a newer record: from a copy, a backup, or a late mount."""

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
    """A token endpoint that counts refresh tokens that are sent twice."""
    with TokenServer(lambda _: 3600) as running:
        yield running
        assert running.reused == 0, "a spent refresh token was sent"


class OldFiles:
    """The files of a rotation that was interrupted by ``fault``; the next run has settled the grant since."""

    def __init__(self, refresher: Command, server: TokenServer, fault: str, name: str = "linear") -> None:
        self._made = refresher.directories
        self._name = name
        call, _, how = fault.partition(":")
        fields = server.grant(name, access_token=f"access-token-of-{name}", expires_in=3600)
        refresher.bring(name, fields, replace=True)
        refresher.finish(refresher.start("run-once", name, "--force", prefix=injecting(call, how)))
        made = (self._made.next(name), self._made.intent(name), self._made.fresh(name).with_name(f"{name}.next.1"))
        paths = [*made, *(self._made.spill.glob("*") if self._made.spill.exists() else [])]
        self._files = {path: path.read_bytes() for path in paths if path.exists()}
        assert self._files, f"{fault} left nothing"
        assert refresher("run-once").code in (0, 5)
        self.fields = fields

    def restore(self, *suffixes: str, name: str | None = None) -> list[Path]:
        """Restore the files that end in one of ``suffixes``; ``name``: as files of this grant instead."""
        restored = []
        for path, data in self._files.items():
            if path.parent == self._made.spill or path.name.endswith(suffixes):
                place = path.with_name(path.name.replace(self._name, name or self._name, 1))
                place.touch(mode=0o600)
                place.write_bytes(data)
                restored.append(place)
        assert restored
        return restored


@pytest.fixture(autouse=True)
def _spilling(refresher: Command) -> None:
    need(no_strace())
    refresher.environment["REFRESHER_SPILL_DIR"] = str(refresher.home / "spill")


def check_settled(refresher: Command, before: Grant, *aside: str) -> None:
    """Check in two runs that the record is unchanged, and that only files that were set ``aside`` are left."""
    for run in range(2):
        done = refresher("run-once", before.name, "--json")
        assert (done.code, done.outcome) == (0, "not_due"), done.stdout
        assert refresher.grant(before.name) == before
        left = [name for name in refresher.leftovers() if name.startswith(f"{before.name}.")]
        assert sorted(name.rpartition(".aside.")[0] for name in left) == sorted(aside), left
        assert run == 1 or all(name in done.stderr for name in left), "a file that was set aside is not reported"


def test_a_file_of_an_attempt_is_found_under_any_number(refresher: Command, server: TokenServer) -> None:
    """If it failed, a file of a kill of an earlier version would stay, and each run would take the lock for it."""
    refresher.bring("linear", server.grant("linear", access_token="access-token-of-linear", expires_in=3600))
    left = refresher.directories.next("linear").with_name("linear.next.7")
    left.write_bytes(bytes(1000))
    assert refresher("run-once").code == 0
    assert not left.exists()


SAVED = "rename:signal=KILL:when=1"
SENT = "recvfrom:signal=KILL:when=1"
SPILLED = "rename:error=EIO"


@pytest.mark.parametrize(
    ("fault", "aside"),
    [(SAVED, ["linear.next"]), (SENT, []), (SPILLED, ["linear.next", "linear.next.1"])],
    ids=["an answer", "a request", "a spill"],
)
@pytest.mark.parametrize("between", ["rotation", "import", "removal"])
def test_files_that_are_older_than_the_record_are_never_adopted(
    refresher: Command, server: TokenServer, fault: str, aside: list[str], between: str
) -> None:
    """If it failed, a copy of files from last week would replace the login of today (I6)."""
    files = OldFiles(refresher, server, fault)
    if between == "rotation" and fault != SENT:
        assert refresher("run-once", "--force", "--json").outcome == "rotated"
    else:
        if between == "removal":
            assert refresher("remove", "linear").code == 0
        refresher.bring(
            "linear", server.grant("linear", access_token="another-access-token", expires_in=3600), replace=True
        )
    before = refresher.grant("linear")
    restored = files.restore(".next", ".intent", ".next.1")
    check_settled(refresher, before, *aside)
    # Only the intent names the spill: it is set aside in its directory.
    spilled = [path for path in restored if path.parent == refresher.directories.spill]
    for path in spilled:
        assert [other.name.rpartition(".aside.")[0] for other in path.parent.iterdir()] == [path.name]
    assert refresher("run-once", "--force", "--json").outcome == "rotated"


def test_the_answer_of_another_grant_is_never_adopted(refresher: Command, server: TokenServer) -> None:
    """If it failed, a file with a wrong name would give the login of one account to the agents of another."""
    files = OldFiles(refresher, server, SAVED)
    refresher.bring("notion", server.grant("notion", access_token="token-of-notion", expires_in=3600))
    before = refresher.grant("notion")
    files.restore(".next", ".intent", name="notion")
    check_settled(refresher, before, "notion.next", "notion.intent")


def test_the_files_of_a_removed_grant_do_not_restore_it(refresher: Command, server: TokenServer) -> None:
    """If it failed, a removed grant would rotate again."""
    files = OldFiles(refresher, server, SAVED)
    assert refresher("remove", "linear").code == 0
    files.restore(".next", ".intent")
    done = refresher("run-once", "--json")
    assert (done.code, done.results) == (0, {})
    assert [name.rpartition(".aside.")[0] for name in refresher.leftovers()] == ["linear.next"]
    assert refresher.token("linear").state == "removed"
    assert "removed" in refresher("run-once", "linear").stderr


@pytest.mark.parametrize("kill", ["rename:signal=KILL:when=1", "unlinkat:signal=KILL:when=1"])
@pytest.mark.parametrize("command", ["import", "remove"])
def test_a_daemon_completes_a_killed_import_or_removal(
    refresher: Command, server: TokenServer, command: str, kill: str
) -> None:
    """If it failed, an import that was killed for lack of memory would be incomplete until the daemon restarts (I4)."""
    old = server.grant("linear", access_token="the-old-access-token", expires_in=3600)
    new = server.grant("linear", access_token="the-new-access-token", expires_in=3600)
    source = str(refresher.write_import("linear", new))
    refresher.bring("linear", old)
    process = refresher.start("run")
    try:
        wait_until(lambda: refresher.token("linear").access_token == "the-old-access-token", "the daemon has published")
        arguments = ("import", "linear", "--replace", "--from", source) if command == "import" else ("remove", "linear")
        call, _, how = kill.partition(":")
        assert refresher.finish(refresher.start(*arguments, prefix=injecting(call, how))).code == -9
        token = "the-new-access-token" if command == "import" else None
        wait_until(lambda: refresher.token("linear").access_token == token, "the daemon completes the command")
        wait_until(lambda: refresher.leftovers() == [], "no file is left")
    finally:
        process.terminate()
        refresher.finish(process)
    assert server.asked == {}
