"""The commands ``token`` and ``headers``: what they print, when they rotate, and how they fail."""

import fcntl
import json
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from shim._token import render
from tests.support.cli import one_line
from tests.support.command import Command, wait_until
from tests.support.oidc import OIDC
from tests.support.published import DEAD, Published
from tests.support.token_server import Gate, TokenServer

Start = Callable[..., OIDC]

UNREACHABLE: dict[str, Any] = {
    "token_endpoint": "http://127.0.0.1:9/token",
    "client_id": "client",
    "refresh_token": "refresh-token-of-the-tests",
    "server_url": "https://mcp.example/mcp",
    "access_token": "access-token-of-the-tests",
    "expires_in": 3600,
}


def reader_environment(published: Published) -> dict[str, str]:
    """Return the environment of a reader without grants of its own."""
    return {"REFRESHER_TOKENS_DIR": str(published.tokens), "REFRESHER_DEMANDS_DIR": str(published.demands)}


@pytest.fixture
def published(refresher: Command) -> Published:
    """The directories of the refresher of another user."""
    return Published(refresher.home / "shared")


def test_token_prints_only_the_token(refresher: Command) -> None:
    """If it failed, scripts would read something else as the token."""
    refresher.import_grant("linear", UNREACHABLE)
    done = refresher("token", "linear")
    assert done == (0, "access-token-of-the-tests\n", "")
    assert refresher("headers", "linear").stdout == '{"Authorization": "Bearer access-token-of-the-tests"}\n'


def test_headers_spells_bearer_as_the_rfc_does(refresher: Command) -> None:
    """If it failed, servers that compare the scheme exactly would reject what the command prints."""
    refresher.import_grant("linear", UNREACHABLE | {"token_type": "bearer"})
    assert json.loads(refresher("headers", "linear").stdout)["Authorization"].startswith("Bearer ")


@pytest.mark.parametrize("command", ["token", "headers"])
def test_the_owner_rotates_a_token_that_expires_too_soon(refresher: Command, own_oidc: Start, command: str) -> None:
    """If it failed, a script without a daemon would get a token that has expired or expires soon."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public") | {"access_token": "an-old-access-token", "expires_in": 8})
    done = refresher(command, "linear", "--min-valid", "30m")
    assert done.code == 0, done.stderr
    assert refresher.token("linear").generation == 1
    assert (refresher.token("linear").access_token or "?") in done.stdout
    again = refresher(command, "linear", "--min-valid", "30m")
    assert again.stdout == done.stdout
    assert len(server.requests()) == 1, "a token that is valid for long enough was rotated"


def test_many_commands_at_once_rotate_once(refresher: Command, own_oidc: Start) -> None:
    """If it failed, a script that starts in ten terminals would destroy its login."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public"))
    done = [refresher.finish(process) for process in [refresher.start("token", "linear") for _ in range(10)]]
    assert {(each.code, each.stdout) for each in done} == {(0, f"{refresher.token('linear').access_token}\n")}
    assert len(server.requests()) == 1


def test_a_min_valid_beyond_the_lifetime_is_an_error_without_a_rotation(refresher: Command, own_oidc: Start) -> None:
    """If it failed, each command would rotate without success, and some servers would revoke the earlier access tokens."""
    server = own_oidc(accessTokenTtl=60)
    refresher.import_grant("linear", server.mint("public"))
    assert refresher("token", "linear").code == 0
    line = one_line(refresher("token", "linear", "--min-valid", "90s"), 4)
    assert "valid for 60 s when issued" in line
    assert "90 s" in line
    assert len(server.requests()) == 1


def test_the_rest_of_an_imported_token_does_not_count_as_its_lifetime(refresher: Command, own_oidc: Start) -> None:
    """If it failed, a grant that was imported with an old token would be reported as having only short tokens."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public"))
    assert refresher("token", "linear").code == 0
    fields = server.mint("public") | {"access_token": "an-older-access-token", "expires_in": 120}
    refresher.import_grant("linear", fields, "--replace")
    assert refresher("token", "linear", "--min-valid", "5m").code == 0
    assert refresher.token("linear").generation == 3


def test_a_permanent_error_is_reported_before_a_short_lifetime(refresher: Command, own_oidc: Start) -> None:
    """If it failed, the message would say to wait or to use a smaller --min-valid, although only a person can help."""
    server = own_oidc(accessTokenTtl=60)
    refresher.import_grant("linear", server.mint("public"))
    refresher("run-once")
    server.script(status=400, body={"error": "invalid_grant"})
    assert refresher("run-once", "--force").code == 3
    one_line(refresher("token", "linear", "--min-valid", "1h"), 3)


def test_a_reader_gets_an_error_if_new_tokens_do_not_live_that_long(refresher: Command, published: Published) -> None:
    """If it failed, each command would demand one rotation after the other without success."""
    published.put(expires_at=time.time() + 60)
    process = refresher.start("token", "linear", "--min-valid", "1h", environment=reader_environment(published))
    wait_until(lambda: published.demanded() == ["linear.1"], "the demand is there")
    published.put(2, expires_at=time.time() + 60)
    assert "valid for 60 s when issued" in one_line(refresher.finish(process), 4)
    assert published.demanded() == ["linear.1"]


def test_a_rejected_grant_is_reported_and_its_live_token_is_still_printed(refresher: Command, own_oidc: Start) -> None:
    """If it failed, a script would wait although only a person can help, or would not get a token that is still valid."""
    server = own_oidc()
    refresher.import_grant("linear", UNREACHABLE | {"token_endpoint": server.endpoints["token_endpoint"]})
    server.script(status=400, body={"error": "invalid_grant"})
    assert refresher("run-once", "--force").code == 3
    assert refresher("token", "linear").code == 0
    refresher.import_grant("notion", server.mint("public"))
    server.script(status=400, body={"error": "invalid_grant"})
    assert "refresher login notion" in one_line(refresher("token", "notion"), 3)
    refresher("remove", "notion")
    assert "removed" in one_line(refresher("headers", "notion"), 3)


@pytest.mark.parametrize("name", ["linnear", "../linear", ""])
def test_an_unknown_name_is_reported_at_once(refresher: Command, name: str) -> None:
    """If it failed, a typing error would wait until the end, or read another file."""
    refresher.import_grant("linear", UNREACHABLE)
    one_line(refresher("token", name, "--wait", "1h"), 2)


def test_an_unreachable_server_is_the_reason_when_the_wait_ends(refresher: Command) -> None:
    """If it failed, a script would hang, or its error would not say why there is no token."""
    refresher.import_grant("linear", UNREACHABLE | {"expires_in": 0})
    line = one_line(refresher("token", "linear", "--wait", "5"), 4)
    assert "transient" in line


def test_a_reader_demands_a_token_and_prints_the_next_one(refresher: Command, published: Published) -> None:
    """If it failed, a container that sees only tokens could not use the command."""
    published.put(expires_at=time.time() + 2, issued_at=time.time() - 3000)
    refresher.vault.learn("access-token-1", "access-token-2")
    process = refresher.start("token", "linear", environment=reader_environment(published))
    wait_until(lambda: published.demanded() == ["linear.1"], "the demand is there")
    published.put(2)
    assert refresher.finish(process) == (0, "access-token-2\n", "")
    published.put(3, expires_at=time.time() - 1)
    assert "expired" in one_line(
        refresher("token", "linear", "--wait", "0.2", environment=reader_environment(published)), 4
    )
    published.put(4, expires_at=time.time() - 1, state="reauthorization_required", error=DEAD)
    one_line(refresher("token", "linear", environment=reader_environment(published)), 3)


def test_a_live_token_of_a_grant_in_doubt_is_not_demanded(refresher: Command, own_oidc: Start) -> None:
    """If it failed, a command that needs a longer lifetime would make refresher send a used refresh token, and end the live token (I1)."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public") | {"access_token": "a-live-access-token", "expires_in": 500})
    server.script(drop=True)
    assert refresher("run-once", "--force").code == 5
    line = one_line(refresher("token", "linear", "--min-valid", "10m", "--wait", "0.3"), 4)
    assert "in_doubt" in line
    assert list((refresher.state / "demands").iterdir()) == []
    assert len(server.requests()) == 1
    assert refresher("token", "linear").code == 0, "the live token is not used any more"


def test_ctrl_c_ends_the_wait_at_once(refresher: Command) -> None:
    """If it failed, a person would have to wait an hour after Ctrl-C."""
    refresher.import_grant("linear", UNREACHABLE | {"expires_in": 0})
    process = refresher.start("token", "linear", "--wait", "1h")
    wait_until(lambda: refresher.token("linear").error is not None, "the command has tried, and waits")
    process.send_signal(signal.SIGINT)
    assert refresher.finish(process).code == 130


def test_an_interrupted_refresh_is_completed_and_saved(refresher: Command) -> None:
    """If it failed, a caller that kills a slow headers command would lose the login."""
    process = None

    def hold() -> None:
        assert process is not None
        process.send_signal(signal.SIGTERM)

    with TokenServer(lambda _: 3600, hold) as server:
        refresher.import_grant("linear", server.grant("client"))
        process = refresher.start("token", "linear")
        assert refresher.finish(process).code == 143
        wait_until((refresher.tokens / "linear.json").exists, "the refresh goes on without the command")
    assert refresher.token("linear").generation == 1


def test_a_server_that_is_slower_than_the_wait_is_reported(refresher: Command) -> None:
    """If it failed, a program would kill its helper before a person can read why there is no token."""
    gate = Gate()
    with TokenServer(lambda _: 3600, gate) as server:
        refresher.import_grant("linear", server.grant("client"))
        process = refresher.start("headers", "linear", "--wait", "2s")
        assert gate.reached.wait(90)
        line = one_line(refresher.finish(process), 4)
        assert "the authorization server has not answered yet; the refresh goes on without this command" in line
        gate.opened.set()
        assert refresher("headers", "linear").code == 0
        assert len(server.presented["client"]) == 1


def test_a_lock_that_another_process_holds_is_reported(refresher: Command) -> None:
    """If it failed, a person would not learn which process holds the login."""
    refresher.import_grant("linear", UNREACHABLE | {"expires_in": 0})
    with refresher.directories.lock("linear").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for seconds in (5, 15, 30):  # a busy machine can take longer to start the process that waits for the lock
            line = one_line(refresher("token", "linear", "--wait", f"{seconds}s"), 4)
            if "lock_busy" in line:
                break
    assert "lock_busy: another process has held" in line
    assert "for 0 s" not in line


@pytest.mark.parametrize(
    ("command", "stream", "why"),
    [
        ("token linear", ">/dev/full", "No space left on device"),
        ("token linear", ">&-", "standard output is closed"),
        ("headers linear", ">&-", "standard output is closed"),
        ("status", ">/dev/full", "No space left on device"),
        ("status --json", ">&-", "standard output is closed"),
        ("completion bash", ">/dev/full", "No space left on device"),
        ("--version", ">&-", "standard output is closed"),
    ],
)
def test_a_failed_write_is_not_a_success(refresher: Command, command: str, stream: str, why: str) -> None:
    """If it failed, a script would continue with an empty token, or a shell with half of a completion script."""
    refresher.import_grant("linear", UNREACHABLE)
    process = refresher.start(*command.split(), prefix=("sh", "-c", f'exec "$@" {stream}', "sh"))
    assert one_line(refresher.finish(process), 1) == f"refresher: cannot write: {why}\n"


def test_a_token_file_of_another_version_is_not_used(refresher: Command, published: Published) -> None:
    """If it failed, a program would get a token from a file that this version cannot read correctly."""
    made = json.loads(render(published.put()))
    published.path.write_text(json.dumps(made | {"version": 2}))
    line = one_line(refresher("token", "linear", "--wait", "0", environment=reader_environment(published)), 4)
    assert "version" in line
