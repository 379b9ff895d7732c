"""Move in: logins from files of other programs, and a rotation of each at its server."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from refresher import config
from refresher.cli.move_in import Choice, chosen, require_unchanged
from refresher.common.errors import ImportRefused
from tests.support.cli import one_line
from tests.support.command import Command
from tests.support.kept_logins import PLACES, Programs, issue, rotates
from tests.support.mcp_login import MCPLogin

_STOPS = {
    "claude-code": "'claude mcp remove demo'",
    "codex": "'codex mcp logout demo'",
    "opencode": "'opencode mcp logout demo'",
    "gemini-cli": "'gemini mcp remove demo'",
    "hermes": "'hermes mcp remove demo'",
    "mcp-remote": "_tokens.json",
    "fastmcp": "_tokens-",
}


@pytest.fixture(scope="module")
def server() -> Iterator[MCPLogin]:
    with MCPLogin() as running:
        yield running


@pytest.fixture
def programs(refresher: Command, tmp_path_factory: pytest.TempPathFactory) -> Programs:
    return Programs(tmp_path_factory.mktemp("programs"), refresher)


@pytest.mark.parametrize("program", PLACES)
def test_a_login_moves_in_and_rotates(refresher: Command, programs: Programs, server: MCPLogin, program: str) -> None:
    """If it failed, a login of this program could not move, or two programs would go on to use its refresh token."""
    issued = issue(server, secret=program == "mcp-remote")
    place = programs.keep(program, issued)
    before = {path: path.read_bytes() for path in programs.home.rglob("*") if path.is_file()}
    # FastMCP has no place of its own.
    where = ("--file", str(place)) if program == "fastmcp" else ("--format", program)
    done = programs.run("import", "linear", *where, "--server", server.url)
    assert done.code == 0, done.stderr
    assert _STOPS[program] in done.stdout
    assert {path: path.read_bytes() for path in programs.home.rglob("*") if path.is_file()} == before
    grant = refresher.grant("linear")
    assert (grant.server_url, grant.client_id, grant.resource) == (server.url, issued.client_id, server.url)
    assert grant.token_endpoint == f"{server.issuer}/token"
    assert refresher.token("linear").access_token == issued.access_token
    if program != "fastmcp":  # its fixture was written long ago
        assert grant.expires_at == pytest.approx(issued.expires_at, abs=1)
    rotates(programs, refresher, "linear", server)
    assert refresher.refresh_token("linear") != issued.refresh_token
    refused = programs.run("import", "other", *where, "--server", server.url)
    assert "linear has already spent this refresh token" in one_line(refused)


def test_a_login_that_refresher_holds_is_refused_under_another_name(
    programs: Programs, server: MCPLogin, refresher: Command
) -> None:
    """If it failed, two names would revoke each other's login."""
    programs.keep("opencode", issue(server))
    assert programs.run("import", "linear", "--format", "opencode").code == 0
    (row,) = programs.rows()
    assert (row["grant"], row["command"]) == ("linear", None)
    assert "linear holds this refresh token already" in one_line(programs.run("import", "b", "--format", "opencode"))
    assert programs.run("import", "linear", "--format", "opencode", "--replace").code == 0


def test_the_list_shows_each_login_without_secrets(programs: Programs, server: MCPLogin) -> None:
    """If it failed, a person would not see a login, its command would not work, or a secret would be shown."""
    for program in PLACES:
        programs.keep(program, issue(server))
    rows = {row["program"]: row for row in programs.rows()}
    assert rows.keys() == PLACES.keys() - {"fastmcp"}
    assert all(row["refresh_token"] and row["problem"] is None for row in rows.values())
    for row in (rows["claude-code"], rows["hermes"]):
        _, *command = row["command"].split()
        done = programs.run(*(server.url if word == "URL" else word for word in command), "--replace")
        assert done.code == 0, done.stderr
    shown = programs.run("import", "--list").stdout
    assert f"claude-code {server.url} (demo)\n" in shown
    assert "refresher has it already" in shown


def test_one_of_several_logins_is_chosen_by_its_server(programs: Programs, server: MCPLogin) -> None:
    """If it failed, the login of another server would be imported under this name."""
    path = programs.keep("claude-code", issue(server))
    document = json.loads(path.read_text())
    (entry,) = document["mcpOAuth"].values()
    document["mcpOAuth"]["other|0"] = entry | {"serverName": "other", "serverUrl": "https://mcp.example/mcp?key=hidden"}
    path.write_text(json.dumps(document))
    done = programs.run("import", "linear", "--format", "claude-code")
    assert done.code == 2
    assert "2 logins were found" in done.stderr
    assert "--server https://mcp.example/mcp\n" in done.stderr
    assert "hidden" not in done.stderr
    assert programs.run("import", "linear", "--format", "claude-code", "--server", server.url).code == 0


def test_a_login_without_refresh_token_is_refused(programs: Programs, server: MCPLogin, refresher: Command) -> None:
    """If it failed, a grant would be stored that ends with its access token."""
    path = programs.keep("codex", issue(server))
    path.write_text(path.read_text().replace('"refresh_token"', '"other_token"'))
    assert "codex keeps no refresh token" in one_line(programs.run("import", "linear", "--format", "codex"))
    (row,) = programs.rows()
    assert (row["problem"], row["command"]) == ("it has no refresh token", None)
    assert not (refresher.state / "grants/linear.json").exists()


@pytest.mark.parametrize("program", ["mcp-remote", "hermes", "fastmcp"])
def test_a_wrong_server_gets_no_token(programs: Programs, server: MCPLogin, refresher: Command, program: str) -> None:
    """If it failed, a mistyped --server would send the refresh token to another server."""
    place = programs.keep(program, issue(server))
    with MCPLogin() as other:
        (file,) = (path for path in place.rglob("*.json") if '"refresh_token": "' in path.read_text())
        done = programs.run("import", "linear", "--file", str(file), "--format", program, "--server", other.url)
        assert "names another authorization server" in one_line(done)
        assert other.seen()["refreshed"] == 0
    assert not (refresher.state / "grants/linear.json").exists()


def test_the_issuer_of_the_file_gets_the_refresh_token(
    programs: Programs, server: MCPLogin, refresher: Command
) -> None:
    """If it failed, an MCP server that names another authorization server today would get the refresh tokens of this one."""
    with MCPLogin() as before:
        issued = issue(before)._replace(server_url=server.url)
        programs.keep("claude-code", issued)
        done = programs.run("import", "linear", "--format", "claude-code")
        assert done.code == 0, done.stderr
        grant = refresher.grant("linear")
        assert (grant.issuer, grant.token_endpoint) == (f"{before.issuer}/", f"{before.issuer}/token")
        assert programs.run("run-once", "--force").code == 0
        assert (before.seen()["refreshed"], before.seen()["reused"]) == (1, 0)


def test_a_damaged_file_is_a_row_with_words(programs: Programs, server: MCPLogin) -> None:
    """If it failed, one damaged file would hide the logins of all other programs."""
    programs.keep("opencode", issue(server))
    damaged = programs.home / PLACES["codex"]
    damaged.parent.mkdir()
    damaged.write_text('{"demo": {"refresh')
    (programs.home / PLACES["gemini-cli"]).mkdir(parents=True)
    rows = {row["program"]: row for row in programs.rows()}
    assert rows["codex"]["problem"] == "it is not valid JSON"
    assert rows["opencode"]["command"]
    assert "cannot be imported: it is not valid JSON" in programs.run("import", "--list").stdout
    assert f"{damaged}: it is not valid JSON" in one_line(programs.run("import", "a", "--format", "codex"))


def test_a_server_that_does_not_answer_changes_nothing(programs: Programs, refresher: Command) -> None:
    """If it failed, an import without network would store a grant without an endpoint, or end in a traceback."""
    with MCPLogin() as server:
        programs.keep("claude-code", issue(server)._replace(server_url=f"{server.url}?key=hidden"))
    line = one_line(programs.run("import", "linear", "--format", "claude-code"), 4)
    assert "Import again later" in line
    assert "hidden" not in line
    assert not (refresher.state / "grants/linear.json").exists()


def test_usage(programs: Programs, tmp_path: Path) -> None:
    """If it failed, a wrong command would do something else than what was asked for."""
    assert "--format" in one_line(programs.run("import", "linear"))
    assert "--from" in one_line(programs.run("import", "linear", "--from", "x.json", "--format", "codex"))
    assert "no place of its own" in one_line(programs.run("import", "linear", "--format", "mcp-sdk"))
    assert "keyring" in one_line(programs.run("import", "linear", "--format", "codex"))
    (tmp_path / "x.json").write_text("{}")
    assert "not a file that refresher" in one_line(programs.run("import", "a", "--file", str(tmp_path / "x.json")))
    done = programs.run("import", "--list")
    assert (done.code, done.stdout) == (0, "")
    assert "no logins" in done.stderr


def test_a_login_that_its_program_changes_meanwhile_is_refused(
    programs: Programs, server: MCPLogin, refresher: Command
) -> None:
    """If it failed, refresher would store a refresh token that the program has just spent, and end the login."""
    place = programs.keep("opencode", issue(server))
    choice = Choice("opencode", place, None)
    login = chosen(config.resolve({"state_dir": str(refresher.state)}, None), "linear", choice)
    require_unchanged("linear", choice, login)
    written = json.loads(place.read_text())
    written["demo"]["tokens"]["refreshToken"] = "another-refresh-token"
    place.write_text(json.dumps(written))
    with pytest.raises(ImportRefused, match="has changed this login in"):
        require_unchanged("linear", choice, login)
    place.write_text("{}")
    with pytest.raises(ImportRefused, match="or ended it"):
        require_unchanged("linear", choice, login)


def test_a_login_without_an_address_is_not_guessed(programs: Programs, server: MCPLogin) -> None:
    """If it failed, a wrong --server would send the refresh token of one login to the server of another (I8)."""
    place = programs.keep("opencode", issue(server))
    written = json.loads(place.read_text())
    written["unnamed"] = {key: value for key, value in written["demo"].items() if key != "serverUrl"}
    place.write_text(json.dumps(written))
    done = programs.run("import", "linear", "--format", "opencode", "--server", "https://typo.example/mcp")
    assert done.code == 2
    assert "does not say for which server unnamed is" in one_line(done)


def test_the_list_says_that_the_program_must_be_quit(programs: Programs, server: MCPLogin) -> None:
    """If it failed, a program would refresh its login after the import, and both would lose it."""
    programs.keep("opencode", issue(server))
    assert "Quit a program before you import its login" in programs.run("import", "--list").stderr
    assert "quit that program first" in programs.run("import", "--help").stdout


def test_each_printed_command_selects_its_login(programs: Programs, server: MCPLogin, refresher: Command) -> None:
    """If it failed, a person with two logins of one address would be sent round in a circle."""
    place = programs.keep("opencode", issue(server))
    written = json.loads(place.read_text())
    written["second"] = json.loads(json.dumps(written["demo"]))
    written["second"]["tokens"]["refreshToken"] = issue(server).refresh_token
    written["third"] = json.loads(json.dumps(written["demo"]))
    written["third"]["serverUrl"] += "?project=1"
    written["third"]["tokens"]["refreshToken"] = issue(server).refresh_token
    place.write_text(json.dumps(written))
    rows = programs.rows()
    assert [row["command"].split()[-2:] for row in rows] == [["--server", row["entry"]] for row in rows]
    for row in rows[:2]:
        _, *words = row["command"].split()
        assert programs.run(*words).code == 0
        assert refresher.refresh_token(words[1]) == written[row["entry"]]["tokens"]["refreshToken"]


@pytest.mark.parametrize("program", ["claude-code", "codex", "opencode", "hermes"])
def test_the_directory_of_a_program_can_be_named(programs: Programs, server: MCPLogin, program: str) -> None:
    """If it failed, the directory that the documents name would be said to hold no logins."""
    place = programs.keep(program, issue(server))
    folder = place.parent if place.is_file() else place
    folder = folder.parent if program == "hermes" and folder.name == "mcp-tokens" else folder
    for more in ((), ("--format", program)):
        done = programs.run("import", "--list", "--file", str(folder), *more, "--json")
        assert [row["program"] for row in json.loads(done.stdout)["logins"]] == [program], (more, done)


def test_files_that_are_not_read_are_named(programs: Programs, server: MCPLogin) -> None:
    """If it failed, a login among many files would be said not to exist."""
    place = programs.keep("mcp-remote", issue(server))
    folder = place if place.is_dir() else place.parent
    folder = next(folder.rglob("*_tokens.json")).parent
    for number in range(1_001):
        (folder / f"{number:032x}_tokens.json").write_text("{}")
        (folder / f"{number:032x}_code_verifier.txt").write_text("x")
    problems = [row["problem"] or "" for row in programs.rows() if row["file"] == str(folder)]
    assert problems == ["has 2 more files, which were not read: name one of them with --file"]


def test_an_expired_token_without_a_time_is_left_behind(
    programs: Programs, server: MCPLogin, refresher: Command
) -> None:
    """If it failed, a login whose program wrote 0 as the end of its access token could not move in."""
    place = programs.keep("opencode", issue(server))
    written = json.loads(place.read_text())
    written["demo"]["tokens"]["expiresAt"] = 0
    place.write_text(json.dumps(written))
    url = server.url.replace("http://", "HTTP://")
    assert programs.run("import", "linear", "--format", "opencode", "--server", url).code == 0
    assert refresher.grant("linear").access_token is None
