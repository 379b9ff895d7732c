"""The token request that ends a login, and the grant that comes of it (RFC 6749 section 5.1)."""

import uuid
from typing import Final

import msgspec

from refresher import answer, clocks, conduct
from refresher.answer import LONGEST_LIFE, jwt_time
from refresher.clocks import Moment
from refresher.errors import ClientUnknown, LoginRefused, ServerAway
from refresher.grant import Grant
from refresher.outcome import ClientRejected, Outcome, ResourceRefused, Rotated
from refresher.post import Posted, post
from refresher.request import authenticated
from refresher.secret import Secret
from refresher.tls import trusted

__all__ = ["ask", "granted", "judged", "redeemed"]

_DEADLINE: Final = 20.0


def ask(
    url: str, client: Grant, fields: dict[str, str], *, ca_file: str | None, what: str, known: tuple[Secret, ...] = ()
) -> Posted:
    """Send ``fields`` as ``client`` to ``url``, which a person calls ``what``."""
    return post(
        url,
        lambda: authenticated(client, fields, clocks.now().wall),
        trust=lambda: trusted(ca_file, client_cert=client.client_cert, client_key=client.client_key),
        limit=_DEADLINE,
        known=(client.client_secret, *known),
        what=what,
    )


def redeemed(client: Grant, fields: dict[str, str], *, ca_file: str | None) -> Grant:
    """Return the grant that a code brings. Raises ``ClientUnknown``, ``LoginRefused``, ``ServerAway``."""
    secret = tuple(Secret(fields[key]) for key in ("code", "code_verifier") if key in fields)
    if client.resource is not None and conduct.sends_resource(client):
        fields = {**fields, "resource": client.resource}
    posted = ask(client.token_endpoint, client, fields, ca_file=ca_file, what="token_endpoint", known=secret)
    outcome = judged(posted, client, secret)
    match outcome:
        case Rotated():
            return granted(client, outcome, posted.sent or clocks.now())
        case ClientRejected():
            raise ClientUnknown(f"{outcome.description}; nothing was changed")
        case ResourceRefused():
            raise LoginRefused(f"{outcome.description}; try --resource none. Nothing was changed")
        case _:
            raise LoginRefused(f"{outcome.description}; nothing was changed")


def judged(posted: Posted, client: Grant, known: tuple[Secret, ...]) -> Outcome:
    """Return what an answer means. Raises ``ServerAway`` where there is none."""
    if posted.status is None:
        lost = "" if posted.sent is None else "the request was sent and its answer was lost: "
        raise ServerAway(f"{client.token_endpoint}: {lost}{posted.problem}; nothing was changed, log in again")
    return answer.judge(
        posted.status,
        posted.headers,
        posted.unpacked(),
        whole=posted.whole,
        now=clocks.now().wall,
        known=(client.client_secret, *known),
    )


def granted(client: Grant, tokens: Rotated, sent: Moment) -> Grant:
    """Return ``client`` with the tokens that it was given when it asked at ``sent``."""
    fresh = tokens.refresh_token
    expires_at = tokens.expires_at if tokens.expires_in is None else sent.wall + tokens.expires_in
    return msgspec.structs.replace(
        client,
        grant_id=uuid.uuid4().hex,
        access_token=tokens.access_token,
        token_type=tokens.token_type,
        issued_at=sent.wall,
        expires_at=expires_at,
        refresh_token=fresh,
        # RFC 6749 section 5.1: what is not said is as it was asked for.
        scope=tokens.scope if tokens.scope is not None else client.asked_scope,
        authorized_at=sent.wall,
        not_before=None if fresh is None else jwt_time(fresh.reveal(), "nbf"),
        # Without a refresh token this access token is all there is: it is used to its end, and not replaced before.
        renewable=fresh is not None,
        refuses_early=fresh is None,
        max_age=LONGEST_LIFE if fresh is None else client.max_age,
    )
