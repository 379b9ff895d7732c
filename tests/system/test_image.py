"""The image, as far as it can be shown without an engine: its recipe, and what its steps make."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import need
from tests.support.command import LONGEST
from tests.support.isolated import Given, as_user, isolated, missing

pytestmark = pytest.mark.xdist_group("image")  # one fixture for all of them

ROOT = Path(__file__).parent.parent.parent
IMAGE = ROOT / "deploy/image"
HADOLINT = Path(sys.executable).parent / "hadolint"

RECIPE = (IMAGE / "Dockerfile").read_text()


def instructions(word: str) -> list[str]:
    """Return what the recipe says by an instruction, its lines joined."""
    joined = re.sub(r"\\\n\s*", "", RECIPE)
    return [line.partition(" ")[2] for line in joined.splitlines() if line.startswith(f"{word} ")]


def pinned(file: str) -> dict[str, str]:
    """Return the versions that a file of requirements pins."""
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (IMAGE / file).read_text(), re.MULTILINE))


def test_the_linter_has_nothing_to_say() -> None:
    """If it failed, the recipe would hold what is known to go wrong."""
    done = subprocess.run([HADOLINT, IMAGE / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_is_pinned_runs_as_a_number_and_needs_no_shell() -> None:
    """If it failed, two builds could differ, Kubernetes could refuse its user, or no process would take the signals."""
    (base,) = instructions("ARG")
    assert re.fullmatch(r"BASE=python:\d+\.\d+\.\d+-slim-\w+", base), "a full version, so that it stays what it is"
    assert instructions("FROM") == ["${BASE} AS build", "${BASE}"]
    assert instructions("USER") == ["10001:10001"]
    assert json.loads(instructions("ENTRYPOINT")[0]) == ["refresher"]
    assert json.loads(instructions("CMD")[0]) == ["run"]
    (health,) = instructions("HEALTHCHECK")
    assert json.loads(health.partition("CMD ")[2]) == ["refresher", "health"]


def test_what_is_pinned_is_what_the_project_asks_for() -> None:
    """If it failed, the image would hold a version that the project does not work with, or lack what it needs."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    versions = pinned("requirements.txt")
    for wanted in map(Requirement, [*project["project"]["dependencies"], *extras["service"], *extras["mcp"]]):
        assert wanted.specifier.contains(versions[canonicalize_name(wanted.name)]), str(wanted)
    for wanted in map(Requirement, project["build-system"]["requires"]):
        assert wanted.specifier.contains(pinned("build.txt")[canonicalize_name(wanted.name)]), str(wanted)


def test_the_context_holds_what_the_recipe_takes_and_nothing_private() -> None:
    """If it failed, a build would fail, or grants that lie about in a checkout would go to the engine."""
    first, *others = [
        line for line in (IMAGE / "Dockerfile.dockerignore").read_text().splitlines() if not line.startswith("#")
    ]
    assert first == "*"
    taken = {line.removeprefix("!") for line in others if line.startswith("!")}
    copied = {name for line in instructions("COPY") if "--from" not in line for name in line.split()[:-1]}
    assert taken == copied
    assert all((ROOT / name).exists() for name in taken)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What the builder's steps make of a fresh environment."""
    place = tmp_path_factory.mktemp("image")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    into = [*pip, "--python", str(place / "venv")]
    # To compile all packages takes longer than all else here; what the commands import is compiled below.
    locked = ["install", "--no-compile", "--only-binary", ":all:", "--require-hashes", "-r"]
    tools = str(place / "tools")
    for command in (
        [sys.executable, "-m", "venv", "--without-pip", str(place / "venv")],
        [*into, *locked, str(IMAGE / "requirements.txt")],
        [*pip, *locked, str(IMAGE / "build.txt"), "--target", tools],
        [*pip, "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", str(place / "dist"), str(ROOT)],
    ):
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": tools}, timeout=LONGEST * 5)
    subprocess.run([*into, "install", "--no-deps", *map(str, (place / "dist").iterdir())], check=True)
    subprocess.run(
        [
            place / "venv/bin/python",
            "-c",
            "import refresher.login.flow, refresher.daemon.loop, refresher.operations.run_once",
        ],
        check=True,
    )
    yield place / "venv"
    shutil.rmtree(place)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--version"], 0, "refresher, version"),
        (["login", "--help"], 0, "Log in at URL"),
        (["import", "--from", "/nowhere", "--if-absent"], 2, "cannot read /nowhere"),
        (["run-once"], 2, "there is no state directory"),
        (["health"], 1, "nothing answers"),
        (["login", "linear", "https://127.0.0.1:1/mcp", "--no-browser"], 4, "127.0.0.1:1"),
    ],
    ids=lambda value: "-".join(value[:2]) if isinstance(value, list) else "",
)
def test_commands_run_for_a_number_without_a_name_shell_compiler_or_home(
    built: Path, tmp_path: Path, arguments: list[str], code: int, says: str
) -> None:
    """If it failed, the image would lack a package, or need what is not in it."""
    need(missing())
    root, state = tmp_path / "root", tmp_path / "state"
    root.mkdir()
    state.mkdir()
    os.chown(state, 10001, 10001)
    user = as_user(10001, 10001, [], {"PATH": "", "REFRESHER_STATE_DIR": "/s/state", "REFRESHER_LISTEN": "127.0.0.1:9"})
    command = [*user, str(built / "bin/python"), str(built / "bin/refresher"), *arguments]
    given = [Given(built, str(built)), Given(state, "/s", writable=True)]
    done = subprocess.run(isolated(root, given, command), capture_output=True, text=True, check=False, timeout=LONGEST)
    assert done.returncode == code, done.stderr
    assert says in done.stdout + done.stderr
    assert not (built / "bin/pip").exists()
