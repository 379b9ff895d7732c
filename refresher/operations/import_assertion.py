"""The part of an import that says from whose token an access token is obtained (RFC 7523, RFC 8693)."""

import logging
import re
from collections.abc import Callable, Mapping
from typing import Final

from refresher.common.errors import ImportRefused
from refresher.grants.assertion import (
    ACCESS_TOKEN,
    GRANT_TYPES,
    ID_JAG,
    ID_TOKEN,
    JWT,
    REFRESH_TOKEN,
    TOKEN_TYPE,
    Assertion,
    AssertionGrantType,
    TokenSource,
    foreign_audience,
)
from refresher.grants.record import Grant
from refresher.grants.tokens import is_token
from shim._token import is_name

__all__ = ["KEYS", "assertion_in", "check_token", "grant_type_of"]

log = logging.getLogger(__name__)

KEYS: Final = (
    *("assertion_file", "assertion_grant", "subject_file", "subject_grant", "subject_token_type"),
    *("actor_file", "actor_grant", "actor_token_type", "audience", "requested_token_type", "idp"),
)
"""The keys of an import that are about an assertion."""

_LONGEST_TYPE: Final = 200
_URI: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]+")
"""RFC 3986 section 2."""

_EXCHANGE_KEYS: Final = frozenset(KEYS) - {"assertion_file", "assertion_grant", "idp", "audience"}


def grant_type_of(given: str) -> str:
    """Return the short name of a grant type that can be the ``urn:`` of its RFC."""
    return next((name for name, uri in GRANT_TYPES.items() if uri == given), given)


def assertion_in(
    given: Mapping[str, str],
    grant_type: AssertionGrantType,
    *,
    issuer: str | None,
    absolute: Callable[[str | None], str | None],
) -> Assertion:
    """Return what ``given``, some of ``KEYS``, says; ``absolute`` makes a path absolute. Raises ``ImportRefused``."""
    for key, value in given.items():
        if not key.endswith("_file") and not is_token(value):
            raise ImportRefused(f"{key} must be printable ASCII and not empty")
        if (key.endswith("_grant") or key == "idp") and not is_name(value):
            raise ImportRefused(f"{key} must be the NAME of another grant")
    if grant_type == "jwt_bearer":
        if wrong := sorted(given.keys() & _EXCHANGE_KEYS):
            raise ImportRefused(f"{', '.join(wrong)}: only for grant_type token_exchange")
        return _jwt_bearer(given, issuer, absolute)
    if wrong := sorted(given.keys() & {"assertion_file", "assertion_grant", "idp"}):
        raise ImportRefused(f"{', '.join(wrong)}: only for grant_type jwt_bearer")
    subject = _source(given, "subject", absolute)
    if subject is None:
        raise ImportRefused("token_exchange needs a subject_file or a subject_grant")
    requested = _token_type(given, "requested_token_type")
    if requested == REFRESH_TOKEN:
        raise ImportRefused("requested_token_type: agents need an access token, so ask for no refresh_token")
    return Assertion(
        grant_type=grant_type,
        subject=subject,
        actor=_source(given, "actor", absolute),
        audience=given.get("audience"),
        requested_token_type=requested,
    )


def _jwt_bearer(
    given: Mapping[str, str], issuer: str | None, absolute: Callable[[str | None], str | None]
) -> Assertion:
    """Return an assertion from a file or a grant, or from the identity provider."""
    if len(given.keys() & {"assertion_file", "assertion_grant", "idp"}) != 1:
        raise ImportRefused("jwt_bearer needs an assertion_file, an assertion_grant or an idp: one of them")
    if (idp := given.get("idp")) is not None:
        audience = given.get("audience", issuer)
        if audience is None:
            raise ImportRefused("idp needs the issuer of the authorization server, for which the assertion is")
        subject = TokenSource(grant=idp, token_type=ID_TOKEN)
        return Assertion(grant_type="jwt_bearer", subject=subject, audience=audience, requested_token_type=ID_JAG)
    if "audience" in given:
        raise ImportRefused("audience: only for grant_type token_exchange, and with idp")
    if (path := absolute(given.get("assertion_file"))) is not None:
        return Assertion(grant_type="jwt_bearer", subject=TokenSource(file=path, token_type=JWT))
    return Assertion(
        grant_type="jwt_bearer", subject=TokenSource(grant=given["assertion_grant"], token_type=ACCESS_TOKEN)
    )


def _source(given: Mapping[str, str], who: str, absolute: Callable[[str | None], str | None]) -> TokenSource | None:
    path, grant = absolute(given.get(f"{who}_file")), given.get(f"{who}_grant")
    if path is not None and grant is not None:
        raise ImportRefused(f"give {who}_file or {who}_grant, not both")
    if path is None and grant is None:
        if f"{who}_token_type" in given:
            a = "an" if who == "actor" else "a"
            raise ImportRefused(f"{who}_token_type needs {a} {who}_file or {a} {who}_grant")
        return None
    token_type = _token_type(given, f"{who}_token_type") or (JWT if grant is None else ACCESS_TOKEN)
    return TokenSource(file=path, grant=grant, token_type=token_type)


def _token_type(given: Mapping[str, str], key: str) -> str | None:
    """Return the URI of a token type (RFC 8693 section 3), of which the last part is enough."""
    if (value := given.get(key)) is None:
        return None
    uri = value if ":" in value else f"{TOKEN_TYPE}{value}"
    if len(uri) > _LONGEST_TYPE or _URI.fullmatch(uri) is None:
        raise ImportRefused(
            f"{key} must be access_token, id_token, jwt or another URI of at most {_LONGEST_TYPE} characters"
        )
    return uri


def check_token(grant: Grant, path: str, now: float, *, is_jwt: bool) -> None:
    """Raise ``ConfigError`` for a file that holds no token for ``grant``; warn of an assertion for another server."""
    from refresher.oauth.client_authentication import token_in

    token = token_in(path, "assertion", now, is_jwt=is_jwt)
    if grant.assertion is None or grant.assertion.grant_type != "jwt_bearer":
        return
    if audience := foreign_audience(token, (grant.token_endpoint, grant.issuer)):
        log.warning(
            "%s: warning: the audience of the assertion %s is %s: most servers require %s",
            grant.name,
            path,
            audience,
            grant.token_endpoint,
        )
