"""What a token endpoint's answer means (RFC 6749 section 5). Pure: bytes in, outcome out."""

import base64
import binascii
import json
import math
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Final, TypeGuard
from urllib.parse import parse_qsl

import msgspec

from refresher.outcome import (
    Ambiguous,
    ClientRejected,
    GrantDead,
    Outcome,
    Rotated,
    Transient,
    Unintelligible,
)
from refresher.policy import MAX_WAIT
from refresher.secret import Secret, mask

__all__ = ["LONGEST_LIFE", "is_token", "judge", "jwt_exp"]

LONGEST_LIFE: Final = 315_360_000.0
"""Ten years in seconds: no access token is said to live longer."""

# A verdict on the grant, and on the client: RFC 6749 section 5.2. Everything else is a refusal that is no verdict.
_RFC_CODES: Final = frozenset(
    {
        "invalid_request",
        "invalid_client",
        "invalid_grant",
        "unauthorized_client",
        "unsupported_grant_type",
        "invalid_scope",
        "invalid_target",
    }
)
_GRANT_CODES: Final = frozenset({"invalid_grant"})
_CLIENT_CODES: Final = frozenset({"invalid_client", "unauthorized_client"})
# oidc-provider (RFC 8707) marks the refresh token as used before it looks at the resource: seen, not supposed.
_AFTER_THE_SPEND: Final = frozenset({"invalid_target"})
_BUSY_STATUSES: Final = frozenset({408, 425, 429, 503})


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
    code = None if fields is None else _error_code(fields, known)
    if fields is not None and code is not None and not (success and _holds_a_token(fields)):
        return _refused(status, headers, code, _words(fields, known), now)
    if not success:
        return _refused(status, headers, "", "", now)
    rotated = None if fields is None or code is not None else _rotated(fields)
    if rotated is not None:
        return rotated
    return Unintelligible(
        description=f"the token endpoint answered {status} with {_kind(body, whole=whole)}",
        answer=Secret(body.decode("latin-1")),
    )


def _refused(status: int, headers: Mapping[str, str], code: str, words: str, now: float) -> Outcome:
    description = f"the token endpoint answered {status}{f' {code}' if code else ''}{f': {words}' if words else ''}"
    if code in _GRANT_CODES:
        return GrantDead(code=code, description=description)
    if code in _CLIENT_CODES:
        return ClientRejected(code=code, description=f"{description}; check client_id and client_secret")
    if status in _BUSY_STATUSES:
        retry_after = _retry_after(headers.get("retry-after"), now)
        return Transient(code=code or "temporarily_unavailable", description=description, retry_after=retry_after)
    if status >= 500 or code in _AFTER_THE_SPEND:
        # The token may have been spent before the server, or something between, gave up.
        return Ambiguous(description=description)
    if 300 <= status < 400:
        description += " (a redirect, which a refresh token never follows)"
    return Transient(code=code or "server_error", description=description)


def _fields(body: bytes, content_type: str, *, whole: bool) -> dict[str, Any] | None:
    body = body.removeprefix(b"\xef\xbb\xbf").strip()
    if not body.startswith(b"{"):
        # Only JSON can show that it is complete; GitHub and older servers answer as forms, under any type.
        form = dict(parse_qsl(body.decode("utf-8", "replace"))) if whole and not body.startswith(b"<") else {}
        is_form = content_type.partition(";")[0].strip().lower() == "application/x-www-form-urlencoded"
        return form if form and (is_form or not form.keys().isdisjoint(("access_token", "error"))) else None
    try:
        # Lenient about what we do not store: a stray byte in a description must not cost a token.
        value = json.loads(body.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _holds_a_token(fields: dict[str, Any]) -> bool:
    """Whether an answer brings a token beside its error: then it is kept, and a person can read it."""
    return any(isinstance(fields.get(key), str) and fields[key] for key in ("access_token", "refresh_token"))


def _error_code(fields: dict[str, Any], known: tuple[Secret | None, ...]) -> str | None:
    error = fields.get("error")
    if not error:
        return "server_error" if fields.get("ok") is False else None
    # RFC 6749 section 5.2 allows these characters; anything else is not a code but somebody's sentence.
    if isinstance(error, str) and len(error) <= 64 and all("!" <= char <= "~" for char in error):
        return error if error in _RFC_CODES else mask(error, known)
    return "server_error"


def _words(fields: dict[str, Any], known: tuple[Secret | None, ...]) -> str:
    words = fields.get("error_description")
    return mask(words, known) if isinstance(words, str) else ""


def _rotated(fields: dict[str, Any]) -> Rotated | None:
    access = fields.get("access_token")
    refresh = fields.get("refresh_token")
    if not is_token(access) or " " in access or not (refresh is None or refresh == "" or is_token(refresh)):
        return None
    token_type = fields.get("token_type")
    scope = fields.get("scope")
    expires_in = _expires_in(fields.get("expires_in"))
    return Rotated(
        access_token=Secret(access),
        token_type=token_type if is_token(token_type) and " " not in token_type else "Bearer",
        expires_in=expires_in,
        expires_at=jwt_exp(access) if expires_in is None else None,
        refresh_token=Secret(refresh) if refresh else None,
        scope=scope if isinstance(scope, str) and scope.isprintable() else None,
    )


def is_token(value: object) -> TypeGuard[str]:
    """RFC 6749 appendix A: a token is of printable ASCII; a control character could split a header."""
    return isinstance(value, str) and value != "" and all(" " <= char <= "~" for char in value)


def _expires_in(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        seconds = float(value)
    except (ValueError, OverflowError):
        return None
    return min(seconds, LONGEST_LIFE) if math.isfinite(seconds) and seconds >= 0 else None


def jwt_exp(access_token: str) -> float | None:
    """Return the ``exp`` claim where the access token is a JWT (RFC 7519); its signature is the server's business."""
    parts = access_token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = msgspec.json.decode(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        return None
    exp = claims.get("exp") if isinstance(claims, dict) else None
    if isinstance(exp, bool) or not isinstance(exp, int | float):
        return None
    return float(exp) if 0 < exp < 1e12 else None


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
