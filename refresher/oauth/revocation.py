"""Token revocation: end a grant at its authorization server (RFC 7009)."""

from contextlib import suppress
from typing import Final

from refresher.common.errors import ServerAway
from refresher.common.secret import Secret
from refresher.grants.outcome import Ambiguous, Transient, describe
from refresher.grants.record import Grant
from refresher.oauth.http_client import PostResult, post

__all__ = ["revoke"]

_STILL_VALID: Final = "it stays valid at the server until you revoke it there or it expires"


def revoke(grant: Grant, *, ca_file: str | None) -> str:
    """Revoke the refresh token and the access token at the server; return what happened, as text.

    Raises ``ServerAway`` if the server gives no usable answer.
    """
    if grant.revocation_endpoint is None:
        return f"the server's revocation endpoint is not known; {_STILL_VALID}"
    # The refresh token first: most servers then revoke the access tokens too. Some do not, so both are sent.
    tokens = (("refresh_token", grant.refresh_token), ("access_token", grant.access_token))
    held = [(hint, token) for hint, token in tokens if token]
    if not held:
        return "there was no token to revoke"
    refusal = _revoke_token(grant, grant.revocation_endpoint, *held[0], ca_file)
    for hint, token in held[1:]:
        with suppress(ServerAway):  # the first token decides
            _revoke_token(grant, grant.revocation_endpoint, hint, token, ca_file)
    if refusal is not None:
        return f"the server did not revoke it ({refusal}); {_STILL_VALID}"
    return "it is revoked at the server"


def _revoke_token(grant: Grant, endpoint: str, hint: str, token: Secret, ca_file: str | None) -> str | None:
    """Revoke one token; return why the server refused, or ``None``. Raises ``ServerAway``."""

    def send(fields: dict[str, str]) -> PostResult:
        return post(grant, endpoint, fields, ca_file=ca_file, endpoint_name="revocation_endpoint")

    fields = {"token": token.reveal(), "token_type_hint": hint}
    result = send(fields)
    if result.status in (400, 401, 422) and b"client_secret" in result.decompressed_body():
        # Servers of the MCP SDK require this key in the body from every client. An empty value is harmless.
        result = send({**fields, "client_secret": ""})
    if result.status is not None and 200 <= result.status < 300:
        return None  # RFC 7009 section 2.2: also for a token that is not valid any more
    refusal = None if result.status is None else result.outcome()
    reason = result.error if refusal is None else describe(refusal)
    if refusal is None or isinstance(refusal, Ambiguous) or (isinstance(refusal, Transient) and not refusal.refusal):
        raise ServerAway(
            f"cannot revoke {grant.name}: {reason}; the grant is unchanged. Try again later, or remove it only here "
            "with --keep-at-server"
        )
    return reason
