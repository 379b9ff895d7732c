"""Import: a grant that a person brings, checked before it is stored."""

import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NoReturn
from urllib.parse import urlsplit

import msgspec

from refresher import clocks, durations, files, leftovers, lock, policy, publish, store, urls
from refresher.answer import LONGEST_LIFE, is_token, jwt_exp
from refresher.attempt import write_record
from refresher.clocks import Moment
from refresher.directories import Directories
from refresher.errors import GrantFileError, ImportRefused, StorageError
from refresher.grant import NOTHING, Grant, Stored, Tombstone, decode_secret, spend
from refresher.secret import Secret
from shim._token import is_name

__all__ = ["Admitted", "admit", "check_name", "is_there", "parse"]

_METHODS: Final = ("none", "client_secret_basic", "client_secret_post")


class _Brought(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The JSON that ``import`` takes."""

    token_endpoint: str
    client_id: str
    refresh_token: Secret
    server_url: str | None = None
    origins: list[str] | None = None
    client_secret: Secret | None = None
    token_endpoint_auth_method: str | None = None
    access_token: Secret | None = None
    token_type: str = "Bearer"  # noqa: S105  a token type, no password
    id_token: Secret | None = None
    """Comes with many token responses, and is of no use here."""
    expires_at: float | None = None
    expires_in: float | None = None
    scope: str | None = None
    issuer: str | None = None
    resource: str | None = None
    send_resource: bool | None = None
    replay: str | None = None
    max_age: float | str | None = None


class Admitted(msgspec.Struct, frozen=True, kw_only=True):
    """What an import did: the grant as it is now, whether it is new, and what a person should know."""

    grant: Grant
    stored: bool
    warnings: tuple[str, ...] = ()


def parse(name: str, data: bytes, now: Moment) -> Grant:
    """Return the grant that ``data`` describes, as generation 0.

    Raises ``ImportRefused`` for what is missing, unknown or unsafe; no message repeats a value.
    """
    check_name(name)
    try:
        keys = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        if unknown := sorted(keys.keys() - set(_Brought.__struct_fields__)):
            _refuse(f"unknown keys: {', '.join(unknown)} (known: {', '.join(_Brought.__struct_fields__)})")
        brought = msgspec.json.decode(data, type=_Brought, dec_hook=decode_secret)
    except UnicodeDecodeError:
        raise ImportRefused("the import is not UTF-8") from None
    except msgspec.MsgspecError as error:
        raise ImportRefused(f"the import is not usable: {error}") from None
    for key in ("client_id", "refresh_token", "client_secret", "access_token", "token_type", "scope", "resource"):
        _printable(key, getattr(brought, key))
    if " " in brought.token_type or (brought.access_token is not None and " " in brought.access_token.reveal()):
        _refuse("access_token and token_type must hold no space (RFC 6750 section 2.1)")
    if brought.send_resource and brought.resource is None:
        _refuse("send_resource needs a resource")
    origins = tuple(dict.fromkeys(_url(urls.origin, "origins", origin) for origin in brought.origins or ()))
    if brought.server_url is not None:
        origins = origins or (_url(urls.origin, "server_url", brought.server_url),)
    if not origins:
        _refuse("needs server_url (the MCP server or API that takes the token), or origins")
    if brought.issuer is not None:
        _url(urls.endpoint, "issuer", brought.issuer)
    expires_at = _expires_at(brought, now)
    return Grant(
        name=name,
        grant_id=uuid.uuid4().hex,
        generation=0,
        begun_from=NOTHING,
        issuer=brought.issuer,
        token_endpoint=_url(urls.endpoint, "token_endpoint", brought.token_endpoint),
        client_id=brought.client_id,
        client_secret=brought.client_secret,
        token_endpoint_auth_method=_method(brought),
        refresh_token=brought.refresh_token,
        scope=brought.scope,
        resource=brought.resource,
        send_resource=brought.resource is not None if brought.send_resource is None else brought.send_resource,
        server_url=brought.server_url,
        origins=origins,
        replay=_replay(brought.replay),
        max_age=None if brought.max_age is None else _duration("max_age", brought.max_age),
        access_token=brought.access_token,
        token_type=brought.token_type,
        issued_at=now.wall,
        expires_at=expires_at,
        authorized_at=now.wall,
    )


def check_name(name: str) -> None:
    """Raise ``ImportRefused`` where ``name`` cannot name a grant."""
    if not is_name(name):
        raise ImportRefused(
            "a name is 1 to 64 lower-case letters, digits, '.', '_' and '-', and begins with a letter or digit"
        )


def is_there(directories: Directories, name: str) -> bool:
    """Whether a grant of that name is stored, removed ones aside. Raises ``GrantFileError``, ``DirectoryError``."""
    return name in directories.listing().names and isinstance(store.load(directories, name).record, Grant)


def admit(
    directories: Directories,
    brought: Grant,
    *,
    replace: bool,
    if_absent: bool,
    stopping: Callable[[], bool],
) -> Admitted:
    """Store ``brought`` durably and publish its access token if it brings one.

    Raises ``ImportRefused`` where the name is taken or the refresh token is known, ``GrantFileError`` where a damaged
    record is in the way, ``LockBusy``, ``StorageError``, ``Interrupted``; nothing is changed then.
    """
    directories.ensure()
    name = brought.name
    # One import at a time: two could store one refresh token under two names.
    with (
        lock.held(directories.import_lock, stopping=stopping),
        lock.held(directories.lock(name), stopping=stopping),
    ):
        stored = _there(directories, name, damaged_may_go=replace)
        there = None if stored is None else stored.record
        if isinstance(there, Grant) and if_absent:
            return Admitted(grant=there, stored=False)
        if isinstance(there, Grant) and not replace:
            _refuse(f"{name} exists: --replace puts this grant in its place, --if-absent leaves it")
        warnings = [*_cautions(brought), *_compare(directories, brought)]
        if stored is None:
            # It may hold the only copy of something: out of the way, never overwritten.
            aside = files.set_aside(directories.record(name), clocks.now().wall)
            warnings.append(f"the damaged record is now {aside}")
            stored = leftovers.resolve(directories, name, clocks.now())
        grant = _successor(directories, brought, stored)
        write_record(directories, name, stored, grant)
        try:
            publish.publish(directories, grant)
        except StorageError as error:
            warnings.append(f"{error}; the next run-once publishes it")
    return Admitted(grant=grant, stored=True, warnings=tuple(warnings))


def _cautions(brought: Grant) -> list[str]:
    """Return what a person should know about a grant that works all the same."""
    return [
        f"{origin} is not https: the access token crosses the network in the clear"
        for origin in brought.origins
        if origin.startswith("http:") and not urls.is_loopback(urlsplit(origin).hostname or "")
    ]


def _there(directories: Directories, name: str, *, damaged_may_go: bool) -> Stored | None:
    """Return what is stored under ``name`` once earlier attempts are settled; ``None`` for a damaged record."""
    try:
        return leftovers.resolve(directories, name, clocks.now())
    except GrantFileError:
        if not damaged_may_go:
            raise
        return None


def _compare(directories: Directories, brought: Grant) -> list[str]:
    """Refuse a refresh token that another name holds or has spent; return what could not be compared."""
    fingerprint = brought.refresh_token.fingerprint()
    listing = directories.listing()
    unchecked = []
    for name in sorted({*listing.names, *listing.unfinished} - {brought.name}):
        try:
            others = [store.load(directories, name).record] if is_name(name) else []
        except GrantFileError as error:
            unchecked.append(f"could not compare with a damaged record: {error}")
            continue
        if name in listing.unfinished:
            # An import that was cut off holds its token too: the next writer of that name adopts it.
            others += [whole.record for path in directories.candidates(name) if (whole := leftovers.whole(path, name))]
        for other in others:
            if isinstance(other, Grant) and other.refresh_token.fingerprint() == fingerprint:
                _refuse(f"{name} holds this very refresh token: two names would destroy each other's login")
            if other is not None and fingerprint in other.spent:
                _refuse(f"{name} has already spent this refresh token: authorize anew for a name of its own")
    return unchecked


def _successor(directories: Directories, brought: Grant, stored: Stored) -> Grant:
    """Return ``brought`` as the next of what is stored: its generation goes on, and what was spent stays spent."""
    there = stored.record
    seen = publish.published_generation(directories, brought.name)
    generation = max(seen, -1 if there is None else there.generation) + 1
    grant = msgspec.structs.replace(brought, generation=generation)
    if there is None:
        return grant
    if brought.refresh_token.fingerprint() in there.spent:
        _refuse(f"{brought.name} has already spent this refresh token: authorize anew, an old copy revokes the grant")
    grant = msgspec.structs.replace(grant, spent=there.spent)
    if isinstance(there, Tombstone) or there.doubt is None:
        return grant
    if brought.refresh_token != there.refresh_token:
        return msgspec.structs.replace(grant, spent=spend(there.spent, there.refresh_token))
    # The same refresh token again does not settle whether it was spent: the wait stays, and what it protects.
    kept = msgspec.structs.replace(grant, doubt=there.doubt, failures=there.failures, failure=there.failure)
    longer = there.access_token is None or policy.end_of_life(brought) >= policy.end_of_life(there)
    if brought.access_token is not None and longer:
        return kept
    return msgspec.structs.replace(
        kept,
        access_token=there.access_token,
        issued_at=there.issued_at,
        expires_at=there.expires_at,
        max_age=there.max_age,
    )


def _refuse(why: str) -> NoReturn:
    raise ImportRefused(why)


def _printable(key: str, value: str | Secret | None) -> None:
    # RFC 6749 appendix A: printable ASCII; a stray line end from a copied file would go into a header.
    if isinstance(value, Secret):
        value = value.reveal()
    if value is not None and not is_token(value):
        _refuse(f"{key} must be printable ASCII and not empty")


def _url(check: Callable[[str], str], key: str, value: str) -> str:
    try:
        return check(value)
    except urls.BadURL as error:
        raise ImportRefused(f"{key} {error}") from None


def _method(brought: _Brought) -> Any:
    method = brought.token_endpoint_auth_method
    if method is None:
        return "none" if brought.client_secret is None else "client_secret_basic"
    if method not in _METHODS:
        _refuse(f"token_endpoint_auth_method must be one of {', '.join(_METHODS)}")
    if (method == "none") != (brought.client_secret is None):
        _refuse("token_endpoint_auth_method and client_secret must go together ('none' is for clients without one)")
    return method


def _expires_at(brought: _Brought, now: Moment) -> float | None:
    if brought.expires_at is not None and brought.expires_in is not None:
        _refuse("give expires_at (epoch seconds) or expires_in (seconds from now), not both")
    if brought.access_token is None:
        if brought.expires_at is not None or brought.expires_in is not None:
            _refuse("expires_at and expires_in are about an access_token; bring it too, or leave them out")
        return None
    if brought.expires_in is not None:
        ends: float | None = now.wall + max(brought.expires_in, 0.0)
    elif brought.expires_at is None:
        ends = jwt_exp(brought.access_token.reveal())
    else:
        ends = brought.expires_at
    if ends is not None and not 0 <= ends - now.wall + LONGEST_LIFE <= 2 * LONGEST_LIFE:
        _refuse("expires_at must be epoch seconds (not milliseconds), expires_in seconds, within ten years")
    return ends


def _replay(value: str | None) -> float | None:
    if value is None or value == "none":
        return 0.0
    return None if value == "unlimited" else _duration("replay", value)


def _duration(key: str, value: float | str) -> float:
    seconds = 0.0
    with suppress(ValueError):
        seconds = durations.parse(value)
    if seconds == 0:
        besides = {"max_age": "seconds, or", "replay": "'none', 'unlimited', or"}[key]
        _refuse(f"{key} must be {besides} a duration such as '30s', '10m', '8h'")
    return seconds
