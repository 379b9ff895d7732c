"""Token files as refresher publishes them, for tests of readers."""

import time
from pathlib import Path
from typing import Any

from shim import FileTokenSource, Problem, TokenFile
from shim._token import render

__all__ = ["Published", "token"]

DEAD = Problem("invalid_grant", "the user left", 1.0, None)


def token(generation: int = 1, **changes: Any) -> TokenFile:
    """Return a live token named after its generation; ``changes`` replace fields."""
    fields: dict[str, Any] = {
        "name": "linear",
        "grant_id": "0123",
        "generation": generation,
        "state": "active",
        "access_token": f"access-token-{generation}",
        "token_type": "Bearer",
        "issued_at": time.time(),
        "expires_at": time.time() + 3600,
        "scope": None,
        "origins": ("https://mcp.example",),
        "error": None,
    }
    return TokenFile(**(fields | changes))


class Published:
    """The directories of tokens and demands below ``root``."""

    def __init__(self, root: Path, *origins: str) -> None:
        self.tokens, self.demands = root / "tokens", root / "demands"
        for directory in (self.tokens, self.demands):
            directory.mkdir(parents=True)
        self.path = self.tokens / "linear.json"
        self._origins = origins or ("https://mcp.example",)

    def put(self, generation: int = 1, **changes: Any) -> TokenFile:
        """Publish a token; the file is replaced atomically."""
        made = token(generation, **({"origins": self._origins} | changes))
        temporary = self.tokens / ".new"
        temporary.write_bytes(render(made))
        temporary.rename(self.path)
        return made

    def source(self) -> FileTokenSource:
        """Return a token source of these directories."""
        return FileTokenSource("linear", tokens_dir=self.tokens, demands_dir=self.demands)

    def demanded(self) -> list[str]:
        """Return the names of the demand files."""
        return sorted(path.name for path in self.demands.iterdir())
