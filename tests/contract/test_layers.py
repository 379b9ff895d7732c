"""The order of the packages, as ``lint-imports`` checks it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
LINT = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]


def _copy(place: Path) -> Path:
    for name in ("refresher", "shim"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", place)
    return place


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("refresher/grants/policy.py", "refresher.storage.files"),
        ("refresher/storage/lock.py", "refresher.oauth.urls"),
        ("refresher/daemon/loop.py", "refresher.login.pages"),
        ("shim/errors.py", "refresher.common.errors"),
        ("refresher/new_package.py", "refresher.common.errors"),
    ],
)
def test_an_import_against_the_order_fails_the_lint_step(importer: str, imported: str, tmp_path: Path) -> None:
    """If it failed, packages could import each other against their order without a lint error."""
    place = _copy(tmp_path)
    with (place / importer).open("a") as module:
        module.write(f"\nimport {imported}\n")
    done = subprocess.run(LINT, cwd=place, env={"PYTHONPATH": str(place)}, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    assert Path(importer).stem in done.stdout
