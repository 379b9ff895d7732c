"""Prometheus and promtool, from ``.venv/prometheus``, where ``tests/run`` puts them."""

import subprocess
from pathlib import Path
from typing import Final

__all__ = ["PROMETHEUS", "check_metrics", "missing", "promtool"]

_PROGRAMS: Final = Path(__file__).parent.parent.parent / ".venv/prometheus"

PROMETHEUS: Final = _PROGRAMS / "prometheus"


def missing() -> str | None:
    """Return why the programs cannot be used here, ``None`` if they can."""
    return None if PROMETHEUS.exists() else "tests/run could not download Prometheus"


def promtool(*arguments: str, stdin: bytes = b"") -> str:
    """Run promtool, check that it succeeds, and return its output."""
    done = subprocess.run([_PROGRAMS / "promtool", *arguments], input=stdin, capture_output=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
    return (done.stdout + done.stderr).decode()


def check_metrics(text: bytes) -> None:
    """Check that promtool has no remark on ``text``."""
    assert promtool("check", "metrics", stdin=text) == ""
