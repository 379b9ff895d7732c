"""Whose login it is, from the tokens and the userinfo of a server (OpenID Connect Core). Pure."""

from collections.abc import Mapping
from typing import Any, Final, TypeGuard

import msgspec

from refresher.common.secret import Secret
from refresher.grants.record import Account, Grant
from refresher.grants.tokens import jwt_claims, jwt_time

__all__ = ["account_of", "from_claims", "identity", "is_other", "other_account_named", "shown"]

_LABELS: Final = ("email", "preferred_username", "name", "upn")
_MAX_LABEL: Final = 100
_MAX_SUBJECT: Final = 255
"""OpenID Connect Core section 2, ``sub``."""
_MAX_ISSUER: Final = 2048


def account_of(
    id_token: Secret | None, access_token: Secret | None, *, issuer: str | None, client_id: str
) -> Account | None:
    """Return the account that the ``id_token`` names, else a JWT access token (RFC 9068); ``None`` if none does.

    No signature is checked: the tokens come from the token endpoint over TLS (OpenID Connect Core section 3.1.3.7).
    """
    if id_token is not None:
        claims = jwt_claims(id_token.reveal())
        audience = claims.get("aud")
        is_for_client = client_id in (audience if isinstance(audience, list) else [audience])
        is_from_issuer = issuer is None or _is_same_issuer(claims.get("iss"), issuer)
        if is_for_client and is_from_issuer and (account := from_claims(claims, issuer)) is not None:
            return account
    account = None if access_token is None else from_claims(jwt_claims(access_token.reveal()), issuer)
    # RFC 9068 section 2.2: without a person, the subject is the client.
    if account is None or account.subject == client_id:
        return None
    return msgspec.structs.replace(account, source="access_token")


def from_claims(claims: Mapping[str, Any], issuer: str | None) -> Account | None:
    """Return the account of a JWT or of userinfo; ``issuer`` is the one if ``claims`` name none."""
    subject, named = claims.get("sub"), claims.get("iss")
    if isinstance(subject, int) and not isinstance(subject, bool):
        subject = str(subject)
    if not _is_text(subject, _MAX_SUBJECT):
        return None
    labels = (claims.get(key) for key in _LABELS)
    return Account(
        issuer=named if _is_text(named, _MAX_ISSUER) else issuer,
        subject=subject,
        label=next((label[:_MAX_LABEL] for label in labels if _is_text(label)), None),
    )


def identity(
    grant: Grant, id_token: Secret | None, access_token: Secret | None, *, sent: float | None = None
) -> dict[str, Any]:
    """Return the fields of ``grant`` that say whose it is, after an answer with these tokens.

    ``sent``: when it was asked for, epoch seconds.
    The account stays: OpenID Connect Core section 12.2 forbids that a refresh changes it.
    """
    if grant.without_person:
        return {}
    account = grant.account or account_of(id_token, access_token, issuer=grant.issuer, client_id=grant.client_id)
    if id_token is None:
        return {"account": account}
    exp = jwt_time(id_token.reveal(), "exp")
    return {"account": account, "id_token": id_token, "id_token_expires_at": exp, "id_token_issued_at": sent}


def is_other(one: Account | None, another: Account | None) -> bool:
    """Whether both are known, of one issuer and one source, and different."""
    if one is None or another is None or one.source != another.source or one.subject == another.subject:
        return False
    return one.issuer == another.issuer or _is_same_issuer(one.issuer, another.issuer)


def other_account_named(before: Grant, after: Grant) -> str | None:
    """Return the account that a refresh names instead of that of the grant, if the one before did not name it too."""
    named = [
        None
        if grant.id_token is None
        else account_of(grant.id_token, None, issuer=grant.issuer, client_id=grant.client_id)
        for grant in (before, after)
    ]
    if named[1] is None or not is_other(named[1], after.account) or (named[0] and named[0].subject == named[1].subject):
        return None
    return shown(named[1])


def shown(account: Account) -> str:
    """Return the account for a person."""
    return account.label or account.subject


def _is_text(value: object, longest: int | None = None) -> TypeGuard[str]:
    """Whether ``value`` is safe in a terminal: a control character could change what it shows."""
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        return False
    return longest is None or len(value) <= longest


def _is_same_issuer(one: object, another: object) -> bool:
    # Google's tokens can omit the scheme (OpenID Connect Core section 15.6.2).
    if not isinstance(one, str) or not isinstance(another, str):
        return False
    return one.removeprefix("https://").rstrip("/") == another.removeprefix("https://").rstrip("/")
