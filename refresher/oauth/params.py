"""Additional parameters that a person adds to requests, and the names that they cannot have."""

from collections.abc import Iterable, Mapping
from typing import Final

__all__ = ["RESERVED_IN_RENEWALS", "RESERVED_IN_TOKEN_REQUESTS", "with_params"]

RESERVED_IN_TOKEN_REQUESTS: Final = (
    *("client_assertion", "client_assertion_type", "client_id", "client_secret", "code", "code_verifier"),
    *("device_code", "grant_type", "refresh_token"),
)
"""What refresher itself puts into a token request: the grant, and the authentication of the client."""

RESERVED_IN_RENEWALS: Final = (*RESERVED_IN_TOKEN_REQUESTS, "resource", "scope")
"""``resource`` and ``scope`` have fields of their own."""


def with_params(fields: Mapping[str, str], params: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return ``fields`` with ``params``, which replace those of the same name; an empty value leaves one out."""
    added = dict(params)
    return {key: value for key, value in {**fields, **added}.items() if value or key not in added}
