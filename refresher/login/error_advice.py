"""What a person can do about an error code of an authorization server (RFC 6749 sections 4.1.2.1 and 5.2, RFC 8707)."""

from typing import Final

__all__ = ["PASSING", "advice"]

PASSING: Final = ("server_error", "temporarily_unavailable")
"""Codes that say nothing about the login: another time it may well work."""

_CLIENT: Final = "allow the client this kind of login in its settings there, or give another --client-id"

_ADVICE: Final = {
    "invalid_client": "check --client-id, --client-secret-file and --auth-method",
    "invalid_grant": "log in again, and check the clock of this machine if it stays so",
    "invalid_scope": "ask for another --scope",
    "invalid_target": "try --resource none",
    "unauthorized_client": _CLIENT,
    "unsupported_grant_type": _CLIENT,
    "unsupported_response_type": _CLIENT,
}


def advice(code: str) -> str:
    """Return what to do next, beginning with a capital letter and without a full stop."""
    words = _ADVICE.get(code, "log in again; if it stays so, those who run the server must look into it")
    return f"{words[0].upper()}{words[1:]}"
