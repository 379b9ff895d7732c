"""The reference in refresher/README.md: complete, and its examples work."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from refresher.cli.main import cli
from refresher.config import resolve
from refresher.daemon.readiness import Health
from refresher.doctor.finding import GRAVITIES, KINDS, Finding
from refresher.grants.outputs import FileOutput, SecretOutput
from refresher.grants.policy import MAX_WAIT
from refresher.grants.providers import PROFILES
from refresher.operations.import_request import ImportRequest
from refresher.operations.result import EXIT_CODES
from tests.support.command import Command
from tests.support.documents import DOCUMENTS, ROOT, block, section
from tests.support.snippets import GRANT

PAGE = "refresher/README.md"
CONTEXT = click.Context(cli, info_name="refresher")
COMMANDS = {name: command for name in cli.list_commands(CONTEXT) if (command := cli.get_command(CONTEXT, name))}


def options(command: click.Command) -> set[str]:
    """Return the long options of a command, and of the commands below it that its section is about."""
    below = (
        command.commands.values()
        if isinstance(command, click.Group) and command.name in ("store", "encryption")
        else ()
    )
    return {opt for each in (command, *below) for parameter in each.params for opt in parameter.opts if opt[:2] == "--"}


def test_each_command_has_a_section_in_the_order_of_the_help() -> None:
    """If it failed, a user who comes from the help would not find the command."""
    headings = re.findall(r"^## (.*)$", DOCUMENTS[PAGE], re.MULTILINE)
    assert headings[: len(COMMANDS)] == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_section_names_the_options_of_its_command_and_no_others(name: str) -> None:
    """If it failed, a user would not learn of an option, or type one that the command does not know."""
    named = set(re.findall(r"`(--[\w-]+)", section(PAGE, name)))
    others = {"listen"} if name == "health" else set()  # an option of `run` that the section is about
    known = options(COMMANDS[name]) | options(cli) | {f"--{option}" for option in others}
    assert options(COMMANDS[name]) - {"--help"} <= named
    assert named <= known


def test_the_table_of_settings_is_complete() -> None:
    """If it failed, a setting could only be found in the source."""
    text = section(PAGE, "Configuration")
    assert {option for option in options(cli) if f"`{option}" not in text} == set()
    variables = {str(parameter.envvar) for command in (cli, *COMMANDS.values()) for parameter in command.params if getattr(parameter, "envvar", None)}  # fmt: skip
    assert {variable for variable in variables if f"`{variable}`" not in DOCUMENTS[PAGE]} == set()
    keys = re.findall(r"^(\w+) = ", block(PAGE, "toml", "log_format"), re.MULTILINE)
    assert keys
    assert {key for key in keys if f"`{key}`" not in text} == set()


def test_every_outcome_and_exit_code_is_in_the_table() -> None:
    """If it failed, the author of a script would get an outcome that the page does not explain."""
    # After a signal the code is 128 + its number; the table of the code has that of Ctrl-C.
    rows = re.findall(
        r"^\| `(\w+)` \|.*\| (?:128 \+ signal \(Ctrl-C: )?(\d+)\)? \|$",
        section(PAGE, "Outcomes and exit codes"),
        re.MULTILINE,
    )
    assert {(word, int(code)) for word, code in rows} == set(EXIT_CODES.items())


@pytest.mark.parametrize("name", COMMANDS)
def test_the_exit_codes_of_a_section_are_those_of_the_help(name: str) -> None:
    """If it failed, the page and the help would disagree about an exit code."""
    codes = set(re.findall(r"^ +(\d+) +", COMMANDS[name].epilog or "", re.MULTILINE))
    text = section(PAGE, "Outcomes and exit codes" if name == "run-once" else "token" if name == "headers" else name)
    explained = "\n".join(re.findall(r"^\|.*\|$|^Exit codes: (?:.+\n)+", text, re.MULTILINE))
    assert {code for code in codes if not re.search(rf"(?:\| |: |; |;\n){code} ", explained)} == set()


def test_every_finding_of_the_doctor_is_in_the_table() -> None:
    """If it failed, the author of a script would get a code that the page does not explain."""
    text = section(PAGE, "doctor")
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", text, re.MULTILINE)
    assert rows == [(code, kind.gravity) for code, kind in KINDS.items()]
    gravities = {word: int(code) for code, word in re.findall(r"^\| (\d) \| (\w+) \|", text, re.MULTILINE)}
    assert gravities == GRAVITIES
    assert f"{{{', '.join(json.dumps(key) for key in Finding.__struct_fields__)}}}" in text


def test_every_key_of_an_import_is_explained() -> None:
    """If it failed, a key could only be found in the source."""
    text = section(PAGE, "import")
    assert [key for key in ImportRequest.__struct_fields__ if f"`{key}`" not in text] == []


def test_every_server_with_a_profile_is_named() -> None:
    """If it failed, a user could not see whether refresher knows a server."""
    text = " ".join(section(PAGE, "Servers differ").split())
    assert [profile.name for profile in PROFILES if profile.name not in text] == []


def test_json_output_has_the_keys_on_the_page(refresher: Command) -> None:
    """If it failed, a program that follows the page would look for keys that do not exist."""
    page = " ".join(DOCUMENTS[PAGE].split())
    refresher.import_grant("linear", GRANT | {"server_url": "https://mcp.example/mcp"})
    (grant,) = json.loads(refresher("status", "--json").stdout)["grants"]
    assert f'{{"grants": [{{{", ".join(json.dumps(key) for key in grant)}}}]}}' in page
    run = json.loads(refresher("run-once", "--json").stdout)
    (result,) = run["results"]
    assert f'{{"results": [{{{", ".join(json.dumps(key) for key in result)}}}], "exit_code"}}' in page
    (grant,) = json.loads(refresher("status", "--json").stdout)["grants"]
    assert f"{{{', '.join(json.dumps(key) for key in grant['error'])}}}" in page
    assert f"{{{', '.join(json.dumps(key) for key in Health.__struct_fields__)}}}" in page
    nobody = json.loads(refresher("health", "--json", "--listen", "127.0.0.1:1").stdout)
    assert f"{{{', '.join(json.dumps(key) for key in nobody)}}}" in page


def test_the_example_of_an_import_is_accepted(refresher: Command) -> None:
    """If it failed, an import file that a user copies from the page would be refused."""
    refresher.import_grant("linear", json.loads(block(PAGE, "json", "refresh_token")))
    assert refresher("status").stdout.splitlines()[1].startswith("linear")


def test_the_examples_of_a_configuration_are_accepted(refresher: Command, tmp_path: Path) -> None:
    """If it failed, a configuration that a user copies from the page would be refused, or have no effect."""
    config = refresher.home / ".config/refresher/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(block(PAGE, "toml", "log_format"))
    refresher.import_grant("linear", GRANT | {"server_url": "https://mcp.example/mcp"})
    assert (refresher.home / "grants-of-work/grants/linear.json").exists()
    line = refresher("run-once").stderr.splitlines()[0]
    assert set(json.loads(line)) == {"at", "level", "message"}
    shared = tmp_path / "shared.toml"
    shared.write_text(block(PAGE, "toml", "tokens_group").replace('"agents"', '"0"'))
    assert resolve({}, str(shared)).directories.group == 0


def test_the_longest_retry_after_is_on_the_page() -> None:
    """If it failed, a person would expect a request to come as late as the server asks."""
    (sentence,) = re.findall(r"If the server answers with `Retry-After`,[^.]*\.", DOCUMENTS[PAGE])
    assert ("an hour at most" in sentence, MAX_WAIT) == (True, 3600)


def test_the_line_for_the_shell_completes_names(refresher: Command) -> None:
    """If it failed, the Tab key would complete nothing, or each new shell would print an error."""
    refresher.import_grant("linear", GRANT | {"server_url": "https://mcp.example/mcp"})
    environment = refresher.environment | {"PATH": f"{Path(sys.executable).parent}:{refresher.environment['PATH']}"}
    tab = "COMP_WORDS=(refresher status li); COMP_CWORD=2; _refresher_completion refresher li status; echo ${COMPREPLY[@]}"
    done = subprocess.run(
        ["bash", "-ec", block(PAGE, "bash") + tab], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("linear\n", "")


def test_the_messages_about_a_loss_are_quoted_exactly() -> None:
    """If it failed, a user would search the page for a message, and not find it."""
    rows = [line.split("|") for line in section(PAGE, "What can still be lost").splitlines() if line.startswith("| ")]
    quoted = [words for row in rows[1:] for words in re.findall(r"`([a-zA-Z_ :]+?)(?: \.\.\.)?`", row[3])]
    assert len(quoted) > 5
    sources = " ".join(path.read_text() for path in (ROOT / "refresher").rglob("*.py"))
    said = re.sub(r'"\s*\n\s*f?"', "", sources)
    assert [words for words in quoted if words not in said and words not in COMMANDS] == []


def test_the_outputs_of_the_page_are_written_and_each_format_and_key_is_explained(refresher: Command) -> None:
    """If it failed, the example would be refused, or a format or a key could only be found in the source."""
    text = section(PAGE, "Outputs")
    (refresher.home / "outputs").mkdir()
    file = refresher.home / ".config/refresher/config.toml"
    file.parent.mkdir(parents=True)
    snippet = block(PAGE, "toml", "[[outputs]]")
    file.write_text(
        snippet.replace("/run/agents/", f"{refresher.home}/outputs/").replace('"agents"', str(os.getegid()))
    )
    for name in ("linear", "git"):
        fields = {
            "server_url": "https://mcp.example/mcp",
            "access_token": f"access-token-of-{name}",
            "expires_in": 3600,
        }
        done = refresher.import_grant(name, GRANT | fields | {"refresh_token": f"refresh-token-of-{name}"})
        assert done.stderr == ""
    assert {path.name: path.read_text() for path in (refresher.home / "outputs").iterdir()} == {
        "linear.env": "LINEAR_TOKEN=access-token-of-linear\n",
        "netrc": "machine git.example login oauth2 password access-token-of-git\n",
    }
    known = {key for kind in (FileOutput, SecretOutput) for key in kind.__struct_fields__}
    assert {key for key in known if f"`{key}`" not in text} == set()
    file.write_text('[[outputs]]\ngrant = "linear"\nformat = "none"\n')
    formats = refresher("status").stderr.partition("format must be one of ")[2].strip().split(", ")
    assert re.findall(r"^\| `([\w-]+)` \|", text, re.MULTILINE)[:5] == formats
