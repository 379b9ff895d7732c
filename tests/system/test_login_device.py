"""Login with a browser on another device."""

import re
import subprocess
from collections.abc import Callable

import pytest

from tests.support.command import Command, Done, without_times
from tests.support.oidc import OIDC
from tests.support.person import Person
from tests.support.terminal import at_a_terminal, read_whole

Start = Callable[..., OIDC]
API = "https://api.example"
SCOPE = ("--scope", "openid offline_access")
FULL_BLOCK = "\N{FULL BLOCK}"


def login_arguments(oidc: OIDC, *options: str) -> tuple[str, ...]:
    """Return the arguments of a login on another device."""
    return ("login", "linear", API, "--issuer", oidc.endpoints["issuer"], "--device", *SCOPE, *options)


def read_address_and_code(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Read the address and the code from stderr."""
    assert process.stderr is not None
    text = ""
    while "valid for" not in (line := process.stderr.readline()):
        assert line, text
        text += line
    found = re.fullmatch(r"To log in, open .*\n\n  (http\S+)\n\nand enter the code:  (\S+)\n\n", text)
    assert found is not None, text
    return found[1], found[2]


def login_by_device(refresher: Command, oidc: OIDC, habit: str | None, *options: str) -> Done:
    """Log in, with a person who enters the code on another device."""
    process = refresher.start(*login_arguments(oidc, *options))
    address, code = read_address_and_code(process)
    Person(habit, code).open(address)
    return refresher.finish(process)


def records(refresher: Command) -> dict[str, bytes]:
    """Return all records and token files."""
    return {path.name: path.read_bytes() for path in [*refresher.state.rglob("*.json")]}


def test_a_code_is_entered_on_another_device(refresher: Command, own_oidc: Start) -> None:
    """If it failed, login on a machine without a browser would not work."""
    oidc = own_oidc()
    done = login_by_device(refresher, oidc, None)
    assert done.code == 0, done.stderr
    assert "logged in: linear for test-user (generation 0)" in done.stdout
    grant = refresher.grant("linear")
    assert grant.login is not None
    assert (grant.login.way, grant.login.client, grant.scope) == ("device", "registered", "openid offline_access")
    first = grant.client_id
    assert (refresher("run-once", "--force").code, refresher.token("linear").generation) == (0, 1)
    # Polling continues if the server is busy or sends slow_down.
    process = refresher.start("login", "linear")
    address, code = read_address_and_code(process)
    oidc.script(status=400, body={"error": "slow_down"})
    oidc.script(status=503)
    oidc.script(status=502)
    Person(None, code).open(address)
    done = refresher.finish(process)
    assert done.code == 0, done.stderr
    assert refresher.grant("linear").client_id == first
    polls = [request["at"] for request in oidc.requests() if request["grant_type"].endswith("device_code")]
    refused = next(
        at for at, request in _polls(oidc) if request["status"] == 400 and request["provider_status"] is None
    )
    assert min(at for at in polls if at > refused) - refused >= 6000, "slow_down was ignored"
    assert oidc.introspect(refresher.token("linear").access_token)["active"]
    before = records(refresher)
    done = login_by_device(refresher, oidc, "deny")
    assert (done.code, done.stdout) == (3, "")
    assert (
        without_times(done.stderr)
        .splitlines()[-1]
        .startswith("refresher: the login was declined on the other device (")
    )
    assert done.stderr.endswith("; nothing was changed\n")
    assert records(refresher) == before


def _polls(oidc: OIDC) -> list[tuple[float, dict[str, object]]]:
    return [(request["at"], request) for request in oidc.requests()]


@pytest.mark.parametrize(
    ("config", "options", "words"),
    [
        # Either refresher or the server notices first.
        ({"deviceTtl": 3}, (), "(the code was not entered within 3 s|the code expired before it was entered)"),
        ({"deviceTtl": 600}, ("--wait", "2s"), "the code was not entered within 2 s"),
    ],
)
def test_a_code_that_is_not_entered_in_time_ends_the_login(
    refresher: Command, own_oidc: Start, config: dict[str, int], options: tuple[str, ...], words: str
) -> None:
    """If it failed, login would poll forever, or end without a message."""
    done = refresher(*login_arguments(own_oidc(**config), *options))
    assert (done.code, done.stdout) == (3, "")
    assert re.fullmatch(
        f"refresher: {words}; nothing was changed. Log in again", without_times(done.stderr).splitlines()[-1]
    )
    assert records(refresher) == {}


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        (
            {"error": "expired_token"},
            3,
            "the code expired before it was entered; nothing was changed. Log in again",
        ),
        ({"error": "invalid_grant"}, 2, "nothing was changed. Log in again"),
        ({"error": "invalid_client"}, 2, "nothing was changed. Check --client-id"),
        ({"error": "unauthorized_client"}, 2, "nothing was changed. "),
    ],
)
def test_an_error_of_the_server_ends_the_login(
    refresher: Command, own_oidc: Start, body: dict[str, str], code: int, words: str
) -> None:
    """If it failed, login would go on polling, or would not say what to do next."""
    oidc = own_oidc()
    oidc.script(status=400, body=body)
    done = refresher(*login_arguments(oidc, "--client-id", "public"))
    assert (done.code, done.stdout) == (code, "")
    assert words in done.stderr.splitlines()[-1]
    assert records(refresher) == {}


def test_a_token_that_needs_a_proof_is_refused(refresher: Command, own_oidc: Start) -> None:
    """If it failed, login would publish a token that every API refuses."""
    oidc = own_oidc()
    refresher.vault.learn("an-access-token-with-a-proof")
    oidc.script(status=200, body={"access_token": "an-access-token-with-a-proof", "token_type": "DPoP"})
    done = refresher(*login_arguments(oidc, "--client-id", "public"))
    assert (done.code, done.stdout) == (2, "")
    assert "the server issues DPoP tokens, which need a proof" in done.stderr.splitlines()[-1]
    assert records(refresher) == {}


def test_the_qr_code_is_printed_only_on_a_terminal(refresher: Command, own_oidc: Start) -> None:
    """If it failed, a log file would contain QR codes, or a person would have to type the address."""
    oidc = own_oidc()
    arguments = login_arguments(oidc, "--client-id", "public", "--wait", "3s")
    process, master = at_a_terminal(refresher, *arguments, TERM="xterm", PYTHONUTF8="1")
    text = read_whole(master)
    assert process.wait(90) == 3
    assert "Or scan this:" in text
    assert any(line.strip("\x1b[0123456789;m ") for line in text.split("Or scan this:")[1].splitlines())
    assert len([line for line in text.splitlines() if FULL_BLOCK in line or "\N{LOWER HALF BLOCK}" in line]) > 10


@pytest.mark.parametrize("rows", [24, 60])
def test_the_code_stays_on_a_small_screen(refresher: Command, own_oidc: Start, rows: int) -> None:
    """If it failed, a picture would push the address and the code out of a terminal of 80 by 24."""
    arguments = login_arguments(own_oidc(), "--client-id", "public", "--wait", "3s")
    process, master = at_a_terminal(refresher, *arguments, rows=rows, TERM="xterm", PYTHONUTF8="1")
    text = read_whole(master)
    assert process.wait(90) == 3
    assert ("Or scan this:" in text) is (rows == 60)
    lines = text[: text.index("was not entered")].splitlines()
    assert any("enter the code:" in line for line in lines[-rows:])
