"""Turn the answer of a token endpoint (RFC 6749 section 5) into an outcome; without input or output.

``parse_token_response`` is the only place that classifies an answer. The meaning of the error codes and texts of single
servers is data in ``dialects.py``. ``grants/transition.py`` then decides what the outcome does to the grant.
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final
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
from refresher.grants.tokens import MAX_LIFETIME, auth_scheme, is_token, jwt_time, lifetime, refresh_token_lifetime
from refresher.oauth.dialects import KNOWN_CODES, classify_error

__all__ = ["clock_skew", "parse_token_response"]

_MAX_CODE: Final = 64
_MAX_DESCRIPTION: Final = 4096
_DECODER: Final = json.JSONDecoder()
_FIELD: Final = re.compile(r"[^&]+")
_SPACE: Final = re.compile(r"[ \t\r\n]*")

_BUSY_STATUSES: Final = frozenset({408, 425, 429, 503})
_TOKEN_KEYS: Final = ("access_token", "refresh_token")
# GitHub, Entra, RingCentral and others; Keycloak; Intuit.
_LIFETIME_KEYS: Final = ("refresh_token_expires_in", "refresh_expires_in", "x_refresh_token_expires_in")

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
    error = _error(fields, success=success)
    skew = clock_skew(headers.get("date", ""), now)
    # A success with an error and a token is saved, so that a person can read it.
    if not success or (error is not None and _first(*map(fields.get, _TOKEN_KEYS)) is None):
        return _failure(status, headers, *(error or ("", "")), secrets, now + skew)
    if error is None and (tokens := _tokens(fields, now, skew)) is not None:
        return tokens
    kind = "a body that is no token response" if complete else "a truncated body"
    return Unreadable(
        description=f"the token endpoint answered {status} with {kind if body else 'an empty body'}",
        body=Secret(body.decode("latin-1")),
    )


def _failure(
    status: int, headers: Mapping[str, str], code: str, text: str, secrets: tuple[Secret | None, ...], now: float
) -> Outcome:
    kind = classify_error(code, text)
    code = code if code.lower() in KNOWN_CODES else mask(code, secrets)
    text = mask(text, secrets)
    description = f"the token endpoint answered {status}{f' {code}' if code else ''}{f': {text}' if text else ''}"
    retry_after = _retry_after(headers.get("retry-after", "").strip(), now)
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
    if kind == "ambiguous" or status >= 500:
        # The server, or a proxy before it, may have failed after the refresh token was spent.
        return Ambiguous(description=description)
    if 300 <= status < 400:
        description += " (a redirect; refresher follows none with a refresh token)"
    return Transient(code=code or "server_error", description=description, retry_after=retry_after, refusal=True)


def _parse_body(body: bytes, content_type: str, *, complete: bool) -> dict[str, Any]:
    """Return the fields of a body; none if it is unreadable."""
    # Invalid UTF-8 in a description must not lose a token.
    text = body.removeprefix(b"\xef\xbb\xbf").strip().decode("utf-8", "replace")
    if not text.startswith("{"):
        # Only JSON shows that it is complete. GitHub and older servers send forms, with any content type.
        # Field by field: a list of all of them could need fifty times the memory of the text.
        fields = (pair for part in _FIELD.finditer(text) for pair in parse_qsl(part[0]))
        form = dict(fields) if complete and not text.startswith("<") else {}
        is_form = content_type.partition(";")[0].strip().lower() == "application/x-www-form-urlencoded"
        return form if is_form or not form.keys().isdisjoint(("access_token", "error")) else {}
    try:
        members: dict[str, Any] = json.loads(text)
    except (ValueError, RecursionError):
        # A truncated answer is used if both tokens are complete; with one token, it is unknown what is missing.
        members = _truncated_members(text)
        return members if all(is_token(members.get(key)) for key in _TOKEN_KEYS) else {}
    return members


def _error(fields: dict[str, Any], *, success: bool) -> tuple[str, str] | None:
    """Return the error code and its description, unmasked; ``None`` if a body reports no error."""
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
    return code or ("" if text or error or not success else "server_error"), text


def _first(*candidates: object) -> str | None:
    return next((text for text in candidates if isinstance(text, str) and text), None)


def _tokens(fields: dict[str, Any], now: float, skew: float) -> TokensIssued | None:
    access, refresh = (fields.get(key) for key in _TOKEN_KEYS)
    if not is_token(access) or " " in access or not (refresh in (None, "") or is_token(refresh)):
        return None
    expires_in = lifetime(fields.get("expires_in"))
    expires_at = _expires_at(fields, access, now + skew) if expires_in is None else None
    return TokensIssued(
        access_token=Secret(access),
        token_type=auth_scheme(fields.get("token_type")),
        expires_in=expires_in,
        expires_at=None if expires_at is None else expires_at - skew,
        refresh_token=Secret(refresh) if refresh else None,
        scope=_scope(fields.get("scope")),
        refresh_token_expires_in=refresh_token_lifetime(refresh or "", now + skew, *map(fields.get, _LIFETIME_KEYS)),
        # An unreadable one must not lose the other tokens.
        id_token=Secret(identity) if is_token(identity := fields.get("id_token")) else None,
        issued_token_type=issued if isinstance(issued := fields.get("issued_token_type"), str) else None,
        clock_skew=skew,
    )


def _scope(value: object) -> str | None:
    """Return the scope, separated by spaces (RFC 6749 section 3.3); Twitch and Linear's old apps send a list."""
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        value = " ".join(value)
    return value if isinstance(value, str) and value.isprintable() else None


def _expires_at(fields: dict[str, Any], access_token: str, now: float) -> float | None:
    """Return the expiry in epoch seconds, from a number (Supabase), ISO 8601 (Square) or the ``exp`` of a JWT."""
    value = fields.get("expires_at", fields.get("expiresAt"))
    with suppress(TypeError, ValueError, OverflowError):
        if isinstance(value, str):
            date = datetime.fromisoformat(value)
            value = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
        if not isinstance(value, bool) and now < (at := float(value or 0)) <= now + MAX_LIFETIME:
            return at
    # An expiry in the past comes from another clock; with it, the token would be replaced every second.
    exp = jwt_time(access_token, "exp")
    return exp if exp is not None and exp > now else None


def clock_skew(date: str, now: float) -> float:
    """Return the seconds by which the server's clock is ahead (``Date``, RFC 9110 section 6.6.1); 0 within a tolerance.

    Without this, a server whose clock is ten minutes behind would date the expiry of a ten-minute token to now, and the
    token would be replaced every second.
    """
    skew = _seconds_until(date, now) or 0.0
    return skew if abs(skew) > CLOCK_TOLERANCE else 0.0


def _retry_after(value: str, now: float) -> float | None:
    """Return the seconds of ``Retry-After`` (RFC 9110 section 10.2.3), a number or a date; one hour at most."""
    seconds = float(value) if value.isdecimal() else _seconds_until(value, now)
    return None if seconds is None else min(max(seconds, 0.0), MAX_WAIT)


def _seconds_until(date: str, now: float) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp() - now
    except (ValueError, OverflowError):
        return None


def _truncated_members(text: str) -> dict[str, Any]:
    """Return the members of a truncated JSON object whose values are certainly complete."""
    found: dict[str, Any] = {}
    at = 0
    with suppress(ValueError, RecursionError):  # nothing complete follows
        while text[at : at + 1] in ("{", ","):
            key, at = _json_value(text, at + 1)
            if not isinstance(key, str) or text[at : at + 1] != ":":
                break
            value, at = _json_value(text, at + 1)
            # At the end of the text, only a string, an object or an array is certainly complete: a number may go on.
            if text[at : at + 1] not in (",", "}") and not (at == len(text) and isinstance(value, str | dict | list)):
                break
            found[key] = value
    return found


def _json_value(text: str, at: int) -> tuple[Any, int]:
    """Return the value that begins at ``at``, and where the text continues; white space is skipped."""
    value, at = _DECODER.raw_decode(text, _after_space(text, at))
    return value, _after_space(text, at)


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return at if match is None else match.end()
