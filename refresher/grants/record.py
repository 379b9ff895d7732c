"""The private record of one NAME; ``encoding`` makes its bytes.

Pure: no clock, disk or network. The names of the fields are the JSON keys on the disk.
"""

from collections.abc import Iterable
from typing import Final, Literal

import msgspec

from refresher.common.clocks import Moment
from refresher.common.secret import Secret
from refresher.grants.assertion import Assertion

__all__ = [
    "MAX_SPENT",
    "NO_RECORD",
    "Account",
    "AuthMethod",
    "Doubt",
    "Failure",
    "Grant",
    "Login",
    "LoginMethod",
    "Moved",
    "Params",
    "Record",
    "Stored",
    "TokenRejected",
    "Tombstone",
    "hidden",
    "revealed",
    "with_spent",
]

MAX_SPENT: Final = 256
"""How many fingerprints of spent refresh tokens a record keeps."""

NO_RECORD: Final = ""
"""The checksum if there is no record."""

AuthMethod = Literal[
    "none",
    "client_secret_basic",
    "client_secret_post",
    "private_key_jwt",
    "tls_client_auth",
    "self_signed_tls_client_auth",
]

LoginMethod = Literal["browser", "device", "client_credentials", "jwt_bearer", "enterprise"]

Params = tuple[tuple[str, Secret], ...]
"""Additional parameters of a request; a value may be a secret."""

FailureKind = Literal["transient", "too_early", "client_rejected", "in_doubt", "reauthorization_required"]


class Failure(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why the last exchange failed; ``at`` and ``retry_at`` are epoch seconds."""

    outcome: FailureKind
    code: str
    description: str
    at: float
    retry_at: float | None
    moment: Moment | None = None
    """``at`` by every clock, so that setting the wall clock does not change a wait."""
    busy_until: float | None = None
    """When the server accepts requests again; none of its grants is exchanged before."""
    provider_busy: bool = False
    """Whether it was the identity provider that asked for a later request; a demand does not shorten that wait."""


class Doubt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The refresh token may be spent: a request was sent at ``since`` and no answer is known."""

    since: Moment
    replay_over: bool = False
    """Whether the true time is not known any more: ``since`` is later, and no grace period counts from it."""
    kept: str | None = None
    """Where an unreadable answer was saved, as text: a person may find the new tokens in it."""
    restored: bool = False
    """Whether the cause is a restored backup: readers have seen a later generation than the record's."""
    spill: str | None = None
    """Where an unread answer may be: the machine went down, and that file system may not be mounted yet."""
    begun_from: str = NO_RECORD
    """The checksum of the record from which that attempt started."""

    def with_kept(self, kept: str | None) -> "Doubt":
        """Return the doubt with the saved answer, unless it has one: the first answer came when the token was spent."""
        return msgspec.structs.replace(self, kept=kept) if self.kept is None else self

    def merged_with(self, later: "Doubt") -> "Doubt":
        """Return the doubt with what is known of a later loss; of two spills, only the later one can be useful."""
        last = self if later.spill is None else later
        return msgspec.structs.replace(self.with_kept(later.kept), spill=last.spill, begun_from=last.begun_from)


class TokenRejected(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A server refuses each new access token: two generations in a row were demanded before they were due."""

    at: float
    """When the second of them was replaced, epoch seconds."""
    origin: str | None = None
    """Who refuses them, one of the origins of the grant; ``None`` if no demand says so."""


class Login(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a person logged in, so that ``login NAME`` can repeat it."""

    client: Literal["given", "metadata_document", "registered"]
    """Where the client came from; one that was registered for this grant can be registered again."""
    client_expires_at: float | None = None
    """When the client secret expires (RFC 7591 section 3.2.1), epoch seconds."""
    authorization_endpoint: str | None = None
    device_authorization_endpoint: str | None = None
    redirect_uri: str | None = None
    endpoints_given: bool = False
    """Whether a person gave the endpoints, because the server has no metadata."""
    issuer_given: bool = False
    """Whether a person gave the authorization server, because the API does not name one."""
    scope: str | None = None
    """The scope that a person requested, instead of the one that the server names."""
    resource: str | None = None
    """The ``resource`` (RFC 8707) that a person gave."""
    way: LoginMethod = "browser"
    params: Params = ()
    """Additional parameters of the authorization request, or of the request that takes its place."""
    assume_pkce: bool = False
    """Whether a person knows that the server supports PKCE, although its metadata does not say so."""


class Account(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whose login it is, as the server named it: OpenID Connect Core section 2."""

    issuer: str | None
    """Who names the subject; ``None``: the token did not say."""
    subject: str
    """Unique at the issuer, and never reassigned."""
    source: Literal["openid", "access_token"] = "openid"
    """Where the subject is from: the ``id_token`` or userinfo, or an access token, which can name another one."""
    label: str | None = None
    """What a person recognises: an e-mail address or a user name. It can change."""


class Grant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="grant"):
    """What a person once authorized, and the state of its rotation. Times are epoch seconds."""

    name: str
    grant_id: str
    """New for each import and login."""
    generation: int
    begun_from: str
    """The checksum of the record that this one replaced: recovery adopts only a direct successor."""

    issuer: str | None
    token_endpoint: str
    revocation_endpoint: str | None = None
    """Where ``logout`` sends the revocation (RFC 7009)."""
    client_id: str
    """Empty if the server knows the client by its assertion alone (RFC 7521 section 4.1)."""
    client_secret: Secret | None
    token_endpoint_auth_method: AuthMethod
    refresh_token: Secret | None
    """``None`` for client credentials (RFC 6749 section 4.4) and assertions, which need none for a new access token."""
    assertion: Assertion | None = None
    """From whose token each access token is obtained; ``None``: from the refresh token, or by client credentials."""
    renewable: bool = True
    """False if the login gave no refresh token: there will be no other access token."""
    private_key_file: str | None = None
    """PEM file that signs the assertions of ``private_key_jwt``; it is read for each of them."""
    private_key_id: str | None = None
    client_assertion_file: str | None = None
    """The file with an assertion of ``private_key_jwt`` that somebody else signs; it is read for each request."""
    token_endpoint_auth_signing_alg: str | None = None
    client_cert: str | None = None
    """PEM file with the certificate chain for the token endpoint (RFC 8705)."""
    client_key: str | None = None
    scope: str | None
    """The scope granted last."""
    asked_scope: str | None = None
    """The scope requested at login; it is the one that is sent, because the granted scope may be smaller."""
    resource: str | None
    """RFC 8707, stored verbatim: with an added slash it is another resource."""
    send_resource: bool | None
    """``None``: the profile of the server decides, as it does for ``replay`` if that is ``UNSET``."""
    server_url: str | None
    origins: tuple[str, ...]
    replay: float | msgspec.UnsetType | None = msgspec.UNSET
    """Seconds for which the server accepts the previous refresh token again; 0: never, ``None``: without end."""
    max_age: float | None
    """Seconds after which an access token of unknown lifetime is replaced."""

    access_token: Secret | None
    token_type: str
    issued_at: float
    """When the request for the access token was sent."""
    issued: Moment | None = None
    """``issued_at`` by every clock, because the wall clock alone can be set."""
    expires_at: float | None
    authorized_at: float
    refresh_token_expires_at: float | None = None
    """When the server ends the refresh token if it is not used before; ``None``: unknown, or never."""
    login_ends_at: float | None = None
    """When the login ends whatever refresher does, as far as that is known; ``None``: no end is known."""
    end_warned: float | None = None
    """How many seconds ahead of the end of the login or its client the last warning was due: each is given once."""
    account: Account | None = None
    """``None``: the server does not name one."""
    id_token: Secret | None = None
    """The newest one (OpenID Connect Core section 2); an answer without one keeps the earlier."""
    id_token_expires_at: float | None = None
    id_token_issued_at: float | None = None
    """When the request that brought it was sent; ``None``: it was imported, or an earlier version stored it."""
    login: Login | None = None
    """``None`` if the grant was imported."""
    last_rotation_at: float | None = None

    dead: bool = False
    """Whether the server rejected the grant: only a person can help."""
    failures: int = 0
    refusals: int = 0
    """How many refusals came in a row that do not reject the grant."""
    failure: Failure | None = None
    doubt: Doubt | None = None
    demanded: int = 0
    """How many rotations in a row were demanded before they were due."""
    token_rejected: TokenRejected | None = None
    """Until a generation reaches its schedule without a demand, or until a login."""
    refuses_early: bool = False
    """Whether the server has refused a refresh while the access token was valid, and accepted it later."""
    resource_refused: bool = False
    """Whether the server has refused ``resource``."""
    refresh_params: Params = ()
    """Additional parameters of each token request that renews the access token."""
    omits_client_id: bool = False
    """Whether the server refuses ``client_id`` in the body beside HTTP Basic, and accepts requests without it."""
    not_before: float | None = None
    """From when the refresh token may be used, by its own ``nbf`` (RFC 7519 section 4.1.5)."""
    spent: tuple[str, ...] = ()
    """Fingerprints of spent refresh tokens, oldest first."""

    def fingerprint(self) -> str | None:
        """Return the fingerprint of the refresh token; ``None`` without one."""
        return None if self.refresh_token is None else self.refresh_token.fingerprint()

    @property
    def without_person(self) -> bool:
        """Whether no person takes part: client credentials (RFC 6749 section 4.4), or an assertion."""
        if self.assertion is not None:
            return True
        return self.refresh_token is None if self.login is None else self.login.way == "client_credentials"


class Tombstone(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="tombstone"
):
    """What stays of a removed grant, so that its generation never falls and no used token is imported again."""

    name: str
    grant_id: str
    generation: int
    begun_from: str
    removed_at: float
    scope: str | None
    origins: tuple[str, ...]
    spent: tuple[str, ...] = ()


class Moved(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="moved"):
    """What is in the place of a grant that is active in another store, or is on its way to this one.

    It is never exchanged and publishes nothing: the token file stays as it is.
    """

    name: str
    grant_id: str
    generation: int
    begun_from: str
    move_id: str
    """Of one try to move it: only the two records of the same try belong together."""
    moved_at: float
    place: str
    """The other store, for a person."""
    arriving: Grant | None = None
    """The grant, if it comes to this store: it is inactive until the other store has given it up."""
    spent: tuple[str, ...] = ()
    """Fingerprints of spent refresh tokens; of a grant that has left, also that of the token that left with it."""

    def fingerprint(self) -> str | None:
        """Return the fingerprint of the refresh token that is here; ``None`` without one."""
        return None if self.arriving is None else self.arriving.fingerprint()


Record = Grant | Tombstone | Moved


class Stored(msgspec.Struct, frozen=True):
    """A record as it is on the disk; ``checksum`` is ``NO_RECORD`` if there is none."""

    record: Record | None
    checksum: str


def with_spent(spent: tuple[str, ...], token: Secret) -> tuple[str, ...]:
    """Return ``spent`` with ``token`` as its newest entry, without the oldest beyond ``MAX_SPENT``."""
    fingerprint = token.fingerprint()
    return (*(known for known in spent if known != fingerprint), fingerprint)[-MAX_SPENT:]


def hidden(params: Iterable[tuple[str, str]]) -> Params:
    """Return parameters as a record holds them."""
    return tuple((key, Secret(value)) for key, value in params)


def revealed(params: Params) -> tuple[tuple[str, str], ...]:
    """Return parameters as a request holds them."""
    return tuple((key, value.reveal()) for key, value in params)
