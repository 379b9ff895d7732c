"""What a token endpoint's answer means (RFC 6749 section 5). Pure: bytes in, outcome out."""

import base64
import binascii
import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, NamedTuple, TypeGuard, assert_never
from urllib.parse import parse_qsl

import msgspec

from refresher.common.secret import Secret, mask
from refresher.grants.outcome import (
    Ambiguous,
    ClientRejected,
    GrantDead,
    Outcome,
    ResourceRefused,
    Rotated,
    TooEarly,
    Transient,
    Unintelligible,
)
from refresher.grants.policy import CLOCK_TOLERANCE, MAX_WAIT
from refresher.oauth.dialects import KNOWN_CODES, meaning_of
from refresher.oauth.truncated_json import members

__all__ = ["LONGEST_LIFE", "is_token", "judge", "jwt_time", "scheme", "usable_from"]

LONGEST_LIFE: Final = 315_360_000.0
"""Ten years in seconds: no access token is said to live longer."""

_LONGEST_CODE: Final = 64
_LONGEST_WORDS: Final = 4096

_BUSY_STATUSES: Final = frozenset({408, 425, 429, 503})

# Under which keys servers put a code and its words, besides the RFC's own: GitHub, Supabase, OpenAI, HubSpot, Cognito.
_CODE_KEYS: Final = ("error_code", "errorCode", "code", "status", "type", "__type")
_WORDS_KEYS: Final = ("error_description", "message", "msg", "reason")

# How a header is spelt is not always what a server calls its tokens: Slack says "bot" and "user" and wants Bearer.
_SCHEMES: Final = frozenset({"bearer", "dpop", "mac", "pop"})


def judge(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    whole: bool,
    now: float,
    known: tuple[Secret | None, ...],
) -> Outcome:
    """Return what an answer means.

    ``whole``: the body came to its end; a JSON object that closes is complete all the same. ``now``: epoch seconds.
    ``known``: the secrets of this grant, which no description may repeat.
    """
    fields = _fields(body, headers.get("content-type", ""), whole=whole)
    success = 200 <= status < 300
    # The body comes before the status: real servers put errors into 200 and verdicts into 401.
    error = None if fields is None else _error(fields, success=success)
    ahead = _clock_ahead(headers.get("date"), now)
    if error is not None and not (success and fields is not None and _holds_a_token(fields)):
        return _refused(status, headers, error, known, now + ahead)
    if not success:
        return _refused(status, headers, _Error("", ""), known, now + ahead)
    rotated = None if fields is None or error is not None else _rotated(fields, now, ahead)
    if rotated is not None:
        return rotated
    return Unintelligible(
        description=f"the token endpoint answered {status} with {_kind(body, whole=whole)}",
        answer=Secret(body.decode("latin-1")),
    )


class _Error(NamedTuple):
    """What a server says is wrong, unmasked."""

    code: str
    words: str


def _refused(
    status: int, headers: Mapping[str, str], error: _Error, known: tuple[Secret | None, ...], now: float
) -> Outcome:
    meaning = meaning_of(error.code, error.words)
    code = error.code if error.code.lower() in KNOWN_CODES else mask(error.code, known)
    words = mask(error.words, known)
    description = f"the token endpoint answered {status}{f' {code}' if code else ''}{f': {words}' if words else ''}"
    retry_after = _retry_after(headers.get("retry-after"), now)
    if status in _BUSY_STATUSES or meaning == "busy":
        return Transient(code=code or "temporarily_unavailable", description=description, retry_after=retry_after)
    match meaning:
        case "dead":
            return GrantDead(code=code or "invalid_grant", description=description)
        case "client":
            return ClientRejected(
                code=code or "invalid_client", description=f"{description}; check client_id and how it authenticates"
            )
        case "early":
            return TooEarly(code=code, description=description)
        case "resource" if status < 500:
            return ResourceRefused(code=code or "invalid_target", description=description)
        case "spent":
            return Ambiguous(description=description)
        case "resource" | "refused" | None:
            pass
        case _:
            assert_never(meaning)
    if status >= 500:
        # The token may have been spent before the server, or something between, gave up.
        return Ambiguous(description=description)
    if 300 <= status < 400:
        description += " (a redirect, which a refresh token never follows)"
    return Transient(code=code or "server_error", description=description, retry_after=retry_after, refusal=True)


def _fields(body: bytes, content_type: str, *, whole: bool) -> dict[str, Any] | None:
    body = body.removeprefix(b"\xef\xbb\xbf").strip()
    if not body.startswith(b"{"):
        # Only JSON can show that it is complete; GitHub and older servers answer as forms, under any type.
        form = dict(parse_qsl(body.decode("utf-8", "replace"))) if whole and not body.startswith(b"<") else {}
        is_form = content_type.partition(";")[0].strip().lower() == "application/x-www-form-urlencoded"
        return form if form and (is_form or not form.keys().isdisjoint(("access_token", "error"))) else None
    try:
        # Lenient about what we do not store: a stray byte in a description must not cost a token.
        value = json.loads(text := body.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return _salvaged(members(text))
    return value if isinstance(value, dict) else None


def _salvaged(fields: dict[str, Any]) -> dict[str, Any] | None:
    """Return what came of a broken answer if both tokens did: with less, nobody could tell what is missing."""
    return fields if all(is_token(fields.get(key)) for key in ("access_token", "refresh_token")) else None


def _holds_a_token(fields: dict[str, Any]) -> bool:
    """Whether an answer brings a token beside its error: then it is kept, and a person can read it."""
    return any(isinstance(fields.get(key), str) and fields[key] for key in ("access_token", "refresh_token"))


def _error(fields: dict[str, Any], *, success: bool) -> _Error | None:
    """Return what is wrong by a body; ``None`` where it does not say that anything is."""
    error = fields.get("error")
    inner = error if isinstance(error, dict) else fields
    # Only a refusal is searched for codes: in a success, "code" and "status" may stand for anything.
    keys = _CODE_KEYS[:2] if success and not isinstance(error, dict) else _CODE_KEYS
    named = _first(error, *(inner.get(key) for key in keys))
    if success and not error and named is None and fields.get("ok") is not False:
        return None
    words = _first(*(source.get(key) for source in (fields, inner) for key in _WORDS_KEYS), longest=_LONGEST_WORDS)
    if named is not None and (len(named) > _LONGEST_CODE or not all("!" <= char <= "~" for char in named)):
        # RFC 6749 section 5.2 allows these characters; anything else is not a code but somebody's sentence.
        named, words = None, words or named
    return _Error(named or ("" if words or error or not success else "server_error"), words or "")


def _first(*candidates: object, longest: int | None = None) -> str | None:
    found = next((text for text in candidates if isinstance(text, str) and text), None)
    return found if found is None else found[:longest]


def _rotated(fields: dict[str, Any], now: float, ahead: float) -> Rotated | None:
    access = fields.get("access_token")
    refresh = fields.get("refresh_token")
    if not is_token(access) or " " in access or not (refresh is None or refresh == "" or is_token(refresh)):
        return None
    token_type = fields.get("token_type")
    expires_in = _expires_in(fields.get("expires_in"))
    expires_at = (_expires_at(fields, now + ahead) or _exp(access, now + ahead)) if expires_in is None else None
    return Rotated(
        access_token=Secret(access),
        token_type=scheme(token_type),
        expires_in=expires_in,
        expires_at=None if expires_at is None else expires_at - ahead,
        refresh_token=Secret(refresh) if refresh else None,
        scope=_scope(fields.get("scope")),
        clock_ahead=ahead,
    )


def _scope(value: object) -> str | None:
    """RFC 6749 section 3.3: words parted by spaces; Twitch and Linear's old apps send a list."""
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        value = " ".join(value)
    return value if isinstance(value, str) and value.isprintable() else None


def scheme(token_type: object) -> str:
    """Return how a token goes into a header, from its type: what is no scheme is a server's own word for Bearer."""
    return token_type if isinstance(token_type, str) and token_type.lower() in _SCHEMES else "Bearer"


def is_token(value: object) -> TypeGuard[str]:
    """RFC 6749 appendix A: a token is of printable ASCII; a control character could split a header."""
    return isinstance(value, str) and value != "" and all(" " <= char <= "~" for char in value)


def _expires_in(value: object) -> float | None:
    """Return the lifetime in seconds; ``None`` where it is absent, no number, or none: 0 means "never" to VK."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        seconds = float(value)
    except (ValueError, OverflowError):
        return None
    return min(seconds, LONGEST_LIFE) if math.isfinite(seconds) and seconds > 0 else None


def _expires_at(fields: dict[str, Any], now: float) -> float | None:
    """Return the end as epoch seconds where a server tells it so: a number (Supabase), or ISO 8601 (Square, Sentry)."""
    value = fields.get("expires_at", fields.get("expiresAt"))
    try:
        at = _iso(value) if isinstance(value, str) else float(value or 0)
    except (TypeError, ValueError, OverflowError):
        return None
    return at if not isinstance(value, bool) and now < at <= now + LONGEST_LIFE else None


def _exp(access_token: str, now: float) -> float | None:
    # An end that has passed is another clock's: taken at its word, the token would be replaced each second.
    at = jwt_time(access_token, "exp")
    return at if at is not None and at > now else None


def _iso(text: str) -> float:
    at = datetime.fromisoformat(text)
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def jwt_time(token: str, claim: str) -> float | None:
    """Return ``exp`` or ``nbf`` where a token is a JWT (RFC 7519); its signature is the server's business."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = msgspec.json.decode(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        return None
    at = claims.get(claim) if isinstance(claims, dict) else None
    if isinstance(at, bool) or not isinstance(at, int | float):
        return None
    return float(at) if 0 < at < 1e12 else None


def usable_from(refresh_token: str, now: float, ahead: float = 0.0) -> float | None:
    """Return from when a refresh token that is here ``now`` may be used, where it says so itself.

    ``ahead``: by how many seconds its server's clock is ahead, as far as that is known.
    """
    at, issued = jwt_time(refresh_token, "nbf"), jwt_time(refresh_token, "iat")
    if at is None:
        return None
    # It was issued before now, so the rest of its wait is no longer than all of it, however far our clock is behind.
    return at - ahead if issued is None else min(at - ahead, now + at - issued)


def _clock_ahead(date: str | None, now: float) -> float:
    """Return by how many seconds the server's clock is ahead of ours, as far as that is more than a tolerance.

    By RFC 9110 section 6.6.1. A server ten minutes behind would date the end of a token of ten minutes to now, and
    taken at its word the token would be replaced each second.
    """
    try:
        ahead = parsedate_to_datetime(date or "").timestamp() - now
    except (ValueError, OverflowError):
        return 0.0
    return ahead if abs(ahead) > CLOCK_TOLERANCE else 0.0


def _retry_after(value: str | None, now: float) -> float | None:
    """RFC 9110 section 10.2.3: seconds or a date; counted up to an hour."""
    if value is None:
        return None
    try:
        seconds = float(value) if value.strip().isdigit() else parsedate_to_datetime(value).timestamp() - now
    except (ValueError, OverflowError):
        return None
    return min(max(seconds, 0.0), MAX_WAIT)


def _kind(body: bytes, *, whole: bool) -> str:
    if not body:
        return "an empty body"
    return "something that is no token response" if whole else "a body that breaks off"
