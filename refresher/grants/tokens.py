"""What a token says about itself: its characters, its scheme, the times in a JWT. Pure."""

import base64
import binascii
from typing import Final, TypeGuard

import msgspec

__all__ = ["MAX_LIFETIME", "auth_scheme", "is_token", "jwt_time", "not_before"]

MAX_LIFETIME: Final = 315_360_000.0
"""Ten years in seconds: no access token is said to live longer."""

# How a header is spelt is not always what a server calls its tokens: Slack says "bot" and "user" and wants Bearer.
_SCHEMES: Final = frozenset({"bearer", "dpop", "mac", "pop"})


def is_token(value: object) -> TypeGuard[str]:
    """RFC 6749 appendix A: a token is of printable ASCII; a control character could split a header."""
    return isinstance(value, str) and value != "" and all(" " <= char <= "~" for char in value)


def auth_scheme(token_type: object) -> str:
    """Return how a token goes into a header, from its type: what is no scheme is a server's own word for Bearer."""
    return token_type if isinstance(token_type, str) and token_type.lower() in _SCHEMES else "Bearer"


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


def not_before(refresh_token: str, now: float, ahead: float = 0.0) -> float | None:
    """Return from when a refresh token that is here ``now`` may be used, where it says so itself.

    ``ahead``: by how many seconds its server's clock is ahead, as far as that is known.
    """
    at, issued = jwt_time(refresh_token, "nbf"), jwt_time(refresh_token, "iat")
    if at is None:
        return None
    # It was issued before now, so the rest of its wait is no longer than all of it, however far our clock is behind.
    return at - ahead if issued is None else min(at - ahead, now + at - issued)
