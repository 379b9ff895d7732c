"""Run the snippets of the documents: a grant with a token that an API accepts, and a process for each snippet."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.support.api import API
from tests.support.command import Command

__all__ = ["ACCESS", "GRANT", "accepts", "published", "python"]

ACCESS: Final = "access-token-of-the-readme"
GRANT: Final = {
    "token_endpoint": "http://127.0.0.1:9/token",
    "client_id": "client",
    "refresh_token": "refresh-token-of-the-readme",
}


def accepts(token: str | None, headers: dict[str, str]) -> bool:
    """Accept the token of the grant."""
    return token == ACCESS


def published(refresher: Command, api: API) -> dict[str, str]:
    """Publish a token for ``api`` at the default place; return the environment of a program of the same user."""
    fields = {"server_url": api.origin, "access_token": ACCESS, "expires_in": 3600}
    refresher.import_grant("linear", GRANT | fields)
    return {"HOME": str(refresher.home), "PATH": os.environ["PATH"], "URL": f"{api.origin}/"}


def python(
    code: str, environment: Mapping[str, str], interpreter: Path = Path(sys.executable)
) -> subprocess.CompletedProcess[str]:
    """Run Python code to its end."""
    return subprocess.run(
        [str(interpreter), "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=90
    )
