"""The authorization request, and the redirect that answers it (RFC 6749 section 4.1, RFC 7636, RFC 9207).

Any program can send a redirect, so nothing in it counts until its ``state`` matches.
"""

import hmac
import re
import secrets
from typing import Final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import msgspec
from mcp.client.auth import PKCEParameters

from refresher.common.errors import LoginNotGiven, LoginRefused, ServerAway
from refresher.common.secret import Secret, mask
from refresher.grants import server_behavior
from refresher.grants.providers import find_profile
from refresher.grants.record import Grant
from refresher.grants.tokens import is_token
from refresher.login.discovery import Server
from refresher.login.options import OFFLINE_ACCESS
from refresher.login.token_request import advice
from refresher.oauth.params import with_params

__all__ = [
    "AuthorizationRequest",
    "ForeignRedirect",
    "check_authorization_endpoint",
    "new_authorization_request",
    "pasted_query",
]

_AROUND: Final = "\"'`<>(),; \t\r\n"
"""What can be around an address in a text; in an address, it is encoded."""
_BARE: Final = re.compile(r"[\w.-]+=")
_CHALLENGE_METHOD: Final = "S256"
_TEMPORARY: Final = ("server_error", "temporarily_unavailable")
_DECLINED: Final = ("access_denied", "consent_required", "interaction_required", "login_required", "user_cancelled")


class ForeignRedirect(ValueError):
    """A redirect that belongs to another authorization request, such as an earlier one."""


class AuthorizationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One authorization request, and what is needed to check its redirect."""

    url: str
    """The person opens it in a browser."""
    redirect_uri: str
    state: Secret
    code_verifier: Secret
    server: Server

    def token_request(self, query: str) -> dict[str, str]:
        """Return the fields of the token request for the code in ``query``, that of a redirect.

        Raises ``ForeignRedirect``, ``LoginNotGiven`` if the person denied access, ``LoginRefused`` and ``ServerAway``.
        """
        try:
            pairs = parse_qsl(query, keep_blank_values=True)
        except ValueError:
            raise ForeignRedirect("it is not an address") from None
        fields = dict(pairs)
        state = fields.get("state", "").encode("utf-8", "replace")
        if len(fields) != len(pairs) or not hmac.compare_digest(state, self.state.reveal().encode()):
            raise ForeignRedirect("its state is missing, or is that of another login")
        iss, issuer = fields.get("iss"), self.server.issuer
        if issuer is not None and (iss is not None or self.server.sends_iss) and iss != issuer:
            raise LoginRefused(
                f"the redirect does not come from {issuer} (iss, RFC 9207), which may be an attack; nothing was "
                "changed. Log in again"
            )
        if error := fields.get("error"):
            description = mask(fields.get("error_description", ""), (self.state,))
            answer = f"({mask(error)}{f': {description}' if description else ''}); nothing was changed"
            if error in _DECLINED:
                raise LoginNotGiven(f"the login was declined in the browser {answer}")
            if error in _TEMPORARY:
                raise ServerAway(f"the authorization server is not available now {answer}. Log in again later")
            raise LoginRefused(f"the authorization server refuses the login {answer}. {advice(error)}")
        if not is_token(fields.get("code")):
            raise LoginRefused(f"the redirect has neither a code nor an error; nothing was changed. {advice()}")
        return {
            "grant_type": "authorization_code",
            "code": fields["code"],
            "redirect_uri": self.redirect_uri,
            "code_verifier": self.code_verifier.reveal(),
        }


def pasted_query(text: str) -> str:
    """Return the query of an address as a person pastes it: quoted, without a scheme, from a page source, or alone."""
    _, mark, rest = text.partition("?")
    # A query alone may contain a question mark in a value.
    query = rest if mark and not _BARE.match(text) else text
    return query.partition("#")[0].replace("&amp;", "&").strip(_AROUND)


def check_authorization_endpoint(server: Server, *, assume_pkce: bool) -> str:
    """Return the authorization endpoint, if a code is safe there.

    Raises ``LoginRefused`` if there is none, or if nothing says that the server supports PKCE: its metadata (MCP
    2025-11-25), its profile, or a person. Without metadata, MCP 2025-03-26 and the person's options count.
    """
    if server.authorization_endpoint is None:
        raise LoginRefused(
            "the server has no authorization_endpoint, and a login with a browser needs one; nothing was changed. Try "
            "--device or --client-credentials"
        )
    if server.challenge_methods is not None:
        if _CHALLENGE_METHOD not in server.challenge_methods:
            raise LoginRefused(
                "the authorization server does not support PKCE with S256 (RFC 7636), so a code could be stolen; "
                "nothing was changed. Try --device"
            )
    elif server.has_metadata and not (assume_pkce or find_profile(server.token_endpoint, server.issuer).supports_pkce):
        raise LoginRefused(
            f"the metadata of {server.issuer} does not say that the server supports PKCE (it has no list "
            "code_challenge_methods_supported), so a code could be stolen; nothing was changed. If its documentation "
            "says that it supports PKCE with S256, give --assume-pkce; otherwise try --device"
        )
    return server.authorization_endpoint


def new_authorization_request(
    server: Server, client: Grant, *, redirect_uri: str, params: tuple[tuple[str, str], ...]
) -> AuthorizationRequest:
    """Return a new authorization request of ``client``; ``params`` add to its parameters or replace them, and leave
    out those with an empty value.

    Raises ``LoginRefused``, as ``check_authorization_endpoint``.
    """
    endpoint = check_authorization_endpoint(server, assume_pkce=client.login is not None and client.login.assume_pkce)
    pkce, state = PKCEParameters.generate(), secrets.token_urlsafe(32)
    fields = {
        "response_type": "code",
        "client_id": client.client_id,
        "redirect_uri": redirect_uri,
        "state": state,
        "code_challenge": pkce.code_challenge,
        "code_challenge_method": _CHALLENGE_METHOD,
    }
    if server_behavior.sends_resource(client):
        fields["resource"] = client.resource or ""
    if client.asked_scope:
        fields["scope"] = client.asked_scope
        if OFFLINE_ACCESS in client.asked_scope.split() and server_behavior.asks_for_consent(client):
            fields["prompt"] = "consent"  # required for offline_access (OpenID Connect Core section 11)
    parts = urlsplit(endpoint)
    query = [*parse_qsl(parts.query, keep_blank_values=True), *with_params(fields, params).items()]
    return AuthorizationRequest(
        url=urlunsplit(parts._replace(query=urlencode(query))),
        redirect_uri=redirect_uri,
        state=Secret(state),
        code_verifier=Secret(pkce.code_verifier),
        server=server,
    )
