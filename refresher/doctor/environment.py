"""This Python environment: whether ``shim`` is the package of refresher."""

from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import refresher
import shim
from refresher.doctor.finding import Finding, found

__all__ = ["check"]


def check() -> Iterator[Finding]:
    """Find a package that takes the place of ``shim``; PyPI has an unrelated one of that name."""
    # Both packages are installed side by side, from one distribution.
    ours = Path(refresher.__file__).parent.parent
    place = Path(shim.__file__ or ours)
    if place.parent.parent != ours or not hasattr(shim, "FileTokenSource"):
        yield found("foreign_shim", f"'import shim' loads {place}, which is not the package of refresher")
        return
    try:
        version = metadata.version("shim")
    except metadata.PackageNotFoundError:
        return
    yield found("foreign_shim", f"the unrelated package shim {version} is installed, and has the same name")
