"""The secrets of a test, and a search for them where they must not appear (I7)."""

import json
from pathlib import Path
from urllib.parse import quote, quote_plus

__all__ = ["Vault"]

_LARGEST = 1024 * 1024


class Vault:
    """Records the secrets of a test, and finds them in output and files."""

    def __init__(self) -> None:
        self._secrets: set[str] = set()
        self._forms: set[str] = set()
        """What a search looks for: each secret, plain and URL-encoded. A process of the tests has thousands of secrets."""

    def learn(self, *secrets: object) -> None:
        """Record secrets; strings of less than 8 characters are ignored."""
        for secret in secrets:
            if isinstance(secret, str) and len(secret) >= 8 and secret not in self._secrets:
                self._forms |= {secret, quote(secret, safe=""), quote_plus(secret)}
                self._secrets.add(secret)

    def learn_from(self, state: Path) -> None:
        """Record the secrets that refresher has stored and published."""
        for path in [*state.glob("grants/*"), *state.glob("tokens/*.json")]:
            if not path.is_file():
                continue  # a read of a FIFO would not end
            try:
                if not path.is_file() or path.stat().st_size > _LARGEST:
                    continue  # damaged by a test
                fields = json.loads(path.read_bytes().rstrip(b"\0"))
            except (OSError, ValueError, RecursionError):
                continue
            fields = fields.get("record", fields) if isinstance(fields, dict) else {}
            self.learn(*(fields.get(key) for key in ("refresh_token", "access_token", "client_secret")))

    def leaks_in(self, text: str) -> list[str]:
        """Return the secrets in ``text``, plain or URL-encoded, each truncated, so that an error does not leak them."""
        # A copy, because another thread may record secrets meanwhile.
        forms = tuple(self._forms)
        return sorted(f"{form[:3]}... ({len(form)} characters)" for form in forms if form in text)

    def leaks_below(self, directory: Path) -> list[str]:
        """Return the files below ``directory`` that contain a secret and are not allowed to."""
        found = []
        for path in directory.rglob("*"):
            if path.is_file() and not path.is_symlink() and path.stat().st_size and not _may_contain_secrets(path):
                found += [f"{path}: {leak}" for leak in self.leaks_in(path.read_bytes().decode("latin-1"))]
        return found


def _may_contain_secrets(path: Path) -> bool:
    # refresher writes secrets to these directories (outputs: access tokens), a person to import files and seeds.
    is_private = path.parent.name in ("grants", "tokens", "spill", "outputs")
    return is_private or path.name.endswith(".import.json") or "seed" in path.parts
