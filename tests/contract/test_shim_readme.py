"""The snippets of shim/README.md work: each is found by what it contains."""

import json
import os
import shutil
import subprocess
import sys

import shim
import shim.mcp
from tests.conftest import need
from tests.support.api import API
from tests.support.command import Command
from tests.support.documents import DOCUMENTS, block
from tests.support.snippets import ACCESS, GRANT, accepts, published, python
from tests.support.stage import Stage

PAGE = "shim/README.md"


def test_the_example_of_events_works(refresher: Command) -> None:
    """A program that follows the page would not learn that its login is dead."""
    example = block(PAGE, "python", ".changes()")
    with API(accepts) as api:
        environment = published(refresher, api)
        refresher("remove", "linear")
        # It never ends by itself: its first line is what is waited for.
        process = subprocess.Popen([sys.executable, "-uc", example], env=environment, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        event = json.loads(process.stdout.readline())
        process.kill()
        process.communicate()
    assert event["needs_reauth"]
    assert "refresher login linear" in event["login_command"]


def test_the_example_of_the_client_that_reconnects_works(refresher: Command) -> None:
    """An agent's author would move to it and be left with a broken program."""
    example = block(PAGE, "python", 'ReconnectingClient(os.environ["URL"], "linear")')
    with Stage() as stage:
        stage.play(tokens=[ACCESS])
        fields = {"server_url": stage.url, "access_token": ACCESS, "expires_in": 3600}
        refresher.import_grant("linear", GRANT | fields)
        environment = {"HOME": str(refresher.home), "PATH": os.environ["PATH"], "URL": stage.url}
        done = python(example, environment)
    assert done.stdout == "3\n", done.stderr


def test_the_recipe_for_requests_works(refresher: Command) -> None:
    """Programs on requests could not use a token, or would send it to another server."""
    recipe = block(PAGE, "python", "import requests")
    call = "import os\nprint(session.get(os.environ['URL']).status_code, session.get(os.environ['OTHER']).status_code)"
    with API(accepts) as api, API(accepts) as other:
        done = python(f"{recipe}\n{call}", published(refresher, api) | {"OTHER": f"{other.origin}/"})
    assert done.stdout == "200 401\n", done.stderr
    assert [seen.token for seen in other.seen] == [None]


def test_the_shell_example_works_and_shows_no_token_to_others(refresher: Command) -> None:
    """Scripts could not use a token, or would show it in the list of processes."""
    for part in ("jq", "curl"):
        need(None if shutil.which(part) else f"{part} is not installed")
    example = block(PAGE, "bash")
    with API(accepts) as api:
        environment = published(refresher, api)
        done = subprocess.run(["bash", "-euc", example], env=environment, capture_output=True, text=True, check=False)
    assert api.statuses() == [200], done.stderr
    assert "$(" not in example, "a token would become an argument"


def test_every_problem_is_explained() -> None:
    """A program's author would meet an error that nobody has explained."""
    errors = {
        name
        for package in (shim, shim.mcp)
        for name in package.__all__
        if isinstance(getattr(package, name), type) and issubclass(getattr(package, name), Exception)
    }
    assert {name for name in errors - {"ShimError"} if f"`{name}`" not in DOCUMENTS[PAGE]} == set()
