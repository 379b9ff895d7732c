"""What a person can do about an error code (RFC 6749 sections 4.1.2.1 and 5.2, RFC 8707)."""

from typing import Final

__all__ = ["TEMPORARY", "advice"]

TEMPORARY: Final = ("server_error", "temporarily_unavailable")
"""Codes of a passing failure of the server."""

_CLIENT: Final = "allow this kind of login in the settings of the client at the server, or give another --client-id"

_ADVICE: Final = {
    "invalid_client": "check --client-id, --client-secret-file and --auth-method",
    "invalid_grant": "log in again; if that does not help, check the clock of this machine",
    "invalid_scope": "request another --scope",
    "invalid_target": "try --resource none",
    "unauthorized_client": _CLIENT,
    "unsupported_grant_type": _CLIENT,
    "unsupported_response_type": _CLIENT,
}


def advice(code: str) -> str:
    """Return what to do next, with a capital letter and without a full stop."""
    text = _ADVICE.get(code, "log in again; if that does not help, ask those who run the server")
    return f"{text[0].upper()}{text[1:]}"
