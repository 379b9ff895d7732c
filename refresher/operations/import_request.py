"""Parse and check the JSON of ``import``, without reading the stored grants."""

import difflib
import logging
import re
import uuid
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Final, cast, get_args

import msgspec

from refresher.common import durations
from refresher.common.clocks import Moment
from refresher.common.errors import ConfigError, ImportRefused
from refresher.common.secret import Secret
from refresher.grants import accounts, refresh_life
from refresher.grants.assertion import GRANT_TYPES, Assertion
from refresher.grants.encoding import decode_secret
from refresher.grants.record import NO_RECORD, AuthMethod, Grant, Params, hidden
from refresher.grants.tokens import (
    MAX_LIFETIME,
    auth_scheme,
    is_token,
    jwt_time,
    needs_proof,
    not_before,
    refresh_token_lifetime,
)
from refresher.oauth import urls
from refresher.oauth.params import RESERVED_IN_RENEWALS, are_renewal_params
from refresher.operations.import_assertion import KEYS, assertion_in, check_token, grant_type_of
from shim._token import is_name

__all__ = ["ImportRequest", "check_files", "check_name", "fingerprint_in", "parse"]

log = logging.getLogger(__name__)

_FILES: Final = ("private_key_file", "client_assertion_file", "client_cert", "client_key")
_GRANT_TYPES: Final = ("refresh_token", "client_credentials", *GRANT_TYPES)
_SECRET_METHODS: Final = ("client_secret_basic", "client_secret_post")
_TLS_METHODS: Final = ("tls_client_auth", "self_signed_tls_client_auth")
_METHODS: Final = get_args(AuthMethod)
_KINDS: Final = {
    "float": "a number",
    "bool": "true or false",
    "array": "a list of texts",
    "object": "an object of texts",
}
_PRINTABLE: Final = (
    *("client_id", "client_secret", "private_key_id", "token_endpoint_auth_signing_alg", "resource", "scope"),
    *("refresh_token", "access_token", "token_type"),
)
_USUAL_EXTRAS: Final = frozenset(
    {
        # Members of token responses that mean nothing here: Keycloak, Entra, Salesforce, Slack, Notion, HubSpot ...
        *(
            "not-before-policy",
            "session_state",
            "ext_expires_in",
            "expires_on",
            "not_before",
            "foci",
            "client_info",
            "issued_token_type",
        ),
        *("id", "instance_url", "signature", "issued_at", "created_at", "ok", "app_id", "authed_user", "team"),
        *("bot_id", "bot_user_id", "workspace_id", "workspace_name", "workspace_icon", "owner", "hub_id"),
        *("account_id", "user", "user_id", "realmId"),
    }
)
_SIMILAR: Final = 0.8


class ImportRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON that ``import`` accepts; it ignores keys that cannot be a mistake."""

    token_endpoint: str
    client_id: str | None = None
    refresh_token: Secret | None = None
    grant_type: str = "refresh_token"
    server_url: str | None = None
    origins: list[str] | None = None
    client_secret: Secret | None = None
    token_endpoint_auth_method: str | None = None
    private_key_file: str | None = None
    private_key_id: str | None = None
    client_assertion_file: str | None = None
    assertion_file: str | None = None
    assertion_grant: str | None = None
    subject_file: str | None = None
    subject_grant: str | None = None
    subject_token_type: str | None = None
    actor_file: str | None = None
    actor_grant: str | None = None
    actor_token_type: str | None = None
    audience: str | None = None
    requested_token_type: str | None = None
    idp: str | None = None
    token_endpoint_auth_signing_alg: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    access_token: Secret | None = None
    token_type: str = "Bearer"  # noqa: S105  a token type, no password
    id_token: Secret | None = None
    """Part of many token responses; it names the account. An unreadable one is ignored."""
    expires_at: float | None = None
    expires_in: float | None = None
    refresh_token_expires_at: float | None = None
    refresh_token_expires_in: float | None = None
    refresh_expires_in: float | None = None
    x_refresh_token_expires_in: float | None = None
    scope: str | None = None
    issuer: str | None = None
    revocation_endpoint: str | None = None
    resource: str | None = None
    send_resource: bool | None = None
    refresh_params: dict[str, str] | None = None
    replay: str | None = None
    max_age: float | str | None = None


_SHARED: Final = sorted({*ImportRequest.__struct_fields__} & {*Grant.__struct_fields__} - {"id_token"})


def check_name(name: str) -> None:
    """Raise ``ImportRefused`` if ``name`` is not a valid name of a grant."""
    if not is_name(name):
        raise ImportRefused(
            "a name is 1 to 64 lower-case letters, digits, '.', '_' and '-', and begins with a letter or digit"
        )


def parse(name: str, data: bytes, now: Moment) -> Grant:
    """Return the grant that ``data`` describes, as generation 0.

    Raises ``ImportRefused`` if something is missing, unknown or unsafe; no message repeats a value.
    """
    check_name(name)
    try:
        keys = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        if unknown := sorted(keys.keys() - {*ImportRequest.__struct_fields__, *_USUAL_EXTRAS}):
            # Other characters could be control sequences of a terminal.
            unknown = [key if is_token(key) else repr(key) for key in unknown]
            _check_spelling(unknown)
            log.warning("%s: warning: ignored, because refresher has no use for them: %s", name, ", ".join(unknown))
        # Some servers write numbers as texts.
        request = msgspec.json.decode(data, type=ImportRequest, dec_hook=decode_secret, strict=False)
    except UnicodeDecodeError:
        raise ImportRefused("the import is not UTF-8") from None
    except msgspec.ValidationError as error:
        raise ImportRefused(_invalid(str(error))) from None
    except (msgspec.DecodeError, RecursionError):
        raise ImportRefused("the import is not JSON") from None
    for key in _PRINTABLE:
        value = getattr(request, key)
        text = value.reveal() if isinstance(value, Secret) else value
        # RFC 6749 appendix A: printable ASCII; the end of a copied line would otherwise go into a header.
        if text is not None and not is_token(text):
            raise ImportRefused(f"{key} must be printable ASCII and not empty")
    if " " in request.token_type or (request.access_token is not None and " " in request.access_token.reveal()):
        raise ImportRefused("access_token and token_type must not contain a space (RFC 6750 section 2.1)")
    if needs_proof(auth_scheme(request.token_type)):
        raise ImportRefused(f"{request.token_type} tokens need a proof that agents do not send")
    if request.send_resource and request.resource is None:
        raise ImportRefused("send_resource requires a resource")
    origins = tuple(dict.fromkeys(_url(urls.parse_origin, "origins", origin) for origin in request.origins or ()))
    if request.server_url is not None:
        origins = origins or (_url(urls.parse_origin, "server_url", request.server_url),)
    if not origins:
        raise ImportRefused("server_url (the MCP server or API that accepts the token) or origins is missing")
    for key in ("issuer", "revocation_endpoint"):
        if (address := getattr(request, key)) is not None:
            _url(urls.check_endpoint, key, address)
    fields = {key: getattr(request, key) for key in _SHARED}
    fields |= {key: _path(fields[key]) for key in _FILES}
    fields |= {
        "client_id": _client_id(request),
        "assertion": _assertion(request),
        "token_endpoint": _url(urls.check_endpoint, "token_endpoint", request.token_endpoint),
        "expires_at": _expires_at(request, now),
        "token_endpoint_auth_method": _method(request),
        "origins": origins,
        "replay": _replay(request.replay),
        "max_age": None if request.max_age is None else _duration("max_age", request.max_age),
        "token_type": auth_scheme(request.token_type),
        "refresh_params": _refresh_params(request.refresh_params or {}),
    }
    grant = Grant(
        **fields,
        name=name,
        grant_id=uuid.uuid4().hex,
        generation=0,
        begun_from=NO_RECORD,
        asked_scope=request.scope,
        issued_at=now.wall,
        issued=now,
        authorized_at=now.wall,
        not_before=None if request.refresh_token is None else not_before(request.refresh_token.reveal(), now.wall),
    )
    check_files(grant, now.wall)
    id_token = None if request.id_token is None or not is_token(request.id_token.reveal()) else request.id_token
    known = msgspec.structs.replace(grant, **accounts.identity(grant, id_token, request.access_token))
    return refresh_life.after_login(known, _refresh_token_lifetime(request, now.wall), now)


class _Token(msgspec.Struct):
    refresh_token: Secret


def fingerprint_in(data: bytes) -> str | None:
    """Return the fingerprint of the refresh token in ``data``, if it can be found; nothing is checked."""
    try:
        return msgspec.json.decode(data, type=_Token, dec_hook=decode_secret).refresh_token.fingerprint()
    except (UnicodeDecodeError, msgspec.MsgspecError, RecursionError):
        return None


def _check_spelling(unknown: Collection[str]) -> None:
    """Raise ``ImportRefused`` for a key that is spelled almost like a known one."""
    known = {_letters(key): key for key in ImportRequest.__struct_fields__}
    meant = {key: difflib.get_close_matches(_letters(key), known, 1, _SIMILAR) for key in unknown}
    if wrong := [f"{key} (did you mean {known[similar[0]]}?)" for key, similar in meant.items() if similar]:
        raise ImportRefused(f"unknown keys: {', '.join(wrong)}")


def _letters(key: str) -> str:
    return key.lower().replace("_", "").replace("-", "")


def _url(check: Callable[[str], str], key: str, value: str) -> str:
    try:
        return check(value)
    except urls.InvalidURL as error:
        raise ImportRefused(f"{key} {error}") from None


def _method(request: ImportRequest) -> AuthMethod:
    """Return the client authentication method: the given one, or the one for the given credentials."""
    grant_type = grant_type_of(request.grant_type)
    if grant_type not in _GRANT_TYPES:
        raise ImportRefused(f"grant_type must be one of {', '.join(_GRANT_TYPES)}")
    if (grant_type == "refresh_token") != (request.refresh_token is not None):
        raise ImportRefused('give a refresh_token, or another grant_type, such as "client_credentials", without one')
    if request.client_secret is not None:
        possible: tuple[str, ...] = _SECRET_METHODS
    elif request.private_key_file is not None or request.client_assertion_file is not None:
        possible = ("private_key_jwt",)
    else:
        possible = ("none",) if request.client_cert is None else (*_TLS_METHODS, "none")
    method = request.token_endpoint_auth_method or possible[0]
    if method not in _METHODS:
        raise ImportRefused(f"token_endpoint_auth_method must be one of {', '.join(_METHODS)}")
    proofs = (request.client_secret, request.private_key_file, request.client_assertion_file)
    if method not in possible or sum(proof is not None for proof in proofs) > 1:
        raise ImportRefused(
            "token_endpoint_auth_method must match the given credentials: client_secret, private_key_file, "
            "client_assertion_file, or client_cert (with client_key); 'none' is for a client without credentials"
        )
    if request.client_key is not None and request.client_cert is None:
        raise ImportRefused("client_key requires a client_cert")
    if request.private_key_file is None and (request.private_key_id or request.token_endpoint_auth_signing_alg):
        raise ImportRefused("private_key_id and token_endpoint_auth_signing_alg require a private_key_file")
    if grant_type == "client_credentials" and method == "none":
        raise ImportRefused("client_credentials requires client authentication (RFC 6749 section 4.4)")
    return cast("AuthMethod", method)


def _client_id(request: ImportRequest) -> str:
    """Return the client; an assertion can be enough for the server to know it (RFC 7521 section 4.1)."""
    is_known = request.client_assertion_file is not None or grant_type_of(request.grant_type) in GRANT_TYPES
    if request.client_id is None and (request.client_secret is not None or not is_known):
        raise ImportRefused("client_id is missing")
    if request.client_id is None and request.private_key_file is not None:
        raise ImportRefused("private_key_file needs a client_id")
    return request.client_id or ""


def _assertion(request: ImportRequest) -> Assertion | None:
    grant_type = grant_type_of(request.grant_type)
    given = {key: value for key in KEYS if (value := getattr(request, key)) is not None}
    if grant_type == "token_exchange" and "audience" in (request.refresh_params or {}):
        raise ImportRefused("refresh_params: a token_exchange has a field audience")
    if grant_type in GRANT_TYPES:
        return assertion_in(given, grant_type, issuer=request.issuer, absolute=_path)
    if given:
        raise ImportRefused(f"{', '.join(given)}: only for grant_type {' and '.join(GRANT_TYPES)}")
    return None


def _refresh_params(params: dict[str, str]) -> Params:
    if not are_renewal_params(params.items()):
        reserved = ", ".join(RESERVED_IN_RENEWALS)
        raise ImportRefused(f"refresh_params must be printable ASCII and not empty, and none of {reserved}")
    return hidden(params.items())


def _path(value: str | None) -> str | None:
    # Relative to the current directory: the daemon runs in another one.
    try:
        return None if value is None else str(Path(value).expanduser().absolute())
    except (RuntimeError, OSError) as error:
        raise ImportRefused(f"{value}: {error}") from None


def check_files(grant: Grant, now: float, ca_file: str | None = None) -> None:
    """Raise ``ImportRefused`` for an unusable file of the client now, while a person is there to correct it."""
    try:
        if grant.private_key_file is not None or grant.client_assertion_file is not None:
            from refresher.oauth.client_authentication import client_assertion

            client_assertion(grant, now)
        for each in () if grant.assertion is None else grant.assertion.tokens:
            if each.file is not None:
                check_token(grant, each.file, now, is_jwt=each.is_jwt)
        if grant.client_cert is not None:
            from refresher.oauth.tls import ssl_context  # imports ssl, so only if it is needed

            ssl_context(ca_file, client_cert=grant.client_cert, client_key=grant.client_key)
    except ConfigError as error:
        raise ImportRefused(str(error)) from None


def _expires_at(request: ImportRequest, now: Moment) -> float | None:
    if request.expires_at is not None and request.expires_in is not None:
        raise ImportRefused("give expires_at (epoch seconds) or expires_in (seconds from now), not both")
    if request.access_token is None:
        if request.expires_at is not None or request.expires_in is not None:
            raise ImportRefused("expires_at and expires_in require an access_token; add it, or leave them out")
        return None
    if request.expires_in is not None:
        expiry: float | None = now.wall + max(request.expires_in, 0.0)
    elif request.expires_at is None:
        expiry = jwt_time(request.access_token.reveal(), "exp")
    else:
        expiry = request.expires_at
    if expiry is not None and not 0 <= expiry - now.wall + MAX_LIFETIME <= 2 * MAX_LIFETIME:
        raise ImportRefused("expires_at must be epoch seconds (not milliseconds), expires_in seconds, within ten years")
    return expiry


def _refresh_token_lifetime(request: ImportRequest, now: float) -> float | None:
    """Return the seconds for which the refresh token lives, as far as they are known."""
    if request.refresh_token is None:
        return None
    at = request.refresh_token_expires_at
    if at is not None and at > now + MAX_LIFETIME:
        raise ImportRefused("refresh_token_expires_at must be epoch seconds (not milliseconds), within ten years")
    token = request.refresh_token.reveal()
    announced = (request.refresh_token_expires_in, request.refresh_expires_in, request.x_refresh_token_expires_in)
    lifetimes = (
        refresh_token_lifetime(token, now, None if at is None else at - now, *announced),
        refresh_token_lifetime(token, now),  # the answer may be old, and its "exp" still counts
    )
    return min(filter(None, lifetimes), default=None)


def _invalid(message: str) -> str:
    """Return what is wrong with the JSON, in plain words, from the message of msgspec."""
    if missing := re.search(r"missing required field `(\w+)`", message):
        return f"{missing[1]} is missing"
    key = re.search(r"at `\$\.?(\w+)", message)
    if key is None or message.endswith("`$[...]`"):
        return "the import is not one JSON object: {...}"
    if message.endswith("[...]`"):
        return f"{key[1]} must be an object of texts"
    kind = next((words for name, words in _KINDS.items() if f"Expected `{name}" in message), "a text")
    return f"{key[1]} must be {kind}"


def _replay(value: str | None) -> float | msgspec.UnsetType | None:
    if value is None:
        return msgspec.UNSET
    if value == "none":
        return 0.0
    return None if value == "unlimited" else _duration("replay", value)


def _duration(key: str, value: float | str) -> float:
    seconds = 0.0
    with suppress(ValueError):
        seconds = durations.parse(value)
    if seconds == 0:
        alternatives = {"max_age": "seconds, or", "replay": "'none', 'unlimited', or"}[key]
        raise ImportRefused(f"{key} must be {alternatives} a duration such as '30s', '10m', '8h'")
    return seconds
