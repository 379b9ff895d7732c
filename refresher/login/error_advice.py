"""What a person can do about an error code (RFC 6749 sections 4.1.2.1 and 5.2, RFC 8707)."""

from typing import Final

__all__ = ["TEMPORARY", "advice"]

TEMPORARY: Final = ("server_error", "temporarily_unavailable")
"""Codes of a temporary failure of the server."""

_CLIENT: Final = "allow this kind of login in the settings of the client at the server, or give another --client-id"

_DEFAULT: Final = "log in again; if that does not help, ask those who run the server"

_ADVICE: Final = {
    "invalid_client": "check --client-id, --client-secret-file and --auth-method",
    "invalid_grant": "log in again; if that does not help, check the clock of this machine",
    "invalid_scope": "request another --scope",
    "invalid_target": "try --resource none",
    "unauthorized_client": _CLIENT,
    "unsupported_grant_type": _CLIENT,
    "unsupported_response_type": _CLIENT,
}


def advice(*codes: str) -> str:
    """Return what to do next about the first known code, with a capital letter and without a full stop."""
    text = next((_ADVICE[code] for code in codes if code in _ADVICE), _DEFAULT)
    return f"{text[0].upper()}{text[1:]}"
