"""A type for secrets that does not print them, and a mask for the texts of servers (I7)."""

import hashlib
import hmac
import re
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Final
from urllib.parse import quote, quote_plus

from refresher.common.text import one_line

__all__ = ["Secret", "mask"]

_LONGEST_KEPT: Final = 300

# A run of characters of tokens (RFC 6749 appendix A, RFC 7519) that is long enough to be one.
_TOKEN_LIKE: Final = re.compile(r"[A-Za-z0-9%+/=_.~-]{16,}")
_PLAIN_WORDS: Final = re.compile(r"[a-z_./-]{16,31}|[A-Z_./-]{16,31}")

# So many characters of a secret in a row cannot be a coincidence.
_FRAGMENT: Final = 6
_PIECE: Final = 4096  # of a secret, in characters
_HIDDEN: Final = "\uffff"  # in no text: it is not a character


class Secret:
    """A text that repr, str and format hide; only ``reveal()`` returns it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text, to send, store or publish it."""
        return self._text

    def fingerprint(self) -> str:
        """Return 32 hex digits that identify this secret without revealing it (half a SHA-256)."""
        return hashlib.sha256(self.reveal().encode("utf-8", "surrogatepass")).hexdigest()[:32]

    def __repr__(self) -> str:
        return "Secret(...)"

    __str__ = __repr__

    def __format__(self, format_spec: str) -> str:
        return repr(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self.reveal().encode(), other.reveal().encode())

    def __hash__(self) -> int:
        return hash(self.fingerprint())

    def __reduce__(self) -> str:
        raise TypeError("a secret cannot be pickled")


def mask(text: str, known: Iterable[Secret | None] = ()) -> str:
    """Return the text of a server for a person: one line, bounded, without anything that looks like a token.

    No six characters in a row of a ``known`` secret are left, plain or URL-encoded: servers echo secrets truncated,
    split and encoded.
    """
    text = text[: 16 * _LONGEST_KEPT]
    shown = list(text)
    for secret in known:
        plain = "" if secret is None else secret.reveal()
        size = min(_FRAGMENT, len(plain))
        # The fragments of the text are kept, never those of the secret, which can be a thousand times as long.
        of_text = {text[at : at + size] for at in range(len(text) - size + 1)} if size else set()
        hidden = of_text and of_text.intersection(_fragments(plain, size))
        for at in range(len(text) - size + 1) if hidden else ():
            if text[at : at + size] in hidden:
                shown[at : at + size] = _HIDDEN * size
    text = re.sub(f"{_HIDDEN}+", "[masked]", "".join(shown))
    text = _TOKEN_LIKE.sub(lambda run: run[0] if _PLAIN_WORDS.fullmatch(run[0]) else "[masked]", text)
    text = one_line(text)
    return text if len(text) <= _LONGEST_KEPT else text[:_LONGEST_KEPT] + "..."


def _fragments(secret: str, size: int) -> Iterator[str]:
    """Yield each ``size`` characters in a row of ``secret``, plain and URL-encoded; it encodes one piece at a time."""
    for encoded in (str, partial(quote, safe=""), quote_plus):
        piece = ""
        for begin in range(0, len(secret), _PIECE):
            piece = piece[len(piece) - size + 1 :] + encoded(secret[begin : begin + _PIECE])
            yield from (piece[at : at + size] for at in range(len(piece) - size + 1))
