"""A configuration with hooks that are shell scripts, and what they were given."""

import json
from pathlib import Path
from typing import Any

from tests.support.command import Command

__all__ = ["RECORD", "configure", "events"]

RECORD = 'line=$(cat); echo "$line" >>"$HOME/events"'
"""A script that keeps what it is given."""


def configure(refresher: Command, timeout: str = "60s", **scripts: str) -> Path:
    """Write the configuration with these hooks, each a script of its own; return the file."""
    directory = refresher.home / ".config/refresher"
    directory.mkdir(parents=True, exist_ok=True)
    lines = ["[hooks]", f'timeout = "{timeout}"']
    for hook, script in scripts.items():
        program = directory / hook
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        lines.append(f'{hook} = ["./{hook}"]')
    (directory / "config.toml").write_text("\n".join(lines) + "\n")
    return directory / "config.toml"


def events(refresher: Command) -> list[dict[str, Any]]:
    """Return what the scripts have kept."""
    path = refresher.home / "events"
    found: list[dict[str, Any]] = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    text = json.dumps(found)
    assert not refresher.vault.leaks_in(text), "a hook was given a secret"
    return found
