"""The token request of a login, and the grant that it returns (RFC 6749 sections 4.1.3 and 5.1)."""

import uuid

import msgspec

from refresher.common import clocks
from refresher.common.clocks import Moment
from refresher.common.errors import ClientUnknown, LoginRefused, ServerAway
from refresher.common.secret import Secret
from refresher.grants import server_behavior
from refresher.grants.outcome import (
    Ambiguous,
    ClientRejected,
    Outcome,
    ResourceRefused,
    TokensIssued,
    Transient,
    error_code,
)
from refresher.grants.record import Grant
from refresher.grants.tokens import MAX_LIFETIME, not_before
from refresher.grants.transition import with_access_token
from refresher.login.error_advice import advice
from refresher.oauth.client_authentication import build_request
from refresher.oauth.http_client import PostResult, post
from refresher.oauth.tls import ssl_context

__all__ = ["check_client", "new_grant", "outcome_of", "request_tokens", "send"]


def check_client(client: Grant, *, ca_file: str | None) -> None:
    """Raise ``ConfigError`` where the files of ``client`` cannot be used: before the person has to log in."""
    build_request(client, {}, clocks.now().wall)
    if client.client_cert is not None:
        ssl_context(ca_file, client_cert=client.client_cert, client_key=client.client_key)


def send(
    url: str,
    client: Grant,
    fields: dict[str, str],
    *,
    ca_file: str | None,
    what: str = "token_endpoint",
    secrets: tuple[Secret, ...] = (),
) -> PostResult:
    """Send ``fields`` as ``client`` to ``url``, which messages call ``what``; add ``resource`` where it is sent."""
    if client.resource is not None and server_behavior.sends_resource(client):
        fields = {**fields, "resource": client.resource}
    return post(client, url, fields, ca_file=ca_file, secrets=secrets, endpoint_name=what)


def request_tokens(client: Grant, code: dict[str, str] | None, *, ca_file: str | None) -> Grant:
    """Return the grant for the fields of ``code``, or for the client itself (RFC 6749 section 4.4) without them.

    Raises ``ClientUnknown``, ``LoginRefused`` and ``ServerAway``.
    """
    if code is None:
        fields = {"grant_type": "client_credentials"} | ({"scope": client.asked_scope} if client.asked_scope else {})
    else:
        fields = code
    secrets = tuple(Secret(fields[key]) for key in ("code", "code_verifier") if key in fields)
    posted = send(client.token_endpoint, client, fields, ca_file=ca_file, secrets=secrets)
    outcome = outcome_of(posted, client)
    match outcome:
        case TokensIssued():
            return new_grant(client, outcome, posted.sent_at or clocks.now(), own_credentials=code is None)
        case ClientRejected():
            raise ClientUnknown(f"{outcome.description}; nothing was changed. {advice('invalid_client')}")
        case ResourceRefused():
            raise LoginRefused(f"{outcome.description}; nothing was changed. {advice('invalid_target')}")
        case Ambiguous() | Transient(refusal=False):
            raise ServerAway(f"{outcome.description}; nothing was changed. Log in again later")
        case _:
            raise LoginRefused(f"{outcome.description}; nothing was changed. {advice(error_code(outcome))}")


def outcome_of(posted: PostResult, client: Grant) -> Outcome:
    """Return the outcome of an answer. Raises ``ServerAway`` where there is no answer."""
    if posted.status is None:
        lost = "" if posted.sent_at is None else "the request was sent and its answer was lost: "
        raise ServerAway(f"{client.token_endpoint}: {lost}{posted.error}; nothing was changed, log in again")
    return posted.outcome()


def new_grant(client: Grant, tokens: TokensIssued, sent: Moment, *, own_credentials: bool = False) -> Grant:
    """Return ``client`` with the tokens of the request that left at ``sent``.

    ``own_credentials``: the client can request tokens again without a refresh token.
    """
    fresh = None if own_credentials else tokens.refresh_token
    renewable = own_credentials or fresh is not None
    return msgspec.structs.replace(
        with_access_token(client, tokens, sent),
        grant_id=uuid.uuid4().hex,
        refresh_token=fresh,
        authorized_at=sent.wall,
        not_before=None if fresh is None else not_before(fresh.reveal(), sent.wall, tokens.clock_skew),
        # Without a refresh token there is no other access token: this one is used to its end.
        renewable=renewable,
        refuses_early=client.refuses_early or not renewable,
        max_age=client.max_age if renewable else MAX_LIFETIME,
    )
