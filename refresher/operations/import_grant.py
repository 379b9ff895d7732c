"""Import: check that a grant may be stored under its name, and store it. A login ends here too."""

from collections.abc import Callable
from urllib.parse import urlsplit

import msgspec

from refresher.common.errors import (
    AlreadySpent,
    ExposedGrantFile,
    GrantFileError,
    ImportRefused,
    OtherAccount,
    StorageError,
)
from refresher.grants import accounts, policy
from refresher.grants.providers import UNKNOWN, find_profile
from refresher.grants.record import Grant, Moved, Stored, with_spent
from refresher.grants.token_file import left_out
from refresher.oauth import urls
from refresher.operations import names
from refresher.operations.cycles import find_cycle, find_cycle_above, sources_of
from refresher.operations.events import Emit, change_of_state, emitting, happened, ignore, recoveries
from refresher.storage.store import Held, Store

__all__ = [
    "Imported",
    "exists",
    "is_for_other_server",
    "other_server",
    "require_unshared",
    "sharing_login",
    "store_grant",
]


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    """The grant as it is now, whether the import stored it, and warnings for the person."""

    grant: Grant
    stored: bool
    warnings: tuple[str, ...] = ()


def exists(store: Store, name: str) -> bool:
    """Whether ``name`` has a grant that is not removed. Raises ``GrantFileError`` and ``DirectoryError``."""
    return name in store.listing((name,)).names and isinstance(store.load(name).record, Grant)


def store_grant(
    store: Store,
    imported: Grant,
    *,
    replace: bool,
    if_absent: bool,
    stopping: Callable[[], bool],
    same_login: bool = False,
    just_issued: bool = False,
    emit: Emit = ignore,
) -> Imported:
    """Store ``imported`` durably, and publish its access token if it has one.

    ``same_login``: ``replace`` may replace a grant of the same server and account only, as far as they are known.
    ``just_issued``: the server has issued the refresh token in this login, so it counts as unspent. ``emit`` takes
    what happened, after the name is released.

    Raises ``OtherAccount``, ``ImportRefused`` if the name is taken or the refresh token is known, ``GrantFileError``
    for a damaged record of that name, ``KeyUnavailable``, ``LockBusy``, ``StorageError`` and ``Interrupted``. Then
    nothing is changed.
    """
    trouble = store.prepare()
    store.load_keys()
    name = imported.name
    with (
        emitting(emit) as events,
        store.importing(stopping=stopping),
        store.held(name, stopping=stopping) as held,
    ):
        # Check first: replacing the grant also discards an answer in a spill that is not mounted.
        warnings = [
            f"{origin} is not https: the access token crosses the network in the clear"
            for origin in imported.origins
            if origin.startswith("http:") and not urls.is_loopback(urlsplit(origin).hostname or "")
        ]
        if problem := find_cycle(store, imported) or find_cycle_above(store, imported):
            raise ImportRefused(problem)
        warnings += [
            f"there is no grant {source} yet, and {name} needs its token"
            for source in (() if imported.assertion is None else imported.assertion.sources)
            if not exists(store, source)
        ]
        warnings += _compare(store, imported, just_issued=just_issued)
        if trouble is not None:
            # A login that a person has just approved is stored all the same.
            warnings.append(f"cannot accept demands from agents: {trouble}")
        if same_login:
            _require_same_login(store, imported)
        report = recoveries(name, events)
        try:
            stored = held.recover(giving_up=replace, report=report)
        except ExposedGrantFile:
            raise  # the record is intact, and contains the list of spent refresh tokens
        except GrantFileError:
            if not replace:
                raise
            # The damaged record may hold the only copy of a token: it is moved, never overwritten.
            stored, aside = held.replace_damaged(report)
            warnings.append(f"the damaged record is now {aside}")
        if isinstance(stored.record, Grant) and if_absent:
            return Imported(grant=stored.record, stored=False)
        if isinstance(stored.record, Moved) and not (replace and not same_login):
            raise names.moved(stored.record)
        if isinstance(stored.record, Grant) and not replace:
            raise ImportRefused(f"{name} exists: --replace replaces it, --if-absent keeps it")
        grant = _successor(held, _with_sources(store, imported), stored, just_issued=just_issued)
        store.note_import(grant)
        held.write(stored, grant)
        # Only origins: a server_url can have a key in its query.
        what = f"for {', '.join(grant.origins)}"
        events.append(happened(name, "logged_in" if just_issued else "imported", what, generation=grant.generation))
        events += change_of_state(stored.record, grant)
        try:
            held.publish(grant)
            warnings += filter(None, (left_out(grant),))
        except StorageError as error:
            warnings.append(f"the grant is saved, but {error}")
    return Imported(grant=grant, stored=True, warnings=tuple(warnings))


def other_server(grant: Grant) -> str:
    """Return the message that ``grant`` is not replaced because it is for another server."""
    server = grant.server_url or ", ".join(grant.origins)
    return f"{grant.name} is a grant for {server}: choose another name, or replace it with --replace"


def is_for_other_server(grant: Grant, url: str | None) -> bool:
    """Whether ``grant`` is for another server than that of ``url``, as far as both are known."""
    own = {*grant.origins, *([] if grant.server_url is None else [urls.parse_origin(grant.server_url)])}
    return url is not None and urls.parse_origin(url) not in own


def sharing_login(store: Store, grant: Grant) -> str | None:
    """Return a name whose grant may be of the same server and account as ``grant``; ``None`` if there is none.

    A server may end all logins of an account and client together. What cannot be read counts.

    Raises ``DirectoryError``.
    """
    listing = store.listing()
    for name in listing.all:
        found = store.stored_under(name, unfinished=name in listing.unfinished)
        if found.problem is not None:
            return name
        for there in found.records:
            if not isinstance(there, Grant) or accounts.is_other(there.account, grant.account):
                continue
            if _servers(there) & _servers(grant):
                return name
    return None


def _servers(grant: Grant) -> set[str]:
    """Return the hosts of its authorization server, and the name of its profile: one server can have several hosts."""
    addresses = (grant.issuer, grant.token_endpoint)
    profile = find_profile(grant.token_endpoint, grant.issuer)
    hosts = {urlsplit(address).hostname or "" for address in addresses if address}
    return hosts if profile is UNKNOWN else hosts | {profile.name}


def _require_same_login(store: Store, imported: Grant) -> None:
    """Refuse to replace a grant of another server or account, also one whose import was interrupted.

    A damaged record is kept, even if it is of another server.
    """
    for there in store.stored_under(imported.name).records:
        if isinstance(there, Grant) and is_for_other_server(there, imported.server_url):
            raise ImportRefused(other_server(there))
        if isinstance(there, Grant) and there.account and imported.account:
            if not accounts.is_other(there.account, imported.account):
                continue
            new, old = accounts.shown(imported.account), accounts.shown(there.account)
            if new == old:  # two accounts can have one label
                new, old = f"{new} ({imported.account.subject})", f"{old} ({there.account.subject})"
            raise OtherAccount(
                f"this login is for {new}, and {there.name} is for {old}; nothing was changed. Log in as "
                f"{old}, choose another name, or replace it with --replace"
            )


def require_unshared(store: Store, moved: Grant) -> None:
    """Refuse a grant of another store whose refresh token another name holds or has spent.

    Raises ``ImportRefused``, ``DirectoryError`` and ``StorageError``.
    """
    unchecked = _compare(store, moved, just_issued=False, returning=True)
    if unchecked:
        raise ImportRefused(unchecked[0])


def _compare(store: Store, imported: Grant, *, just_issued: bool, returning: bool = False) -> list[str]:
    """Refuse a refresh token that another name holds or has spent; return warnings of records that it cannot read."""
    fingerprint = imported.fingerprint()
    if fingerprint is None:
        return []  # two names may share client credentials: they are not spent
    unchecked = []
    for name, others, problem in store.compare(imported):
        if problem is not None and name != imported.name:
            unchecked.append(f"could not compare with the damaged record of {name}: {problem}")
        for other in others:
            if isinstance(other, Grant | Moved) and other.fingerprint() == fingerprint and name != imported.name:
                raise ImportRefused(
                    f"{name} holds this refresh token already: two names would revoke each other's login"
                )
            if other is not None and fingerprint in other.spent and not just_issued:
                if name == imported.name and returning:
                    continue  # it left with this token, and comes back
                if name == imported.name:
                    raise _spent(name)
                raise ImportRefused(f"{name} has already spent this refresh token: log in again under this name")
    return unchecked


def _successor(held: Held, imported: Grant, stored: Stored, *, just_issued: bool) -> Grant:
    """Return ``imported`` as the successor of the record: the generation counts on, and spent tokens stay spent."""
    there = stored.record
    seen = held.seen_generation(there)
    generation = max(seen, -1 if there is None else there.generation) + 1
    grant = msgspec.structs.replace(imported, generation=generation)
    if there is None:
        return grant
    if imported.fingerprint() in there.spent and not just_issued:
        raise _spent(imported.name)
    # Some servers issue the same refresh token to a person at each login.
    spent = tuple(known for known in there.spent if known != imported.fingerprint())
    grant = msgspec.structs.replace(grant, spent=spent)
    if not isinstance(there, Grant) or there.doubt is None:
        return grant
    if there.refresh_token is not None and imported.fingerprint() != there.fingerprint():
        return msgspec.structs.replace(grant, spent=with_spent(spent, there.refresh_token))
    if just_issued:
        return grant
    # The same refresh token may still be spent, so the grant stays in doubt, and keeps the access token that is valid
    # for longer.
    kept = msgspec.structs.replace(grant, doubt=there.doubt, failures=there.failures, failure=there.failure)
    longer = there.access_token is None or policy.expected_expiry(imported) >= policy.expected_expiry(there)
    if imported.access_token is not None and longer:
        return kept
    return msgspec.structs.replace(
        kept,
        access_token=there.access_token,
        issued_at=there.issued_at,
        issued=there.issued,
        expires_at=there.expires_at,
        not_before=there.not_before,
        max_age=there.max_age,
    )


def _with_sources(store: Store, imported: Grant) -> Grant:
    """Note the sources of an imported access token as they are, so that it is renewed when one of them rotates."""
    if imported.access_token is None or imported.assertion is None or imported.assertion.source_generations:
        return imported
    found = sources_of(imported, store.load).values()
    generations = tuple(-1 if source is None else source.generation for source in found)
    noted = msgspec.structs.replace(imported.assertion, source_generations=generations)
    return msgspec.structs.replace(imported, assertion=noted)


def _spent(name: str) -> AlreadySpent:
    return AlreadySpent(
        f"{name} has already spent this refresh token: log in again, because an old copy revokes the grant"
    )
