"""Why a server refuses a token: its challenges (RFC 9110 section 11.6.1, RFC 6750 section 3)."""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from shim.errors import InsufficientScope

__all__ = ["Refusal", "refusal_of"]

_LONGEST_TEXT = 300
_MOST_SCOPES = 50

# The possessive quantifiers keep the match linear, so that a hostile header cannot cost seconds.
_PART = re.compile(r'(?:[^",]|"(?:[^"\\]|\\.?)*+(?:"|\Z))++', re.DOTALL)
_SCHEME = re.compile(r"\s*([^\s=,]+)(?:\s+(?=[^\s=])|\s*\Z)")
_PARAMETER = re.compile(r'\s*([^\s="]+)\s*=\s*(?:"((?:[^"\\]|\\.?)*+)|([^\s"]*))', re.DOTALL)
_SCOPE = re.compile(r"[!#-\[\]-~]{1,200}")
# What servers on the MCP SDK for Python say: they name the scope only here.
_DESCRIBED = re.compile(r"Required scopes?: (.+)")


class Refusal(NamedTuple):
    """A refused token: the server rejects it, or it ``lacks_scope`` for this request."""

    lacks_scope: bool = False
    scopes: tuple[str, ...] = ()
    """The scopes that the server requires, if it names them."""
    description: str = ""

    def as_error(self, name: str, origin: str) -> InsufficientScope:
        """Return the error about a token of ``name`` that lacks a scope at ``origin``."""
        return InsufficientScope(name, scopes=self.scopes, server=origin, description=self.description)


def refusal_of(status: int, challenges: Iterable[str], authorization: str) -> Refusal | None:
    """Return why a response refuses the token of ``authorization``; ``None`` if it does not.

    A 401 rejects the token, unless it only asks for another scheme. ``error`` in a challenge for our scheme says more,
    also at 400 and 403, which some servers send.
    """
    if status not in (400, 401, 403):
        return None
    scheme = authorization.partition(" ")[0].lower()
    found = list(_parsed(challenges))
    ours = [parameters for name, parameters in found if name == scheme]
    errors = {parameters["error"].lower(): parameters for parameters in ours if "error" in parameters}
    if "invalid_token" in errors:
        return Refusal()
    if (lacking := errors.get("insufficient_scope")) is not None:
        text = "".join(char for char in lacking.get("error_description", "") if char.isprintable())[:_LONGEST_TEXT]
        described = _DESCRIBED.fullmatch(text)
        named = (lacking.get("scope") or (described[1] if described else "")).split()
        scopes = dict.fromkeys(scope for scope in named if _SCOPE.fullmatch(scope))
        return Refusal(True, tuple(scopes)[:_MOST_SCOPES], text)
    return Refusal() if status == 401 and (ours or not found) else None


def _parsed(challenges: Iterable[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the scheme of each challenge, and its parameters; names are in lower case."""
    parameters: dict[str, str] = {}
    for header in challenges:
        for part in _PART.findall(header):
            rest = 0
            if scheme := _SCHEME.match(part):
                parameters, rest = {}, scheme.end()
                yield scheme[1].lower(), parameters
            if parameter := _PARAMETER.match(part, rest):
                name, quoted, plain = parameter.groups()
                value = plain if quoted is None else re.sub(r"\\(.?)", r"\1", quoted, flags=re.DOTALL)
                parameters.setdefault(name.lower(), value)
