"""The token file: its one parser and its one renderer (DESIGN section 4, a public contract).

Only the standard library, and little of it: agents pay for this import.
"""

import re
from typing import Any, NamedTuple

from shim.errors import TokenFileError, UnsupportedVersion

__all__ = ["STATES", "VERSION", "Problem", "TokenFile", "is_name", "parse", "render"]

VERSION = 1

STATES = frozenset({"active", "failing", "reauthorization_required", "removed"})

_FIRST_TOO_LARGE = 10**18
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def is_name(text: str) -> bool:
    """Whether ``text`` can name a grant: it becomes a part of file names, so it can never be a path."""
    return _NAME.fullmatch(text) is not None


class Problem(NamedTuple):
    """Why the last exchange failed; times are epoch seconds."""

    code: str
    description: str
    at: float
    retry_at: float | None


class TokenFile(NamedTuple):
    """What one token file says; times are epoch seconds, ``None`` where unknown.

    ``access_token`` is ``None`` only where there is none to give: the grant was removed, or failed before it ever
    had one. ``origins`` are ``scheme://host[:port]``, the only places the token may be sent to.
    """

    name: str
    grant_id: str
    generation: int
    state: str
    access_token: str | None
    token_type: str
    issued_at: float
    expires_at: float | None
    scope: str | None
    origins: tuple[str, ...]
    error: Problem | None

    def __repr__(self) -> str:
        """Name the file's subject without its secret."""
        return f"TokenFile(name={self.name!r}, generation={self.generation}, state={self.state!r})"


def render(token: TokenFile) -> bytes:
    """Return the bytes of a token file; the same token always gives the same bytes."""
    import json  # 2 ms, which an agent pays with its first token and not with its import

    # By hand in half the time: a refresher compares what is published with this, for each grant at each run.
    quoted = json.encoder.encode_basestring_ascii
    return (
        f'{{"version": {VERSION}, "name": {quoted(token.name)}, "grant_id": {quoted(token.grant_id)}, '
        f'"generation": {token.generation}, "state": {quoted(token.state)}, '
        f'"access_token": {"null" if token.access_token is None else quoted(token.access_token)}, '
        f'"token_type": {quoted(token.token_type)}, "issued_at": {token.issued_at!r}, '
        f'"expires_at": {"null" if token.expires_at is None else repr(token.expires_at)}, '
        f'"scope": {"null" if token.scope is None else quoted(token.scope)}, '
        f'"origins": [{", ".join(map(quoted, token.origins))}], '
        f'"error": {"null" if token.error is None else json.dumps(token.error._asdict())}}}\n'
    ).encode("ascii")


def parse(data: bytes) -> TokenFile:
    """Read a token file; unknown keys are ignored.

    Raises ``UnsupportedVersion`` for another ``version``, ``TokenFileError`` for anything else that is wrong.
    """
    import json  # as above

    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        raise TokenFileError("the token file is not JSON; wait for the next rotation") from None
    if not isinstance(fields, dict):
        raise TokenFileError("the token file holds no JSON object")
    version = fields.get("version")
    if type(version) is not int or version != VERSION:
        raise UnsupportedVersion(
            f"the token file has version {_shown(version)}, this library reads version {VERSION}: "
            "upgrade the package 'refresher' where the agent runs"
        )
    error = _optional(fields, "error", dict)
    state = _required(fields, "state", str)
    if state not in STATES:
        raise TokenFileError("the token file's 'state' is none that this version knows")
    origins = _required(fields, "origins", list)
    if not origins or not all(isinstance(origin, str) for origin in origins):
        raise TokenFileError("the token file's 'origins' must be a list of texts that is not empty")
    return TokenFile(
        name=_name(fields),
        grant_id=_required(fields, "grant_id", str),
        generation=_generation(fields),
        state=state,
        access_token=_sendable(fields, "access_token") if fields.get("access_token") else None,
        token_type=_sendable(fields, "token_type"),
        issued_at=_time(fields, "issued_at"),
        expires_at=_optional_time(fields, "expires_at"),
        scope=_optional(fields, "scope", str),
        origins=tuple(origins),
        error=None if error is None else _problem(error),
    )


def _problem(fields: dict[str, Any]) -> Problem:
    return Problem(
        code=_required(fields, "code", str),
        description=_required(fields, "description", str),
        at=_time(fields, "at"),
        retry_at=_optional_time(fields, "retry_at"),
    )


def _name(fields: dict[str, Any]) -> str:
    name: str = _required(fields, "name", str)
    if not is_name(name):
        raise TokenFileError("the token file's 'name' is not a name")
    return name


def _sendable(fields: dict[str, Any], key: str) -> str:
    value: str = _required(fields, key, str)
    # RFC 6750 section 2.1; a line end would split the header, and HTTP libraries quote it in their errors.
    if not value or not all("!" <= char <= "~" for char in value):
        raise TokenFileError(f"the token file's {key!r} cannot stand in a header")
    return value


def _generation(fields: dict[str, Any]) -> int:
    generation: int = _required(fields, "generation", int)
    if not 0 <= generation < _FIRST_TOO_LARGE:
        raise TokenFileError("the token file's 'generation' is none that a demand could name")
    return generation


def _time(fields: dict[str, Any], key: str) -> float:
    try:
        value = float(_required(fields, key, int, float))
    except OverflowError:
        value = float("inf")
    if value - value != 0:  # infinite or no number, which json reads though JSON has neither
        raise TokenFileError(f"the token file's {key!r} is no time")
    return value


def _optional_time(fields: dict[str, Any], key: str) -> float | None:
    return None if fields.get(key) is None else _time(fields, key)


def _required(fields: dict[str, Any], key: str, *kinds: type) -> Any:
    # type() and not isinstance(): JSON's true is an int to isinstance.
    value = fields.get(key)
    if type(value) not in kinds:
        raise TokenFileError(f"the token file's {key!r} is missing or of the wrong type")
    return value


def _optional(fields: dict[str, Any], key: str, *kinds: type) -> Any:
    return None if fields.get(key) is None else _required(fields, key, *kinds)


def _shown(version: object) -> str:
    return str(version) if type(version) is int else "unknown"
