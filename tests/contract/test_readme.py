"""Every command and every claim of the README that a program can check."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import shim
import shim.mcp
from refresher.cli.login import login
from refresher.grants.providers import PROFILES
from refresher.operations.import_request import Brought
from refresher.operations.result import EXIT_CODES
from tests.conftest import need
from tests.support.api import API
from tests.support.browser import as_browser
from tests.support.command import Command, wait_until
from tests.support.daemon import heard
from tests.support.mcp_login import MCPLogin
from tests.support.oidc import OIDC
from tests.support.stage import Stage

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()
GRANT = {
    "token_endpoint": "http://127.0.0.1:9/token",
    "client_id": "client",
    "refresh_token": "refresh-token-of-the-readme",
}


def blocks(language: str) -> list[str]:
    """Return the README's code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_first_command_shows_it_and_the_next_ones_keep_a_login_fresh(
    refresher: Command, own_oidc: Callable[..., OIDC]
) -> None:
    """If it failed, the first things a new user types would not work."""
    install, _ = blocks("sh")
    checkout = refresher.home / "checkout"
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    for name in tracked or ["pyproject.toml", "README.md"]:
        if name.startswith(("refresher/", "shim/", "pyproject.toml", "README.md")):
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, checkout / name)
    # Only what a package index needs may pass from the tester's environment.
    passed = {
        name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "HTTP", "NO_PROXY"))
    }
    # To compile all packages takes longer than all else here; Python compiles what it imports.
    environment = {**passed, "PIP_NO_COMPILE": "1", "HOME": str(refresher.home), "PATH": os.environ["PATH"]}

    def type_in(command: str) -> str:
        done = subprocess.run(
            ["bash", "-euc", command], cwd=checkout, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "not one call failed" in type_in(install)
    assert not refresher.state.exists(), "the demo has touched the user's own grants"
    log_in, watch = re.findall(r"^\.venv/bin/refresher .*$", README, re.MULTILINE)
    with MCPLogin() as server:
        environment |= as_browser("person")
        assert "logged in: linear" in type_in(log_in.replace("https://mcp.linear.app/mcp", server.url))
    process = subprocess.Popen(
        watch.split(), cwd=checkout, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert "watching 1 grant" in heard(process, "watching")[-1]
    process.terminate()
    assert refresher.finish(process).code == 0


def _daemons(home: Path) -> list[int]:
    """Return the processes of ``refresher run`` that live in ``home``."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            ours = f"HOME={home}".encode() in (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if ours and b"run" in words and b"flock" not in words:
            found.append(int(process.name))
    return found


def test_the_line_for_the_profile_starts_one_daemon_however_often_one_logs_in(refresher: Command) -> None:
    """If it failed, there would be no daemon after a login, or one more after each."""
    (line,) = blocks("profile")
    here = line.replace("/path/to/.venv/bin/", f"{Path(sys.executable).parent}/")
    assert here != line
    (refresher.home / ".profile").write_text(here)
    refresher.import_grant("linear", GRANT | {"server_url": "https://mcp.example/mcp"})
    log = refresher.state / "log"
    try:
        for _ in range(3):
            done = subprocess.run(
                ["bash", "--login", "-c", "true"], env=refresher.environment, capture_output=True, check=False
            )
            assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
            wait_until(lambda: log.exists() and "watching 1 grant" in log.read_text(), "it watches")
        assert log.read_text().count("watching") == 1
        assert len(_daemons(refresher.home)) == 1
    finally:
        for pid in _daemons(refresher.home):
            os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not _daemons(refresher.home), "it has stopped")
    assert log.read_text().endswith("refresher: stopped\n")


def test_the_line_for_the_crontab_is_a_daemon(refresher: Command) -> None:
    """If it failed, the crontab that people copy would start nothing."""
    (line,) = re.findall(r"^@reboot  (.*)$", README, re.MULTILINE)
    refresher.state.mkdir(parents=True)
    command = line.replace("/path/to/.venv/bin/", f"{Path(sys.executable).parent}/")
    process = subprocess.Popen(["sh", "-c", f"exec {command}"], env=refresher.environment)
    log = refresher.state / "log"
    wait_until(lambda: log.exists() and "watching" in log.read_text(), "it watches")
    process.terminate()
    assert process.wait(30) == 0


def _published(refresher: Command, api: API) -> dict[str, str]:
    """Publish a token for ``api`` where its user would have it; return the environment of his programs."""
    fields = {"server_url": api.origin, "access_token": "access-token-of-the-readme", "expires_in": 3600}
    refresher.import_grant("linear", GRANT | fields)
    return {"HOME": str(refresher.home), "PATH": os.environ["PATH"], "URL": f"{api.origin}/"}


def _accepts(token: str | None, headers: dict[str, str]) -> bool:
    return token == "access-token-of-the-readme"


def test_the_agents_three_lines_work(refresher: Command) -> None:
    """If it failed, the first code an agent's author copies would not run."""
    three = blocks("python")[0]
    call = "import asyncio, os\nprint(asyncio.run(client.get(os.environ['URL'])).status_code)"
    with API(_accepts) as api:
        environment = _published(refresher, api)
        done = subprocess.run(
            [sys.executable, "-c", f"{three}\n{call}"], env=environment, capture_output=True, text=True, check=False
        )
    assert done.stdout == "200\n", done.stderr


def test_the_example_of_events_works(refresher: Command) -> None:
    """If it failed, a program that follows the README would not hear that its login is dead."""
    example = blocks("python")[1]
    with API(_accepts) as api:
        environment = _published(refresher, api)
        refresher("remove", "linear")
        # It never ends by itself: its first words are what is waited for.
        process = subprocess.Popen([sys.executable, "-uc", example], env=environment, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        process.kill()
        process.communicate()
    assert told["needs_reauth"]
    assert "refresher login linear" in told["login_command"]


def test_the_example_of_the_client_that_stays_up_works(refresher: Command) -> None:
    """If it failed, an agent's author would move to it and be left with a broken program."""
    example = blocks("python")[2]
    with Stage() as stage:
        stage.play(tokens=["access-token-of-the-readme"])
        fields = {"server_url": stage.url, "access_token": "access-token-of-the-readme", "expires_in": 3600}
        refresher.import_grant("linear", GRANT | fields)
        environment = {"HOME": str(refresher.home), "PATH": os.environ["PATH"], "URL": stage.url}
        done = subprocess.run(
            [sys.executable, "-c", example], env=environment, capture_output=True, text=True, check=False, timeout=60
        )
    assert done.stdout == "3\n", done.stderr


def test_the_recipe_for_requests_works(refresher: Command) -> None:
    """If it failed, programs on requests would have no way in, or send tokens astray."""
    recipe = blocks("python")[3]
    call = "import os\nprint(session.get(os.environ['URL']).status_code, session.get(os.environ['OTHER']).status_code)"
    with API(_accepts) as api, API(_accepts) as other:
        environment = _published(refresher, api) | {"OTHER": f"{other.origin}/"}
        done = subprocess.run(
            [sys.executable, "-c", f"{recipe}\n{call}"], env=environment, capture_output=True, text=True, check=False
        )
    assert done.stdout == "200 401\n", done.stderr
    assert [seen.token for seen in other.seen] == [None]


def test_the_shell_example_works_and_shows_no_token_to_others(refresher: Command) -> None:
    """If it failed, scripts would have no way in, or show the token in the list of processes."""
    for part in ("jq", "curl"):
        need(None if shutil.which(part) else f"{part} is not installed")
    (example,) = blocks("bash")
    with API(_accepts) as api:
        environment = _published(refresher, api)
        done = subprocess.run(["bash", "-euc", example], env=environment, capture_output=True, text=True, check=False)
    assert api.statuses() == [200], done.stderr
    assert "$(" not in example, "a token would become an argument"


def test_every_problem_is_explained() -> None:
    """If it failed, a program's author would meet an error that nobody has explained."""
    errors = {
        name
        for package in (shim, shim.mcp)
        for name in package.__all__
        if isinstance(getattr(package, name), type) and issubclass(getattr(package, name), Exception)
    }
    assert {name for name in errors - {"ShimError"} if f"`{name}`" not in README} == set()


def test_the_second_command_is_the_one_that_ci_runs() -> None:
    """If it failed, the tests that users run would not be those that guard the product."""
    _, tests = blocks("sh")
    assert tests.strip() == "tests/run"
    assert os.access(ROOT / "tests/run", os.X_OK)
    lines = [line for line in (ROOT / ".ci/run").read_text().splitlines() if line and not line.startswith("#")]
    assert lines == ['exec "$(dirname "$0")/../tests/run"']


def test_every_outcome_and_exit_code_is_explained() -> None:
    """If it failed, a script's author would meet a word that nobody has explained."""
    rows = re.findall(r"^\| `(\w+)` \|.*\| (\d+) \|$", README, re.MULTILINE)
    assert {(word, int(code)) for word, code in rows} == set(EXIT_CODES.items())


def test_every_key_of_an_import_is_explained() -> None:
    """If it failed, a field could only be found in the source."""
    section = README.partition("## import")[2].partition("\n## ")[0]
    assert [key for key in Brought.__struct_fields__ if f"`{key}`" not in section] == []


def test_every_server_of_which_more_is_known_is_named() -> None:
    """If it failed, a user could not tell whether his server is known."""
    assert [profile.name for profile in PROFILES if profile.name not in README.replace("\n", " ")] == []


def test_the_top_level_holds_what_it_may() -> None:
    """If it failed, the repository would grow what nobody agreed to."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    top = {name.partition("/")[0] for name in tracked if not name.startswith(".")}
    assert top <= {"pyproject.toml", "refresher", "shim", "deploy", "tests", "README.md"}


def test_every_option_of_a_login_is_explained() -> None:
    """If it failed, somebody whose server needs an option would not learn of it."""
    section = README[README.index("## login, logout") : README.index("## import")]
    options = [option for parameter in login.params for option in parameter.opts if option.startswith("--")]
    assert [option for option in options if f"`{option}" not in section] == []
