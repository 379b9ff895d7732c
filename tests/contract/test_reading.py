"""``token`` and ``headers``: what they print, when they rotate, and how they fail."""

import json
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from shim._token import render
from tests.support.command import Command, Done, wait_until
from tests.support.oidc import OIDC
from tests.support.published import DEAD, Published
from tests.support.token_server import TokenServer

Start = Callable[..., OIDC]

AWAY: dict[str, Any] = {
    "token_endpoint": "http://127.0.0.1:9/token",
    "client_id": "client",
    "refresh_token": "refresh-token-of-the-tests",
    "server_url": "https://mcp.example/mcp",
    "access_token": "access-token-of-the-tests",
    "expires_in": 3600,
}


def one_line(done: Done, code: int) -> str:
    """Insist on one clear line on stderr, and nothing on stdout."""
    assert (done.code, done.stdout) == (code, ""), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def elsewhere(published: Published) -> dict[str, str]:
    """Return the environment of a reader that has no grants of its own."""
    return {"REFRESHER_TOKENS_DIR": str(published.tokens), "REFRESHER_DEMANDS_DIR": str(published.demands)}


@pytest.fixture
def published(refresher: Command) -> Published:
    """What a refresher of somebody else publishes."""
    return Published(refresher.home / "shared")


def test_the_token_is_printed_alone(refresher: Command) -> None:
    """If it failed, scripts would get something else than a token."""
    refresher.import_grant("linear", AWAY)
    done = refresher("token", "linear")
    assert done == (0, "access-token-of-the-tests\n", "")
    assert refresher("headers", "linear").stdout == '{"Authorization": "Bearer access-token-of-the-tests"}\n'


def test_a_token_type_in_small_letters_is_spelt_as_the_rfc_does(refresher: Command) -> None:
    """If it failed, servers that compare letter by letter would refuse what the command prints."""
    refresher.import_grant("linear", AWAY | {"token_type": "bearer"})
    assert json.loads(refresher("headers", "linear").stdout)["Authorization"].startswith("Bearer ")


@pytest.mark.parametrize("command", ["token", "headers"])
def test_where_too_little_is_left_the_owner_rotates_first(refresher: Command, own_oidc: Start, command: str) -> None:
    """If it failed, a script without a daemon would be given a dead token, or one that dies on the way."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public") | {"access_token": "an-old-access-token", "expires_in": 8})
    done = refresher(command, "linear", "--min-valid", "30m")
    assert done.code == 0, done.stderr
    assert refresher.token("linear").generation == 1
    assert (refresher.token("linear").access_token or "?") in done.stdout
    again = refresher(command, "linear", "--min-valid", "30m")
    assert again.stdout == done.stdout
    assert len(server.requests()) == 1, "a token with enough life was rotated"


def test_many_at_once_rotate_once(refresher: Command, own_oidc: Start) -> None:
    """If it failed, a script that starts in ten terminals would destroy its login."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public"))
    done = [refresher.finish(process) for process in [refresher.start("token", "linear") for _ in range(10)]]
    assert {(each.code, each.stdout) for each in done} == {(0, f"{refresher.token('linear').access_token}\n")}
    assert len(server.requests()) == 1


def test_more_life_than_any_token_has_is_refused_and_rotates_nothing(refresher: Command, own_oidc: Start) -> None:
    """If it failed, each call would rotate in vain, and some servers end the tokens of all other agents with that."""
    server = own_oidc(accessTokenTtl=60)
    refresher.import_grant("linear", server.mint("public"))
    assert refresher("token", "linear").code == 0
    said = one_line(refresher("token", "linear", "--min-valid", "90s"), 4)
    assert "valid for 60 s" in said
    assert "90 s" in said
    assert len(server.requests()) == 1


def test_what_was_left_of_a_token_at_its_import_is_not_its_life(refresher: Command, own_oidc: Start) -> None:
    """If it failed, a grant that was imported anew with an old token would be said to have short ones only."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public"))
    assert refresher("token", "linear").code == 0
    fields = server.mint("public") | {"access_token": "an-older-access-token", "expires_in": 120}
    refresher.import_grant("linear", fields, "--replace")
    assert refresher("token", "linear", "--min-valid", "5m").code == 0
    assert refresher.token("linear").generation == 3


def test_that_a_person_is_needed_counts_more_than_how_long_tokens_live(refresher: Command, own_oidc: Start) -> None:
    """If it failed, a script would be told to wait, or to ask for less, where only a person can help."""
    server = own_oidc(accessTokenTtl=60)
    refresher.import_grant("linear", server.mint("public"))
    refresher("run-once")
    server.script(status=400, body={"error": "invalid_grant"})
    assert refresher("run-once", "--force").code == 3
    one_line(refresher("token", "linear", "--min-valid", "1h"), 3)


def test_a_reader_is_told_when_no_token_lives_that_long(refresher: Command, published: Published) -> None:
    """If it failed, each call would demand one rotation after the other, in vain."""
    published.put(expires_at=time.time() + 60)
    process = refresher.start("token", "linear", "--min-valid", "1h", environment=elsewhere(published))
    wait_until(lambda: published.demanded() == ["linear.1"], "it is demanded")
    published.put(2, expires_at=time.time() + 60)
    assert "valid for 60 s" in one_line(refresher.finish(process), 4)
    assert published.demanded() == ["linear.1"]


def test_a_dead_grant_is_told_and_its_live_token_still_printed(refresher: Command, own_oidc: Start) -> None:
    """If it failed, a script would wait for what only a person can mend, or lose a token that is still good."""
    server = own_oidc()
    refresher.import_grant("linear", AWAY | {"token_endpoint": server.endpoints["token_endpoint"]})
    server.script(status=400, body={"error": "invalid_grant"})
    assert refresher("run-once", "--force").code == 3
    assert refresher("token", "linear").code == 0
    refresher.import_grant("notion", server.mint("public"))
    server.script(status=400, body={"error": "invalid_grant"})
    assert "refresher login notion" in one_line(refresher("token", "notion"), 3)
    refresher("remove", "notion")
    assert "removed" in one_line(refresher("headers", "notion"), 3)


@pytest.mark.parametrize("name", ["linnear", "../linear", ""])
def test_a_name_that_nobody_knows_is_told_at_once(refresher: Command, name: str) -> None:
    """If it failed, a typing mistake would cost the whole wait, or reach another file."""
    refresher.import_grant("linear", AWAY)
    one_line(refresher("token", name, "--wait", "1h"), 2)


def test_a_server_that_is_away_ends_the_wait_with_its_reason(refresher: Command) -> None:
    """If it failed, a script would hang, or not know why there is no token."""
    refresher.import_grant("linear", AWAY | {"expires_in": 0})
    said = one_line(refresher("token", "linear", "--wait", "0.5"), 4)
    assert "transient" in said


def test_a_reader_demands_and_is_given_what_comes(refresher: Command, published: Published) -> None:
    """If it failed, a container that sees only tokens could not use the command."""
    published.put(expires_at=time.time() + 2, issued_at=time.time() - 3000)
    refresher.vault.learn("access-token-1", "access-token-2")
    process = refresher.start("token", "linear", environment=elsewhere(published))
    wait_until(lambda: published.demanded() == ["linear.1"], "it is demanded")
    published.put(2)
    assert refresher.finish(process) == (0, "access-token-2\n", "")
    published.put(3, expires_at=time.time() - 1)
    assert "expired" in one_line(refresher("token", "linear", "--wait", "0.2", environment=elsewhere(published)), 4)
    published.put(4, expires_at=time.time() - 1, state="reauthorization_required", error=DEAD)
    one_line(refresher("token", "linear", environment=elsewhere(published)), 3)


def test_a_token_in_doubt_that_lives_is_not_demanded_away(refresher: Command, own_oidc: Start) -> None:
    """If it failed, asking for a longer life would send a spent token, and end the one that is still good (I1)."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public") | {"access_token": "a-live-access-token", "expires_in": 100})
    server.script(drop=True)
    assert refresher("run-once", "--force").code == 5
    said = one_line(refresher("token", "linear", "--min-valid", "10m", "--wait", "0.3"), 4)
    assert "in_doubt" in said
    assert list((refresher.state / "demands").iterdir()) == []
    assert len(server.requests()) == 1
    assert refresher("token", "linear").code == 0, "the live token is used to its end"


def test_interrupted_while_it_waits_it_ends_at_once(refresher: Command) -> None:
    """If it failed, Ctrl-C would seem not to work."""
    refresher.import_grant("linear", AWAY | {"expires_in": 0})
    process = refresher.start("token", "linear", "--wait", "1h")
    wait_until(lambda: refresher.token("linear").error is not None, "it has tried, and waits")
    process.send_signal(signal.SIGINT)
    assert refresher.finish(process).code == 130


def test_interrupted_in_mid_exchange_the_answer_is_saved(refresher: Command) -> None:
    """If it failed, a headers command that its caller kills for being slow would cost the login."""
    process = None

    def hold() -> None:
        assert process is not None
        process.send_signal(signal.SIGTERM)

    with TokenServer(lambda _: 3600, hold) as server:
        refresher.import_grant("linear", server.grant("client"))
        process = refresher.start("token", "linear")
        assert refresher.finish(process).code == 143
    assert refresher.token("linear").generation == 1


def test_a_token_that_cannot_be_printed_is_no_success(refresher: Command) -> None:
    """If it failed, a script would go on with an empty token."""
    refresher.import_grant("linear", AWAY)
    process = refresher.start("token", "linear", prefix=("sh", "-c", 'exec "$@" >/dev/full', "sh"))
    assert one_line(refresher.finish(process), 1) == "refresher: cannot write: No space left on device\n"


def test_a_file_of_another_contract_is_no_token(refresher: Command, published: Published) -> None:
    """If it failed, a program would be given what this version cannot read rightly."""
    made = json.loads(render(published.put()))
    published.path.write_text(json.dumps(made | {"version": 2}))
    said = one_line(refresher("token", "linear", "--wait", "0", environment=elsewhere(published)), 4)
    assert "version" in said
