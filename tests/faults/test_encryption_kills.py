"""Encryption commands that are killed between two of their steps, for each pair of steps."""

import shutil
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import need
from tests.faults.test_kills import restorer
from tests.support.command import Command
from tests.support.kills import CHANGES, sweep
from tests.support.parts import no_strace
from tests.support.sealed import in_the_clear, make_key, use_keys
from tests.support.token_server import TokenServer
from tests.support.vault import Vault

ANSWER = b'{"access_token":"the-only-copy-of-an-access-token","refresh_token":"the-only-copy'
SET_ASIDE = b'{"refresh_token":"a-token-that-was-set-aside'


@pytest.fixture
def server(vault: Vault) -> Iterator[TokenServer]:
    """A token endpoint."""
    with TokenServer(lambda _: 3600.0) as running:
        yield running


@pytest.fixture
def stored(refresher: Command, server: TokenServer) -> Command:
    """The command with a healthy grant, and one with an answer, a file that was set aside, and an attempt cut off."""
    need(no_strace())
    refresher.environment["REFRESHER_SPILL_DIR"] = str(refresher.home / "spill")
    for name in ("healthy", "linear"):
        refresher.bring(name, server.grant(name))
    assert refresher("run-once").code == 0
    cut_off = ("strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=rename", "-e", "inject=rename:signal=KILL:when=1")
    refresher.finish(refresher.start("run-once", "linear", "--force", prefix=cut_off))
    grants = refresher.directories.grants
    assert (grants / "linear.next").stat().st_size < 10_000, "the answer is not in its place"
    for name, data in (("linear.answer.1700000000", ANSWER), ("linear.json.aside.1700000000", SET_ASIDE)):
        (grants / name).touch(mode=0o600)
        (grants / name).write_bytes(data)
    return refresher


def enabled(refresher: Command) -> None:
    use_keys(refresher, make_key(refresher.home, "first"))


def rekeyed(refresher: Command) -> None:
    enabled(refresher)
    assert refresher("encryption", "enable").code == 0
    use_keys(refresher, make_key(refresher.home, "second"), refresher.home / "first.key")


CASES: dict[str, Callable[[Command], None]] = {"enable": enabled, "rekey": rekeyed}
"""``disable`` takes the same steps."""


@pytest.mark.parametrize(("name", "configure"), CASES.items(), ids=CASES)
def test_an_encryption_command_that_is_killed_loses_nothing_and_goes_on(
    stored: Command, server: TokenServer, name: str, configure: Callable[[Command], None]
) -> None:
    """If it failed, a machine that goes down while a key is changed would lose a login, or leave it in the clear."""
    configure(stored)
    restore = restorer(stored)
    asked = {client: len(times) for client, times in server.asked.items()}
    for point in sweep(stored, restore, ("encryption", name), calls=CHANGES):
        where = f"killed at {point}"
        done = stored("run-once", "--json")  # with both keys, all can be read at any time
        assert {result["outcome"] for result in done.results.values()} <= {"not_due", "adopted"}, f"{where}: {done}"
        done = stored("encryption", name)
        assert done.code == 0, f"{where}: {done.stderr}"
        assert stored("encryption", "status").code == 0, where
        assert stored.leftovers() == ["linear.answer.1700000000", "linear.json.aside.1700000000"], where
        grants = stored.directories.grants
        kept = [(grants / each).read_bytes() for each in stored.leftovers()]
        assert ANSWER not in kept, where
        assert in_the_clear(stored, server, "the-only-copy", "a-token-that-was-set-aside") == [], where
        for client in ("healthy", "linear"):
            assert stored.refresh_token(client) in server.live(client), f"{where}, the login of {client} is lost"
        assert stored.grant("linear").generation == 2, f"{where}, the answer was not adopted"
    assert {client: len(times) for client, times in server.asked.items()} == asked
    shutil.rmtree(stored.home / "kept")
