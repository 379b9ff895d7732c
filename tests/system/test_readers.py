"""Readers of a token file that is replaced under them."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from refresher.common.secret import Secret
from refresher.storage.publishing import Publisher
from shim._token import parse
from tests.support.command import Command, wait_until
from tests.support.fake_state import directories
from tests.support.samples import failure, grant

TIMES = 1000

# A process of its own, as an agent is; it ends by itself with the last generation, or with its parent.
READER = """
import sys
from shim._token import parse
last, reads, seen = -1, 0, set()
print("ready", flush=True)
while last < int(sys.argv[2]):
    with open(sys.argv[1], "rb") as file:
        token = parse(file.read())
    assert token.generation >= last, f"generation {token.generation} after {last}"
    assert token.access_token == f"access-token-{token.generation}", "a torn read"
    last, reads = token.generation, reads + 1
    seen.add(last)
print(reads, len(seen))
"""


def test_a_thousand_replacements_under_four_readers_show_no_torn_and_no_older_token(tmp_path: Path) -> None:
    """If it failed, an agent could send half a token, or go back to one that is no longer good."""
    made = directories(tmp_path)
    Publisher(made).publish(grant(generation=0, access_token=Secret("access-token-0")))
    command = [sys.executable, "-c", READER, str(made.token("linear")), str(TIMES)]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for reader in readers:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
    for generation in range(1, TIMES + 1):
        assert Publisher(made).publish(grant(generation=generation, access_token=Secret(f"access-token-{generation}")))
    wait_until(lambda: all(reader.poll() is not None for reader in readers), "all have seen the last generation")
    for reader in readers:
        stdout, stderr = reader.communicate()
        assert reader.returncode == 0, stderr
        reads, generations = map(int, stdout.split())
        assert generations > 20, f"{reads} reads saw {generations} generations: too few to prove anything"
    assert [path.name for path in made.tokens.iterdir()] == ["linear.json"], "temporary files pile up"


def test_a_replacement_has_a_time_finer_than_the_kernels_tick(tmp_path: Path) -> None:
    """If it failed, a reader could take a new token for the one it knows: same size, same tick, an inode used again."""
    made = directories(tmp_path)
    before = time.time_ns()
    Publisher(made).publish(grant())
    # Kernels before 6.13 stamp files with the time of their last tick, which lies before the write began.
    assert before <= made.token("linear").stat().st_mtime_ns <= time.time_ns()


def test_readers_of_a_restored_backup_learn_that_its_grant_is_dead(tmp_path: Path) -> None:
    """If it failed, agents would wait for ever for a token that only a person can bring."""
    made = directories(tmp_path)
    Publisher(made).publish(grant(generation=9, access_token=Secret("the-newer-token")))
    verdict = failure(outcome="reauthorization_required", code="invalid_grant", retry_at=None)
    dead = grant(generation=5, dead=True, failure=verdict)
    assert Publisher(made).publish(dead)
    token = parse(made.token("linear").read_bytes())
    assert (token.state, token.generation, token.access_token) == ("reauthorization_required", 9, "the-newer-token")
    assert not Publisher(made).is_stale(dead), "each run would write it again"


@pytest.mark.parametrize(("shared", "wrong"), [(0o750, 0o600), (0o750, 0o644), (0o700, 0o640)])
def test_a_run_with_nothing_due_mends_whom_a_token_file_is_open_to(refresher: Command, shared: int, wrong: int) -> None:
    """If it failed, agents would stay locked out of their tokens under cron, or strangers would stay let in."""
    fields = {"token_endpoint": "https://as.example/token", "client_id": "client", "server_url": "https://mcp.example"}
    tokens = {"refresh_token": "a-refresh-token", "access_token": "an-access-token", "expires_in": 3600}
    refresher.bring("linear", fields | tokens)
    refresher.tokens.chmod(shared)
    path = refresher.tokens / "linear.json"
    path.chmod(wrong)
    assert refresher("run-once", "--json").outcome == "not_due"
    assert path.stat().st_mode & 0o777 == (0o640 if shared == 0o750 else 0o600)


def test_an_older_generation_never_replaces_a_newer_one(tmp_path: Path) -> None:
    """If it failed, a restored backup would take agents back to a dead token."""
    made = directories(tmp_path)
    assert Publisher(made).publish(grant(generation=7))
    assert not Publisher(made).publish(grant(generation=6))
    assert b'"generation": 7' in made.token("linear").read_bytes()


def test_a_live_token_outlasts_a_failed_first_exchange_of_the_grant_that_follows(tmp_path: Path) -> None:
    """If it failed, replacing a grant while its server is away would take the live token from every agent (I5)."""
    made = directories(tmp_path)
    assert Publisher(made).publish(grant(generation=1, issued_at=time.time(), expires_at=time.time() + 60))
    before = made.token("linear").read_bytes()
    assert Publisher(made).publish(grant(generation=2, access_token=None, expires_at=None, failure=failure()))
    assert made.token("linear").read_bytes() == before
    assert Publisher(made).publish(grant(generation=1, issued_at=1.0, expires_at=2.0))
    assert Publisher(made).publish(grant(generation=2, access_token=None, expires_at=None, failure=failure()))
    assert b'"state": "failing"' in made.token("linear").read_bytes()
    made.token("linear").unlink()
    # A lifetime that nobody tells ends too: by its age.
    assert Publisher(made).publish(grant(generation=1, issued_at=time.time() - 7200, expires_at=None))
    assert Publisher(made).publish(grant(generation=2, access_token=None, expires_at=None, failure=failure()))
    assert b'"state": "failing"' in made.token("linear").read_bytes()
