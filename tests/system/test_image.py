"""The container image, without an engine: its Dockerfile, and the result of its build steps."""

import importlib.metadata
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

ROOT = Path(__file__).parent.parent.parent
IMAGE = ROOT / "deploy/image"
HADOLINT = Path(sys.executable).parent / "hadolint"

DOCKERFILE = (IMAGE / "Dockerfile").read_text()


def instructions(word: str) -> list[str]:
    """Return the arguments of an instruction of the Dockerfile; continued lines are joined."""
    joined = re.sub(r"\\\n\s*", "", DOCKERFILE)
    return [line.partition(" ")[2] for line in joined.splitlines() if line.startswith(f"{word} ")]


def pinned(file: str) -> dict[str, str]:
    """Return the versions that a file of requirements pins."""
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (IMAGE / file).read_text(), re.MULTILINE))


def test_the_linter_reports_nothing() -> None:
    """If it failed, the Dockerfile would contain a known mistake."""
    done = subprocess.run([HADOLINT, IMAGE / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_is_pinned_runs_as_a_number_and_needs_no_shell() -> None:
    """If it failed, two builds could differ, Kubernetes could refuse its user, or a signal would not reach refresher."""
    base, *_ = instructions("ARG")
    assert re.fullmatch(r"BASE=python:\d+\.\d+\.\d+-slim-\w+@sha256:[0-9a-f]{64}", base), "it could change"
    assert instructions("FROM") == ["${BASE} AS build", "${BASE}"]
    assert instructions("USER") == ["10001:10001"]
    assert json.loads(instructions("ENTRYPOINT")[0]) == ["refresher"]
    assert json.loads(instructions("CMD")[0]) == ["run"]
    (health,) = instructions("HEALTHCHECK")
    assert json.loads(health.partition("CMD ")[2]) == ["refresher", "health"]


def test_the_labels_name_the_source_the_license_and_the_build() -> None:
    """If it failed, nobody could find out from an image what it was built from, and when."""
    (labels,) = instructions("LABEL")
    prefix = "org.opencontainers.image."
    found = dict(re.findall(r'(\S+)="([^"]*)"', labels))
    built = {"source": "${SOURCE}", "revision": "${REVISION}", "created": "${CREATED}", "licenses": "${LICENSES}"}
    assert built.items() <= {key.removeprefix(prefix): value for key, value in found.items()}.items()
    assert {"SOURCE", "REVISION", "CREATED", "LICENSES"} <= {line.partition("=")[0] for line in instructions("ARG")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (found[f"{prefix}version"], found[f"{prefix}description"]) == (project["version"], project["description"])


def test_the_tests_run_with_the_versions_of_the_image() -> None:
    """If it failed, the image would contain versions of packages that no test has used."""
    installed = {
        str(canonicalize_name(each.metadata["Name"])): each.version for each in importlib.metadata.distributions()
    }
    other = {name: (version, installed.get(name)) for name, version in pinned("requirements.txt").items()}
    assert {name: found for name, found in other.items() if found[0] != found[1]} == {}


def test_pinned_versions_satisfy_the_requirements_of_the_project() -> None:
    """If it failed, the image would contain a version that does not work with the project, or lack a package."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    versions = pinned("requirements.txt")
    for required in map(
        Requirement,
        [
            *project["project"]["dependencies"],
            *extras["service"],
            *extras["mcp"],
            *extras["gateway"],
            *extras["postgres"],
        ],
    ):
        assert required.specifier.contains(versions[canonicalize_name(required.name)]), str(required)
    for required in map(Requirement, project["build-system"]["requires"]):
        assert required.specifier.contains(pinned("build.txt")[canonicalize_name(required.name)]), str(required)


def test_the_build_context_contains_only_what_the_dockerfile_copies() -> None:
    """If it failed, a build would fail, or grants in a checkout would be sent to the engine."""
    first, *others = [
        line for line in (IMAGE / "Dockerfile.dockerignore").read_text().splitlines() if not line.startswith("#")
    ]
    assert first == "*"
    included = {line.removeprefix("!") for line in others if line.startswith("!")}
    copied = {name for line in instructions("COPY") if "--from" not in line for name in line.split()[:-1]}
    assert included == copied
    assert all((ROOT / name).exists() for name in included)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The environment that the build steps make."""
    place = tmp_path_factory.mktemp("image")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    into = [*pip, "--python", str(place / "venv")]
    # To compile all packages would take longest. The modules that the commands import are compiled below.
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
    ("arguments", "code", "message"),
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
def test_commands_run_for_a_user_without_name_and_home_and_without_shell_and_compiler(
    built: Path, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    """If it failed, the image would lack a package, or need something outside it."""
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
    assert message in done.stdout + done.stderr
    assert not (built / "bin/pip").exists()
