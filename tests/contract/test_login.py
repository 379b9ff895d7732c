"""login and completion: their arguments and messages; a failed login changes nothing."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.conftest import need
from tests.support.answering import Answer, Answering
from tests.support.browser import as_browser
from tests.support.command import Command, Done, without_times
from tests.support.mcp_login import MCPLogin
from tests.support.oidc import OIDC, missing
from tests.support.person import Person
from tests.support.terminal import at_a_terminal, read_until, read_whole
from tests.support.vault import Vault

Start = Callable[..., OIDC]
API = "https://api.example"
PERSON = as_browser("person")
NOBODY = "http://127.0.0.1:9"
PRESENT = {
    "token_endpoint": f"{NOBODY}/token",
    "client_id": "client",
    "refresh_token": "refresh-token-of-a-working-login",
    "access_token": "access-token-of-a-working-login",
    "expires_in": 3600,
    "origins": [API],
}


@pytest.fixture
def stored(quick: Command) -> Command:
    """The command, with a working grant ``linear`` for another server."""
    quick.import_grant("linear", PRESENT)
    return quick


def everything(refresher: Command) -> dict[str, bytes]:
    """Return all files of the state directory."""
    return {str(path): path.read_bytes() for path in refresher.state.rglob("*") if path.is_file()}


def last_line(done: Done, code: int) -> str:
    """Check that a login failed, and return its one line on stderr."""
    assert done.code == code, (done.code, done.stdout, done.stderr)
    *_, line = without_times(done.stderr).splitlines()
    assert line.startswith("refresher: ")
    assert done.stderr.count("refresher: ") == 1
    assert "logged in: " not in done.stdout
    return line


# --- failures before the browser opens -----------------------------------------------------------------------------

ISSUER_DOCUMENT = {"authorization_endpoint": "{}/authorize", "token_endpoint": "{}/token", "issuer": "{}"}
METADATA = "/.well-known/oauth-authorization-server"
RESOURCE = "/.well-known/oauth-protected-resource"


def at(server: Answering, value: Any) -> Any:
    """Return a document with the server's URL in place of ``{}``."""
    return json.loads(json.dumps(value).replace("{}", server.url))


@pytest.mark.parametrize(
    ("answers", "options", "code", "words"),
    [
        ({}, ("{}/mcp",), 2, "answered 404 and names no authorization server; nothing was changed. Check the URL"),
        (
            {"/mcp": Answer(401), RESOURCE: Answer(503)},
            ("{}/mcp",),
            4,
            "answered 503; nothing was changed. Log in again later",
        ),
        (
            {"/mcp": Answer(401), METADATA: Answer(500)},
            ("{}/mcp",),
            4,
            "answered 500; nothing was changed. Log in again later",
        ),
        ({"/mcp": Answer(None)}, ("{}/mcp",), 4, "closed the connection without an answer"),
        (
            {"/mcp": Answer(308, "", (("Location", f"{API}/mcp"),))},
            ("{}/mcp",),
            2,
            f"redirects to {API}/mcp; nothing was changed. Log in at that URL",
        ),
        (
            {RESOURCE: Answer(200, {"resource": "https://other.example/", "authorization_servers": ["{}"]})},
            ("{}/mcp",),
            2,
            "describes https://other.example/, not {}/mcp",
        ),
        (
            {RESOURCE: Answer(200, {"resource": "{}/", "authorization_servers": ["{}"]})},
            ("{}/mcp",),
            2,
            "publishes no readable server metadata (RFC 8414); nothing was changed. Give --authorization-endpoint and --t",
        ),
        (
            {RESOURCE: Answer(200, {"resource": "{}/", "authorization_servers": ["http://as.example"]})},
            ("{}/mcp",),
            2,
            "must be https",
        ),
        (
            {METADATA: Answer(200, ISSUER_DOCUMENT | {"issuer": "https://attacker.example"})},
            ("{}", "--issuer", "{}"),
            2,
            "names another issuer (https://attacker.example), which is not safe",
        ),
        (
            {METADATA: Answer(200, ISSUER_DOCUMENT | {"token_endpoint": "http://as.example/token"})},
            ("{}", "--issuer", "{}"),
            2,
            "token_endpoint (http://as.example/token) must be https",
        ),
        ({METADATA: Answer(200, ISSUER_DOCUMENT)}, ("{}", "--issuer", "{}"), 2, "has no client registration"),
        (
            {METADATA: Answer(200, ISSUER_DOCUMENT)},
            ("{}", "--issuer", "{}", "--device"),
            2,
            "has no login by device (RFC 8628); nothing was changed. Omit --device",
        ),
        (
            {
                METADATA: Answer(200, ISSUER_DOCUMENT | {"registration_endpoint": "{}/register"}),
                "/register": Answer(403, {"error": "access_denied", "error_description": "ask the administrator"}),
            },
            ("{}", "--issuer", "{}"),
            2,
            "ask the administrator",
        ),
        (
            {
                METADATA: Answer(200, ISSUER_DOCUMENT | {"registration_endpoint": "{}/register"}),
                "/register": Answer(503),
            },
            ("{}", "--issuer", "{}"),
            4,
            "answered 503; nothing was changed. Log in again later",
        ),
        (
            {METADATA: Answer(200, ISSUER_DOCUMENT | {"code_challenge_methods_supported": ["plain"]})},
            ("{}", "--issuer", "{}", "--client-id", "me"),
            2,
            "does not support PKCE with S256",
        ),
        (
            {
                METADATA: Answer(200, ISSUER_DOCUMENT | {"device_authorization_endpoint": "{}/device"}),
                "/device": Answer(
                    200, {"device_code": "x", "user_code": "y", "verification_uri": "javascript:alert(1)"}
                ),
            },
            ("{}", "--issuer", "{}", "--client-id", "me", "--device"),
            2,
            "nothing was changed",
        ),
        (
            {
                METADATA: Answer(200, ISSUER_DOCUMENT | {"device_authorization_endpoint": "{}/device"}),
                "/device": Answer(400, {"error": "invalid_scope"}),
            },
            ("{}", "--issuer", "{}", "--client-id", "me", "--device", "--scope", "read"),
            2,
            "/device answered 400 invalid_scope; nothing was changed. Request another --scope",
        ),
    ],
)
def test_a_server_without_a_usable_login_is_one_line_and_changes_nothing(
    stored: Command, answers: dict[str, Answer], options: tuple[str, ...], code: int, words: str
) -> None:
    """If it failed, a person would not learn why the login failed, or would lose the working grant."""
    before = everything(stored)
    with Answering() as server:
        server.answers = {path: [answer._replace(body=at(server, answer.body))] for path, answer in answers.items()}
        done = stored("login", "linear", "--replace", *(option.replace("{}", server.url) for option in options))
        line = last_line(done, code)
        assert words.replace("{}", server.url) in line
        assert len(done.stderr.splitlines()) == 1
    after = everything(stored)
    assert {path: data for path, data in after.items() if not path.endswith(".lock")} == {
        path: data for path, data in before.items() if not path.endswith(".lock")
    }


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("linear", 2, "there is no saved login linear; give its URL: 'refresher login linear URL'"),
        ("Linear {api}", 2, "a name is 1 to 64 lower-case letters"),
        ("linear mcp.example", 2, "the URL has no scheme; did you mean: refresher login linear https://mcp.example"),
        ("linear mcp.example:x/mcp", 2, "URL is not a valid URL"),
        ("{api}/mcp", 2, "NAME is missing; did you mean: refresher login api {api}/mcp"),
        (
            "{api}/mcp linear --device",
            2,
            "NAME and URL are swapped; did you mean: refresher login linear {api}/mcp --d",
        ),
        ("linear {nobody}/mcp", 4, "127.0.0.1:9: connection refused; nothing was changed"),
        ("linear https://nowhere.invalid/mcp", 4, "nowhere.invalid:443: no such host; nothing was changed"),
        ("linear {api} --issuer {nobody}", 4, "127.0.0.1:9: connection refused; nothing was changed"),
        ("linear {api} --port 8765 --redirect-uri http://localhost:1/", 2, "exclude each other"),
        ("linear {api} --param access_type", 2, "it must be KEY=VALUE"),
        ("linear {api} --wait soon", 2, "it must be seconds, or a duration"),
        ("linear {api} --auth-method secret", 2, "is not one of 'none'"),
        ("taken https://other.example", 2, f"taken is a grant for {API}/mcp: choose another name, or replace it"),
        ("linear {api} {hand} --client-id me --client-secret-file none", 2, "cannot read the client secret"),
        ("linear {api} {hand} --client-id me --client-secret-file empty", 2, "must contain the client secret"),
        ("linear {api} {hand} --client-id me --private-key-file none", 2, "cannot read the private key"),
        ("linear {api} {hand} --client-id me --private-key-file empty", 2, "is not a PEM private key"),
        ("linear {api} {hand} --client-id me --client-cert none", 2, "cannot read "),
        ("linear {api} {hand} --client-id me --client-cert empty", 2, "cannot use the certificate in"),
        ("linear {api} {hand} --client-id me --port {port}", 2, "choose another --port"),
    ],
)
def test_a_wrong_argument_is_one_line(quick: Command, arguments: str, code: int, words: str) -> None:
    """If it failed, a mistake would end in a traceback, or open a browser for nothing."""
    quick.import_grant("taken", PRESENT | {"server_url": f"{API}/mcp"})
    before = everything(quick)
    (quick.home / "empty").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        hand = f"--authorization-endpoint {NOBODY}/authorize --token-endpoint {NOBODY}/token"
        given = arguments.format(api=API, nobody=NOBODY, hand=hand, port=port).split()
        done = quick("login", *given, environment=PERSON)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert words.format(api=API) in last_line(done, code)
    assert everything(quick) == before


# --- failures after the browser opens ------------------------------------------------------------------------------


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
        Case(None, None, ("--client-id", "unheard", "--wait", "5s"), 3, "try --new-client", "invalid_client"),
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
def test_a_failed_login_changes_nothing(stored: Command, plain_oidc: OIDC, case: Case) -> None:
    """If it failed, a failed login could destroy the working grant."""
    before = everything(stored)
    plain_oidc.script(clear=True)
    if case.script is not None:
        plain_oidc.script(**case.script)
    issuer = plain_oidc.endpoints["issuer"]
    options = ("--issuer", issuer, "--client-id", "public", "--scope", "openid offline_access", *case.options)
    habit = () if case.habit is None else (f"--{case.habit}",)
    done = stored("login", "linear", API, *options, environment=as_browser("person", *habit))
    assert case.words.format(issuer=issuer) in last_line(done, case.code)
    assert case.page in done.stdout
    assert everything(stored) == before


@pytest.mark.parametrize("habit", ["wrong-state", "twice"])
def test_additional_redirects_do_not_end_the_login(stored: Command, habit: str) -> None:
    """If it failed, any page in the browser could end a login."""
    with MCPLogin() as mcp:
        done = stored("login", "linear", "--replace", mcp.url, environment=as_browser("person", f"--{habit}"))
        assert done.code == 0, done.stderr
        assert mcp.seen()["exchanged"] == 1
    assert stored.grant("linear").generation == 1


def test_a_wrong_secret_and_a_wrong_url_are_refused(stored: Command, plain_oidc: OIDC) -> None:
    """If it failed, login would store a grant that cannot be rotated, or replace a working one by a wrong URL."""
    before = everything(stored)
    plain_oidc.script(clear=True)
    (stored.home / "secret.import.json").write_text("a-wrong-secret-of-the-client")
    stored.vault.learn("a-wrong-secret-of-the-client")
    options = ["--issuer", plain_oidc.endpoints["issuer"], "--client-id", "basic", "--scope", "openid"]
    options += ["--client-secret-file", "secret.import.json"]
    line = last_line(stored("login", "linear", API, *options, environment=PERSON), 2)
    assert "invalid_client" in line
    assert "Check --client-id, --client-secret-file and --auth-method" in line
    with MCPLogin(discovery="server") as mcp:
        done = stored("login", "linear", "--replace", f"{mcp.url}x", environment=PERSON)
        line = last_line(done, 2)
        assert f"there is no MCP server at {mcp.url}x (404); nothing was changed. Check the URL" in line
        assert everything(stored) == before
        assert stored("login", "linear", "--replace", f"{mcp.url}x", "--no-verify", environment=PERSON).code == 0


def address(process: subprocess.Popen[str]) -> str:
    """Read the authorization URL from stderr."""
    assert process.stderr is not None
    while not (line := process.stderr.readline()).startswith("  http"):
        assert line
    return line.strip()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_login_changes_nothing(stored: Command, number: signal.Signals) -> None:
    """If it failed, Ctrl-C would leave an open port or an incomplete grant."""
    before = everything(stored)
    with MCPLogin() as mcp:
        process = stored.start("login", "linear", "--replace", mcp.url, "--no-browser")
        asked = parse_qs(urlsplit(address(process)).query)
        process.send_signal(number)
        done = stored.finish(process)
    assert done.code == (130 if number is signal.SIGINT else -number)
    assert everything(stored) == before
    port = urlsplit(asked["redirect_uri"][0]).port or 0
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


def test_a_pasted_refusal_ends_the_login(stored: Command) -> None:
    """If it failed, a person who declines on another machine would have to stop the command too."""
    before = everything(stored)
    with MCPLogin(consent="page") as mcp:
        process = stored.start("login", "linear", "--replace", mcp.url, "--no-browser")
        asked = parse_qs(urlsplit(address(process)).query)
        done = stored.finish(process, f"{asked['redirect_uri'][0]}?error=access_denied&state={asked['state'][0]}\n")
    assert "(access_denied); nothing was changed" in last_line(done, 3)
    assert everything(stored) == before


@pytest.mark.parametrize("closed", ["<&-", "</dev/null"])
def test_a_login_without_stdin_completes_in_the_browser(refresher: Command, closed: str) -> None:
    """If it failed, a program could not run login for a person."""
    with MCPLogin() as mcp:
        prefix = ("sh", "-c", f'exec "$@" {closed}', "sh")
        process = refresher.start("login", "linear", mcp.url, "--no-browser", prefix=prefix)
        assert "You are logged in" in Person().open(address(process))
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
        said = read_whole(master)
        code = process.wait(60)
    assert "Fatal" not in said
    assert (code, "logged in: linear" in said) == ((130, False) if how == "Ctrl-C" else (0, True))


# --- completion ----------------------------------------------------------------------------------------------------

SOURCED = """
eval "$(refresher completion bash)"
COMP_WORDS=({words}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
_refresher_completion refresher
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def test_a_real_bash_completes_commands_options_and_names(refresher: Command) -> None:
    """If it failed, Tab would complete nothing, or print an error."""
    need(None if shutil.which("bash") else "bash is not installed")
    for name in ("linear", "little", "other"):
        refresher.import_grant(name, PRESENT | {"refresh_token": f"refresh-token-of-{name}"})
    assert refresher("remove", "other").code == 0
    elsewhere = refresher.home / "elsewhere"
    for words, expected in (
        ("refresher log", ["login", "logout"]),
        ("refresher login --no-b", ["--no-browser"]),
        ("refresher logout li", ["linear", "little"]),
        ("refresher login lin", ["linear"]),
        (f"refresher --state-dir {elsewhere} logout li", []),
    ):
        done = subprocess.run(
            ["bash", "--norc", "-c", SOURCED.format(words=words)],
            env={**refresher.environment, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
            cwd=refresher.home,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stderr == ""
        assert done.stdout.split() == expected, words
    assert not elsewhere.exists()


@pytest.mark.parametrize(("shell", "words"), [("zsh", "compdef"), ("fish", "complete --no-files --command refresher")])
def test_completion_scripts_for_other_shells(refresher: Command, shell: str, words: str) -> None:
    """If it failed, completion in another shell would not work."""
    done = refresher("completion", shell)
    assert (done.code, done.stderr) == (0, "")
    assert words in done.stdout
    assert re.search(r"_REFRESHER_COMPLETE=\w+", done.stdout)


def test_an_unknown_shell_is_one_line(refresher: Command) -> None:
    """If it failed, a wrong shell name would end in a traceback."""
    done = refresher("completion", "csh")
    assert (done.code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "'bash', 'zsh', 'fish'" in done.stderr


def test_a_grant_for_another_server_is_not_replaced(stored: Command) -> None:
    """If it failed, login would destroy a grant for another server, or one without a server URL."""
    before = everything(stored)
    with MCPLogin() as mcp:
        line = last_line(stored("login", "linear", mcp.url, environment=PERSON), 2)
    assert "linear is a grant for https://api.example: choose another name" in line
    assert everything(stored) == before
