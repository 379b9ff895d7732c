"""The requests of a login to the token endpoint, and the grant or the error that follows (RFC 6749)."""

import uuid
from typing import Final

import msgspec

from refresher.common import clocks
from refresher.common.clocks import Moment
from refresher.common.errors import ClientUnknown, LoginRefused, RefresherError, ServerAway
from refresher.common.secret import Secret
from refresher.grants import refresh_life, server_behavior
from refresher.grants.outcome import (
    Ambiguous,
    ClientRejected,
    Outcome,
    ResourceRefused,
    TokensIssued,
    Transient,
    describe,
    error_code,
)
from refresher.grants.record import Grant
from refresher.grants.tokens import MAX_LIFETIME, needs_proof, not_before
from refresher.grants.transition import with_access_token
from refresher.login.http_client import Connections
from refresher.oauth.http_client import PostResult, post
from refresher.oauth.params import with_params

__all__ = ["advice", "is_temporary", "login_error", "new_grant", "outcome_of", "request_tokens", "scope_of", "send"]

_ALLOW: Final = "allow this kind of login in the settings of the client at the server, or give another --client-id"
_ADVICE: Final = {
    "invalid_client": "check --client-id, --client-secret-file and --auth-method",
    "invalid_grant": "log in again; if that does not help, check the clock of this machine",
    "invalid_scope": "request another --scope",
    "invalid_target": "try --resource none",
    **dict.fromkeys(("unauthorized_client", "unsupported_grant_type", "unsupported_response_type"), _ALLOW),
}


def advice(*codes: str) -> str:
    """Return what to do next about the first known error code, with a capital letter and without a full stop."""
    default = "log in again; if that does not help, ask those who run the server"
    text = next((_ADVICE[code] for code in codes if code in _ADVICE), default)
    return f"{text[0].upper()}{text[1:]}"


def send(
    endpoint: str,
    url: str,
    client: Grant,
    fields: dict[str, str],
    connections: Connections,
    params: tuple[tuple[str, str], ...] = (),
) -> PostResult:
    """Send ``fields``, ``resource`` if the server accepts it, and ``params`` to ``endpoint`` at ``url`` as ``client``.

    Raises ``LoginRefused`` if a server must not name that address.
    """
    secrets = tuple(Secret(fields[key]) for key in ("code", "code_verifier", "device_code") if key in fields)
    if server_behavior.sends_resource(client):
        fields = {**fields, "resource": client.resource or ""}
    fields = with_params(fields, params)
    with connections.to(url):
        return post(client, url, fields, ca_file=connections.ca_file, secrets=secrets, endpoint_name=endpoint)


def request_tokens(
    client: Grant, fields: dict[str, str], connections: Connections, params: tuple[tuple[str, str], ...] = ()
) -> Grant:
    """Return the grant for a token request. Raises ``ClientUnknown``, ``LoginRefused`` and ``ServerAway``."""
    posted = send("token_endpoint", client.token_endpoint, client, fields, connections, params)
    outcome = outcome_of(posted)
    # Never with a code: a server may revoke the tokens of one that is sent twice (RFC 6749 section 4.1.2).
    if "code" not in fields and server_behavior.refuses_client_id(client, outcome):
        without = msgspec.structs.replace(client, omits_client_id=True)
        again = send("token_endpoint", client.token_endpoint, without, fields, connections, params)
        if again.status is not None and isinstance(accepted := again.outcome(), TokensIssued):
            client, posted, outcome = without, again, accepted
    if not isinstance(outcome, TokensIssued):
        raise login_error(outcome)
    return new_grant(client, outcome, posted.sent_at or clocks.now())


def scope_of(client: Grant) -> dict[str, str]:
    """Return the field of a request with the scope of ``client``, if it has one."""
    return {"scope": client.asked_scope} if client.asked_scope else {}


def outcome_of(posted: PostResult) -> Outcome:
    """Return the outcome of an answer. Raises ``ServerAway`` if there is no answer."""
    if posted.status is None:
        lost = "" if posted.sent_at is None else "the request was sent and its answer was lost: "
        raise ServerAway(f"{lost}{posted.error}; nothing was changed. Log in again later")
    return posted.outcome()


def login_error(outcome: Outcome, *, sender: str = "the token endpoint") -> RefresherError:
    """Return the error for an answer of ``sender`` that does not complete the login."""
    text = f"{describe(outcome, sender=sender)}; nothing was changed"
    if isinstance(outcome, ClientRejected):
        return ClientUnknown(f"{text}. {advice(outcome.code, 'invalid_client')}")
    if isinstance(outcome, Ambiguous) or is_temporary(outcome):
        return ServerAway(f"{text}. Log in again later")
    code = "invalid_target" if isinstance(outcome, ResourceRefused) else error_code(outcome)
    return LoginRefused(f"{text}. {advice(code)}")


def is_temporary(outcome: Outcome) -> bool:
    """Whether the server only asks for a later request."""
    return isinstance(outcome, Transient) and not outcome.refusal


def new_grant(client: Grant, tokens: TokensIssued, sent: Moment) -> Grant:
    """Return ``client`` with the tokens of the request that was sent at ``sent``.

    Raises ``LoginRefused`` for a token that needs a proof.
    """
    if needs_proof(tokens.token_type):
        raise LoginRefused(
            f"the server issues {tokens.token_type} tokens, which need a proof that agents do not send; nothing was "
            "changed. Allow Bearer tokens in the settings of the client at the server, or give another --client-id"
        )
    # With credentials of its own, it can request tokens again without a refresh token (RFC 6749 section 4.4).
    own_credentials = client.login is not None and client.without_person
    refresh_token = None if own_credentials else tokens.refresh_token
    renewable = own_credentials or refresh_token is not None
    grant = msgspec.structs.replace(
        with_access_token(client, tokens, sent),
        grant_id=uuid.uuid4().hex,
        refresh_token=refresh_token,
        authorized_at=sent.wall,
        not_before=None if refresh_token is None else not_before(refresh_token.reveal(), sent.wall, tokens.clock_skew),
        # Without a refresh token there will be no other access token, so this one is used until it expires.
        renewable=renewable,
        refuses_early=client.refuses_early or not renewable,
        max_age=client.max_age if renewable else MAX_LIFETIME,
    )
    return refresh_life.after_login(grant, tokens.refresh_token_expires_in, sent)
