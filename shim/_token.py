"""The token file: one parser and one renderer (``README.md`` describes the file; it is a public contract).

Imports little of the standard library, because each agent pays for the import.
"""

import re
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from shim.errors import TokenFileError, UnsupportedVersion

__all__ = ["STATES", "VERSION", "Problem", "TokenFile", "is_name", "parse", "render"]

VERSION = 1

STATES = frozenset({"active", "failing", "reauthorization_required", "removed"})

_GENERATION_LIMIT = 10**18
_NULL = type(None)
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def is_name(text: str) -> bool:
    """Whether ``text`` is a valid name of a grant. A name becomes part of file names, so it is never a path."""
    return _NAME.fullmatch(text) is not None


class Problem(NamedTuple):
    """Why the last refresh failed; times are epoch seconds."""

    code: str
    description: str
    at: float
    retry_at: float | None


class TokenFile(NamedTuple):
    """The content of a token file; times are epoch seconds, ``None`` if unknown.

    ``access_token`` is ``None`` only if there is none: the grant was removed, or its first refresh failed.
    ``origins`` are ``scheme://host[:port]``, the only places to which the token may be sent. ``server_url`` is the
    address of the MCP server or API, ``None`` if unknown.
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
    server_url: str | None = None

    def __repr__(self) -> str:
        """Leave out the token."""
        return f"TokenFile(name={self.name!r}, generation={self.generation}, state={self.state!r})"


def render(token: TokenFile) -> bytes:
    """Return the bytes of a token file; equal tokens give equal bytes."""
    import json  # takes 2 ms, so an agent pays for it when it reads its first token

    # Twice as fast as json.dumps: refresher renders each token at each run to find stale files.
    quoted = json.encoder.encode_basestring_ascii
    server_url = "" if token.server_url is None else f', "server_url": {quoted(token.server_url)}'
    return (
        f'{{"version": {VERSION}, "name": {quoted(token.name)}, "grant_id": {quoted(token.grant_id)}, '
        f'"generation": {token.generation}, "state": {quoted(token.state)}, '
        f'"access_token": {"null" if token.access_token is None else quoted(token.access_token)}, '
        f'"token_type": {quoted(token.token_type)}, "issued_at": {token.issued_at!r}, '
        f'"expires_at": {"null" if token.expires_at is None else repr(token.expires_at)}, '
        f'"scope": {"null" if token.scope is None else quoted(token.scope)}, '
        f'"origins": [{", ".join(map(quoted, token.origins))}], '
        f'"error": {"null" if token.error is None else json.dumps(token.error._asdict())}'
        f"{server_url}}}\n"
    ).encode("ascii")


def parse(data: bytes) -> TokenFile:
    """Parse a token file; unknown keys are ignored.

    Raises ``UnsupportedVersion`` for another ``version``, and ``TokenFileError`` for any other defect.
    """
    import json  # as above

    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        raise TokenFileError("the token file is not JSON; refresher replaces it at the next rotation") from None
    if not isinstance(fields, dict):
        raise TokenFileError("the token file contains no JSON object")
    version = fields.get("version")
    if type(version) is not int or version != VERSION:
        shown = version if type(version) is int else "unknown"
        raise UnsupportedVersion(
            f"the token file has version {shown}, and this library reads version {VERSION}: "
            "upgrade the package 'refresher' where the agent runs"
        )
    error = _field(fields, "error", dict, _NULL)
    return TokenFile(
        name=_field(fields, "name", str, valid=is_name),
        grant_id=_field(fields, "grant_id", str),
        generation=_field(fields, "generation", int, valid=lambda number: 0 <= number < _GENERATION_LIMIT),
        state=_field(fields, "state", str, valid=STATES.__contains__),
        access_token=_field(fields, "access_token", str, valid=_is_header_safe) if fields.get("access_token") else None,
        token_type=_field(fields, "token_type", str, valid=_is_header_safe),
        issued_at=_time(fields, "issued_at"),
        expires_at=_time(fields, "expires_at", _NULL),
        scope=_field(fields, "scope", str, _NULL),
        origins=tuple(_field(fields, "origins", list, valid=_are_origins)),
        error=None
        if error is None
        else Problem(
            code=_field(error, "code", str),
            description=_field(error, "description", str),
            at=_time(error, "at"),
            retry_at=_time(error, "retry_at", _NULL),
        ),
        server_url=_field(fields, "server_url", str, _NULL),
    )


def _field(fields: dict[str, Any], key: str, *types: type, valid: Callable[[Any], bool] = lambda _: True) -> Any:
    # type() instead of isinstance(), because isinstance(True, int) is true.
    value = fields.get(key)
    if type(value) not in types:
        raise TokenFileError(f"the token file's {key!r} is missing or has the wrong type")
    if value is not None and not valid(value):
        raise TokenFileError(f"the token file's {key!r} is invalid")
    return value


def _time(fields: dict[str, Any], key: str, *types: type) -> Any:
    value = _field(fields, key, int, float, *types, valid=_is_finite)
    return None if value is None else float(value)


def _is_finite(number: float) -> bool:
    # Infinity and NaN are not JSON, but Python's json accepts them.
    return abs(number) <= sys.float_info.max


def _is_header_safe(text: str) -> bool:
    # RFC 6750 section 2.1. A line end would split the header, and HTTP libraries quote it in their errors.
    return text != "" and all("!" <= char <= "~" for char in text)


def _are_origins(values: list[object]) -> bool:
    return values != [] and all(isinstance(origin, str) for origin in values)
