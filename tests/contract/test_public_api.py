"""The public names, and what an import of ``shim`` loads."""

import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import refresher
import shim
import shim.mcp

PACKAGES = (refresher, shim)
MODULES = ["refresher", "shim"] + [
    module.name
    for package in PACKAGES
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not module.name.endswith("__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_each_module_lists_its_names_in_order(name: str) -> None:
    """If it failed, a reader could not see the names of a module, or the list would contain a wrong name."""
    module = importlib.import_module(name)
    # A package that only contains modules has no code of its own.
    offered = module.__all__ if hasattr(module, "__all__") or not hasattr(module, "__path__") else []
    # As ruff sorts: first constants, then classes, then functions.
    assert sorted(offered, key=_rank) == offered
    assert [entry for entry in offered if not hasattr(module, entry)] == []
    assert len(set(offered)) == len(offered)


def _rank(name: str) -> tuple[int, str]:
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def test_both_packages_are_typed() -> None:
    """If it failed, type checkers of users would treat every name as Any."""
    for package in (refresher, shim):
        assert Path(package.__path__[0], "py.typed").exists()


def _loaded(code: str) -> set[str]:
    script = f"{code}\nimport sys; print('\\n'.join(sys.modules))"
    return set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )


def test_importing_shim_needs_only_the_standard_library() -> None:
    """If it failed, importing shim would load the service into every agent."""
    top = {name.partition(".")[0] for name in _loaded("import shim, shim._token")} - {"shim", "__main__"}
    # The hooks of a virtual environment are loaded before shim.
    own = {name for name in top if name not in sys.stdlib_module_names}
    assert own <= {name.partition(".")[0] for name in _loaded("pass")}
    assert not {"dataclasses", "asyncio", "logging"} & (_loaded("import shim, shim._token") - _loaded("pass"))
    assert not {"httpx", "httpx2"} & _loaded("from shim import *")


def test_shim_does_not_import_refresher() -> None:
    """If it failed, an agent that installs the package without extras could not import shim."""
    imports = re.compile(r"^\s*(from|import) refresher\b", re.MULTILINE)
    assert [path.name for path in Path(shim.__path__[0]).rglob("*.py") if imports.search(path.read_text())] == []


def test_the_older_name_of_client_event_is_an_alias() -> None:
    """If it failed, agents that use the name of version 0.1.0 would break."""
    assert shim.mcp.Happening is shim.mcp.ClientEvent
