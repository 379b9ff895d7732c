"""The command connect: it prints what a person pastes, with real values, and the page shows the same."""

import ast
import json
import re
import shlex
import tomllib

import pytest

from refresher.cli.clients.client import Client, Values
from refresher.cli.connect import CLIENTS
from tests.support.api import API
from tests.support.command import Command, Done
from tests.support.documents import DOCUMENTS
from tests.support.recipes import EXAMPLE, MARK, PAGE, rendered
from tests.support.snippets import ACCESS, GRANT, accepts

KEYS = [client.key for client in CLIENTS]
ADDRESS = "https://mcp.example/mcp"

# What would end a string or a word, or change it.
HOSTILE = """/a "b"/$(id)/`id`/it's/\\n/{name}/%s/\x7f/\n/é\U0001f600; #"""


def test_the_page_shows_what_connect_prints() -> None:
    """If it failed, a reader of the page would paste something that no test has tried ('python -m tests.support.recipes' writes it)."""
    assert DOCUMENTS[PAGE].partition(MARK)[2] == rendered()


@pytest.mark.parametrize("client", CLIENTS, ids=KEYS)
def test_a_client_is_complete(client: Client) -> None:
    """If it failed, a person would not learn where the lines belong, or when a new token is used."""
    assert re.fullmatch(r"[a-z0-9-]+", client.key)
    assert KEYS.count(client.key) == 1
    assert client.picked_up.endswith(".")
    assert not client.where.endswith(".")
    assert client.snippet.endswith("\n")
    assert re.search(r"\{(name|headers|stdio)(:sh)?\}", client.snippet)


@pytest.mark.parametrize("client", CLIENTS, ids=KEYS)
def test_what_a_client_uses_is_in_its_lines(client: Client) -> None:
    """If it failed, the list would say that a client uses what its lines do not contain."""
    words = {
        "auth": "BearerAuth(",
        "client": "async_client(",
        "fetch": "refresherFetch(",
        "headers": " {headers:sh}",
        "stdio": '"{stdio}"',
        "gateway": "{gateway}",
    }
    assert words[client.by] in client.snippet
    assert ("BearerAuth(" in client.snippet) == (client.by == "auth")


def test_standard_output_is_the_snippet_alone(refresher: Command) -> None:
    """If it failed, the output could not be piped into a file."""
    refresher.import_grant("linear", GRANT | {"server_url": ADDRESS, "access_token": ACCESS, "expires_in": 3600})
    for client in CLIENTS:
        shown = refresher("connect", "linear", "--for", client.key)
        as_json = json.loads(refresher("connect", "linear", "--for", client.key, "--json").stdout)
        assert shown.code == 0, shown.stderr
        assert shown.stdout == as_json["snippet"]
        assert f"Put this into {client.where}. {client.picked_up}\n" in shown.stderr
        assert as_json["server_url"] == ADDRESS
        assert as_json["state_dir"] == str(refresher.state)
        assert as_json["refresher"].startswith("/")
        assert client.text(Values("linear", ADDRESS, as_json["refresher"], str(refresher.state))) == shown.stdout


def test_a_grant_without_an_address_needs_one(refresher: Command) -> None:
    """If it failed, a snippet would have no address, or the person would not learn how to give it."""
    key = KEYS[0]
    done = refresher("connect", "linear", "--for", key)
    assert (done.code, done.stdout) == (2, "")
    assert "--url" in done.stderr
    refresher.import_grant(
        "linear", GRANT | {"origins": ["https://mcp.example"], "access_token": ACCESS, "expires_in": 3600}
    )
    done = refresher("connect", "linear", "--for", key)
    assert (done.code, done.stdout) == (2, "")
    assert "--url" in done.stderr
    given = refresher("connect", "linear", "--for", key, "--url", ADDRESS)
    assert ADDRESS in given.stdout
    elsewhere = "https://other.example/mcp"
    for name, url, word in (
        ("linear", "mcp.example", "not an address"),
        ("../linear", ADDRESS, "not a valid name"),
        ("linear", elsewhere, "not for https://other.example: give --url an address at https://mcp.example"),
    ):
        done = refresher("connect", name, "--url", url, "--for", key)
        assert (done.code, done.stdout, done.stderr.count("\n"), word in done.stderr) == (2, "", 1, True), done.stderr
    refresher("remove", "linear")
    assert "linear was removed" in refresher("connect", "linear", "--for", key).stderr
    assert elsewhere in refresher("connect", "linear", "--for", key, "--url", elsewhere).stdout


def test_the_lines_for_another_address_work_as_printed(refresher: Command) -> None:
    """If it failed, a program would start a command that ends at once, or that tries the token at another address."""
    with API(accepts) as server:
        address = f"{server.url}/it's?a=b&c"
        token = {"access_token": ACCESS, "expires_in": 3600}
        refresher.import_grant("linear", GRANT | token | {"origins": [server.url]})
        named = {"refresh_token": "another", "server_url": f"{server.url}/mcp"}
        refresher.import_grant("named", GRANT | token | named)
        for name in ("linear", "named"):
            printed = refresher("connect", name, "--for", "codex", "--url", address).stdout
            words = shlex.split(tomllib.loads(printed)["mcp_servers"][name]["http_headers_helper"])
            assert json.loads(refresher(*words[1:]).stdout) == {"Authorization": f"Bearer {ACCESS}"}
            printed = refresher("connect", name, "--for", "cursor", "--url", address).stdout
            words = json.loads(printed)["mcpServers"][name]["args"]
            assert words[-4:] == ["stdio", name, "--url", address]
            assert refresher(*words).code == 0
        assert [(seen.path, seen.status) for seen in server.seen] == [("/it's?a=b&c", 200)] * 2
    same = refresher("connect", "named", "--for", "codex", "--url", f"{server.url}/mcp").stdout
    assert same == refresher("connect", "named", "--for", "codex").stdout


def test_the_list_names_every_client(refresher: Command) -> None:
    """If it failed, a person could not find out what to write after --for."""
    assert [line.split()[0] for line in refresher("connect", "--list").stdout.splitlines()] == KEYS
    listed = json.loads(refresher("connect", "--list", "--json").stdout)["clients"]
    assert [(each["client"], each["title"], each["by"]) for each in listed] == [
        (client.key, client.title, client.by) for client in CLIENTS
    ]
    for wrong in ((), ("linear",), ("linear", "--for", "nothing")):
        done = refresher("connect", *wrong)
        assert (done.code, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_directories_that_an_agent_cannot_guess_are_named(refresher: Command) -> None:
    """If it failed, an agent would look for its token in the default directory."""
    options = ["--state-dir", str(refresher.home / "state"), "--tokens-dir", str(refresher.home / "it's tokens")]
    done = refresher(*options, "connect", "linear", "--for", "openai-agents", "--url", ADDRESS)
    assert f"REFRESHER_STATE_DIR={refresher.home}/state\n" in done.stderr
    lines = [line.strip() for line in done.stderr.splitlines()]
    assert f"REFRESHER_TOKENS_DIR={refresher.home}/it's tokens" in [
        word for line in lines[-2:] for word in shlex.split(line)
    ]
    assert "REFRESHER_DEMANDS_DIR" not in done.stderr
    assert "REFRESHER_" not in refresher("connect", "linear", "--for", "openai-agents", "--url", ADDRESS).stderr


@pytest.mark.parametrize("key", ["codex", "claude-code", "gemini-cli", "opencode", "goose", "mcp-remote"])
def test_a_command_line_names_the_configuration(refresher: Command, key: str) -> None:
    """If it failed, the command that a client starts would look for the token in another directory."""
    refresher.home.joinpath("c.toml").write_text('tokens_dir = "published"\n')
    client = ("connect", "linear", "--for", key, "--url", ADDRESS)
    done = refresher("--config", "c.toml", *client)
    assert (done.code, "REFRESHER_" in done.stderr) == (0, False), done.stderr
    assert json.loads(refresher("--config", "c.toml", *client, "--json").stdout)["environment"] == {}
    words = shlex.split(re.sub(r"[][,{}]", " ", done.stdout.replace('"', " ")))
    if key == "mcp-remote":
        assert "--config" not in words
        return
    begin = words.index("--state-dir")
    options = ["--state-dir", str(refresher.state), "--config", f"{refresher.home}/c.toml"]
    options += ["--tokens-dir", f"{refresher.home}/published"]
    assert words[begin : begin + 7] == [*options, "headers" if key in ("codex", "claude-code") else "stdio"]
    given = ("--tokens-dir", str(refresher.tokens), "--demands-dir", "demands")
    assert f"{refresher.home}/demands" in refresher(*given, *client).stdout
    assert str(refresher.tokens) in refresher(*given, *client).stdout
    assert "-dir" not in refresher(*client).stdout.replace("--state-dir", "")


def test_the_lines_for_the_gateway_lead_to_the_gateway(refresher: Command) -> None:
    """If it failed, a client would send its key to an address where no gateway is, or a request to another server."""
    origins = ["https://mcp.example", "https://api.example:8443"]
    fields = {"server_url": ADDRESS, "origins": origins, "access_token": ACCESS, "expires_in": 3600}
    refresher.import_grant("linear", GRANT | fields)
    config = refresher.home / "c.toml"

    def connect(gateway: str, *more: str) -> Done:
        config.write_text(f'gateway = "{gateway}"\n')
        return refresher("--config", "c.toml", "connect", "linear", "--for", "mcp-remote", *more)

    for gateway, url, printed in (
        ("127.0.0.1:8800", ADDRESS, "127.0.0.1:8800/linear/mcp"),
        ("[::]:8800", ADDRESS, "[::1]:8800/linear/mcp"),
        ("localhost:8800", "https://API.example:8443/v1?k=1", "localhost:8800/linear/@api.example:8443/v1?k=1"),
    ):
        assert f'"http://{printed}"' in connect(gateway, "--url", url).stdout
    for gateway, url, word in (("unix:/run/g", ADDRESS, "unix socket"), ("[::1]:1", "https://x.example/", "not for")):
        done = connect(gateway, "--url", url)
        assert (done.code, done.stdout, done.stderr.count("\n"), word in done.stderr) == (2, "", 1, True), done.stderr
    default = refresher("connect", "linear", "--for", "mcp-remote")
    assert '"http://127.0.0.1:8765/linear/mcp"' in default.stdout
    at = refresher("connect", "new", "--for", "mcp-remote", "--url", "https://mcp.example/@owner/x/mcp")
    assert '"http://127.0.0.1:8765/new/@mcp.example/@owner/x/mcp"' in at.stdout
    environment = {"REFRESHER_GATEWAY": "127.0.0.1:8801"}
    other = refresher("connect", "new", "--for", "mcp-remote", "--url", ADDRESS, environment=environment)
    assert '"http://127.0.0.1:8801/new/mcp"' in other.stdout, other.stderr


def test_a_printed_command_finds_the_token_without_an_environment(refresher: Command) -> None:
    """If it failed, Codex, which clears the environment, would get no token."""
    refresher.home.joinpath("c.toml").write_text('tokens_dir = "it\'s here/tokens"\n')
    fields = GRANT | {"server_url": ADDRESS, "access_token": ACCESS, "expires_in": 3600}
    refresher("--config", "c.toml", "import", "linear", "--from", "-", stdin=json.dumps(fields))
    printed = refresher("--config", "c.toml", "connect", "linear", "--for", "codex").stdout
    words = shlex.split(tomllib.loads(printed)["mcp_servers"]["linear"]["http_headers_helper"])
    done = refresher(*words[1:-1])  # --verify asks the server
    assert json.loads(done.stdout) == {"Authorization": f"Bearer {ACCESS}"}, done.stderr


@pytest.mark.parametrize("word", [HOSTILE, "plain"])
def test_every_value_is_quoted_for_its_language(word: str) -> None:
    """If it failed, a path with a quote or a space would break a configuration, or run as a command."""
    values = Values("linear", word, word, word, ("--config", word))

    def text(snippet: str, language: str) -> str:
        return Client("x", "x", "headers", "x", snippet, language=language).text(values)  # type: ignore[arg-type]

    quoted = '{"a": "{server_url}", "b": "{refresher:sh} {options:sh} headers {name}", "c": ["{options}"]}\n'
    read = json.loads(text(quoted, "json"))
    options = ["--state-dir", word, "--config", word]
    command = [word, *options, "headers", "linear"]
    assert (read["a"], shlex.split(read["b"]), read["c"]) == (word, command, options)
    assert tomllib.loads(text('a = ["{options}"]\n', "toml")) == {"a": options}
    assert tomllib.loads(text('a = "{server_url}"\n', "toml")) == {"a": word}
    assert ast.literal_eval(text('["{server_url}", "{name}"]\n', "python")) == [word, "linear"]
    assert shlex.split(text("{refresher} {options} headers {name}\n", "sh")) == command


@pytest.mark.parametrize("client", CLIENTS, ids=KEYS)
def test_a_snippet_stays_whole_with_any_path(client: Client) -> None:
    """If it failed, the snippet of a client would put a value where it is not quoted."""
    text = client.text(Values("linear", HOSTILE, HOSTILE, HOSTILE, ("--config", HOSTILE)))
    if client.language == "python":
        ast.parse(text)
    elif client.language == "json":
        json.loads(text)
    elif client.language == "toml":
        tomllib.loads(text)


def test_a_path_that_no_file_can_hold_is_an_error(refresher: Command) -> None:
    """If it failed, the output would hold another path than that of the command."""
    odd = str(refresher.home / "caf\udce9")
    done = refresher("--state-dir", odd, "connect", "linear", "--for", "openai-agents", "--url", ADDRESS, "--json")
    assert done.code in (0, 2)
    assert "Traceback" not in done.stderr
    with pytest.raises(Exception, match="UTF-8"):
        Client("x", "x", "headers", "x", "{options}\n", language="sh").text(EXAMPLE._replace(state_dir=odd))
