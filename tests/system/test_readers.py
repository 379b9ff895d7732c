"""Readers of a token file while refresher replaces it."""

import itertools
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
ENOUGH = 100
LAST = 10**9

# A separate process, as an agent is. It creates a file when it has seen enough generations, and ends with the last one.
READER = """
import sys
from pathlib import Path
from shim._token import parse
last, seen = -1, set()
enough, end, done = int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
print("ready", flush=True)
while last < end:
    with open(sys.argv[1], "rb") as file:
        token = parse(file.read())
    assert token.generation >= last, f"generation {token.generation} after {last}"
    assert token.access_token == f"access-token-{token.generation}", "half a file was read"
    last = token.generation
    seen.add(last)
    if len(seen) == enough:
        done.touch()
"""


def test_readers_of_a_replaced_file_see_only_whole_and_never_older_tokens(tmp_path: Path) -> None:
    """If it failed, an agent could send half a token, or go back to an older one."""
    made = directories(tmp_path)
    Publisher(made).publish(grant(generation=0, access_token=Secret("access-token-0")))
    command = [sys.executable, "-c", READER, str(made.token("linear")), str(ENOUGH), str(LAST)]
    done = [tmp_path / f"done-{number}" for number in range(4)]
    readers = [
        subprocess.Popen([*command, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for path in done
    ]
    for reader in readers:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"

    def publish(generation: int) -> None:
        assert Publisher(made).publish(grant(generation=generation, access_token=Secret(f"access-token-{generation}")))

    published = itertools.count(1)
    for _ in range(TIMES):
        publish(next(published))
    # On a busy machine the readers need more time to see enough generations.
    ends = time.monotonic() + 90
    while not all(path.exists() for path in done):
        assert time.monotonic() < ends, "a reader saw too few generations"
        assert all(reader.poll() is None for reader in readers), [reader.communicate() for reader in readers]
        publish(next(published))
    publish(LAST)
    wait_until(
        lambda: all(reader.poll() is not None for reader in readers), "all readers have seen the last generation"
    )
    for reader in readers:
        _, stderr = reader.communicate()
        assert reader.returncode == 0, stderr
    assert [path.name for path in made.tokens.iterdir()] == ["linear.json"], "temporary files are left"


def test_a_replaced_file_has_an_exact_modification_time(tmp_path: Path) -> None:
    """If it failed, a reader could miss a new token with the same size, the same kernel tick and a reused inode."""
    made = directories(tmp_path)
    before = time.time_ns()
    Publisher(made).publish(grant())
    # Kernels before 6.13 use the time of their last tick, which is earlier than the write.
    assert before <= made.token("linear").stat().st_mtime_ns <= time.time_ns()


def test_readers_of_a_restored_backup_learn_that_its_grant_is_dead(tmp_path: Path) -> None:
    """If it failed, agents would wait forever for a token that needs a person."""
    made = directories(tmp_path)
    Publisher(made).publish(grant(generation=9, access_token=Secret("the-newer-token")))
    rejection = failure(outcome="reauthorization_required", code="invalid_grant", retry_at=None)
    dead = grant(generation=5, dead=True, failure=rejection)
    assert Publisher(made).publish(dead)
    token = parse(made.token("linear").read_bytes())
    assert (token.state, token.generation, token.access_token) == ("reauthorization_required", 9, "the-newer-token")
    assert not Publisher(made).is_stale(dead), "each run would write the file again"


@pytest.mark.parametrize(("shared", "wrong"), [(0o750, 0o600), (0o750, 0o644), (0o700, 0o640)])
def test_run_once_repairs_the_mode_of_a_token_file(refresher: Command, shared: int, wrong: int) -> None:
    """If it failed, under cron, agents could not read their tokens, or strangers could."""
    fields = {"token_endpoint": "https://as.example/token", "client_id": "client", "server_url": "https://mcp.example"}
    tokens = {"refresh_token": "a-refresh-token", "access_token": "an-access-token", "expires_in": 3600}
    refresher.bring("linear", fields | tokens)
    refresher.tokens.chmod(shared)
    path = refresher.tokens / "linear.json"
    path.chmod(wrong)
    assert refresher("run-once", "--json").outcome == "not_due"
    assert path.stat().st_mode & 0o777 == (0o640 if shared == 0o750 else 0o600)


def test_an_older_generation_never_replaces_a_newer_one(tmp_path: Path) -> None:
    """If it failed, a restored backup would give agents a dead token."""
    made = directories(tmp_path)
    assert Publisher(made).publish(grant(generation=7))
    assert not Publisher(made).publish(grant(generation=6))
    assert b'"generation": 7' in made.token("linear").read_bytes()


def test_a_live_token_stays_published_when_the_first_refresh_of_a_new_grant_fails(tmp_path: Path) -> None:
    """If it failed, replacing a grant while its server is unavailable would take the live token from every agent (I5)."""
    made = directories(tmp_path)
    assert Publisher(made).publish(grant(generation=1, issued_at=time.time(), expires_at=time.time() + 60))
    before = made.token("linear").read_bytes()
    assert Publisher(made).publish(grant(generation=2, access_token=None, expires_at=None, failure=failure()))
    assert made.token("linear").read_bytes() == before
    assert Publisher(made).publish(grant(generation=1, issued_at=1.0, expires_at=2.0))
    assert Publisher(made).publish(grant(generation=2, access_token=None, expires_at=None, failure=failure()))
    assert b'"state": "failing"' in made.token("linear").read_bytes()
    made.token("linear").unlink()
    # A token of unknown lifetime expires by its age.
    assert Publisher(made).publish(grant(generation=1, issued_at=time.time() - 7200, expires_at=None))
    assert Publisher(made).publish(grant(generation=2, access_token=None, expires_at=None, failure=failure()))
    assert b'"state": "failing"' in made.token("linear").read_bytes()
