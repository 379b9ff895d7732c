"""The snippets of shim/README.md work: each is found by what it contains."""

import json
import os
import shutil
import subprocess
import sys
from typing import get_args

import shim
import shim.mcp
from shim import Event, FileTokenSource, ReauthorizationRequired
from shim.mcp._client_events import EventName
from shim.mcp._status import State
from tests.conftest import need
from tests.support.api import API
from tests.support.command import Command, wait_until
from tests.support.documents import DOCUMENTS, ROOT, block
from tests.support.snippets import ACCESS, GRANT, accepts, published, python
from tests.support.stage import Stage

PAGE = "shim/README.md"


def test_the_example_of_events_works(refresher: Command) -> None:
    """If it failed, a program that follows the page would not learn that its login is dead."""
    example = block(PAGE, "python", ".changes()")
    with API(accepts) as api:
        environment = published(refresher, api)
        refresher("remove", "linear")
        # The program does not end: the test waits for its first line.
        process = subprocess.Popen([sys.executable, "-uc", example], env=environment, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        event = json.loads(process.stdout.readline())
        process.kill()
        process.communicate()
    assert event["needs_reauth"]
    assert "refresher login linear" in event["login_command"]


def _reconnecting(refresher: Command, stage: Stage) -> dict[str, str]:
    """Publish a token for an MCP server; return the environment of a program of the same user."""
    stage.play(tokens=[ACCESS])
    fields = {"server_url": stage.url, "access_token": ACCESS, "expires_in": 3600}
    refresher.import_grant("linear", GRANT | fields)
    return {"HOME": str(refresher.home), "PATH": os.environ["PATH"], "URL": stage.url}


def test_the_mcp_client_works(refresher: Command) -> None:
    """If it failed, the author of an agent would copy a client that does not work."""
    example = block(PAGE, "python", '    async with ReconnectingClient(os.environ["URL"], "linear")')
    with Stage() as stage:
        done = python(example, _reconnecting(refresher, stage))
    assert done.stdout == "{'result': 3}\n", done.stderr


def test_the_subscription_of_the_page_comes_back(refresher: Command) -> None:
    """If it failed, an agent that follows the page would miss that a tool is new."""
    with Stage() as stage:
        environment = _reconnecting(refresher, stage)
        example = block(PAGE, "python", "client.listen(")
        process = subprocess.Popen([sys.executable, "-c", example], env=environment, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            wait_until(lambda: stage.log()["listening"], "the program listens")
            stage.play(cut_streams=True)
            assert "'add'" in process.stdout.readline()
            wait_until(lambda: stage.log()["listening"], "the program listens again")
            stage.stop()
            stage.start(ACCESS)
            assert "'add'" in process.stdout.readline()
        finally:
            process.kill()
            process.communicate()


def test_the_client_of_a_stdio_server_works(refresher: Command) -> None:
    """If it failed, the tools of a stdio server would get no token."""
    refresher.import_grant("linear", GRANT | {"server_url": "https://mcp.example/mcp", "access_token": ACCESS})
    server = [str(ROOT / "tests/servers/mcp_child.py"), str(refresher.home / "place")]
    example = block(PAGE, "python", "StdioServerParameters")
    for words, ours in (
        ('command="npx", args=["example-mcp-server"]', f"command={sys.executable!r}, args={server!r}"),
        ("API_TOKEN", "STAGE_TOKEN"),
    ):
        assert words in example
        example = example.replace(words, ours)
    done = python(example, {"HOME": str(refresher.home), "PATH": os.environ["PATH"]})
    assert "'whoami'" in done.stdout, done.stderr


def test_the_two_lines_and_the_standard_library_work(refresher: Command) -> None:
    """If it failed, the first code that the author of an agent copies would not run."""
    call = "import asyncio, os\nprint(asyncio.run(client.get(os.environ['URL'])).status_code)"
    with API(accepts) as api:
        environment = published(refresher, api)
        assert python(f"{block(PAGE, 'python', 'client = async_client')}\n{call}", environment).stdout == "200\n"
        assert python(block(PAGE, "python", "urllib.request"), environment).stdout == "200\n"


def test_the_json_for_a_model_is_as_shown() -> None:
    """If it failed, a program that reads the JSON would look for keys that do not exist."""
    error = ReauthorizationRequired("linear", code="invalid_grant", description="revoked", server="https://mcp.example")
    assert json.loads(error.as_json()) == json.loads(block(PAGE, "json"))


def test_the_recipe_for_requests_works(refresher: Command) -> None:
    """If it failed, programs on requests could not use a token, or would send it to another server."""
    recipe = block(PAGE, "python", "import requests")
    call = "import os\nprint(session.get(os.environ['URL']).status_code, session.get(os.environ['OTHER']).status_code)"
    with API(accepts) as api, API(accepts) as other:
        done = python(f"{recipe}\n{call}", published(refresher, api) | {"OTHER": f"{other.origin}/"})
    assert done.stdout == "200 401\n", done.stderr
    assert [seen.token for seen in other.seen] == [None]


def test_the_shell_example_works_and_shows_no_token_to_others(refresher: Command) -> None:
    """If it failed, scripts could not use a token, or would show it in the list of processes."""
    for part in ("jq", "curl"):
        need(None if shutil.which(part) else f"{part} is not installed")
    example = block(PAGE, "bash", "curl")
    with API(accepts) as api:
        environment = published(refresher, api)
        done = subprocess.run(["bash", "-euc", example], env=environment, capture_output=True, text=True, check=False)
    assert api.statuses() == [200], done.stderr
    assert "$(" not in example, "a token would become an argument"


def test_the_demand_of_the_shell_example_is_valid(refresher: Command) -> None:
    """If it failed, a demand of a program in another language would have no effect."""
    need(None if shutil.which("jq") else "jq is not installed")
    with API(accepts) as api:
        environment = published(refresher, api)
        subprocess.run(["bash", "-euc", block(PAGE, "bash", "touch")], env=environment, check=True)
    token = FileTokenSource("linear", tokens_dir=refresher.tokens).current()
    assert token is not None
    assert [path.name for path in (refresher.state / "demands").iterdir()] == [f"linear.{token.generation}"]


def test_every_problem_is_explained() -> None:
    """If it failed, the author of a program would get an error that the page does not explain."""
    errors = {
        name
        for package in (shim, shim.mcp)
        for name in package.__all__
        if isinstance(getattr(package, name), type) and issubclass(getattr(package, name), Exception)
    }
    assert {name for name in errors - {"ShimError"} if f"`{name}`" not in DOCUMENTS[PAGE]} == set()


def test_every_state_and_event_is_explained() -> None:
    """If it failed, the author of a program would get a state or an event that the page does not explain."""
    words = {*get_args(State), *get_args(EventName), *(kind.__name__ for kind in get_args(Event))}
    assert {word for word in words if f"`{word}`" not in DOCUMENTS[PAGE]} == set()
