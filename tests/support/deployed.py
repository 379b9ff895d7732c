"""The files of ``deploy/``, and the commands of its README."""

import re
from pathlib import Path
from typing import Final

__all__ = ["DEPLOY", "README", "ROOT", "settings", "typed"]

ROOT: Final = Path(__file__).parent.parent.parent
DEPLOY: Final = ROOT / "deploy"
README: Final = (DEPLOY / "README.md").read_text()


def typed(heading: str, number: int = 0) -> str:
    """Return the commands in a section of the README: the code block with this number."""
    section = re.split(r"^#+ ", README.partition(f"# {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    blocks: list[str] = re.findall(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    return blocks[number]


def settings(unit: str) -> dict[str, list[str]]:
    """Return the settings of a unit by key; continued lines are joined."""
    text = (DEPLOY / "systemd" / unit).read_text().replace("\\\n", "")
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE):
        found.setdefault(key, []).append(value)
    return found
