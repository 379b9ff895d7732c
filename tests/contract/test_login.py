"""login after the browser has opened: a failed login changes nothing, and a redirect can be pasted."""

import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.conftest import need
from tests.support.browser import as_browser
from tests.support.cli import PERSON, all_files, last_line
from tests.support.command import Command
from tests.support.mcp_login import MCPLogin
from tests.support.oidc import OIDC, missing
from tests.support.person import Person
from tests.support.terminal import at_a_terminal, read_until, read_whole
from tests.support.vault import Vault

API = "https://api.example"


class Case(NamedTuple):
    """The behavior of the person, the answer of the token endpoint, and the expected message."""

    habit: str | None
    script: dict[str, Any] | None
    options: tuple[str, ...]
    code: int
    words: str
    page: str = "The login failed"


@pytest.fixture(scope="module")
def plain_oidc() -> Iterator[OIDC]:
    """An oidc-provider; each test scripts its next answers."""
    need(missing())
    with OIDC(Vault()) as server:
        yield server


@pytest.mark.parametrize(
    "case",
    [
        Case(
            "deny",
            None,
            (),
            3,
            "declined in the browser (access_denied: the person said no); nothing was changed",
            "You are not logged in",
        ),
        Case(
            "close",
            None,
            ("--wait", "1s"),
            3,
            "the login was not completed within 1 s; nothing was changed. Log in again",
            "",
        ),
        Case(None, None, ("--client-id", "unknown", "--wait", "1s"), 3, "try --new-client", "invalid_client"),
        Case("wrong-issuer", None, (), 2, "does not come from {issuer} (iss, RFC 9207)"),
        Case(None, {"status": 503}, (), 4, "answered 503; nothing was changed. Log in again later"),
        Case(None, {"status": 500}, (), 4, "answered 500; nothing was changed. Log in again later"),
        Case(None, {"drop": True}, (), 4, "its answer was lost: "),
        Case(None, {"status": 400, "body": {"error": "invalid_grant"}}, (), 2, "nothing was changed. Log in again"),
        Case(
            None, {"status": 401, "body": {"error": "invalid_client"}}, (), 2, "Check --client-id, --client-secret-file"
        ),
        Case(None, {"status": 400, "body": {"error": "invalid_target"}}, (), 2, "Try --resource none"),
        Case(None, {"status": 400, "body": {"error": "invalid_scope"}}, (), 2, "Request another --scope"),
        Case(None, {"status": 200, "body": {"access_token": ""}}, (), 2, "nothing was changed. Log in again"),
        Case(
            None,
            {"status": 302, "headers": {"Location": API}},
            (),
            2,
            "a redirect; refresher follows none with a refresh token",
        ),
    ],
    ids=lambda case: f"{case.habit} {case.script} {case.words[:20]}",
)
def test_a_failed_login_changes_nothing(logged_in: Command, plain_oidc: OIDC, case: Case) -> None:
    """If it failed, a failed login could destroy the working grant."""
    before = all_files(logged_in)
    plain_oidc.script(clear=True)
    if case.script is not None:
        plain_oidc.script(**case.script)
    issuer = plain_oidc.endpoints["issuer"]
    options = ("--issuer", issuer, "--client-id", "public", "--scope", "openid offline_access", *case.options)
    habit = () if case.habit is None else (f"--{case.habit}",)
    done = logged_in("login", "linear", API, *options, environment=as_browser("person", *habit))
    assert case.words.format(issuer=issuer) in last_line(done, case.code)
    assert case.page in done.stdout
    assert all_files(logged_in) == before


@pytest.mark.parametrize("habit", ["wrong-state", "twice"])
def test_additional_redirects_do_not_end_the_login(logged_in: Command, habit: str) -> None:
    """If it failed, any page in the browser could end a login."""
    with MCPLogin() as mcp:
        done = logged_in("login", "linear", "--replace", mcp.url, environment=as_browser("person", f"--{habit}"))
        assert done.code == 0, done.stderr
        assert mcp.seen()["exchanged"] == 1
    assert logged_in.grant("linear").generation == 1


def test_a_wrong_secret_and_a_wrong_url_are_refused(logged_in: Command, plain_oidc: OIDC) -> None:
    """If it failed, login would store a grant that cannot be rotated, or replace a working one by a wrong URL."""
    before = all_files(logged_in)
    plain_oidc.script(clear=True)
    (logged_in.home / "secret.import.json").write_text("a-wrong-secret-of-the-client")
    logged_in.vault.learn("a-wrong-secret-of-the-client")
    options = ["--issuer", plain_oidc.endpoints["issuer"], "--client-id", "basic", "--scope", "openid"]
    options += ["--client-secret-file", "secret.import.json"]
    line = last_line(logged_in("login", "linear", API, *options, environment=PERSON), 2)
    assert "invalid_client" in line
    assert "Check --client-id, --client-secret-file and --auth-method" in line
    with MCPLogin(discovery="server") as mcp:
        done = logged_in("login", "linear", "--replace", f"{mcp.url}x", environment=PERSON)
        line = last_line(done, 2)
        assert f"there is no MCP server at {mcp.url}x (404); nothing was changed. Check the URL" in line
        assert mcp.seen()["authorized"] == 0, "a person logged in in vain"
        assert all_files(logged_in) == before
        assert logged_in("login", "linear", "--replace", f"{mcp.url}x", "--no-verify", environment=PERSON).code == 0


def address(process: subprocess.Popen[str]) -> str:
    """Read the authorization URL from stderr."""
    assert process.stderr is not None
    while not (line := process.stderr.readline()).startswith("  http"):
        assert line
    return line.strip()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_login_changes_nothing(logged_in: Command, number: signal.Signals) -> None:
    """If it failed, Ctrl-C would leave an open port or an incomplete grant."""
    before = all_files(logged_in)
    with MCPLogin() as mcp:
        process = logged_in.start("login", "linear", "--replace", mcp.url, "--no-browser")
        request = parse_qs(urlsplit(address(process)).query)
        process.send_signal(number)
        done = logged_in.finish(process)
    assert done.code == (130 if number is signal.SIGINT else -number)
    assert all_files(logged_in) == before
    port = urlsplit(request["redirect_uri"][0]).port or 0
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port))


@pytest.mark.parametrize("form", ["{}", "<query>", " {}\r"])
def test_a_redirect_can_be_pasted(quick: Command, form: str) -> None:
    """If it failed, login over ssh would not work."""
    with MCPLogin(consent="page") as mcp:
        process = quick.start("login", "linear", mcp.url)  # without a display it does not look for a browser
        url = Person("paste").open(address(process))
        query = urlsplit(url).query
        quick.vault.learn(parse_qs(query)["code"][0])
        assert process.stdin is not None
        for wrong in (b"hello\n", b"\n", b"\xff\xfe\x00\n", b"http://[\n", b"?code=stolen&state=wrong\n"):
            os.write(process.stdin.fileno(), wrong)
        done = quick.finish(process, form.replace("{}", url).replace("<query>", query) + "\n")
        assert done.code == 0, done.stderr
        assert done.stderr.count("This address cannot be used: ") == 4
        assert done.stderr.count("Paste the whole address, including http://") == 4
        assert mcp.seen()["exchanged"] == 1
    assert quick.grant("linear").generation == 0


def test_no_pasted_redirect_ends_the_login(logged_in: Command) -> None:
    """If it failed, a redirect that was damaged when it was copied would end the login, or be taken for an attack."""
    with MCPLogin(consent="page") as mcp:
        process = logged_in.start("login", "linear", "--replace", mcp.url, "--no-browser")
        first = address(process)
        request = parse_qs(urlsplit(first).query)
        assert process.stdin is not None
        for answer in ("error=access_denied", "code=x&iss=https%3A%2F%2Fas.exam", "code="):
            os.write(process.stdin.fileno(), f"?{answer}&state={request['state'][0]}\n".encode())
        url = Person("paste").open(first)
        logged_in.vault.learn(parse_qs(urlsplit(url).query)["code"][0])
        done = logged_in.finish(process, f"view-source:{url.partition('://')[2]}\n")
    assert done.code == 0, done.stderr
    assert "(access_denied); nothing was changed. The login still waits" in done.stderr
    assert done.stderr.count("The login still waits: open the address above again, or press Ctrl-C") == 3


@pytest.mark.parametrize("closed", ["<&-", "</dev/null"])
def test_a_login_without_stdin_completes_in_the_browser(refresher: Command, closed: str) -> None:
    """If it failed, a program could not run login for a person."""
    with MCPLogin() as mcp:
        prefix = ("sh", "-c", f'exec "$@" {closed}', "sh")
        process = refresher.start("login", "linear", mcp.url, "--no-browser", prefix=prefix)
        page = Person().open(address(process))
        assert "You are logged in" in page
        assert "is not running here: start it" in page
        done = refresher.finish(process)
    assert done.code == 0, done.stderr
    assert "Exception" not in done.stderr


@pytest.mark.parametrize("how", ["the browser comes back", "Ctrl-C"])
def test_a_login_that_waits_for_a_pasted_address_ends_cleanly(refresher: Command, how: str) -> None:
    """If it failed, Python would abort at the end of a successful login."""
    with MCPLogin() as mcp:
        process, master = at_a_terminal(refresher, "login", "linear", mcp.url, "--no-browser")
        found = re.search(r"^  (http\S+)", read_until(master, "paste its address here:"), re.MULTILINE)
        assert found is not None
        if how == "Ctrl-C":
            os.write(master, b"\x03")
        else:
            assert "You are logged in" in Person().open(found[1])
        output = read_whole(master)
        code = process.wait(90)
    assert "Fatal" not in output
    assert (code, "logged in: linear" in output) == ((130, False) if how == "Ctrl-C" else (0, True))


def test_a_grant_for_another_server_is_not_replaced(logged_in: Command) -> None:
    """If it failed, login would destroy a grant for another server, or one without a server URL."""
    before = all_files(logged_in)
    with MCPLogin() as mcp:
        line = last_line(logged_in("login", "linear", mcp.url, environment=PERSON), 2)
    assert "linear is a grant for https://api.example: choose another name" in line
    assert all_files(logged_in) == before
