"""Check and read a token: valid characters, authentication scheme, times in a JWT. Pure."""

import base64
import binascii
import math
from typing import Any, Final, TypeGuard

import msgspec

__all__ = [
    "MAX_LIFETIME",
    "auth_scheme",
    "is_token",
    "jwt_claims",
    "jwt_time",
    "lifetime",
    "needs_proof",
    "not_before",
    "refresh_token_lifetime",
]

MAX_LIFETIME: Final = 315_360_000.0
"""Ten years in seconds, the longest lifetime of an access token."""

_SHORTEST_JWT: Final = 60.0

# Other token types are a server's own name for Bearer: Slack says "bot" and "user", and expects Bearer.
# RFC 8693 section 2.2.1: N_A is no access token at all.
_SCHEMES: Final = frozenset({"bearer", "dpop", "mac", "pop", "n_a"})


def is_token(value: object) -> TypeGuard[str]:
    """Whether ``value`` is printable ASCII (RFC 6749 appendix A); a control character could split a header."""
    return isinstance(value, str) and value != "" and all(" " <= char <= "~" for char in value)


def auth_scheme(token_type: object) -> str:
    """Return the authentication scheme for the ``Authorization`` header, from a token type."""
    return token_type if isinstance(token_type, str) and token_type.lower() in _SCHEMES else "Bearer"


def needs_proof(scheme: str) -> bool:
    """Whether a token is useless without a proof in each request (RFC 9449), which neither refresher nor shim sends."""
    return scheme.lower() != "bearer"


def jwt_claims(token: str) -> dict[str, Any]:
    """Return the claims of ``token`` if it is a JWT (RFC 7519), else none. The signature is not checked."""
    parts = token.split(".", 3)
    if len(parts) != 3:
        return {}
    try:
        claims = msgspec.json.decode(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        return {}
    return claims if isinstance(claims, dict) else {}


def jwt_time(token: str, claim: str) -> float | None:
    """Return a time claim (``exp``, ``nbf``) if ``token`` is a JWT (RFC 7519). The signature is not checked."""
    at = jwt_claims(token).get(claim)
    if isinstance(at, bool) or not isinstance(at, int | float):
        return None
    return float(at) if 0 < at < 1e12 else None


def not_before(refresh_token: str, now: float, clock_skew: float = 0.0) -> float | None:
    """Return from when a refresh token received at ``now`` may be used, by its ``nbf``, on the local clock.

    ``clock_skew``: the seconds by which the server's clock is ahead, as far as they are known.
    """
    at, issued = jwt_time(refresh_token, "nbf"), jwt_time(refresh_token, "iat")
    if at is None:
        return None
    # The token was issued before now, so the remaining wait is at most nbf - iat, even if the local clock is wrong.
    return at - clock_skew if issued is None else min(at - clock_skew, now + at - issued)


def lifetime(value: object) -> float | None:
    """Return a lifetime in seconds; ``None`` if it is absent, no number, or 0, which means "never" at VK."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        seconds = float(value)
    except (ValueError, OverflowError):
        return None
    return min(seconds, MAX_LIFETIME) if math.isfinite(seconds) and seconds > 0 else None


def refresh_token_lifetime(refresh_token: str, now: float, *announced: object) -> float | None:
    """Return the seconds for which a refresh token lives: the first ``announced`` lifetime, else by its ``exp`` (JWT).

    ``now``: by the clock of the server, as far as it is known.
    """
    if (known := next(filter(None, map(lifetime, announced)), None)) is not None:
        return known
    exp, issued = jwt_time(refresh_token, "exp"), jwt_time(refresh_token, "iat")
    if exp is None or exp - now <= _SHORTEST_JWT:
        return None  # within the tolerance of clocks, it says nothing
    # If the local clock is behind, the difference to now would be too long.
    return min(exp - now, MAX_LIFETIME if issued is None or issued >= exp else exp - issued)
