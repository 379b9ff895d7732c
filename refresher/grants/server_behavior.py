"""How the server of a grant behaves. A pure function of the grant.

What was observed counts first, then the grant's own settings, then the profile of the server (``providers.py``).
"""

from refresher.grants.outcome import ClientRejected, Outcome, Transient, error_code
from refresher.grants.providers import Profile, find_profile
from refresher.grants.record import Grant, revealed

__all__ = [
    "access_token_lifetime",
    "asks_for_consent",
    "grace_period",
    "login_lifetime",
    "refresh_token_lifetime",
    "refuses_client_id",
    "refuses_early",
    "renewal_params",
    "revokes_access_token",
    "scope_to_send",
    "sends_resource",
]


def grace_period(grant: Grant) -> float | None:
    """Return the seconds for which the server accepts the previous refresh token again; ``None``: without end."""
    if grant.refresh_token is None:
        return None  # client credentials are never spent
    if isinstance(grant.replay, float | int) or grant.replay is None:
        return grant.replay
    return _profile(grant).grace_period


def refuses_early(grant: Grant) -> bool:
    """Whether the server refuses a refresh while the access token is valid."""
    return grant.refuses_early or _profile(grant).refuses_early


def sends_resource(grant: Grant) -> bool:
    """Whether requests contain ``resource`` (RFC 8707)."""
    if grant.resource is None or grant.resource_refused:
        return False
    return _profile(grant).send_resource if grant.send_resource is None else grant.send_resource


def asks_for_consent(grant: Grant) -> bool:
    """Whether a login with ``offline_access`` contains ``prompt=consent`` (OpenID Connect Core section 11)."""
    return _profile(grant).consent_prompt


def renewal_params(grant: Grant) -> tuple[tuple[str, str], ...]:
    """Return the additional parameters of a token request that renews the access token."""
    # With client credentials, a renewal is the same request as the login.
    same = grant.login.params if grant.login is not None and grant.without_person else ()
    return revealed((*same, *grant.refresh_params))


def scope_to_send(grant: Grant) -> str | None:
    """Return the ``scope`` of a token request: for client credentials, and for servers that require it on refresh."""
    scope = grant.scope if grant.asked_scope is None else grant.asked_scope
    if not scope:
        return None
    if grant.refresh_token is None:
        return scope
    if not _profile(grant).send_scope:
        return None
    # Entra does not list offline_access in its answers, but gives no new refresh token without it.
    return scope if "offline_access" in scope.split() else f"{scope} offline_access"


def refuses_client_id(grant: Grant, outcome: Outcome) -> bool:
    """Whether the reason of ``outcome`` can be ``client_id`` in the body beside HTTP Basic."""
    is_refusal = isinstance(outcome, ClientRejected) or (isinstance(outcome, Transient) and outcome.refusal)
    is_basic = grant.token_endpoint_auth_method == "client_secret_basic"  # noqa: S105  a method, no password
    return (
        is_basic
        and not grant.omits_client_id
        and is_refusal
        and error_code(outcome) in ("invalid_client", "invalid_request")
    )


def revokes_access_token(grant: Grant) -> bool:
    """Whether a rotation revokes the previous access token at once."""
    return _profile(grant).revokes_access_token


def access_token_lifetime(grant: Grant) -> float | None:
    """Return the lifetime in seconds of an access token whose answer does not name one; ``None`` if unknown."""
    return _profile(grant).access_token_lifetime if grant.max_age is None else grant.max_age


def refresh_token_lifetime(grant: Grant) -> float | None:
    """Return after how many seconds an unused refresh token ends; ``None`` if unknown."""
    return _profile(grant).refresh_token_lifetime


def login_lifetime(grant: Grant) -> float | None:
    """Return after how many seconds a login ends, however often it is rotated; ``None`` if unknown."""
    return _profile(grant).login_lifetime


def _profile(grant: Grant) -> Profile:
    return find_profile(grant.token_endpoint, grant.issuer)
