"""``FileTokenSource``: the current token, the last good one, problems, demands and events."""

import asyncio
import os
import pickle
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from shim import (
    FileTokenSource,
    Problem,
    ReauthorizationRequired,
    Removed,
    Restored,
    Rotated,
    ShimError,
    TokenFile,
    TokenFileError,
    TokenRejected,
    TokenUnavailable,
    UnsupportedVersion,
)
from shim._token import parse
from tests.support.command import wait_until
from tests.support.published import DEAD, Published


@pytest.fixture
def published(tmp_path: Path) -> Published:
    return Published(tmp_path)


def _generation(source: FileTokenSource) -> int | None:
    token = source.current()
    return None if token is None else token.generation


# --- the file -----------------------------------------------------------------------------------------------------


def test_a_token_file_that_appears_later_is_read(published: Published) -> None:
    """If it failed, an agent that starts before refresher would need a restart."""
    source = published.source()
    assert source.current() is None
    assert isinstance(source.problem(), TokenFileError)
    published.put(1)
    assert _generation(source) == 1
    assert source.problem() is None


@pytest.mark.parametrize("damage", ["torn", "empty", "not JSON", "gone", "directory", "fifo", "huge", "another name", "version 2", "dangling"])  # fmt: skip
def test_a_damaged_file_keeps_the_last_good_token_and_reports_a_problem(published: Published, damage: str) -> None:
    """If it failed, a file that is damaged for a moment would stop every agent with a good token."""
    made = published.put(1)
    source = published.source()
    assert source.current() == made
    content = published.path.read_bytes()
    published.path.unlink()
    match damage:
        case "torn":
            published.path.write_bytes(content[:50])
        case "empty":
            published.path.touch()
        case "not JSON":
            published.path.write_bytes(b"hello")
        case "directory":
            published.path.mkdir()
        case "fifo":
            os.mkfifo(published.path)
        case "huge":
            published.path.write_bytes(b" " * (1024 * 1024 + 1))
        case "another name":
            published.put(5, name="notion")
        case "version 2":
            published.path.write_bytes(content.replace(b'"version": 1', b'"version": 2'))
        case "dangling":
            published.path.symlink_to("nowhere")
        case _:
            assert damage == "gone"
    for _ in range(2):
        assert source.current() == made
        problem = source.problem()
        assert isinstance(problem, UnsupportedVersion if damage == "version 2" else TokenFileError)
        assert str(published.path) in str(problem)
    if damage == "directory":
        published.path.rmdir()
    published.put(2)
    assert _generation(source) == 2
    assert source.problem() is None


def test_an_unreadable_file_keeps_the_last_good_token(published: Published) -> None:
    """If it failed, a wrong file mode for a moment would stop every agent with a good token."""
    published.put(1)
    source = published.source()
    assert _generation(source) == 1
    published.put(2)
    published.path.chmod(0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)  # root can read every file
    try:
        assert _generation(source) == 1
        assert isinstance(source.problem(), TokenFileError)
    finally:
        if root:
            os.seteuid(0)
    published.path.chmod(0o600)
    assert _generation(source) == 2


@pytest.mark.parametrize("shift", [-86400.0, 86400.0, 0.0])
def test_a_change_is_seen_even_if_the_clock_was_set(published: Published, shift: float) -> None:
    """If it failed, an agent would keep a dead token after the clock was set back."""
    published.put(1)
    source = published.source()
    assert _generation(source) == 1
    before = published.path.stat()
    published.put(2)
    os.utime(published.path, ns=(before.st_atime_ns, before.st_mtime_ns + int(shift * 1e9)))
    assert _generation(source) == 2


def test_an_unchanged_file_is_read_once(published: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, each request would cost a read and a parse."""
    from shim import _source

    reads = []

    def counted(data: bytes) -> TokenFile:
        reads.append(1)
        return parse(data)

    monkeypatch.setattr(_source, "parse", counted)
    published.put(1)
    source = published.source()
    first = source.current()
    assert all(source.current() is first for _ in range(100))
    assert len(reads) == 1


def test_symbolic_links_are_followed_at_each_read(published: Published) -> None:
    """If it failed, an agent would never see a new token in a Kubernetes mount."""
    target = published.tokens / "..data-1"
    target.mkdir()
    published.put(1)
    published.path.rename(target / "linear.json")
    (published.tokens / "..data").symlink_to(target.name)
    published.path.symlink_to("..data/linear.json")
    source = published.source()
    assert _generation(source) == 1
    new = published.tokens / "..data-2"
    new.mkdir()
    published.path.unlink()
    published.put(2)
    published.path.rename(new / "linear.json")
    published.path.symlink_to("..data/linear.json")
    (published.tokens / "..data_tmp").symlink_to(new.name)
    (published.tokens / "..data_tmp").rename(published.tokens / "..data")
    assert _generation(source) == 2


def test_defaults_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, `BearerAuth("linear")` would not find the token."""
    for name in ("REFRESHER_STATE_DIR", "REFRESHER_TOKENS_DIR", "REFRESHER_DEMANDS_DIR", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert f"{tmp_path}/.local/state/refresher/tokens/linear.json" in repr(FileTokenSource("linear"))
    monkeypatch.setenv("XDG_STATE_HOME", "/xdg")
    assert "/xdg/refresher/tokens/linear.json" in repr(FileTokenSource("linear"))
    monkeypatch.setenv("REFRESHER_STATE_DIR", "/state")
    assert "/state/tokens/linear.json" in repr(FileTokenSource("linear"))
    monkeypatch.setenv("REFRESHER_TOKENS_DIR", "/tokens")
    assert "'/tokens/linear.json'" in repr(FileTokenSource("linear"))


@pytest.mark.parametrize("name", ["", "Linear", "../etc/passwd", "a/b"])
def test_an_invalid_name_is_an_error_at_once(name: str) -> None:
    """If it failed, a name from an untrusted place could make any file a token file."""
    with pytest.raises(ValueError, match="not a valid name"):
        FileTokenSource(name)


# --- token(), headers(), problem() --------------------------------------------------------------------------------


def test_a_token_that_lives_long_enough_is_returned(published: Published) -> None:
    """If it failed, programs that build their own header would have no token."""
    published.put(1)
    assert published.source().token(min_valid=60) == "access-token-1"
    published.put(2, expires_at=None)
    assert published.source().token(min_valid=1e9) == "access-token-2"
    assert published.demanded() == []


def test_a_token_that_expires_too_soon_is_demanded_and_reported(published: Published) -> None:
    """If it failed, a program would start long work with a token that expires during it."""
    published.put(1, expires_at=time.time() + 30)
    with pytest.raises(TokenUnavailable, match="60"):
        published.source().token(min_valid=60)
    assert published.demanded() == ["linear.1"]


def test_a_missing_or_expired_token_is_reported(published: Published) -> None:
    """If it failed, a program without a token would get an AttributeError or a wrong reason."""
    with pytest.raises(TokenFileError):
        published.source().token()
    published.put(1, state="failing", access_token=None, expires_at=None, error=DEAD)
    with pytest.raises(TokenUnavailable, match="no token yet: the user left"):
        published.source().token()
    published.put(2, expires_at=1.0)
    with pytest.raises(TokenUnavailable, match="expired"):
        published.source().token()


def test_a_live_token_whose_grant_is_in_doubt_is_not_demanded_away(published: Published) -> None:
    """If it failed, a program that needs a longer life would make refresher send a spent refresh token, and lose the live token (I1)."""
    doubt = Problem("in_doubt", "an answer was lost", 1.0, None)
    published.put(expires_at=time.time() + 30, state="failing", error=doubt)
    with pytest.raises(TokenUnavailable):
        published.source().token(min_valid=60)
    assert published.demanded() == []
    published.put(expires_at=time.time() - 1, state="failing", error=doubt)
    with pytest.raises(TokenUnavailable):
        published.source().token(min_valid=60)
    assert published.demanded() == ["linear.1"], "no live token is at risk any more"


def test_a_program_can_wait_for_the_rotation_that_it_demanded(published: Published) -> None:
    """If it failed, every program would need its own loop around token()."""
    published.put(1, expires_at=time.time() - 1)
    given: list[str] = []
    waiting = threading.Thread(target=lambda: given.append(published.source().token(wait=30)))
    waiting.start()
    wait_until(lambda: published.demanded() == ["linear.1"], "the demand is there")
    published.put(2)
    waiting.join(30)
    assert given == ["access-token-2"]


def test_a_verdict_is_raised_at_once(published: Published) -> None:
    """If it failed, a program would wait for a token that cannot come."""
    published.put(1, expires_at=1.0, state="reauthorization_required", error=DEAD)
    with pytest.raises(ReauthorizationRequired, match="refresher login linear"):
        published.source().token(wait=3600)
    published.put(2, state="removed", access_token=None)
    with pytest.raises(Removed):
        published.source().token(wait=3600)
    assert published.demanded() == []


def test_a_dead_grants_live_token_is_still_given(published: Published) -> None:
    """If it failed, agents would stop up to an hour too early (I5)."""
    published.put(1, state="reauthorization_required", error=DEAD)
    assert published.source().token(min_valid=60) == "access-token-1"


def test_headers_are_only_for_the_origins_of_the_token(published: Published) -> None:
    """If it failed, a token would go to any URL that a model invents."""
    published.put(1, origins=("https://mcp.example", "http://[::1]:8080"))
    source = published.source()
    good = {"Authorization": "Bearer access-token-1"}
    for url in ("https://mcp.example/x", "https://MCP.Example:443/", "http://[::1]:8080/x?y"):
        assert source.headers(url) == good
    for url in ("http://mcp.example/", "https://mcp.example:444/", "https://mcp.example.evil.example/",
                "https://mcp.example@evil.example/", "https://evil.example/https://mcp.example", "//mcp.example", "", "https://[::1",
                "https://evil.example\\@mcp.example/", "https://evil.example\t@mcp.example/", "https://user@mcp.example/",
                "https://mcp.example\n/", "https://mcp.exämple/", "https://mcp.example:/"):  # fmt: skip
        assert source.headers(url) == {}, url


@pytest.mark.parametrize(("token_type", "scheme"), [("Bearer", "Bearer"), ("bearer", "Bearer"), ("DPoP", "DPoP")])
def test_the_scheme_is_spelled_as_servers_expect(published: Published, token_type: str, scheme: str) -> None:
    """If it failed, a server that issues "bearer" and accepts only "Bearer" would reject every request."""
    published.put(1, token_type=token_type)
    assert published.source().headers("https://mcp.example/")["Authorization"].split()[0] == scheme


def test_each_problem_has_its_own_type(published: Published) -> None:
    """If it failed, a program could not decide what to do about a problem."""
    source = published.source()
    assert type(source.problem()) is TokenFileError
    made = published.put(1)
    assert source.problem() is None
    source.rejected(made, "https://mcp.example")
    assert type(source.problem()) is TokenRejected
    published.put(2)
    assert source.problem() is None
    published.put(3, expires_at=1.0)
    assert type(source.problem()) is TokenUnavailable
    published.put(4, state="reauthorization_required", error=DEAD)
    problem = source.problem()
    assert isinstance(problem, ReauthorizationRequired)
    assert (problem.code, problem.description, problem.server) == (
        "invalid_grant",
        "the user left",
        "https://mcp.example",
    )
    published.put(5, state="removed", access_token=None)
    assert type(source.problem()) is Removed
    assert isinstance(problem, ShimError)


def test_an_accepted_token_is_no_problem(published: Published) -> None:
    """If it failed, one stray 401 would be reported until the next rotation, and use up the wait of the token."""
    made = published.put(1)
    source = published.source()
    source.rejected(made, "https://mcp.example")
    source.accepted(made)
    assert source.problem() is None


def test_an_older_token_does_not_replace_a_newer_rejected_one(published: Published) -> None:
    """If it failed, a slow request with an old token would give the rejected new token another wait."""
    old, new = published.put(1), published.put(2)
    source = published.source()
    since = source.rejected(new, "https://mcp.example")
    source.rejected(old, "https://mcp.example")
    source.accepted(old)
    assert source.rejected(new, "https://mcp.example") == since
    assert type(source.problem()) is TokenRejected


def test_a_newer_token_replaces_an_older_rejected_one(published: Published) -> None:
    """If it failed, only the first rejected token of a process would be known as rejected."""
    old, new = published.put(1), published.put(2)
    source = published.source()
    source.rejected(old, "https://mcp.example")
    assert source.problem() is None
    source.rejected(new, "https://mcp.example")
    assert type(source.problem()) is TokenRejected


def test_a_verdict_stays_after_the_file_is_deleted(published: Published) -> None:
    """If it failed, a program would wait in vain for a token that needs a person."""
    published.put(1, expires_at=1.0, state="reauthorization_required", error=DEAD)
    source = published.source()
    source.current()
    published.path.unlink()
    assert isinstance(source.problem(), ReauthorizationRequired)
    with pytest.raises(ReauthorizationRequired):
        source.token(wait=3600)
    assert isinstance(source.changes().poll(), ReauthorizationRequired)


@pytest.mark.parametrize("error", [
    ReauthorizationRequired("linear", code="invalid_grant", description="revoked", server="https://mcp.example"),
    Removed("linear"),
])  # fmt: skip
def test_errors_can_be_pickled(error: ShimError) -> None:
    """If it failed, an error in a process pool would break the pool."""
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), vars(again)) == (str(error), vars(error))


@pytest.mark.parametrize("bad", [{"tokens_dir": ""}, {"tokens_dir": "a\0b"}, {"demands_dir": b"bytes"}])
def test_an_invalid_directory_is_an_error_at_once(bad: dict[str, Any]) -> None:
    """If it failed, tokens would be read from the root directory, or the first request would raise."""
    with pytest.raises(ValueError, match="must be directories"):
        FileTokenSource("linear", **bad)


@pytest.mark.parametrize("wait", [float("nan"), -1.0])
def test_an_invalid_wait_is_an_error(published: Published, wait: float) -> None:
    """If it failed, a program would wait forever."""
    with pytest.raises(ValueError, match="wait"):
        published.source().token(wait=wait)


def test_as_json_says_whether_retrying_helps() -> None:
    """If it failed, a model would retry again and again instead of asking a person."""
    import json

    error = ReauthorizationRequired("linear", code="invalid_grant", description="revoked", server="https://mcp.example")
    shown = json.loads(error.as_json())
    assert set(shown) == {"error", "needs_reauth", "server", "login_command", "retry"}
    assert (shown["needs_reauth"], shown["retry"], shown["server"]) == (True, False, "https://mcp.example")
    assert "linear" in shown["login_command"]
    assert json.loads(Removed("linear").as_json())["needs_reauth"]
    passing = json.loads(TokenUnavailable("expired").as_json())
    assert (set(passing), passing["needs_reauth"], passing["retry"]) == (set(shown), False, True)


# --- demands ------------------------------------------------------------------------------------------------------


def test_a_demand_is_one_empty_private_file(published: Published) -> None:
    """If it failed, refresher would not recognise the demand, or a thousand threads would make a thousand demands."""
    made = published.put(7)
    source = published.source()
    assert source.demand(made)
    assert source.demand(made)
    (path,) = published.demands.iterdir()
    assert path.name == "linear.7"
    assert path.stat().st_size == 0
    assert path.stat().st_mode & 0o077 == 0


def test_a_missing_demands_directory_is_no_error(published: Published) -> None:
    """If it failed, requests would fail with an exception because a directory is missing."""
    published.demands.rmdir()
    assert not published.source().demand(published.put(1))


# --- changes ------------------------------------------------------------------------------------------------------


def test_the_events_of_a_token_come_once_and_in_order(published: Published) -> None:
    """If it failed, a program would reconnect twice, or never."""
    changes = published.source().changes(poll=0.01)
    assert changes.poll() is None
    published.put(1)
    assert changes.poll() == Restored("linear", 1)
    assert changes.poll() is None
    published.put(2)
    assert next(changes) == Rotated("linear", 2)
    published.put(2, state="failing")
    assert changes.poll() is None, "a failed refresh with a live token is no event"
    published.put(2, state="reauthorization_required", error=DEAD)
    assert isinstance(changes.poll(), ReauthorizationRequired)
    assert changes.poll() is None
    published.put(3)
    assert changes.poll() == Restored("linear", 3)
    published.put(3, state="removed", access_token=None)
    assert isinstance(changes.poll(), Removed)
    published.put(4)
    assert changes.poll() == Restored("linear", 4)


def test_a_verdict_at_the_start_is_the_first_event(published: Published) -> None:
    """If it failed, a program that starts after the verdict would never see it."""
    published.put(1, state="reauthorization_required", error=DEAD)
    changes = published.source().changes()
    assert isinstance(changes.poll(), ReauthorizationRequired)
    assert changes.poll() is None


def test_two_event_loops_can_await_events_of_one_source(published: Published) -> None:
    """If it failed, one source could not serve a program with several event loops."""
    published.put(1)
    source = published.source()
    heard: list[object] = []

    async def listen() -> None:
        changes = source.changes(poll=0.01)
        ready.release()
        async for event in changes:
            heard.append(event)
            return

    ready = threading.Semaphore(0)
    threads = [threading.Thread(target=lambda: asyncio.run(listen())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert ready.acquire(timeout=30)
    published.put(2)
    for thread in threads:
        thread.join(30)
    assert heard == [Rotated("linear", 2)] * 2
