"""Import: check that a grant may be stored under its name, and store it. A login ends here too."""

import os
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

import msgspec

from refresher.common import clocks
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
from refresher.grants.record import Grant, Record, Stored, Tombstone, with_spent
from refresher.oauth import urls
from refresher.operations.events import Emit, change_of_state, emitting, happened, ignore, recoveries
from refresher.storage import files, lock, records, recovery
from refresher.storage.directories import Directories, Listing
from refresher.storage.publishing import Publisher, left_out, published_generation

__all__ = ["Imported", "KnownTokens", "exists", "is_for_other_server", "other_server", "sharing_login", "store_grant"]


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    """The grant as it is now, whether the import stored it, and warnings for the person."""

    grant: Grant
    stored: bool
    warnings: tuple[str, ...] = ()


class KnownTokens:
    """The names that have the refresh tokens of a command that imports many: it looks at all records once.

    It only selects the records that a comparison reads. ``fingerprints``: those of the tokens to look for; any other
    token is compared with all records. If another process has imported meanwhile, it looks again.
    """

    def __init__(self, directories: Directories, fingerprints: Collection[str]) -> None:
        self._directories = directories
        self._fingerprints = fingerprints
        self._names: dict[str, set[str]] = {}
        self._always: set[str] = set()
        """Names whose record cannot be read."""
        self._unfinished: dict[str, set[str]] = {}
        self._last_import: bytes | None = None

    def listing(self, imported: Grant) -> Listing:
        """Return the names to compare with. The caller holds the lock of imports. Raises ``DirectoryError``."""
        if (last_import := _last_import(self._directories)) != self._last_import:
            self._look()
            self._last_import = last_import
        if (names := self._names.get(_fingerprint(imported) or "")) is None:
            return self._directories.listing()
        return Listing(tuple({*names, *self._always, imported.name}), self._unfinished)

    def add(self, imported: Grant, this_import: bytes) -> None:
        """Note that ``imported`` is being stored."""
        self._names.get(_fingerprint(imported) or "", set()).add(imported.name)
        self._last_import = this_import

    def _look(self) -> None:
        listing = self._directories.listing()
        self._names = {fingerprint: set() for fingerprint in self._fingerprints}
        self._always, self._unfinished = set(), listing.unfinished
        for name in listing.names:
            try:
                record = records.load(self._directories, name).record
            except (GrantFileError, OSError):
                self._always.add(name)
                continue
            known = () if record is None else record.spent
            if isinstance(record, Grant) and (fingerprint := _fingerprint(record)) is not None:
                known = (*known, fingerprint)
            for fingerprint in self._names.keys() & known:
                self._names[fingerprint].add(name)


def exists(directories: Directories, name: str) -> bool:
    """Whether ``name`` has a grant that is not removed. Raises ``GrantFileError`` and ``DirectoryError``."""
    return name in directories.listing((name,)).names and isinstance(records.load(directories, name).record, Grant)


def store_grant(
    directories: Directories,
    imported: Grant,
    *,
    replace: bool,
    if_absent: bool,
    stopping: Callable[[], bool],
    same_login: bool = False,
    just_issued: bool = False,
    known: KnownTokens | None = None,
    emit: Emit = ignore,
) -> Imported:
    """Store ``imported`` durably, and publish its access token if it has one.

    ``same_login``: ``replace`` may replace a grant of the same server and account only, as far as they are known.
    ``just_issued``: the server has issued the refresh token in this login, so it counts as unspent. ``known``: what an
    earlier import of this command has found in all records. ``emit`` takes what happened, after the locks are released.

    Raises ``OtherAccount``, ``ImportRefused`` if the name is taken or the refresh token is known, ``GrantFileError``
    for a damaged record of that name, ``LockBusy``, ``StorageError`` and ``Interrupted``. Then nothing is changed.
    """
    trouble = directories.prepare()
    name = imported.name
    # One import at a time: two could store one refresh token under two names.
    with (
        emitting(emit) as events,
        lock.held(directories.import_lock, stopping=stopping),
        lock.held(directories.lock(name), stopping=stopping),
    ):
        # Check first: replacing the grant also discards an answer in a spill that is not mounted.
        warnings = [
            f"{origin} is not https: the access token crosses the network in the clear"
            for origin in imported.origins
            if origin.startswith("http:") and not urls.is_loopback(urlsplit(origin).hostname or "")
        ]
        warnings += _compare(directories, imported, known, just_issued=just_issued)
        if trouble is not None:
            # A login that a person has just approved is stored all the same.
            warnings.append(f"cannot accept demands from agents: {trouble}")
        if same_login:
            _require_same_login(directories, imported)
        report = recoveries(name, events)
        try:
            stored = recovery.recover(directories, name, clocks.now(), giving_up=replace, report=report)
        except ExposedGrantFile:
            raise  # the record is intact, and contains the list of spent refresh tokens
        except GrantFileError:
            if not replace:
                raise
            # The damaged record may hold the only copy of a token: it is moved, never overwritten.
            now = clocks.now()
            aside = files.keep_aside(directories.record(name), now.wall)
            warnings.append(f"the damaged record is now {aside}")
            stored = recovery.recover(directories, name, now, damaged=True, report=report)
        if isinstance(stored.record, Grant) and if_absent:
            return Imported(grant=stored.record, stored=False)
        if isinstance(stored.record, Grant) and not replace:
            raise ImportRefused(f"{name} exists: --replace replaces it, --if-absent keeps it")
        grant = _successor(directories, imported, stored, just_issued=just_issued)
        this_import = _note_import(directories)
        if known is not None:
            known.add(grant, this_import)
        records.write(directories, name, stored, grant)
        # Only origins: a server_url can have a key in its query.
        what = f"for {', '.join(grant.origins)}"
        events.append(happened(name, "logged_in" if just_issued else "imported", what, generation=grant.generation))
        events += change_of_state(stored.record, grant)
        try:
            Publisher(directories).publish(grant)
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


def sharing_login(directories: Directories, grant: Grant) -> str | None:
    """Return a name whose grant may be of the same server and account as ``grant``; ``None`` if there is none.

    A server may end all logins of an account and client together. What cannot be read counts.

    Raises ``DirectoryError``.
    """
    listing = directories.listing()
    for name in listing.all:
        try:
            found = _records(directories, name, unfinished=name in listing.unfinished)
        except (GrantFileError, OSError):
            return name
        for there in found:
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


def _require_same_login(directories: Directories, imported: Grant) -> None:
    """Refuse to replace a grant of another server or account, also one whose import was interrupted."""
    try:
        found = _records(directories, imported.name, unfinished=bool(directories.attempt_files(imported.name)))
    except (GrantFileError, OSError):
        return  # a damaged record is kept, even if it is of another server
    for there in found:
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


def _compare(directories: Directories, imported: Grant, known: KnownTokens | None, *, just_issued: bool) -> list[str]:
    """Refuse a refresh token that another name holds or has spent; return warnings of records that it cannot read."""
    fingerprint = _fingerprint(imported)
    if fingerprint is None:
        return []  # two names may share client credentials: they are not spent
    listing = directories.listing() if known is None else known.listing(imported)
    unchecked = []
    for name in listing.all:
        try:
            others = _records(directories, name, unfinished=name in listing.unfinished)
        except (GrantFileError, OSError) as error:
            if name != imported.name:
                unchecked.append(f"could not compare with the damaged record of {name}: {error}")
            continue
        for other in others:
            if isinstance(other, Grant) and _fingerprint(other) == fingerprint and name != imported.name:
                raise ImportRefused(
                    f"{name} holds this refresh token already: two names would revoke each other's login"
                )
            if other is not None and fingerprint in other.spent and not just_issued:
                if name == imported.name:
                    raise _spent(name)
                raise ImportRefused(f"{name} has already spent this refresh token: log in again under this name")
    return unchecked


def _records(directories: Directories, name: str, *, unfinished: bool) -> list[Record | None]:
    found = [records.load(directories, name).record]
    if unfinished:
        # An interrupted import holds its token too: the next writer of that name adopts it.
        found += [records.read_candidate(path, name).record for path in directories.candidates(name)]
    return found


def _successor(directories: Directories, imported: Grant, stored: Stored, *, just_issued: bool) -> Grant:
    """Return ``imported`` as the successor of the record: the generation counts on, and spent tokens stay spent."""
    there = stored.record
    seen = published_generation(directories, imported.name, there)
    generation = max(seen, -1 if there is None else there.generation) + 1
    grant = msgspec.structs.replace(imported, generation=generation)
    if there is None:
        return grant
    if _fingerprint(imported) in there.spent and not just_issued:
        raise _spent(imported.name)
    # Some servers issue the same refresh token to a person at each login.
    spent = tuple(known for known in there.spent if known != _fingerprint(imported))
    grant = msgspec.structs.replace(grant, spent=spent)
    if isinstance(there, Tombstone) or there.doubt is None:
        return grant
    if there.refresh_token is not None and imported.refresh_token != there.refresh_token:
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


def _last_import(directories: Directories) -> bytes:
    """Return what the last import noted, or nothing. Raises ``StorageError``."""
    try:
        return directories.import_lock.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read {directories.import_lock}: {error.strerror}") from None


def _note_import(directories: Directories) -> bytes:
    """Note an import in the file of its lock, before the record: then no ``KnownTokens`` overlooks it.

    It needs no sync: after a crash of the system, no process keeps what it read. Raises ``StorageError``.
    """
    try:
        descriptor = os.open(directories.import_lock, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.pwrite(
                descriptor, this_import := os.urandom(16), 0
            )  # in place: a cut-off import leaves another value too
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StorageError(f"cannot write {directories.import_lock}: {error.strerror}; nothing was changed") from None
    return this_import


def _fingerprint(grant: Grant) -> str | None:
    return None if grant.refresh_token is None else grant.refresh_token.fingerprint()


def _spent(name: str) -> AlreadySpent:
    return AlreadySpent(
        f"{name} has already spent this refresh token: log in again, because an old copy revokes the grant"
    )
