"""Judge the answer of a token endpoint (RFC 6749 section 5). Pure: bytes in, outcome out.

``parse_token_response`` is the only place that judges an answer. What the error codes and texts of single servers mean
is data in ``dialects.py``. ``grants/transition.py`` then decides what the outcome does to the grant.
"""

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, NamedTuple, assert_never
from urllib.parse import parse_qsl

from refresher.common.secret import Secret, mask
from refresher.grants.outcome import (
    Ambiguous,
    ClientRejected,
    GrantRejected,
    Outcome,
    ResourceRefused,
    TokensIssued,
    TooEarly,
    Transient,
    Unreadable,
)
from refresher.grants.policy import CLOCK_TOLERANCE, MAX_WAIT
from refresher.grants.tokens import MAX_LIFETIME, auth_scheme, is_token, jwt_time
from refresher.oauth.dialects import KNOWN_CODES, classify_error

__all__ = ["parse_token_response"]

_MAX_CODE: Final = 64
_MAX_DESCRIPTION: Final = 4096
_DECODER: Final = json.JSONDecoder()
_SPACE: Final = re.compile(r"[ \t\r\n]*")

_BUSY_STATUSES: Final = frozenset({408, 425, 429, 503})
_TOKEN_KEYS: Final = ("access_token", "refresh_token")

# Keys that servers use for the code and its description, besides those of the RFC: GitHub, Supabase, OpenAI, HubSpot,
# Cognito.
_CODE_KEYS: Final = ("error_code", "errorCode", "code", "status", "type", "__type")
_DESCRIPTION_KEYS: Final = ("error_description", "message", "msg", "reason")


def parse_token_response(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    complete: bool,
    now: float,
    secrets: tuple[Secret | None, ...],
) -> Outcome:
    """Return what an answer means.

    A success is a 2xx status with a usable access token and without an error. Every other answer is classified by its
    error code and description, then by its status. ``complete``: the body was received to its end; a closed JSON object
    counts as complete anyway. ``now``: epoch seconds. ``secrets``: what no description may repeat.
    """
    fields = _parse_body(body, headers.get("content-type", ""), complete=complete)
    success = 200 <= status < 300
    # The body counts before the status: servers send errors with 200 and rejections with 401.
    error = None if fields is None else _error(fields, success=success)
    skew = _clock_skew(headers.get("date"), now)
    if not success or (error is not None and fields is not None and not _contains_token(fields)):
        return _failure(status, headers, error or _Error("", ""), secrets, now + skew)
    tokens = None if fields is None or error is not None else _tokens(fields, now, skew)
    if tokens is not None:
        return tokens
    return Unreadable(
        description=f"the token endpoint answered {status} with {_describe_body(body, complete=complete)}",
        body=Secret(body.decode("latin-1")),
    )


class _Error(NamedTuple):
    """The error code and its description, unmasked."""

    code: str
    description: str


def _failure(
    status: int, headers: Mapping[str, str], error: _Error, secrets: tuple[Secret | None, ...], now: float
) -> Outcome:
    kind = classify_error(error.code, error.description)
    code = error.code if error.code.lower() in KNOWN_CODES else mask(error.code, secrets)
    text = mask(error.description, secrets)
    description = f"the token endpoint answered {status}{f' {code}' if code else ''}{f': {text}' if text else ''}"
    retry_after = _retry_after(headers.get("retry-after"), now)
    if status in _BUSY_STATUSES or kind == "busy":
        return Transient(code=code or "temporarily_unavailable", description=description, retry_after=retry_after)
    match kind:
        case "grant_rejected":
            return GrantRejected(code=code or "invalid_grant", description=description)
        case "client_rejected":
            return ClientRejected(
                code=code or "invalid_client",
                description=f"{description}; check client_id and the client authentication",
            )
        case "too_early":
            return TooEarly(code=code, description=description)
        case "resource_refused" if status < 500:
            return ResourceRefused(code=code or "invalid_target", description=description)
        case "ambiguous":
            return Ambiguous(description=description)
        case "resource_refused" | "refused" | None:
            pass
        case _:
            assert_never(kind)
    if status >= 500:
        # The server, or a proxy before it, may have failed after the refresh token was used up.
        return Ambiguous(description=description)
    if 300 <= status < 400:
        description += " (a redirect; refresher follows none with a refresh token)"
    return Transient(code=code or "server_error", description=description, retry_after=retry_after, refusal=True)


def _parse_body(body: bytes, content_type: str, *, complete: bool) -> dict[str, Any] | None:
    body = body.removeprefix(b"\xef\xbb\xbf").strip()
    if not body.startswith(b"{"):
        # Only JSON shows that it is complete. GitHub and older servers send forms, with any content type.
        form = dict(parse_qsl(body.decode("utf-8", "replace"))) if complete and not body.startswith(b"<") else {}
        is_form = content_type.partition(";")[0].strip().lower() == "application/x-www-form-urlencoded"
        return form if form and (is_form or not form.keys().isdisjoint(("access_token", "error"))) else None
    try:
        # Invalid UTF-8 in a description must not lose a token.
        value = json.loads(text := body.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        # A truncated answer is used if both tokens are complete; with one token, nobody knows what is missing.
        members = _truncated_members(text)
        return members if all(is_token(members.get(key)) for key in _TOKEN_KEYS) else None
    return value if isinstance(value, dict) else None


def _contains_token(fields: dict[str, Any]) -> bool:
    """Whether an answer with an error also contains a token: then it is saved, so that a person can read it."""
    return any(isinstance(fields.get(key), str) and fields[key] for key in _TOKEN_KEYS)


def _error(fields: dict[str, Any], *, success: bool) -> _Error | None:
    """Return the error in a body; ``None`` if it reports none."""
    error = fields.get("error")
    inner = error if isinstance(error, dict) else fields
    # In a success, keys such as "code" and "status" can mean anything.
    keys = _CODE_KEYS[:2] if success and not isinstance(error, dict) else _CODE_KEYS
    code = _first(error, *(inner.get(key) for key in keys))
    if success and not error and code is None and fields.get("ok") is not False:
        return None
    text = _first(*(source.get(key) for source in (fields, inner) for key in _DESCRIPTION_KEYS))
    if code is not None and (len(code) > _MAX_CODE or not all("!" <= char <= "~" for char in code)):
        # Not a code by RFC 6749 section 5.2, but a sentence.
        code, text = None, text or code
    text = (text or "")[:_MAX_DESCRIPTION]
    return _Error(code or ("" if text or error or not success else "server_error"), text)


def _first(*candidates: object) -> str | None:
    return next((text for text in candidates if isinstance(text, str) and text), None)


def _tokens(fields: dict[str, Any], now: float, skew: float) -> TokensIssued | None:
    access, refresh = (fields.get(key) for key in _TOKEN_KEYS)
    if not is_token(access) or " " in access or not (refresh is None or refresh == "" or is_token(refresh)):
        return None
    expires_in = _expires_in(fields.get("expires_in"))
    expires_at = (_expires_at(fields, now + skew) or _exp(access, now + skew)) if expires_in is None else None
    return TokensIssued(
        access_token=Secret(access),
        token_type=auth_scheme(fields.get("token_type")),
        expires_in=expires_in,
        expires_at=None if expires_at is None else expires_at - skew,
        refresh_token=Secret(refresh) if refresh else None,
        scope=_scope(fields.get("scope")),
        clock_skew=skew,
    )


def _scope(value: object) -> str | None:
    """Return the scope, separated by spaces (RFC 6749 section 3.3); Twitch and Linear's old apps send a list."""
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        value = " ".join(value)
    return value if isinstance(value, str) and value.isprintable() else None


def _expires_in(value: object) -> float | None:
    """Return the lifetime in seconds; ``None`` if it is absent, no number, or 0, which means "never" at VK."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        seconds = float(value)
    except (ValueError, OverflowError):
        return None
    return min(seconds, MAX_LIFETIME) if math.isfinite(seconds) and seconds > 0 else None


def _expires_at(fields: dict[str, Any], now: float) -> float | None:
    """Return the expiry in epoch seconds, from a number (Supabase) or ISO 8601 (Square, Sentry)."""
    value = fields.get("expires_at", fields.get("expiresAt"))
    try:
        at = _iso(value) if isinstance(value, str) else float(value or 0)
    except (TypeError, ValueError, OverflowError):
        return None
    return at if not isinstance(value, bool) and now < at <= now + MAX_LIFETIME else None


def _exp(access_token: str, now: float) -> float | None:
    # An expiry in the past comes from another clock; with it, the token would be replaced every second.
    at = jwt_time(access_token, "exp")
    return at if at is not None and at > now else None


def _iso(text: str) -> float:
    at = datetime.fromisoformat(text)
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def _clock_skew(date: str | None, now: float) -> float:
    """Return the seconds by which the server's clock is ahead (``Date``, RFC 9110 section 6.6.1); 0 within a tolerance.

    Without this, a server whose clock is ten minutes behind would date the expiry of a ten-minute token to now, and the
    token would be replaced every second.
    """
    try:
        skew = parsedate_to_datetime(date or "").timestamp() - now
    except (ValueError, OverflowError):
        return 0.0
    return skew if abs(skew) > CLOCK_TOLERANCE else 0.0


def _retry_after(value: str | None, now: float) -> float | None:
    """Return the seconds of ``Retry-After`` (RFC 9110 section 10.2.3), a number or a date; one hour at most."""
    if value is None:
        return None
    try:
        seconds = float(value) if value.strip().isdigit() else parsedate_to_datetime(value).timestamp() - now
    except (ValueError, OverflowError):
        return None
    return min(max(seconds, 0.0), MAX_WAIT)


def _describe_body(body: bytes, *, complete: bool) -> str:
    if not body:
        return "an empty body"
    return "a body that is no token response" if complete else "a truncated body"


def _truncated_members(text: str) -> dict[str, Any]:
    """Return the members of a truncated JSON object whose values are certainly complete."""
    found: dict[str, Any] = {}
    at = _after_space(text, 1)
    while text[at : at + 1] == '"':
        try:
            key, at = _DECODER.raw_decode(text, at)
            at = _after_space(text, at)
            if text[at : at + 1] != ":":
                break
            value, at = _DECODER.raw_decode(text, _after_space(text, at + 1))
        except (ValueError, RecursionError):
            break
        at = _after_space(text, at)
        follows = text[at : at + 1]
        # At the end of the text, only a string, an object or an array is certainly complete: a number may go on.
        if follows not in (",", "}") and not (follows == "" and isinstance(value, str | dict | list)):
            break
        found[key] = value
        at = _after_space(text, at + 1) if follows == "," else len(text)
    return found


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return at if match is None else match.end()
