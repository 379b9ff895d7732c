"""Every command and every claim of the README that a program can check."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from refresher.admission import _Brought
from refresher.result import EXIT_CODES
from tests.support.command import Command
from tests.support.oidc import OIDC

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """Return the README's code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_first_command_installs_and_rotates_on_a_fresh_machine(
    refresher: Command, own_oidc: Callable[..., OIDC]
) -> None:
    """If it failed, the first thing a new user types would not work."""
    install, _ = blocks("sh")
    checkout = refresher.home / "checkout"
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    for name in tracked or ["pyproject.toml", "README.md"]:
        if name.startswith(("refresher/", "shim/", "pyproject.toml", "README.md")):
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, checkout / name)
    path = refresher.write_import("linear", own_oidc().mint("public"))
    path.rename(checkout / "linear.json")
    # Only what a package index needs may pass from the tester's environment.
    passed = {
        name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "HTTP", "NO_PROXY"))
    }
    done = subprocess.run(
        ["bash", "-euc", install],
        cwd=checkout,
        env={**passed, "HOME": str(refresher.home), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    (checkout / "linear.json").unlink()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rotated" in done.stdout
    assert refresher.token("linear").generation == 1
    (code,) = blocks("python")
    checked = f"{code}\nassert headers['Authorization'].startswith('Bearer ')\n"
    subprocess.run([refresher_python(), "-c", checked], env={"HOME": str(refresher.home)}, check=True)


def refresher_python() -> str:
    """Return a Python that has nothing of ours installed, if there is one: the three lines need none."""
    return shutil.which("python3") or "python3"


def test_the_second_command_is_the_one_that_ci_runs() -> None:
    """If it failed, the tests that users run would not be those that guard the product."""
    _, tests = blocks("sh")
    assert tests.strip() == "tests/run"
    assert os.access(ROOT / "tests/run", os.X_OK)
    lines = [line for line in (ROOT / ".ci/run").read_text().splitlines() if line and not line.startswith("#")]
    assert lines == ['exec "$(dirname "$0")/../tests/run"']


def test_the_cron_line_is_a_command_that_exists(refresher: Command) -> None:
    """If it failed, the crontab that people copy would mail an error each minute."""
    (line,) = re.findall(r"^\* \* \* \* \*  \S+/refresher (.*) >/dev/null$", README, re.MULTILINE)
    assert refresher(*line.split()).code == 0


def test_every_outcome_and_exit_code_is_explained() -> None:
    """If it failed, a script's author would meet a word that nobody has explained."""
    rows = re.findall(r"^\| `(\w+)` \|.*\| (\d+) \|$", README, re.MULTILINE)
    assert {(word, int(code)) for word, code in rows} == set(EXIT_CODES.items())


def test_every_key_of_an_import_is_explained() -> None:
    """If it failed, a field could only be found in the source."""
    section = README.partition("## import")[2].partition("\n## ")[0]
    assert [key for key in _Brought.__struct_fields__ if f"`{key}`" not in section] == []


def test_the_top_level_holds_what_it_may() -> None:
    """If it failed, the repository would grow what nobody agreed to."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    top = {name.partition("/")[0] for name in tracked if not name.startswith(".")}
    assert top <= {"pyproject.toml", "refresher", "shim", "deploy", "tests", "README.md"}
