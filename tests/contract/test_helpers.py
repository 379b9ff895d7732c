"""The commands that other programs run for a token: formats, and ``headers --verify``."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.cli import one_line
from tests.support.command import Command, Done, wait_until
from tests.support.daemon import running
from tests.support.listener import Listening
from tests.support.published import DEAD, Published
from tests.support.token_server import TokenServer

TOKEN: Final = "access-token-of-the-tests"
GRANT: Final[dict[str, Any]] = {
    "token_endpoint": "http://127.0.0.1:9/token",
    "client_id": "client",
    "refresh_token": "refresh-token-of-the-tests",
    "server_url": "https://mcp.example/mcp",
    "access_token": TOKEN,
    "expires_in": 3600,
}
CHALLENGE: Final = ("401", 'Bearer error="invalid_token"')


class Resource(Listening):
    """A server that answers by the token: ``refuses`` gets it, and returns a status and a challenge."""

    def __init__(
        self, refuses: Callable[[str], tuple[str, str] | None], *, before: Callable[[], object] = lambda: None
    ) -> None:
        self.asked: list[tuple[str, str, str]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append((self.command, self.path, self.headers["Authorization"]))
                self.rfile.read(int(self.headers["Content-Length"] or 0))
                before()
                status, challenge = refuses(self.headers["Authorization"].removeprefix("Bearer ")) or ("200", "")
                self.send_response(int(status))
                if challenge:
                    self.send_header("Location" if status == "302" else "WWW-Authenticate", challenge)
                self.end_headers()

            def do_POST(self) -> None:
                self.do_GET()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  http.server's signature
                return

        super().__init__(Handler)

    @property
    def endpoint(self) -> str:
        """The address, with a key that no message may repeat."""
        return f"{self.url}/mcp?key=a-key-of-the-tests"


def shared(refresher: Command, server: Resource) -> tuple[Published, dict[str, str]]:
    """Return the directories of a refresher of another user, with a token for ``server``, and a reader's environment."""
    published = Published(refresher.home / "shared", server.url)
    refresher.vault.learn("a-key-of-the-tests", *(f"access-token-{number}" for number in range(1, 4)))
    published.put(server_url=server.endpoint)
    return published, {"REFRESHER_TOKENS_DIR": str(published.tokens), "REFRESHER_DEMANDS_DIR": str(published.demands)}


def headers(generation: int) -> str:
    """Return what ``headers`` prints."""
    return f'{{"Authorization": "Bearer access-token-{generation}"}}\n'


def test_json_has_stable_keys(refresher: Command) -> None:
    """If it failed, a program that reads the JSON of a token would not find what it needs."""
    refresher.import_grant("linear", GRANT)
    fields = json.loads(refresher("token", "linear", "--json").stdout)
    assert list(fields) == ["access_token", "token_type", "expires_at", "generation", "origins"]
    assert (fields["access_token"], fields["token_type"], fields["generation"]) == (TOKEN, "Bearer", 0)
    assert 3500 < fields["expires_at"] - time.time() < 3600
    assert fields["origins"] == ["https://mcp.example"]


def test_the_formats_of_a_token(refresher: Command) -> None:
    """If it failed, a script, curl or kubectl could not use what the command prints."""
    refresher.import_grant("linear", GRANT | {"token_type": "bearer"})

    def printed(form: str) -> str:
        done = refresher("token", "linear", "--format", form)
        assert (done.code, done.stderr) == (0, "")
        return done.stdout

    assert printed("raw") == f"{TOKEN}\n"
    assert printed("header") == f"Authorization: Bearer {TOKEN}\n"
    assert printed("env") == f"ACCESS_TOKEN={TOKEN}\n"
    credential = json.loads(printed("exec-credential"))
    at = credential["status"].pop("expirationTimestamp")
    assert at == time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(refresher.token("linear").expires_at))
    assert credential == {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": TOKEN},
    }
    assert "exclude each other" in one_line(refresher("token", "linear", "--json", "--format", "raw"))


def test_curl_takes_the_header_line(refresher: Command) -> None:
    """If it failed, a person would put the token into an argument, where each user can read it."""
    with Resource(lambda _: None) as server:
        _, environment = shared(refresher, server)
        line = refresher("token", "linear", "--format", "header", environment=environment).stdout
        subprocess.run(["curl", "-sSf", "-H", "@-", server.url], input=line, text=True, check=True, timeout=90)
        assert [authorization for *_, authorization in server.asked] == ["Bearer access-token-1"]


def test_the_line_for_eval_is_safe(refresher: Command) -> None:
    """If it failed, a server could issue a token that runs a command in the shell of a person."""
    published = Published(refresher.home / "shared")
    evil = "a'$(touch${IFS}evil)`id`;\"\\#&|<>*?~!"
    refresher.vault.learn(evil)
    published.put(access_token=evil, expires_at=None)
    environment = {"REFRESHER_TOKENS_DIR": str(published.tokens)}
    line = refresher("token", "linear", "--format", "env", environment=environment).stdout
    assert line.count("\n") == 1
    script = 'eval "$1"; printf %s "$ACCESS_TOKEN"'
    for shell in ("sh", "bash"):
        done = subprocess.run(
            [shell, "-euc", script, shell, line], cwd=refresher.home, capture_output=True, text=True, check=True
        )
        assert (done.stdout, done.stderr) == (evil, "")
    assert not (refresher.home / "evil").exists()
    # Without an end, there is no time in the credential.
    credential = refresher("token", "linear", "--format", "exec-credential", environment=environment).stdout
    assert json.loads(credential)["status"] == {"token": evil}


def test_a_helper_runs_in_an_empty_environment(refresher: Command) -> None:
    """If it failed, codex, which clears the environment of its helper, would get no token."""
    program = Path(sys.executable).parent / "refresher"
    with TokenServer(lambda _: 3600) as server:
        refresher.import_grant("linear", server.grant("client"))
        command = [str(program), "--state-dir", str(refresher.state), "headers", "linear"]
        # "/": another directory than that of the package
        done = subprocess.run(command, env={}, cwd="/", capture_output=True, text=True, check=False, timeout=90)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {"Authorization": f"Bearer {refresher.token('linear').access_token}"}


def test_a_directory_that_shadows_modules_changes_nothing(cold: Command) -> None:
    """If it failed, the directory of a project that an agent has opened could run code as the owner of the logins."""
    (cold.home / "json.py").write_text("open('ran', 'w')")
    (cold.home / "refresher.py").write_text("open('ran', 'w')")
    program = Path(sys.executable).parent / "refresher"
    with TokenServer(lambda _: 3600) as server:
        cold.bring("linear", server.grant("client"))
        done = subprocess.run([str(program), "token", "linear"], env=cold.environment, cwd=cold.home, capture_output=True, text=True, check=False, timeout=90)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert not (cold.home / "ran").exists()


def test_the_options_reach_the_process_that_refreshes(refresher: Command) -> None:
    """If it failed, a helper with options of its own would refresh another login, or publish elsewhere."""
    with TokenServer(lambda _: 3600) as server:
        state = refresher.home / "else where"
        refresher.state = state
        options = ("--state-dir", "else where", "--tokens-dir", "sha=red/tokens", "-v")
        path = refresher.write_import("linear", server.grant("client"))
        assert refresher(*options, "import", "linear", "--from", str(path)).code == 0
        done = refresher(*options[:2], "headers", "linear", *options[2:])
        assert done.code == 0, done.stderr
        assert len(server.presented["client"]) == 1
    published = json.loads((refresher.home / "sha=red/tokens/linear.json").read_text())
    refresher.vault.learn(published["access_token"])
    assert published["access_token"] in done.stdout
    events = json.loads(refresher("--state-dir", "else where", "events", "--json").stdout)["events"]
    assert [event["program"] for event in events if event["kind"] == "rotated"] == ["headers"]


def test_what_the_process_logs_reaches_the_person(refresher: Command) -> None:
    """If it failed, a person would not read the warnings of a refresh that a helper has started."""
    (refresher.home / ".config/refresher").mkdir(parents=True)
    (refresher.home / ".config/refresher/config.toml").write_text('[hooks]\non_rotated = "/nowhere"\n')
    with TokenServer(lambda _: 3600) as server:
        refresher.import_grant("linear", server.grant("client"))
        text = refresher("token", "linear")
        refresher.import_grant("notion", server.grant("other"))
        lines = refresher("token", "notion", "--log-format", "json").stderr.splitlines()
    assert text.code == 0
    assert text.stderr.count("there is no program /nowhere") == text.stderr.count("refresher: ") > 0
    assert all("there is no program /nowhere" in json.loads(line)["message"] for line in lines)


def disturb(refresher: Command, code: str) -> None:
    """Run ``code`` at the start of each process that refreshes for a helper."""
    modules = refresher.home / "modules"
    modules.mkdir()
    (modules / "sitecustomize.py").write_text(f"import os, sys\nif 'rotate-detached' in sys.orig_argv:\n    {code}\n")
    refresher.environment["PYTHONPATH"] = str(modules)


def test_another_line_of_the_process_that_refreshes_is_no_result(refresher: Command) -> None:
    """If it failed, a line that a sitecustomize prints would turn each refresh of a helper into a crash."""
    disturb(refresher, "print('hello', flush=True)")
    with TokenServer(lambda _: 3600) as server:
        refresher.import_grant("linear", server.grant("client"))
        done = refresher("token", "linear", "--wait", "1m")
    assert (done.code, done.stderr) == (0, "")


def test_the_end_of_the_process_that_refreshes_leaves_the_token_that_there_is(refresher: Command) -> None:
    """If it failed, a program would get no header while its token may still work, and begin a login of its own."""
    disturb(refresher, "os._exit(9)")
    with TokenServer(lambda _: 3600) as server, Resource(lambda _: CHALLENGE) as resource:
        refresher.import_grant("linear", server.grant("client", server_url=resource.endpoint))
        assert "has ended without a result" in one_line(refresher("headers", "linear", "--verify"), 4)
        refresher.import_grant("notion", GRANT | {"server_url": resource.endpoint})
        done = refresher("headers", "notion", "--verify", "--wait", "1m")
    assert (done.code, json.loads(done.stdout)) == (0, {"Authorization": f"Bearer {TOKEN}"})
    assert "the refused one is printed" in done.stderr


def test_a_refused_token_is_replaced(refresher: Command) -> None:
    """If it failed, Claude Code and codex, which run their helper again after a 401, would get the refused token again."""
    with (
        TokenServer(lambda _: 3600) as server,
        Resource(lambda token: None if server.lives(token) else CHALLENGE) as resource,
    ):
        refresher.import_grant("linear", server.grant("client", server_url=resource.endpoint))
        first = refresher("headers", "linear", "--verify").stdout
        assert refresher("headers", "linear", "--verify").stdout == first
        server.revoke(json.loads(first)["Authorization"].removeprefix("Bearer "))
        assert refresher("headers", "linear").stdout == first, "without --verify nothing is tried"
        done = refresher("headers", "linear", "--verify")
        assert (done.code, done.stderr) == (0, "")
        assert server.lives(json.loads(done.stdout)["Authorization"].removeprefix("Bearer "))
        assert len(server.presented["client"]) == 2
    assert {(method, path) for method, path, _ in resource.asked} == {("GET", "/mcp?key=a-key-of-the-tests")}


def test_a_reader_demands_another_token(refresher: Command) -> None:
    """If it failed, an agent that may not read the grants would keep a token that was revoked."""
    with Resource(lambda token: CHALLENGE if token == "access-token-1" else None) as server:
        published, environment = shared(refresher, server)
        process = refresher.start("headers", "linear", "--verify", environment=environment)
        wait_until(lambda: published.demanded() == ["linear.1"], "the demand is there")
        assert (published.demands / "linear.1").read_text() == server.url
        published.put(2, server_url=server.endpoint)
        assert refresher.finish(process) == (0, headers(2), "")
        assert len(server.asked) == 1


@pytest.mark.parametrize(
    "answer",
    [
        ("200", ""),
        ("302", "http://127.0.0.1:9/elsewhere"),
        ("400", 'Bearer error="invalid_request"'),
        ("401", 'Basic realm="a proxy"'),
        ("403", 'Bearer error="insufficient_scope", scope="write"'),
        ("404", ""),
        ("429", ""),
        ("503", ""),
    ],
    ids=lambda answer: answer[0],
)
def test_what_is_no_refusal_prints_the_token(refresher: Command, answer: tuple[str, str]) -> None:
    """If it failed, a server that is busy or broken would make each helper use up tokens, or print none."""
    with Resource(lambda _: answer) as server:
        published, environment = shared(refresher, server)
        assert refresher("headers", "linear", "--verify", environment=environment) == (0, headers(1), "")
        assert (published.demanded(), [method for method, *_ in server.asked]) == ([], ["GET"])


@pytest.mark.parametrize("answer", [("401", ""), ("400", 'Bearer error="invalid_token"')], ids=lambda answer: answer[0])
def test_what_is_a_refusal(refresher: Command, answer: tuple[str, str]) -> None:
    """If it failed, a revoked token would be printed for a server that refuses in its own way."""
    with Resource(lambda _: answer) as server:
        published, environment = shared(refresher, server)
        done = refresher("headers", "linear", "--verify", "--wait", "0.2", environment=environment)
        assert (done.code, done.stdout) == (0, headers(1))
        assert f"linear: {server.url} refuses its newest token (generation 1)" in done.stderr
        assert "a-key-of-the-tests" not in done.stderr
        assert published.demanded() == ["linear.1"]
        published.put(state="reauthorization_required", error=DEAD, server_url=server.endpoint)
        assert "refresher login linear" in one_line(
            refresher("headers", "linear", "--verify", environment=environment), 3
        )


def test_a_server_that_takes_no_get_gets_a_ping(refresher: Command) -> None:
    """If it failed, the token of a server that answers a GET before it looks at the token would never count as refused."""
    with Resource(lambda _: ("405", "") if server.asked[-1][0] == "GET" else CHALLENGE) as server:
        published, environment = shared(refresher, server)
        refresher("headers", "linear", "--verify", "--wait", "0.2", environment=environment)
        assert ([method for method, *_ in server.asked], published.demanded()) == (["GET", "POST"], ["linear.1"])


def test_a_server_that_does_not_answer_costs_three_seconds(refresher: Command) -> None:
    """If it failed, a server that hangs would make the helper late, and its program would kill it."""
    done: list[Done] = []
    with Resource(lambda _: CHALLENGE, before=lambda: wait_until(lambda: done != [], "the helper has ended")) as server:
        published, environment = shared(refresher, server)
        done.append(refresher("headers", "linear", "--verify", environment=environment))
        assert done == [(0, headers(1), "")]
        assert published.demanded() == []


def test_a_server_that_cannot_be_reached_prints_the_token(refresher: Command) -> None:
    """If it failed, an agent would have no token as soon as its server restarts."""
    refresher.import_grant("linear", GRANT | {"server_url": "http://127.0.0.1:9/mcp"})
    assert refresher("headers", "linear", "--verify") == (0, f'{{"Authorization": "Bearer {TOKEN}"}}\n', "")


def test_wrong_uses_of_verify(refresher: Command) -> None:
    """If it failed, a token could be sent to a server that it is not for, or a typing error would switch the check off."""
    refresher.import_grant("linear", GRANT)
    refresher.import_grant(
        "bare", GRANT | {"server_url": None, "origins": ["https://api.example"], "refresh_token": "another"}
    )
    wrong = {
        ("linear", "--verify-url", "https://mcp.example/"): "--verify-url is for --verify",
        (
            "linear",
            "--verify",
            "--verify-url",
            "https://evil.example/?key=k-9",
        ): "is not for https://evil.example: give --verify-url an address at https://mcp.example",
        ("linear", "--verify", "--verify-url", "nonsense"): "--verify-url is not a URL",
        ("bare", "--verify"): "its server is not known: give --verify-url",
    }
    for arguments, words in wrong.items():
        line = one_line(refresher("headers", *arguments))
        assert words in line
        assert "k-9" not in line


def test_helpers_at_a_server_that_refuses_each_token_stay_within_the_pauses(refresher: Command) -> None:
    """If it failed, a program that runs its helper again after each 401 would use up the login."""
    with TokenServer(lambda _: 3600) as server, Resource(lambda _: CHALLENGE) as resource:
        refresher.import_grant(
            "linear", server.grant("client", server_url=resource.url, access_token=TOKEN, expires_in=3600)
        )
        began = time.monotonic()
        done = [refresher("headers", "linear", "--verify") for _ in range(4)]
        with running(refresher):
            done += [refresher("headers", "linear", "--verify", "--wait", "0.5") for _ in range(3)]
        pauses = int((time.monotonic() - began) / 30)
        assert 1 <= len(server.presented["client"]) <= 1 + pauses
    assert {each.code for each in done} == {0}
    newest = f"Bearer {refresher.token('linear').access_token}"
    assert json.loads(done[-1].stdout) == {"Authorization": newest}
    assert done[0].stderr == "", "the first one got a newer token"
    # They do not wait for a rotation that is not due within their wait.
    assert "refuses its newest token (generation 1), and there is no newer one yet" in done[1].stderr
