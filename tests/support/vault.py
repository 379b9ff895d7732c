"""Every secret that a test has used, and where it must not appear (I7)."""

import json
from pathlib import Path
from urllib.parse import quote, quote_plus

__all__ = ["Vault"]

_LARGEST = 1024 * 1024


class Vault:
    """Knows the secrets of a test; finds them where they do not belong."""

    def __init__(self) -> None:
        self._secrets: set[str] = set()

    def learn(self, *secrets: object) -> None:
        """Remember secrets; short words that occur by chance are none."""
        self._secrets |= {secret for secret in secrets if isinstance(secret, str) and len(secret) >= 8}

    def learn_from(self, state: Path) -> None:
        """Remember what the refresher itself has stored and published."""
        for path in [*state.glob("grants/*"), *state.glob("tokens/*.json")]:
            if not path.is_file():
                continue  # a test may have put a FIFO there, which would never end
            try:
                if not path.is_file() or path.stat().st_size > _LARGEST:
                    continue  # damaged by a test
                fields = json.loads(path.read_bytes().rstrip(b"\0"))
            except (OSError, ValueError, RecursionError):
                continue
            fields = fields.get("record", fields) if isinstance(fields, dict) else {}
            self.learn(*(fields.get(key) for key in ("refresh_token", "access_token", "client_secret")))

    def leaks_in(self, text: str) -> list[str]:
        """Return which secrets stand in ``text``, plain or URL-encoded, each cut short: a failure must not leak."""
        # A copy: servers of a soak learn while somebody looks.
        forms = {
            form for secret in tuple(self._secrets) for form in (secret, quote(secret, safe=""), quote_plus(secret))
        }
        return sorted(f"{form[:3]}... ({len(form)} characters)" for form in forms if form in text)

    def leaks_below(self, directory: Path) -> list[str]:
        """Return the files below ``directory`` that hold a secret and are no place for one."""
        found = []
        for path in directory.rglob("*"):
            if path.is_file() and not path.is_symlink() and path.stat().st_size and not _belongs(path):
                found += [f"{path}: {leak}" for leak in self.leaks_in(path.read_bytes().decode("latin-1"))]
        return found


def _belongs(path: Path) -> bool:
    # Grants and tokens are where secrets live; import files and seeds are where a person has put them.
    lives = path.parent.name in ("grants", "tokens", "spill")
    return lives or path.name.endswith(".import.json") or "seed" in path.parts
