"""What a login must know of the authorization server."""

import msgspec

__all__ = ["Server"]


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """An authorization server, and what the MCP server or API behind it asks for; addresses are verbatim."""

    token_endpoint: str
    authorization_endpoint: str | None = None
    issuer: str | None = None
    registration_endpoint: str | None = None
    device_authorization_endpoint: str | None = None
    revocation_endpoint: str | None = None
    auth_methods: tuple[str, ...] | None = None
    """Which client authentication the token endpoint takes; ``None``: it does not say."""
    challenge_methods: tuple[str, ...] | None = None
    names_itself: bool = False
    """Each redirect comes with ``iss`` (RFC 9207)."""
    takes_metadata_documents: bool = False
    offers_offline_access: bool = False
    resource: str | None = None
    """RFC 8707, as the protected resource itself spells it."""
    scope: str | None = None
    """What to ask for where nobody says otherwise."""
    given: bool = False
    """A person named its endpoints: there is no metadata."""
