"""Import: whether what a person brings may be stored, and how."""

from collections.abc import Callable
from typing import NoReturn
from urllib.parse import urlsplit

import msgspec

from refresher.common import clocks
from refresher.common.errors import AlreadySpent, ExposedGrantFile, GrantFileError, ImportRefused, StorageError
from refresher.grants import policy
from refresher.grants.record import Grant, Record, Stored, Tombstone, spend
from refresher.oauth import urls
from refresher.storage import files, lock, publishing, records, recovery
from refresher.storage.directories import Directories
from refresher.storage.journal import write_record
from shim._token import is_name

__all__ = ["Admitted", "admit", "elsewhere", "is_elsewhere", "is_there"]


class Admitted(msgspec.Struct, frozen=True, kw_only=True):
    """What an import did: the grant as it is now, whether it is new, and what a person should know."""

    grant: Grant
    stored: bool
    warnings: tuple[str, ...] = ()


def is_there(directories: Directories, name: str) -> bool:
    """Whether a grant of that name is stored, removed ones aside. Raises ``GrantFileError``, ``DirectoryError``."""
    return name in directories.listing().names and isinstance(records.load(directories, name).record, Grant)


def admit(
    directories: Directories,
    brought: Grant,
    *,
    replace: bool,
    if_absent: bool,
    stopping: Callable[[], bool],
    same_server: bool = False,
    just_given: bool = False,
) -> Admitted:
    """Store ``brought`` durably and publish its access token if it brings one.

    ``same_server``: ``replace`` is meant for a grant of the same server alone, as far as its server is known.
    ``just_given``: its refresh token comes from the server at this moment, so it is good, whatever was known of it.

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
        # First of all what refuses it: whoever replaces a grant gives up what is out of reach of it.
        warnings = [*_cautions(brought), *_compare(directories, brought, just_given=just_given)]
        if same_server:
            _insist_on_the_server(directories, brought)
        stored = _there(directories, name, replace=replace)
        there = None if stored is None else stored.record
        if isinstance(there, Grant) and if_absent:
            return Admitted(grant=there, stored=False)
        if isinstance(there, Grant) and not replace:
            _refuse(f"{name} exists: --replace puts this grant in its place, --if-absent leaves it")
        if stored is None:
            # It may hold the only copy of something: out of the way, never overwritten.
            now = clocks.now()
            aside = files.keep_aside(directories.record(name), now.wall)
            warnings.append(f"the damaged record is now {aside}")
            stored = recovery.resolve(directories, name, now, damaged=True)
        grant = _successor(directories, brought, stored, just_given=just_given)
        write_record(directories, name, stored, grant)
        try:
            publishing.publish(directories, grant)
        except StorageError as error:
            warnings.append(f"{error}; the next run-once publishes it")
    return Admitted(grant=grant, stored=True, warnings=tuple(warnings))


def elsewhere(there: Grant) -> str:
    """Return in words why ``there`` is not replaced."""
    server = there.server_url or ", ".join(there.origins)
    return f"{there.name} is a grant for {server}: choose another name, or give it up with --replace"


def is_elsewhere(there: Grant, url: str | None) -> bool:
    """Whether a grant is for another server than that of ``url``, as far as both are known."""
    own = {*there.origins, *([] if there.server_url is None else [urls.origin(there.server_url)])}
    return url is not None and urls.origin(url) not in own


def _cautions(brought: Grant) -> list[str]:
    """Return what a person should know about a grant that works all the same."""
    return [
        f"{origin} is not https: the access token crosses the network in the clear"
        for origin in brought.origins
        if origin.startswith("http:") and not urls.is_loopback(urlsplit(origin).hostname or "")
    ]


def _insist_on_the_server(directories: Directories, brought: Grant) -> None:
    """Refuse to replace a grant of another server, also one whose import was cut off."""
    try:
        found = _records(directories, brought.name, unfinished=True)
    except (GrantFileError, OSError):
        return  # what cannot be read is kept, whatever it is
    for there in found:
        if isinstance(there, Grant) and is_elsewhere(there, brought.server_url):
            _refuse(elsewhere(there))


def _there(directories: Directories, name: str, *, replace: bool) -> Stored | None:
    """Return what is stored under ``name`` once earlier attempts are settled; ``None`` for a damaged record."""
    try:
        return recovery.resolve(directories, name, clocks.now(), giving_up=replace)
    except ExposedGrantFile:
        raise  # what it remembers is not lost: it says which tokens are spent
    except GrantFileError:
        if not replace:
            raise
        return None


def _compare(directories: Directories, brought: Grant, *, just_given: bool) -> list[str]:
    """Refuse a refresh token that another name holds or has spent; return what could not be compared."""
    fingerprint = _fingerprint(brought)
    if fingerprint is None:
        return []  # client credentials may be shared: nothing of them is used up
    listing = directories.listing()
    unchecked = []
    for name in sorted({*listing.names, *listing.unfinished}):
        try:
            others = _records(directories, name, unfinished=name in listing.unfinished)
        except (GrantFileError, OSError) as error:
            if name != brought.name:
                unchecked.append(f"could not compare with {name}, whose record is damaged: {error}")
            continue
        for other in others:
            if isinstance(other, Grant) and _fingerprint(other) == fingerprint and name != brought.name:
                _refuse(f"{name} holds this very refresh token: two names would destroy each other's login")
            if other is not None and fingerprint in other.spent and not just_given:
                if name == brought.name:
                    raise _spent(name)
                _refuse(f"{name} has already spent this refresh token: authorize anew for a name of its own")
    return unchecked


def _records(directories: Directories, name: str, *, unfinished: bool) -> list[Record | None]:
    if not is_name(name):
        return []
    found = [records.load(directories, name).record]
    if unfinished:
        # An import that was cut off holds its token too: the next writer of that name adopts it.
        found += [whole.record for path in directories.candidates(name) if (whole := recovery.whole(path, name))]
    return found


def _successor(directories: Directories, brought: Grant, stored: Stored, *, just_given: bool) -> Grant:
    """Return ``brought`` as the next of what is stored: its generation goes on, and what was spent stays spent."""
    there = stored.record
    seen = publishing.published_generation(directories, brought.name)
    generation = max(seen, -1 if there is None else there.generation) + 1
    grant = msgspec.structs.replace(brought, generation=generation)
    if there is None:
        return grant
    if _fingerprint(brought) in there.spent and not just_given:
        raise _spent(brought.name)
    # Some servers give one person the same refresh token again and again.
    spent = tuple(known for known in there.spent if known != _fingerprint(brought))
    grant = msgspec.structs.replace(grant, spent=spent)
    if isinstance(there, Tombstone) or there.doubt is None:
        return grant
    if there.refresh_token is not None and brought.refresh_token != there.refresh_token:
        return msgspec.structs.replace(grant, spent=spend(spent, there.refresh_token))
    if just_given:
        return grant
    # The same refresh token again does not settle whether it was spent: the wait stays, and what it protects.
    kept = msgspec.structs.replace(grant, doubt=there.doubt, failures=there.failures, failure=there.failure)
    longer = there.access_token is None or policy.end_of_life(brought) >= policy.end_of_life(there)
    if brought.access_token is not None and longer:
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


def _fingerprint(grant: Grant) -> str | None:
    return None if grant.refresh_token is None else grant.refresh_token.fingerprint()


def _spent(name: str) -> AlreadySpent:
    return AlreadySpent(f"{name} has already spent this refresh token: authorize anew, an old copy revokes the grant")


def _refuse(why: str) -> NoReturn:
    raise ImportRefused(why)
