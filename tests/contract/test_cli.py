"""The command line: what it takes, what it prints, what its exit codes mean."""

import grp
import json
import os
import re
import socket
import stat
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest

from refresher import __version__
from refresher.cli.main import cli
from refresher.grants import server_behavior
from refresher.grants.record import Failure, encode
from refresher.operations.import_request import ImportRequest
from refresher.operations.result import EXIT_CODES
from tests.support.command import Command, Done, without_times
from tests.support.daemon import heard, running, stopped
from tests.support.terminal import at_a_terminal, read_whole
from tests.support.token_server import TokenServer

GRANT: dict[str, Any] = {
    "token_endpoint": "http://127.0.0.1:9/token",
    "client_id": "client",
    "refresh_token": "refresh-token-of-the-tests",
    "server_url": "https://mcp.example/mcp",
}
COMMANDS = (
    "login",
    "run",
    "run-once",
    "status",
    "health",
    "token",
    "headers",
    "logout",
    "import",
    "remove",
    "demo",
    "completion",
)
STATUS_KEYS = {
    "name", "state", "generation", "issued_at", "expires_at", "next_rotation_at", "last_rotation_at", "failures", "error",
    "issuer", "resource", "scope", "origins",
}  # fmt: skip


def one_line(done: Done, code: int = 2) -> str:
    """Insist on one clear line on stderr, and nothing on stdout."""
    assert done.code == code, (done.code, done.stdout, done.stderr)
    assert done.stdout == ""
    stderr = without_times(done.stderr)
    assert stderr.startswith("refresher: ")
    assert stderr.count("\n") == 1
    return stderr


def modes(root: Path) -> dict[str, str]:
    """Return the permissions below ``root`` in octal."""
    return {str(path.relative_to(root)): f"{stat.S_IMODE(path.lstat().st_mode):o}" for path in [*root.rglob("*"), root]}


# --- help, version, usage -----------------------------------------------------------------------------------------


def test_the_version_is_the_packages(refresher: Command) -> None:
    """If it failed, nobody could tell which version runs."""
    assert refresher("--version").stdout == f"refresher, version {__version__}\n"


def test_every_command_starts_without_what_other_tests_have_loaded(cold: Command) -> None:
    """If it failed, a command could lack an import that the warm start of other tests provides."""
    with TokenServer(lambda _: 3600) as server:
        cold.import_grant("linear", server.grant("client"))
        cold.bring("notion", server.grant("other"))
        run = {
            ("run-once", "--force"): 0,
            ("status",): 0,
            ("token", "linear"): 0,
            ("headers", "linear"): 0,
            ("health", "--listen", "127.0.0.1:9"): 1,
            ("completion", "bash"): 0,
            ("login", "asana", "http://127.0.0.1:9/mcp", "--no-browser"): 4,
            ("logout", "linear"): 0,
            ("remove", "notion"): 0,
        }
        assert {arguments: cold(*arguments).code for arguments in run} == run
        with running(cold) as process:
            heard(process, "watching")
            assert "stopped" in stopped(cold, process)
    commands = {arguments[0] for arguments in run} | {"import", "run", "demo"}  # the README's test runs demo
    assert commands == set(cli.list_commands(click.Context(cli)))


def test_the_base_without_the_service_says_what_to_install(refresher: Command) -> None:
    """If it failed, who installed what an agent needs would meet a traceback at the command."""
    # A fake: click is made impossible to import, as where it is not installed.
    code = "import sys; sys.modules['click'] = None; from refresher.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "pip install '.[service]'" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ["import", "run-once", "status", "remove", "REFRESHER_STATE_DIR", "--tokens-group"]),
        (("import",), [*ImportRequest.__struct_fields__, "--replace", "--if-absent", "Example", "directory"]),
        (("run",), ["--grace", "--listen", "REFRESHER_LISTEN", "SIGHUP"]),
        (("health",), ["--live", "--json", "--listen", "Exit codes", "127.0.0.1:9464"]),
        (
            ("run-once",),
            ["--force", "--horizon", "--json", "Exit codes", *(str(code) for code in {*EXIT_CODES.values()})],
        ),
        (("status",), ["--json", "active", "failing", "reauthorization_required", "invalid_grant_file"]),
        (("remove",), ["NAME"]),
        (
            ("login",),
            ["--no-browser", "--device", "--client-id", *(f"    {code}" for code in (0, 2, 3, 4, 6, 130)), "Examples"],
        ),
        (("logout",), ["NAME", "--keep-at-server", "RFC 7009"]),
        (("completion",), ["bash", "zsh", "fish", 'eval "$(refresher completion bash)"']),
    ],
)
def test_help_names_everything(refresher: Command, arguments: tuple[str, ...], words: list[str]) -> None:
    """If it failed, an option, a field or an exit code would be undocumented."""
    done = refresher(*arguments, "--help")
    assert done.code == 0
    assert [word for word in words if word not in done.stdout] == []


def test_help_works_with_a_broken_configuration(refresher: Command) -> None:
    """If it failed, a person with a broken configuration could not even read how to mend it."""
    assert refresher("--config", "/nowhere", "status", "--help").code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("bogus",),
        ("--bogus", "status"),
        ("run-once", "--bogus"),
        ("run-once", "nobody"),
        ("run-once", "--horizon", "-1"),
        ("run-once", "--horizon", "soon"),
        ("status", "nobody"),
        ("status", "../escape"),
        ("remove", "nobody"),
        ("remove",),
        ("import", "linear"),
        ("import", "linear", "--from", "nowhere.json"),
        ("import", "Linear", "--from", "-"),
        ("import", "../linear", "--from", "-"),
        ("import", "linear", "--from", "-", "--replace", "--if-absent"),
        ("--config", "/nowhere", "status"),
        ("--log-format", "xml", "status"),
        ("--tokens-group", "no-such-group-here", "status"),
    ],
    ids=" ".join,
)
def test_every_wrong_usage_is_one_line_and_exit_2(refresher: Command, arguments: tuple[str, ...]) -> None:
    """If it failed, a typing error would end in a traceback, or a script could not tell it from a failure."""
    one_line(refresher(*arguments))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_lists_its_exit_codes_and_mentions_the_global_options(refresher: Command, command: str) -> None:
    """If it failed, a script could not tell from the help what an exit code means."""
    shown = refresher(command, "--help", environment={"COLUMNS": "80"}).stdout
    assert "Exit codes:\n    0  " in shown
    assert "Global options, such as -v, are accepted here too" in shown
    assert [line for line in shown.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["stauts"], "no such command 'stauts'; did you mean 'status'?"),
        (["status", "--jsn"], "Did you mean '--json'?"),
        (["--json", "status"], "--json is an option of status: give it after 'status'"),
        (["remove"], "missing argument 'NAME'; usage: refresher remove [OPTIONS] NAME"),
        (["-v", "status", "Linear"], "did you mean: refresher -v status linear"),
        (["token", "--wait", "1s", "linaer"], "did you mean: refresher token linear --wait 1s"),
        (["run-once", "linear ", "notion"], "did you mean: refresher run-once linear notion"),
        (["logout", "LINEAR"], "did you mean: refresher logout linear"),
        (["import", "Linear", "--from", "x.json"], "did you mean: refresher import linear --from x.json"),
        (["login", "My Linear", "https://a.example"], "did you mean: refresher login my-linear https://a.example"),
        (["login", "linear", "https://a.example "], "did you mean: refresher login linear https://a.example"),
        (["login", "https://mcp.a.example/mcp"], "did you mean: refresher login a https://mcp.a.example/mcp"),
        (["login", "http://127.0.0.1:1/mcp"], "did you mean: refresher login local http://127.0.0.1:1/mcp"),
        (["login", "localhost:1/mcp", "Linear"], "did you mean: refresher login linear http://localhost:1/mcp"),
        (["login", "mcp.example", "linear"], "did you mean: refresher login linear https://mcp.example"),
        (["login"], "usage: refresher login [OPTIONS] NAME [URL]"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_answered_with_the_command_that_was_meant(
    refresher: Command, arguments: list[str], words: str
) -> None:
    """If it failed, a person would have to look a typing error up in the documentation."""
    refresher.bring("linear", GRANT)
    refresher.bring("notion", GRANT | {"refresh_token": "another-refresh-token"})
    assert words in one_line(refresher(*arguments))


def test_a_name_with_dots_is_no_address(refresher: Command) -> None:
    """If it failed, a grant with a dot in its name could not be logged in again by its name."""
    assert "did you mean" not in one_line(refresher("login", "linear.prod"))


# --- import -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"token_endpoint": None}, "token_endpoint"),
        ({"client_id": None}, "client_id"),
        ({"refresh_token": None}, "refresh_token"),
        ({"server_url": None}, "server_url"),
        ({"surprise": 1}, "surprise"),
        ({"origns": [], "a": 1}, "unknown keys: a, origns (known: token_endpoint"),
        ({"access_token": "a token"}, "space"),
        ({"access_token": "a-good-token", "expires_at": 1_800_000_000_000}, "milliseconds"),
        ({"expires_in": 60}, "access_token"),
        ({"send_resource": True}, "send_resource"),
        ({"token_endpoint": "http://as.example/token"}, "https"),
        ({"token_endpoint": "https://user@as.example/token"}, "password"),
        ({"server_url": "mcp.example"}, "server_url"),
        ({"origins": ["nowhere"]}, "origins"),
        ({"origins": [], "server_url": None}, "origins"),
        ({"refresh_token": "with\nnewline"}, "refresh_token"),
        ({"refresh_token": ""}, "refresh_token"),
        ({"refresh_token": 5}, "refresh_token"),
        ({"client_secret": "a-secret-of-it", "token_endpoint_auth_method": "none"}, "must match the given credentials"),
        ({"token_endpoint_auth_method": "client_secret_post"}, "must match the given credentials"),
        ({"client_secret": "a-secret-of-it", "token_endpoint_auth_method": "private_key_jwt"}, "private_key_file"),
        ({"token_endpoint_auth_method": "tls_client_auth"}, "client_cert"),
        ({"token_endpoint_auth_method": "secret_handshake"}, "private_key_jwt"),
        ({"client_secret": "a-secret-of-it", "private_key_file": "/nowhere"}, "must match the given credentials"),
        ({"private_key_file": "/nowhere/key.pem"}, "cannot read the private key /nowhere/key.pem"),
        ({"private_key_id": "kid"}, "private_key_file"),
        ({"client_cert": "/nowhere/cert.pem"}, "cannot read /nowhere/cert.pem"),
        ({"client_key": "/nowhere/key.pem"}, "client_cert"),
        ({"grant_type": "client_credentials"}, "without one"),
        ({"grant_type": "client_credentials", "refresh_token": None}, "requires client authentication"),
        ({"grant_type": "password", "refresh_token": None}, "grant_type"),
        ({"refresh_token": None}, "give a refresh_token"),
        ({"replay": "sometimes"}, "replay"),
        ({"replay": "30"}, "replay"),
        ({"max_age": -1}, "max_age"),
        ({"max_age": "soon"}, "max_age"),
        ({"access_token": "an-access-token-of-it", "expires_in": 60, "expires_at": 1}, "not both"),
        ({"issuer": "http://as.example"}, "issuer"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else value,
)
def test_an_import_refuses_what_it_does_not_understand(refresher: Command, changes: dict[str, Any], words: str) -> None:
    """If it failed, a grant would be stored that can never rotate, or whose token goes where it must not."""
    fields = {key: value for key, value in (GRANT | changes).items() if value is not None}
    done = refresher("import", "linear", "--from", str(refresher.write_import("linear", fields)))
    assert words in one_line(done)
    assert not (refresher.state / "grants/linear.json").exists()


@pytest.mark.parametrize("data", ["", "{", "[]", "null", '"text"', '{"a": 1} trailing', "\x00\x01", "{" * 10_000])
def test_an_import_of_nonsense_is_one_line(refresher: Command, data: str) -> None:
    """If it failed, a wrong file would end in a traceback that quotes it."""
    one_line(refresher("import", "linear", "--from", "-", stdin=data))


def test_an_import_from_standard_input_with_everything(refresher: Command) -> None:
    """If it failed, an optional field would be lost on its way into the record."""
    fields = GRANT | {
        "client_secret": "the-client-secret-of-it",
        "token_endpoint_auth_method": "client_secret_post",
        "access_token": "an-access-token-of-it",
        "expires_in": 600,
        "scope": "read write",
        "issuer": "https://as.example",
        "resource": "https://mcp.example",
        "send_resource": False,
        "replay": "30s",
        "max_age": "10m",
        "origins": ["https://one.example", "https://two.example:8443/x"],
    }
    refresher.vault.learn(fields["client_secret"], fields["access_token"], fields["refresh_token"])
    before = time.time()
    done = refresher("import", "linear", "--from", "-", stdin=json.dumps(fields))
    assert done.code == 0, done.stderr
    grant = refresher.grant("linear")
    assert (grant.replay, grant.max_age, grant.send_resource) == (30.0, 600.0, False)
    assert (grant.scope, grant.issuer, grant.resource) == ("read write", "https://as.example", "https://mcp.example")
    assert grant.token_endpoint_auth_method == "client_secret_post"
    token = refresher.token("linear")
    assert token.access_token == fields["access_token"]
    assert token.origins == ("https://one.example", "https://two.example:8443")
    assert (token.generation, token.state) == (0, "active")
    assert token.expires_at is not None
    assert before + 600 <= token.expires_at <= time.time() + 600


def test_a_token_response_with_the_missing_keys_is_an_import(refresher: Command) -> None:
    """If it failed, what a person has at hand, the answer of a login, would be refused field by field."""
    response = {"access_token": "an-access-token-of-it", "expires_in": 3600, "id_token": "an-id-token-of-it", "token_type": "bearer", "scope": "a"}  # fmt: skip
    refresher.import_grant("linear", GRANT | response)
    assert refresher.token("linear").token_type == "bearer"


def test_defaults_of_an_import(refresher: Command) -> None:
    """If it failed, the careful settings would have to be known by heart."""
    refresher.import_grant("plain", GRANT)
    plain = refresher.grant("plain")
    assert (server_behavior.grace_period(plain), plain.token_endpoint_auth_method) == (0.0, "none")
    assert not server_behavior.sends_resource(plain)
    fields = GRANT | {
        "refresh_token": "another-refresh-token",
        "client_secret": "its-client-secret",
        "resource": "urn:x",
    }
    refresher.import_grant("full", fields)
    full = refresher.grant("full")
    assert full.token_endpoint_auth_method == "client_secret_basic"
    assert server_behavior.sends_resource(full)


def test_an_existing_grant_is_never_replaced_by_accident(refresher: Command) -> None:
    """If it failed, repeating an import would destroy a rotated refresh token with a stale one."""
    refresher.import_grant("linear", GRANT)
    other = refresher.write_import("other", GRANT | {"refresh_token": "another-refresh-token"})
    assert "--replace" in one_line(refresher("import", "linear", "--from", str(other)))
    kept = refresher("import", "linear", "--from", str(other), "--if-absent")
    assert kept.code == 0
    assert refresher.refresh_token("linear") == GRANT["refresh_token"]
    replaced = refresher("import", "linear", "--from", str(other), "--replace")
    assert replaced.code == 0
    assert refresher.refresh_token("linear") == "another-refresh-token"
    assert refresher.grant("linear").generation == 1


def test_one_refresh_token_has_one_name(refresher: Command) -> None:
    """If it failed, two names would rotate one refresh token against each other (I3)."""
    refresher.import_grant("linear", GRANT)
    assert "linear" in one_line(refresher("import", "other", "--from", str(refresher.write_import("other", GRANT))))


def test_an_import_that_was_cut_off_still_holds_its_token(refresher: Command) -> None:
    """If it failed, a killed import and a second one under another name would share a refresh token (I3)."""
    refresher.import_grant("linear", GRANT)
    grants = refresher.state / "grants"
    (grants / "linear.json").rename(grants / "linear.next.1")  # as a kill just before the rename leaves it
    again = refresher.write_import("other", GRANT)
    assert "linear" in one_line(refresher("import", "other", "--from", str(again)))
    adopted = refresher("import", "linear", "--from", str(again))
    assert adopted.code == 2
    assert "adopted" in adopted.stderr
    assert "exists" in adopted.stderr
    assert refresher.refresh_token("linear") == GRANT["refresh_token"]


def test_a_readable_import_file_is_warned_about(refresher: Command) -> None:
    """If it failed, a refresh token would stay readable for everybody on the machine."""
    path = refresher.write_import("linear", GRANT)
    path.chmod(0o644)
    done = refresher("import", "linear", "--from", str(path))
    assert done.code == 0
    assert "others can read" in done.stderr


def test_a_token_in_the_clear_is_warned_about(refresher: Command) -> None:
    """If it failed, nobody would notice that an access token crosses the network in the clear."""
    path = refresher.write_import("linear", GRANT | {"server_url": "http://mcp.internal/mcp"})
    assert "http://mcp.internal" in refresher("import", "linear", "--from", str(path)).stderr
    loopback = refresher.write_import(
        "local", GRANT | {"refresh_token": "another-token", "server_url": "http://[::1]:1/"}
    )
    assert refresher("import", "local", "--from", str(loopback)).stderr == ""


# --- status, remove -----------------------------------------------------------------------------------------------


def test_status_as_json_has_exactly_these_fields(refresher: Command) -> None:
    """If it failed, dashboards and scripts would break."""
    refresher.import_grant("linear", GRANT | {"access_token": "an-access-token-of-it", "expires_in": 3600})
    refresher.import_grant("notion", GRANT | {"refresh_token": "another-refresh-token"})
    grants = json.loads(refresher("status", "--json").stdout)["grants"]
    assert [grant["name"] for grant in grants] == ["linear", "notion"]
    assert all(set(grant) == STATUS_KEYS for grant in grants)
    linear, notion = grants
    assert (linear["state"], linear["generation"], linear["failures"], linear["error"]) == ("active", 0, 0, None)
    assert linear["issued_at"] < linear["next_rotation_at"] < linear["expires_at"]
    assert (notion["issued_at"], notion["expires_at"]) == (None, None)
    assert json.loads(refresher("status", "--json", "notion").stdout)["grants"] == [notion]


def test_status_for_a_person_says_what_is_wrong(refresher: Command) -> None:
    """If it failed, a person would see that something is wrong and not what."""
    refresher.import_grant("linear", GRANT)
    assert refresher("run-once").code == 4
    table = refresher("status").stdout
    head, row = table.splitlines()
    assert head.split() == ["NAME", "STATE", "GENERATION", "TIME", "LEFT", "NEXT", "ROTATION", "LAST", "ERROR"]
    assert "failing" in row
    assert "nothing was sent" in row
    assert "\x1b" not in table, "colours went into a pipe"


def test_removed_means_told_forgotten_and_remembered(refresher: Command) -> None:
    """If it failed, agents would go on with a removed grant, or its spent tokens could come back."""
    refresher.import_grant("linear", GRANT | {"access_token": "an-access-token-of-it", "expires_in": 60})
    demand = refresher.state / "demands/linear.0"
    demand.touch()
    assert refresher("remove", "linear").code == 0
    assert GRANT["refresh_token"] not in (refresher.state / "grants/linear.json").read_text()
    token = refresher.token("linear")
    assert (token.state, token.access_token, token.generation) == ("removed", None, 0)
    assert not demand.exists()
    for arguments in (("run-once", "linear"), ("status", "linear"), ("remove", "linear")):
        assert "removed" in one_line(refresher(*arguments))
    assert "none yet" in one_line(refresher("status", "nobody")), "a removed name is offered"
    assert json.loads(refresher("run-once", "--json").stdout) == {"results": [], "exit_code": 0}
    refresher.import_grant("linear", GRANT)
    assert refresher.grant("linear").generation == 1, "the generation fell"


def test_a_removal_cut_off_before_it_was_told_is_told_by_the_next_run(refresher: Command) -> None:
    """If it failed, a kill at the wrong moment would leave a removed grant's token published for ever."""
    refresher.import_grant("linear", GRANT | {"access_token": "an-access-token-of-it", "expires_in": 60})
    published = (refresher.state / "tokens/linear.json").read_bytes()
    refresher("remove", "linear")
    (refresher.state / "tokens/linear.json").write_bytes(published)
    assert refresher("run-once").code == 0
    assert refresher.token("linear").state == "removed"


# --- run-once -----------------------------------------------------------------------------------------------------


def test_run_once_as_json_has_exactly_these_fields(refresher: Command) -> None:
    """If it failed, cron jobs and scripts that read results would break."""
    refresher.import_grant("linear", GRANT | {"access_token": "an-access-token-of-it", "expires_in": 3600})
    answer = json.loads(refresher("run-once", "--json").stdout)
    assert set(answer) == {"results", "exit_code"}
    assert answer["exit_code"] == 0
    (result,) = answer["results"]
    assert set(result) == {"name", "outcome", "generation", "detail"}
    assert (result["name"], result["outcome"], result["generation"]) == ("linear", "not_due", 0)


def test_a_machine_without_grants_is_no_failure(refresher: Command) -> None:
    """If it failed, a cron job installed before the first import would send alarms."""
    for arguments in (("run-once",), ("status",)):
        done = refresher(*arguments)
        assert (done.code, done.stdout) == (0, "")
        assert "refresher login" in done.stderr
    assert not refresher.state.exists(), "looking made directories"


def test_nothing_due_loads_no_http_library(refresher: Command) -> None:
    """If it failed, a cron job that has nothing to do would cost as much as one that has."""
    refresher.import_grant("linear", GRANT | {"access_token": "an-access-token-of-it", "expires_in": 3600})
    done = refresher("run-once", environment={"PYTHONVERBOSE": "1"})
    assert done.code == 0
    loaded = {line.split("'")[1].partition(".")[0] for line in done.stderr.splitlines() if line.startswith("import '")}
    assert {"refresher", "click", "msgspec"} <= loaded
    assert not {"httpx", "httpcore", "apscheduler", "mcp", "anyio", "filelock", "asyncio", "ssl"} & loaded


def test_one_broken_grant_file_keeps_nobody_else_from_a_rotation(refresher: Command) -> None:
    """If it failed, one damaged file would take every login on the machine down with it."""
    refresher.import_grant("linear", GRANT | {"access_token": "an-access-token-of-it", "expires_in": 3600})
    (refresher.state / "tokens/linear.json").unlink()
    broken = {"empty": b"", "torn": b'{"version":1', "strange": b'{"version":9}'}
    for name, data in broken.items():
        (refresher.state / f"grants/{name}.json").write_bytes(data)
    (refresher.state / "grants/folder.json").mkdir()
    (refresher.state / "grants/link.json").symlink_to("linear.json")
    done = refresher("run-once", "--json")
    assert done.code == 2
    outcomes = {name: result["outcome"] for name, result in done.results.items()}
    assert outcomes == dict.fromkeys([*broken, "folder", "link"], "invalid_grant_file") | {"linear": "not_due"}
    assert refresher.token("linear").generation == 0, "it was not published again"
    assert {name: (refresher.state / f"grants/{name}.json").read_bytes() for name in broken} == broken
    states = {grant["name"]: grant["state"] for grant in json.loads(refresher("status", "--json").stdout)["grants"]}
    assert states["torn"] == "invalid_grant_file"
    assert "invalid_grant_file" in refresher("status").stdout


def test_a_broken_grant_file_is_set_aside_by_a_new_import_only(refresher: Command) -> None:
    """If it failed, nobody could get out of a damaged record, or its only copy would be overwritten."""
    refresher.import_grant("linear", GRANT | {"access_token": "an-access-token-of-it", "expires_in": 3600})
    (refresher.state / "grants/linear.json").write_bytes(b"damaged")
    path = str(refresher.write_import("again", GRANT | {"refresh_token": "another-refresh-token"}))
    one_line(refresher("import", "linear", "--from", path))
    one_line(refresher("import", "linear", "--from", path, "--if-absent"))
    one_line(refresher("remove", "linear"))
    done = refresher("import", "linear", "--from", path, "--replace")
    assert done.code == 0
    assert "damaged record is now" in done.stderr
    (aside,) = (refresher.state / "grants").glob("linear.json.aside.*")
    assert aside.read_bytes() == b"damaged"
    assert refresher.grant("linear").generation == 1, "readers would meet a generation that they have seen"


def test_a_server_that_is_not_there_is_tried_again_later(refresher: Command) -> None:
    """If it failed, a server's outage would look like a lost login, or be met with a storm."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    refresher.import_grant("linear", GRANT | {"token_endpoint": f"http://127.0.0.1:{port}/token"})
    done = refresher("run-once", "--json")
    assert (done.code, done.results["linear"]["outcome"]) == (4, "transient")
    token = refresher.token("linear")
    assert (token.state, token.access_token) == ("failing", None)
    again = refresher("run-once", "--json")
    assert (again.code, again.results["linear"]["outcome"]) == (4, "transient")
    assert refresher.grant("linear").failures == 1, "the backoff was not kept"
    assert refresher("run-once", "--force").code == 4
    assert refresher.grant("linear").failures == 2, "--force did not skip the backoff"


# --- directories, modes, configuration ----------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777], ids=oct)
def test_everything_is_private_whatever_the_umask(refresher: Command, umask: int) -> None:
    """If it failed, other users of the machine could read refresh tokens."""
    path = refresher.write_import("linear", GRANT | {"access_token": "an-access-token-of-it", "expires_in": 0})
    refresher.state.parent.mkdir(parents=True)
    before = os.umask(umask)
    try:
        assert refresher("import", "linear", "--from", str(path)).code == 0
        assert refresher("run-once").code == 4
    finally:
        os.umask(before)
    found = modes(refresher.state)
    assert {mode for name, mode in found.items() if "." in name and name != "."} == {"600"}
    assert {found[name] for name in (".", "grants", "tokens", "demands")} == {"700"}


def test_a_group_of_agents_sees_tokens_and_nothing_else(refresher: Command) -> None:
    """If it failed, agents under users of their own could read no token, or could read refresh tokens."""
    groups = [group for group in os.getgroups() if group != os.getegid()] or ([1] if os.geteuid() == 0 else [])
    if not groups:
        pytest.skip("the user is in one group only")
    name = grp.getgrgid(groups[0]).gr_name
    path = refresher.write_import("linear", GRANT | {"access_token": "an-access-token-of-it", "expires_in": 3600})
    assert refresher("--tokens-group", name, "import", "linear", "--from", str(path)).code == 0
    found = modes(refresher.state)
    assert found["."] == "711"
    assert found["grants"] == "700"
    assert found["tokens"] == "750"
    assert found["tokens/linear.json"] == "640"
    assert found["demands"] == "3770"
    for shared in ("tokens", "tokens/linear.json", "demands"):
        assert (refresher.state / shared).stat().st_gid == groups[0]
    assert found["grants/linear.json"] == "600"


def test_a_run_by_hand_does_not_lock_the_agents_out(refresher: Command) -> None:
    """If it failed, forgetting one option once would take the tokens from every agent of the group."""
    groups = [group for group in os.getgroups() if group != os.getegid()] or ([1] if os.geteuid() == 0 else [])
    if not groups:
        pytest.skip("the user is in one group only")
    path = refresher.write_import("linear", GRANT | {"access_token": "an-access-token-of-it", "expires_in": 3600})
    assert refresher("import", "linear", "--from", str(path)).code == 0
    assert modes(refresher.state)["tokens/linear.json"] == "600"
    assert refresher("--tokens-group", str(groups[0]), "run-once").code == 0, "sharing later has no effect"
    assert modes(refresher.state)["tokens/linear.json"] == "640"
    (refresher.state / "tokens/linear.json").unlink()
    assert refresher("run-once").code == 0
    shared = (refresher.state / "tokens/linear.json").stat()
    assert (stat.S_IMODE(shared.st_mode), shared.st_gid) == (0o640, groups[0])


def test_a_group_that_cannot_reach_its_tokens_is_warned_about(refresher: Command) -> None:
    """If it failed, agents would meet 'Permission denied' after a set-up that said it went well."""
    path = refresher.write_import("linear", GRANT)
    done = refresher("--tokens-group", str(os.getegid() + 1 if os.geteuid() == 0 else os.getegid()), "import", "linear", "--from", str(path))  # fmt: skip
    assert done.code == 0
    assert (f"cannot pass {refresher.home} " in done.stderr) is (os.geteuid() == 0)


@pytest.mark.parametrize("name", ["tokens", "demands"])
def test_a_directory_that_anybody_can_write_is_refused(refresher: Command, name: str) -> None:
    """If it failed, anybody on the machine could replace a token's file, and say where the token goes."""
    refresher.import_grant("linear", GRANT)
    (refresher.state / name).chmod(0o777)
    assert "chmod o-w" in one_line(refresher("run-once"))


def test_a_state_directory_that_was_named_and_is_not_there_is_an_error(refresher: Command) -> None:
    """If it failed, a typing error in a unit file would keep nothing fresh and look healthy for ever."""
    for arguments in (("run-once",), ("run-once", "--json"), ("status",)):
        assert "typo" in one_line(refresher("--state-dir", "typo", *arguments))


def test_a_directory_that_others_can_read_is_refused(refresher: Command) -> None:
    """If it failed, refresh tokens would lie open and nobody would say so."""
    refresher.import_grant("linear", GRANT)
    (refresher.state / "grants").chmod(0o755)
    for arguments in (("run-once",), ("status",), ("remove", "linear")):
        assert "chmod 700" in one_line(refresher(*arguments))


def test_a_state_directory_that_is_a_file_is_one_line(refresher: Command) -> None:
    """If it failed, a wrong path would end in a traceback."""
    (refresher.home / "file").touch()
    one_line(refresher("--state-dir", "file", "status"))
    path = str(refresher.write_import("linear", GRANT))
    one_line(refresher("--state-dir", "file", "import", "linear", "--from", path))


def test_option_over_environment_over_file(refresher: Command) -> None:
    """If it failed, nobody could tell which directory a run works on."""
    config = refresher.home / ".config/refresher/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('state_dir = "by-file"\nlog_format = "json"\nverbose = 1\n')
    assert str(config.parent / "by-file") in refresher("status").stderr
    environment = {"REFRESHER_STATE_DIR": str(refresher.home / "by-environment")}
    assert "by-environment" in refresher("status", environment=environment).stderr
    assert "by-option" in refresher("--state-dir", "by-option", "status", environment=environment).stderr
    assert str(refresher.home / "xdg/refresher") in refresher(
        "--config", os.devnull, "status", environment={"XDG_STATE_HOME": str(refresher.home / "xdg")}
    ).stderr  # fmt: skip


def test_global_options_are_accepted_after_the_command_too(refresher: Command) -> None:
    """If it failed, each mistake about the place of an option would be an error, or the wrong directory be used."""
    assert "by-after" in refresher("status", "--state-dir", "by-after").stderr
    both = ("--state-dir", "by-before", "status", "--state-dir", "by-after")
    assert "by-after" in refresher(*both, environment={"REFRESHER_STATE_DIR": "by-environment"}).stderr
    assert "by-before" in refresher("--state-dir", "by-before", "status", "--ca-file", "x").stderr
    refresher.import_grant("linear", GRANT)
    for arguments in (("-v", "run-once"), ("run-once", "-v", "linear")):
        (line, *_) = refresher(*arguments, "--log-format", "json", "--force").stderr.splitlines()
        assert json.loads(line)["message"].startswith("linear: ")
    words = f"refresher status --state-dir {refresher.state} l"
    completing = {"_REFRESHER_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": "4"}
    assert refresher(environment=completing).stdout == "plain,linear\n"


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_a_terminal_of_another_encoding_gets_replaced_characters(refresher: Command, encoding: str) -> None:
    """If it failed, a person with an old terminal would see an empty table, or a traceback."""
    grant = refresher.bring("linear", GRANT)
    failure = Failure(outcome="transient", code="away", description="Zürich: нет", at=time.time(), retry_at=time.time())
    data, _ = encode(msgspec.structs.replace(grant, failure=failure, failures=1))
    (refresher.state / "grants/linear.json").write_bytes(data)
    shown = subprocess.run(
        [sys.executable, "-m", "refresher", "status"],
        env=refresher.environment | {"PYTHONIOENCODING": encoding},
        capture_output=True,
        check=True,
    ).stdout.decode(encoding)
    assert ("Zürich: ???" if encoding == "latin-1" else "Z?rich: ???") in shown
    logged = refresher("run-once", "пусто", environment={"PYTHONIOENCODING": encoding})
    assert "there is no grant named '?????'" in one_line(logged)


def test_text_logs_have_a_time_except_at_a_terminal_and_in_the_journal(refresher: Command) -> None:
    """If it failed, nobody could tell when a line in cron's log was written, or the journal would show each time twice."""
    timed = refresher("status", "nobody", environment={"TZ": "Asia/Kolkata"}).stderr
    written, offset, _ = re.fullmatch(r"([-\dT:]{19})(\+05:30) (refresher: .*\n)", timed).groups()  # type: ignore[union-attr]
    assert abs(datetime.fromisoformat(written + offset).timestamp() - time.time()) < 60
    process, master = at_a_terminal(refresher, "status", "nobody")
    assert read_whole(master).startswith("refresher: there is no grant")
    assert process.wait(30) == 2
    log = refresher.home / "log"
    log.touch()
    status = log.stat()
    for journal, prefix in ((f"{status.st_dev}:{status.st_ino}", "refresher: "), ("1:2", "2")):
        with log.open("w") as stderr:
            subprocess.run(
                [sys.executable, "-m", "refresher", "status", "nobody"],
                env=refresher.environment | {"JOURNAL_STREAM": journal},
                stderr=stderr,
                check=False,
            )
        assert log.read_text().startswith(prefix)


@pytest.mark.parametrize("text", ["surprise = 1", "state_dir = 5", "not TOML", 'log_format = "xml"', "\xff"])
def test_a_wrong_configuration_file_is_one_line(refresher: Command, text: str) -> None:
    """If it failed, a typing error in the configuration would be ignored, or end in a traceback."""
    path = refresher.home / "config.toml"
    path.write_bytes(text.encode("latin-1"))
    assert "config.toml" in one_line(refresher("--config", str(path), "status")) or "log_format" in text


def test_the_three_directories_can_lie_apart(refresher: Command) -> None:
    """If it failed, a sidecar could not keep tokens in memory and grants on a disk."""
    apart = ("--state-dir", "s", "--tokens-dir", "t", "--demands-dir", "d")
    path = refresher.write_import("linear", GRANT | {"access_token": "an-access-token-of-it", "expires_in": 3600})
    assert refresher(*apart, "import", "linear", "--from", str(path)).code == 0
    tokens = refresher.home / "t"
    assert [entry.name for entry in tokens.iterdir()] == ["linear.json"]
    assert [entry.name for entry in (refresher.home / "s").iterdir()] == ["grants"]
    # What is in memory is gone after a restart: the next run publishes it again.
    (tokens / "linear.json").unlink()
    tokens.rmdir()
    assert refresher(*apart, "run-once").code == 0
    assert (tokens / "linear.json").exists()
    (tokens / "linear.json").rename(refresher.state.parent.parent.parent / "linear.import.json")


def test_logs_can_be_json_and_say_nothing_by_default(refresher: Command) -> None:
    """If it failed, log collectors would get unreadable lines, or cron would mail noise."""
    refresher.import_grant("healthy", GRANT | {"access_token": "an-access-token-of-it", "expires_in": 3600})
    assert refresher("run-once").stderr == ""
    refresher("remove", "healthy")
    refresher.import_grant("linear", GRANT)
    failed = refresher("run-once")
    assert without_times(failed.stderr).startswith("refresher: linear: transient: ")
    assert failed.stderr.count("\n") == 1, "what goes wrong is said where cron hears it, in one line"
    assert refresher("run-once").stderr == "", "what only waits is no news"
    done = refresher("-v", "--log-format", "json", "run-once", "--force")
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert {tuple(sorted(line)) for line in lines} == {("at", "level", "message")}
    assert any("linear" in line["message"] for line in lines)
