"""Additional parameters that a person adds to requests, and the names that they cannot have."""

from collections.abc import Iterable, Mapping
from typing import Final

from refresher.grants.tokens import is_token

__all__ = ["RESERVED_IN_RENEWALS", "RESERVED_IN_TOKEN_REQUESTS", "are_renewal_params", "with_params"]

RESERVED_IN_TOKEN_REQUESTS: Final = (
    *("actor_token", "actor_token_type", "assertion", "subject_token", "subject_token_type", "requested_token_type"),
    *("client_assertion", "client_assertion_type", "client_id", "client_secret", "code", "code_verifier"),
    *("device_code", "grant_type", "refresh_token"),
)
"""What refresher itself puts into a token request: the grant, and the authentication of the client.

Not ``audience``: servers want it in refreshes too.
"""

RESERVED_IN_RENEWALS: Final = (*RESERVED_IN_TOKEN_REQUESTS, "resource", "scope")
"""``resource`` and ``scope`` have fields of their own."""


def are_renewal_params(params: Iterable[tuple[str, str]]) -> bool:
    """Whether a person may add ``params`` to each request that renews an access token."""
    return all(key not in RESERVED_IN_RENEWALS and is_token(key) and is_token(value) for key, value in params)


def with_params(fields: Mapping[str, str], params: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return ``fields`` with ``params``, which replace those of the same name; an empty value leaves one out."""
    added = dict(params)
    return {key: value for key, value in {**fields, **added}.items() if value or key not in added}
