"""Outputs of the real commands, as the programs read them that they are for; and a broken one costs no rotation."""

import base64
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.conftest import need
from tests.support.cli import WORKING_LOGIN
from tests.support.command import Command, wait_until, without_times
from tests.support.daemon import heard, published, running, stopped
from tests.support.listener import Listening
from tests.support.parts import dead_mount, no_dead_mounts
from tests.support.token_server import TokenServer

GENERATOR = Path("/usr/lib/systemd/user-environment-generators/30-systemd-environment-d-generator")
TOKEN = WORKING_LOGIN["access_token"]
FORMATS = {
    "raw": "",
    "header": "",
    "env": 'variable = "LINEAR_TOKEN"',
    "netrc": 'machine = "127.0.0.1"\nlogin = "oauth2"',
}


def configure(refresher: Command, *formats: str, directory: str = "outputs") -> Path:
    """Write a configuration with an output of each format; return their directory."""
    place = refresher.home / directory
    place.mkdir(exist_ok=True)
    file = refresher.home / ".config/refresher/config.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        "".join(
            f'[[outputs]]\ngrant = "linear"\nformat = "{form}"\npath = "{place / form}"\n{FORMATS[form]}\n'
            for form in formats
        )
    )
    return place


def read(path: Path) -> str:
    """Return the text of a file; nothing if there is none."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


class Noting(Listening):
    """A server that asks for a password where there is none, and notes the others."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                given = self.headers["Authorization"]
                server.seen.append(given or "")
                self.send_response(404 if given else 401)
                if not given:
                    self.send_header("WWW-Authenticate", 'Basic realm="tests"')
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  http.server's signature
                return

        super().__init__(Handler)


@pytest.fixture
def server() -> Iterator[Noting]:
    """Such a server."""
    with Noting() as made:
        yield made


def test_the_programs_that_a_format_is_for_read_the_token(refresher: Command, server: Noting) -> None:
    """If it failed, curl, git, pip, a shell or systemd would use another token than the published one, or none."""
    place = configure(refresher, *FORMATS)
    refresher.import_grant("linear", WORKING_LOGIN)
    assert read(place / "raw") == TOKEN
    environment = {"PATH": os.environ["PATH"], "HOME": str(refresher.home)}

    def run(*command: str, code: int = 0, **more: str) -> str:
        done = subprocess.run(command, env=environment | more, capture_output=True, text=True, check=False, timeout=90)
        assert done.returncode == code, done.stderr
        return done.stdout

    need(next((f"{name} is not installed" for name in ("curl", "git") if shutil.which(name) is None), None))
    basic = f"Basic {base64.b64encode(f'oauth2:{TOKEN}'.encode()).decode()}"
    run("curl", "-s", "-H", f"@{place}/header", server.url)
    run("curl", "-s", "--netrc-file", f"{place}/netrc", server.url)
    run(sys.executable, "-c", f"import requests; requests.get('{server.url}', timeout=60)", NETRC=f"{place}/netrc")
    (refresher.home / ".netrc").symlink_to(place / "netrc")
    run("git", "ls-remote", f"{server.url}/x.git", code=128, GIT_TERMINAL_PROMPT="0")
    assert [given for given in server.seen if given] == [f"Bearer {TOKEN}", basic, basic, basic]
    assert requests.__version__, "pip reads netrc by requests"
    assert run("sh", "-c", f". {place}/env && printf %s $LINEAR_TOKEN") == TOKEN
    # docker takes the line as it is: without quotes, the text after the first "=".
    assert read(place / "env").removesuffix("\n").partition("=")[2] == TOKEN
    # The generator reads with the parser of EnvironmentFile=.
    need(None if GENERATOR.exists() else "systemd is not installed")
    (refresher.home / ".config/environment.d").mkdir()
    shutil.copy(place / "env", refresher.home / ".config/environment.d/outputs.conf")
    assert f"LINEAR_TOKEN={TOKEN}" in run(str(GENERATOR)).splitlines()
    (refresher.home / ".config/environment.d/outputs.conf").unlink()


def test_outputs_follow_each_command_that_changes_a_grant(refresher: Command) -> None:
    """If it failed, a program would use the token before the last one, or that of a removed grant, under cron."""
    place = configure(refresher, "raw", "header")
    with TokenServer(lambda _: 3600, grace=3600) as server:
        refresher.import_grant("linear", server.grant("linear"))
        assert [*place.iterdir()] == [], "nothing is published yet"
        done = refresher("run-once", "--json")
        assert (done.code, done.stderr, done.outcome) == (0, "", "rotated")
        first = refresher.token("linear").access_token
        assert first is not None
        assert read(place / "raw") == first
        (place / "raw").unlink()
        (place / "header").chmod(0o644)
        assert refresher("run-once").stderr == ""
        assert (read(place / "raw"), read(place / "header")) == (first, f"Authorization: Bearer {first}\n")
        assert stat.S_IMODE((place / "header").stat().st_mode) == 0o600
        assert refresher("run-once", "--force").code == 0
        assert read(place / "raw") == refresher.token("linear").access_token != first
    assert refresher("remove", "linear").code == 0
    assert [*place.iterdir()] == []


def test_a_broken_output_costs_no_rotation_and_is_reported(refresher: Command) -> None:
    """If it failed, a missing directory would end the rotation of a grant, or nobody would learn of it."""
    place = configure(refresher, "raw", "header")
    (place / "raw").symlink_to(refresher.home / "elsewhere")
    with TokenServer(lambda _: 3600, grace=3600) as server:
        refresher.import_grant("linear", server.grant("linear"))
        done = refresher("run-once", "--json")
        assert (done.code, done.outcome) == (0, "rotated")
        assert without_times(done.stderr) == (
            f"refresher: linear: the output {place}/raw is not up to date: it is a symbolic link: remove the file, or "
            "give the output a path of its own\n"
        )
        assert "Bearer" in read(place / "header")
        assert not (refresher.home / "elsewhere").exists()
        report = refresher("doctor", "--offline")
        assert report.code == 2
        assert f"{place}/raw" in report.stdout.replace("\n           ", " ")
        assert "2 outputs (1 finding)" in report.stdout


def test_a_run_ends_though_an_output_is_on_a_dead_mount(refresher: Command) -> None:
    """If it failed, a dead mount would hold each run of cron, and the grants with it."""
    need(no_dead_mounts())
    place = configure(refresher, "raw")
    with TokenServer(lambda _: 3600, grace=3600) as server, dead_mount(place):
        refresher.bring("linear", server.grant("linear"))
        done = refresher("run-once", "--json")
    assert (done.code, done.outcome) == (0, "rotated")
    assert f"the output {place}/raw is not up to date: it does not answer in time" in done.stderr


def test_run_writes_outputs_at_the_start_after_a_rotation_and_after_a_reload(refresher: Command) -> None:
    """If it failed, programs beside the service would have an old token until its next restart."""
    place = configure(refresher, "raw")
    with TokenServer(lambda _: 3600, grace=3600) as server:
        refresher.import_grant("linear", server.grant("linear"))
        with running(refresher) as process:
            heard(process, "watching")
            wait_until(lambda: published(refresher) == 1, "it is rotated")
            wait_until(lambda: read(place / "raw") == refresher.token("linear").access_token, "it is written")
            (refresher.state / "demands/linear.1").touch()
            wait_until(lambda: published(refresher) == 2, "it is rotated again")
            wait_until(lambda: read(place / "raw") == refresher.token("linear").access_token, "it is written again")
            (place / "raw").unlink()
            place = configure(refresher, "raw", "env")
            process.send_signal(signal.SIGHUP)
            token = refresher.token("linear").access_token
            wait_until(lambda: read(place / "env") == f"LINEAR_TOKEN={token}\n", "the new output is written")
            wait_until(lambda: read(place / "raw") == token, "the deleted one is written again")
            stopped(refresher, process)


def test_a_run_without_outputs_imports_nothing_for_them(refresher: Command) -> None:
    """If it failed, each run of cron would be slower for everybody who uses no outputs."""
    refresher.import_grant("linear", WORKING_LOGIN)
    code = "import sys; from refresher.cli.main import run; run(['run-once']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=refresher.environment, capture_output=True, text=True, check=True
    )
    loaded = set(done.stderr.split())
    assert "refresher.operations.run_once" in loaded
    assert not {name for name in loaded if name.endswith((".outputs", ".kubernetes_secret"))}
    assert [*refresher.state.glob("output-*.lock")] == []
