"""The token request that ends a login, and the grant that comes of it (RFC 6749 section 5.1)."""

import uuid
from typing import Final

import msgspec

from refresher.common import clocks
from refresher.common.clocks import Moment
from refresher.common.errors import ClientUnknown, LoginRefused, ServerAway
from refresher.common.secret import Secret
from refresher.grants import server_behavior
from refresher.grants.outcome import Ambiguous, ClientRejected, Outcome, ResourceRefused, Rotated, Transient, code_of
from refresher.grants.record import Grant
from refresher.grants.transition import with_access
from refresher.login.advice import advice
from refresher.oauth.http_client import Posted, post
from refresher.oauth.tls import trusted
from refresher.oauth.token_request import authenticated
from refresher.oauth.token_response import LONGEST_LIFE, usable_from

__all__ = ["ask", "check", "granted", "judged", "redeemed"]

_DEADLINE: Final = 20.0


def check(client: Grant, *, ca_file: str | None) -> None:
    """Raise ``ConfigError`` where ``client`` cannot prove itself with its files: before a person is asked."""
    authenticated(client, {}, clocks.now().wall)
    if client.client_cert is not None:
        trusted(ca_file, client_cert=client.client_cert, client_key=client.client_key)


def ask(
    url: str,
    client: Grant,
    fields: dict[str, str],
    *,
    ca_file: str | None,
    what: str = "token_endpoint",
    known: tuple[Secret, ...] = (),
) -> Posted:
    """Send ``fields`` as ``client`` to ``url``, which a person calls ``what``; with ``resource``, where it is sent."""
    if client.resource is not None and server_behavior.sends_resource(client):
        fields = {**fields, "resource": client.resource}
    return post(
        client,
        url,
        lambda: authenticated(client, fields, clocks.now().wall),
        ca_file=ca_file,
        limit=_DEADLINE,
        known=(client.client_secret, *known),
        what=what,
    )


def redeemed(client: Grant, code: dict[str, str] | None, *, ca_file: str | None) -> Grant:
    """Return the grant that the fields of ``code`` bring, or without one the client by itself (RFC 6749 section 4.4).

    Raises ``ClientUnknown``, ``LoginRefused``, ``ServerAway``.
    """
    if code is None:
        fields = {"grant_type": "client_credentials"} | ({"scope": client.asked_scope} if client.asked_scope else {})
    else:
        fields = code
    secret = tuple(Secret(fields[key]) for key in ("code", "code_verifier") if key in fields)
    posted = ask(client.token_endpoint, client, fields, ca_file=ca_file, known=secret)
    outcome = judged(posted, client, secret)
    match outcome:
        case Rotated():
            return granted(client, outcome, posted.sent or clocks.now(), by_itself=code is None)
        case ClientRejected():
            raise ClientUnknown(f"{outcome.description}; nothing was changed. {advice('invalid_client')}")
        case ResourceRefused():
            raise LoginRefused(f"{outcome.description}; nothing was changed. {advice('invalid_target')}")
        case Ambiguous() | Transient(refusal=False):
            raise ServerAway(f"{outcome.description}; nothing was changed. Log in again later")
        case _:
            raise LoginRefused(f"{outcome.description}; nothing was changed. {advice(code_of(outcome))}")


def judged(posted: Posted, client: Grant, known: tuple[Secret, ...]) -> Outcome:
    """Return what an answer means. Raises ``ServerAway`` where there is none."""
    if posted.status is None:
        lost = "" if posted.sent is None else "the request was sent and its answer was lost: "
        raise ServerAway(f"{client.token_endpoint}: {lost}{posted.problem}; nothing was changed, log in again")
    return posted.judged((client.client_secret, *known))


def granted(client: Grant, tokens: Rotated, sent: Moment, *, by_itself: bool = False) -> Grant:
    """Return ``client`` with the tokens that it was given for asking at ``sent``.

    ``by_itself``: it needs nobody to ask again. Otherwise, without a refresh token, nobody can.
    """
    fresh = None if by_itself else tokens.refresh_token
    renewable = by_itself or fresh is not None
    return msgspec.structs.replace(
        with_access(client, tokens, sent),
        grant_id=uuid.uuid4().hex,
        refresh_token=fresh,
        authorized_at=sent.wall,
        not_before=None if fresh is None else usable_from(fresh.reveal(), sent.wall, tokens.clock_ahead),
        # Without a refresh token this access token is all there is: it is used to its end, and not replaced before.
        renewable=renewable,
        refuses_early=client.refuses_early or not renewable,
        max_age=client.max_age if renewable else LONGEST_LIFE,
    )
