"""Help, version, and the answers to a wrong usage."""

import subprocess
import sys

import click
import pytest

from refresher import __version__
from refresher.cli.main import cli
from refresher.operations.import_request import ImportRequest
from refresher.operations.result import EXIT_CODES
from tests.support.cli import GRANT, one_line
from tests.support.command import Command
from tests.support.daemon import heard, running, stopped
from tests.support.token_server import TokenServer

COMMANDS = (
    "login",
    "run",
    "run-once",
    "status",
    "health",
    "doctor",
    "token",
    "headers",
    "stdio",
    "connect",
    "logout",
    "import",
    "remove",
    "demo",
    "completion",
)


def test_the_version_is_that_of_the_package(refresher: Command) -> None:
    """If it failed, a person could not see which version runs."""
    assert refresher("--version").stdout == f"refresher, version {__version__}\n"


def test_every_command_starts_in_a_new_interpreter(cold: Command) -> None:
    """If it failed, a command could lack an import, because other tests start commands in a process with all imports."""
    with TokenServer(lambda _: 3600) as server:
        cold.import_grant("linear", server.grant("client"))
        cold.bring("notion", server.grant("other"))
        run = {
            ("run-once", "--force"): 0,
            ("status",): 0,
            ("events",): 0,
            ("token", "linear"): 0,
            ("headers", "linear"): 0,
            ("stdio", "linear"): 0,
            ("connect", "--list"): 0,
            ("health", "--listen", "127.0.0.1:9"): 1,
            ("doctor",): 0,
            ("completion", "bash"): 0,
            ("gateway",): 2,  # there is no key
            ("mirror",): 2,  # it needs a database
            ("store", "check"): 2,  # likewise
            ("encryption", "status"): 0,
            ("login", "asana", "http://127.0.0.1:9/mcp", "--no-browser"): 4,
            ("logout", "linear"): 0,
            ("remove", "notion"): 0,
        }
        assert {arguments: cold(*arguments).code for arguments in run} == run
        with running(cold) as process:
            heard(process, "watching")
            assert "stopped" in stopped(cold, process)
    commands = {arguments[0] for arguments in run} | {"import", "run", "demo"}  # test_readme_commands.py runs demo
    assert commands == set(cli.list_commands(click.Context(cli)))


def test_the_package_without_extras_says_what_to_install(refresher: Command) -> None:
    """If it failed, the command would end with a traceback where only the package for agents is installed."""
    # A fake: click cannot be imported, as where it is not installed.
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
        (("doctor",), ["NAME", "--offline", "--json", *(f"    {code}" for code in range(4))]),
        (
            ("login",),
            ["--no-browser", "--device", "--client-id", *(f"    {code}" for code in (0, 2, 3, 4, 6, 130)), "Examples"],
        ),
        (("connect",), ["NAME", "--for", "--url", "--list", "--json", *(f"    {code}" for code in (0, 2))]),
        (("logout",), ["NAME", "--keep-at-server", "RFC 7009"]),
        (("store",), ["init", "check", "move", "REFRESHER_STORE", "passfile"]),
        (("store", "init"), ["--json", *(f"    {code}" for code in (0, 2, 4))]),
        (("store", "check"), ["--json", *(f"    {code}" for code in (0, 1, 2))]),
        (("store", "move"), ["--to", "files", "Examples", *(f"    {code}" for code in (0, 2, 4, 6))]),
        (("encryption",), ["enable", "rekey", "disable", "status", "show", "openssl rand -base64 32"]),
        (("encryption", "enable"), ["SIGHUP", *(f"    {code}" for code in (0, 2, 4, 6))]),
        (("encryption", "status"), ["--json", *(f"    {code}" for code in (0, 1, 2))]),
        (("completion",), ["bash", "zsh", "fish", 'eval "$(refresher completion bash)"']),
    ],
)
def test_help_names_everything(refresher: Command, arguments: tuple[str, ...], words: list[str]) -> None:
    """If it failed, an option, a field or an exit code would be undocumented."""
    done = refresher(*arguments, "--help")
    assert done.code == 0
    assert [word for word in words if word not in done.stdout] == []


def test_help_works_with_a_broken_configuration(refresher: Command) -> None:
    """If it failed, a person with an invalid configuration could not read how to repair it."""
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
def test_a_wrong_usage_is_one_line_with_exit_code_2(refresher: Command, arguments: tuple[str, ...]) -> None:
    """If it failed, a typing error would end in a traceback, or a script would treat it as a failed rotation."""
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
def test_the_answer_to_a_mistake_contains_the_correct_command(
    refresher: Command, arguments: list[str], words: str
) -> None:
    """If it failed, a person would have to search the documentation after a typing error."""
    refresher.bring("linear", GRANT)
    refresher.bring("notion", GRANT | {"refresh_token": "another-refresh-token"})
    assert words in one_line(refresher(*arguments))


def test_a_name_with_a_dot_is_not_taken_for_a_url(refresher: Command) -> None:
    """If it failed, a grant with a dot in its name could not be logged in again by its name."""
    assert "did you mean" not in one_line(refresher("login", "linear.prod"))
