"""The authorization request, and the redirect that answers it (RFC 6749 section 4.1, RFC 7636, RFC 9207).

What a browser brings back is anybody's word: nothing counts before the state fits.
"""

import hmac
import secrets
from typing import Final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import msgspec
from mcp.client.auth import PKCEParameters

from refresher.common.errors import LoginNotGiven, LoginRefused, ServerAway
from refresher.common.secret import Secret, mask
from refresher.grants import server_behavior
from refresher.grants.record import Grant
from refresher.login.advice import PASSING, advice
from refresher.login.discovery import OFFLINE
from refresher.login.server import Server
from refresher.oauth.token_response import is_token

__all__ = ["Authorization", "NotOurs", "authorization"]

_ADDRESS: Final = ("http://", "https://")
_CHALLENGE: Final = "S256"

_SAID_NO: Final = ("access_denied", "consent_required", "interaction_required", "login_required", "user_cancelled")


class NotOurs(ValueError):
    """A redirect that does not belong to this authorization request: an old one, or somebody else's."""


class Authorization(msgspec.Struct, frozen=True, kw_only=True):
    """One authorization request; ``url`` is what a person opens."""

    url: str
    redirect_uri: str
    state: Secret
    verifier: Secret
    issuer: str | None
    names_itself: bool

    def read(self, redirect: str) -> dict[str, str]:
        """Return the fields of the token request that redeems the code in ``redirect``, an address or its query.

        Raises ``NotOurs``, ``LoginNotGiven`` where the person said no, ``LoginRefused``, ``ServerAway``.
        """
        try:
            # A query alone may hold an address too: that of the issuer.
            query = urlsplit(redirect).query if redirect.startswith(_ADDRESS) else redirect.lstrip("?")
            pairs = parse_qsl(query, keep_blank_values=True)
        except ValueError:
            raise NotOurs("it is no address") from None
        fields = dict(pairs)
        state = fields.get("state", "").encode("utf-8", "replace")
        if len(fields) != len(pairs) or not hmac.compare_digest(state, self.state.reveal().encode()):
            raise NotOurs("it does not belong to the login that is waiting here")
        iss = fields.get("iss")
        if self.issuer is not None and (iss is not None or self.names_itself) and iss != self.issuer:
            raise LoginRefused(
                f"the redirect is not of {self.issuer} (iss, RFC 9207): somebody may have mixed up two servers; "
                "nothing was changed"
            )
        if error := fields.get("error"):
            words = mask(fields.get("error_description", ""), (self.state,))
            said = f"{mask(error)}{f': {words}' if words else ''}"
            if error in _SAID_NO:
                raise LoginNotGiven(f"the login was declined in the browser ({said}); nothing was changed")
            if error in PASSING:
                raise ServerAway(f"the authorization server cannot log in just now ({said}); nothing was changed")
            raise LoginRefused(
                f"the authorization server refuses the login ({said}); nothing was changed. {advice(error)}"
            )
        if not is_token(fields.get("code")):
            raise LoginRefused(f"the redirect brings neither a code nor an error; nothing was changed. {advice('')}")
        return {
            "grant_type": "authorization_code",
            "code": fields["code"],
            "redirect_uri": self.redirect_uri,
            "code_verifier": self.verifier.reveal(),
        }


def authorization(
    server: Server, client: Grant, *, redirect_uri: str, scope: str | None, params: tuple[tuple[str, str], ...]
) -> Authorization:
    """Make an authorization request of ``client``, with ``params`` besides or instead of what always goes along.

    Raises ``LoginRefused`` where the server has no authorization endpoint, or says that it does not take PKCE.
    """
    if server.authorization_endpoint is None:
        raise LoginRefused("the server has no authorization endpoint; try --device")
    if server.challenge_methods is not None and _CHALLENGE not in server.challenge_methods:
        raise LoginRefused(
            "the authorization server does not take PKCE with S256 (RFC 7636), without which a code could be stolen"
        )
    pkce, state = PKCEParameters.generate(), secrets.token_urlsafe(32)
    fields = {
        "response_type": "code",
        "client_id": client.client_id,
        "redirect_uri": redirect_uri,
        "state": state,
        "code_challenge": pkce.code_challenge,
        "code_challenge_method": _CHALLENGE,
    }
    if client.resource is not None and server_behavior.sends_resource(client):
        fields["resource"] = client.resource
    if scope:
        fields["scope"] = scope
        if OFFLINE in scope.split():
            fields["prompt"] = "consent"  # OpenID Connect Core section 11: else it is ignored
    parts = urlsplit(server.authorization_endpoint)
    query = [*parse_qsl(parts.query, keep_blank_values=True), *(fields | dict(params)).items()]
    return Authorization(
        url=urlunsplit(parts._replace(query=urlencode(query))),
        redirect_uri=redirect_uri,
        state=Secret(state),
        verifier=Secret(pkce.code_verifier),
        issuer=server.issuer,
        names_itself=server.names_itself,
    )
