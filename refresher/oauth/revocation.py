"""Revocation: ends a grant at its authorization server, as far as that goes (RFC 7009)."""

from contextlib import suppress
from typing import Final

from refresher.common import clocks
from refresher.common.errors import ServerAway
from refresher.common.secret import Secret
from refresher.grants.outcome import Ambiguous, Transient, words_of
from refresher.grants.record import Grant
from refresher.oauth.http_client import Posted, post
from refresher.oauth.token_request import authenticated

__all__ = ["revoke"]

_DEADLINE: Final = 20.0
_REFUSALS: Final = (400, 401, 422)

_AT_THE_SERVER: Final = "at the server it lives until it is revoked in your account there, or ends by itself"


def revoke(grant: Grant, *, ca_file: str | None) -> str:
    """End refresh token and access token at the server; return in words what became of them there.

    Raises ``ServerAway`` where it could not be asked.
    """
    if grant.revocation_endpoint is None:
        return f"it is not known where this server revokes tokens; {_AT_THE_SERVER}"
    # The refresh token first: with it, most servers end all that came of it. Some do not revoke the other kind.
    tokens = (("refresh_token", grant.refresh_token), ("access_token", grant.access_token))
    held = [(kind, token) for kind, token in tokens if token]
    if not held:
        return "there was no token of it to revoke"
    refusal = _ask(grant, grant.revocation_endpoint, *held[0], ca_file)
    for kind, token in held[1:]:
        with suppress(ServerAway):  # what the grant lived by is settled: it stands no more
            _ask(grant, grant.revocation_endpoint, kind, token, ca_file)
    if refusal is not None:
        return f"the server did not revoke it ({refusal}); {_AT_THE_SERVER}"
    return "it is revoked at the server"


def _ask(grant: Grant, endpoint: str, kind: str, token: Secret, ca_file: str | None) -> str | None:
    """Have one token revoked; return why the server did not. Raises ``ServerAway``."""
    fields = {"token": token.reveal(), "token_type_hint": kind}
    posted = _post(grant, endpoint, fields, ca_file)
    if posted.status in _REFUSALS and b"client_secret" in posted.unpacked():
        # The MCP SDK's servers want that key in the body, whatever the client; empty, it proves nothing, nor harms.
        posted = _post(grant, endpoint, {**fields, "client_secret": ""}, ca_file)
    if posted.status is not None and 200 <= posted.status < 300:
        return None  # RFC 7009 section 2.2: also for a token that was none any more
    refusal = None if posted.status is None else posted.judged(_known(grant))
    words = posted.problem if refusal is None else words_of(refusal)
    if refusal is None or isinstance(refusal, Ambiguous) or (isinstance(refusal, Transient) and not refusal.refusal):
        raise ServerAway(
            f"cannot revoke {grant.name}: {words}; the grant stands. Try again later, or remove it here alone with "
            "--keep-at-server"
        )
    return words


def _post(grant: Grant, endpoint: str, fields: dict[str, str], ca_file: str | None) -> Posted:
    return post(
        grant,
        endpoint,
        lambda: authenticated(grant, fields, clocks.now().wall),
        ca_file=ca_file,
        limit=_DEADLINE,
        known=_known(grant),
        what="revocation_endpoint",
    )


def _known(grant: Grant) -> tuple[Secret | None, ...]:
    return grant.refresh_token, grant.access_token, grant.client_secret
