"""Publishing: the token file is derived from the record, and from nothing else.

The caller holds the lock of the name.
"""

import hashlib
import logging
import math
import os
import stat
from contextlib import suppress
from typing import Final

import msgspec

from refresher.common import clocks
from refresher.common.errors import DirectoryError, GrantFileError, StorageError
from refresher.common.reading import FileWithStatus
from refresher.grants import policy
from refresher.grants.encoding import token_file_hash
from refresher.grants.generations import can_be_later, last_known
from refresher.grants.record import Grant, Record
from refresher.grants.token_file import derive, fitted, problem_of, state_of
from refresher.storage import demands, files, records
from refresher.storage.directories import Directories, Sharing
from shim._token import TokenFile, parse
from shim.errors import TokenFileError

__all__ = [
    "Publisher",
    "published_generation",
    "read_published",
]

log = logging.getLogger(__name__)

_MOST_CURRENT: Final = 100


def read_published(directories: Directories, name: str, record: Record | None = None) -> TokenFile | None:
    """Return the token file that readers see; ``None`` unless it proves what refresher has published.

    Only this user can write it and its directory, by open descriptors. After ``record``, the generation has grown by at
    most one a second.
    """
    return _proof(*_read_with_directory(directories, name), name, *last_known(record))


def _read_with_directory(directories: Directories, name: str) -> tuple[FileWithStatus | None, os.stat_result | None]:
    """Return the token file and the status of its directory, by open descriptors."""
    try:
        directory = os.open(directories.tokens, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None, None
    try:
        return files.read(f"{name}.json", records.LARGEST, directory=directory), os.fstat(directory)
    except (OSError, ValueError):
        return None, None
    finally:
        os.close(directory)


def _proof(
    found: FileWithStatus | None, directory: os.stat_result | None, name: str, since: float, generation: int
) -> TokenFile | None:
    """Return the token file, unless it may not be ours; it may be later than ``generation``, which was at ``since``."""
    if found is None or directory is None or not _is_ours_alone(found.status) or not _is_ours_alone(directory):
        return None
    if (seen := _parsed(found, name)) is None:
        return None
    return seen if can_be_later(seen.generation, since, generation, clocks.now().wall) else None


def published_generation(directories: Directories, name: str, record: Record | None) -> int:
    """Return the generation that readers see, as far as ``read_published`` trusts it; otherwise -1."""
    published = read_published(directories, name, record)
    return -1 if published is None else published.generation


def _is_ours_alone(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022


class Publisher:
    """Publishes the records of ``directories``, and remembers which files it has repaired.

    A token file with the right content and the wrong group is repaired once. If it has the wrong group again,
    another refresher runs with another ``--tokens-group``: both would repair the file again and again,
    and every reader would read it each time.
    """

    def __init__(self, directories: Directories) -> None:
        self.directories = directories
        self._repaired: dict[str, int] = {}
        self._rendered: dict[str, tuple[str, int]] = {}
        """For each name, the hash that another version wrote into its record, and the same token file as it is here."""
        self._reported: set[str] = set()
        self._barred: set[str] = set()

    def is_stale(self, record: Record, sharing: Sharing | None = None) -> bool:
        """Whether the token file is missing, differs from ``record``, or has other permissions.

        ``sharing``: the permissions to compare with, if the caller knows them.
        """
        published = _read(self.directories, record.name)
        try:
            wanted = self._wanted(record)
        except (StorageError, GrantFileError):
            return True  # the publication says why it cannot
        return wanted is not None and not self._is_up_to_date(record.name, wanted, published, sharing)

    def current(self, record: Record) -> range:
        """Return the generations whose tokens agents may hold: that of ``record``, and up to the published one.

        It is empty if the generation of ``record`` has not been published: nobody can have been refused its token.
        There are more than one only if the record was restored from a backup, and 100 at most: an agent with an
        earlier token has to read again.
        """
        published = published_generation(self.directories, record.name, record)
        if published < record.generation:
            # If others can write to tokens/, the file proves nothing later, but agents need their demands.
            seen = _parsed(_read(self.directories, record.name), record.name)
            published = record.generation - (seen is None or seen.generation != record.generation)
        return range(max(record.generation, published + 1 - _MOST_CURRENT), published + 1)

    def is_demanded(self, record: Record, demanded: frozenset[int], current: range) -> bool:
        """Whether a server refused an agent the token of a generation in ``current``."""
        counting = [each for each in demanded if each in current]
        barred = demands.barred_until(self.directories, record.name) if counting else -1
        if barred == math.inf and record.name not in self._barred:
            self._barred.add(record.name)
            log.warning(
                "%s: %s cannot be read, so no demand counts: delete the demands %s.*, then that file",
                record.name,
                self.directories.barred(record.name),
                self.directories.demands / record.name,
            )
        return any(each > barred for each in counting)

    def publish(self, record: Record, *, again: bool = False) -> bool:
        """Write the token file of ``record`` if it differs, or ``again`` so that every reader reads it.

        Return whether readers now see ``record``: an older generation never replaces a newer one. Raises
        ``StorageError``.
        """
        name = record.name
        published, directory = _read_with_directory(self.directories, name)
        # Without a key: what is up to date needs none.
        wanted = self._wanted(record)
        if wanted is None or (not again and self._is_up_to_date(name, wanted, published)):
            return True
        if isinstance(wanted, str):
            expected, wanted = wanted, derive(record)
            if wanted is None:
                return True
            if published is not None and wanted == published.data:
                self._rendered[name] = (expected, hash(wanted))
            if not again and self._is_up_to_date(name, wanted, published):
                return True
        dead = isinstance(record, Grant) and record.dead
        seen = _proof(published, directory, name, *last_known(record))
        if seen is not None and seen.generation > record.generation and not dead:
            return False
        self._replace(name, record.generation, wanted, published, seen)
        if published is not None and wanted == published.data and not again:
            self._repaired[name] = hash(published.data)
        return True

    def publish_copy(self, token: TokenFile, data: bytes, *, again: bool = False) -> bool:
        """Write ``data``, the token file of a grant in a store of many hosts, if it differs.

        ``token`` is what ``data`` says. Return whether readers see it now, as ``publish`` does; raise ``StorageError``.
        """
        name = token.name
        published, directory = _read_with_directory(self.directories, name)
        seen = _proof(published, directory, name, token.issued_at, token.generation)
        rejected = token.state == "reauthorization_required"
        if seen is not None and seen.state != "removed":
            if rejected and seen.generation > token.generation:
                # The store is from a restored backup: readers keep the newer token, and see the state of the grant.
                data = fitted(seen._replace(state=token.state, error=token.error))[0]
            elif token.access_token is None and token.state != "removed" and _is_live(seen):
                return True  # a new grant has no access token yet: that of the grant before it stays (I5)
        if self._is_up_to_date(name, data, published) and not again:
            return True
        if seen is not None and seen.generation > token.generation and not rejected:
            return False
        self._replace(name, token.generation, data, published, seen)
        if published is not None and data == published.data and not again:
            self._repaired[name] = hash(published.data)
        return True

    def _replace(
        self, name: str, generation: int, wanted: bytes, published: FileWithStatus | None, seen: TokenFile | None
    ) -> None:
        """Replace the token file ``published``; ``seen`` is what it says, if it is ours. Raises ``StorageError``."""
        path = self.directories.token(name)
        foreign = _parsed(published, name) if seen is None else None
        known = seen or foreign
        try:
            with self.directories.opened_tokens() as tokens:
                if foreign is not None and foreign.generation > generation:
                    with suppress(OSError):
                        aside = files.keep_aside(path, clocks.now().wall, directory=tokens)
                        log.warning(
                            "%s: refresher has not published the token file of generation %d; it is now %s, and "
                            "refresher publishes again",
                            name,
                            foreign.generation,
                            aside,
                        )
                if known is None or known.generation < generation:
                    self._bar_demands(name, generation)
                mode, group = self.directories.sharing(os.fstat(tokens))
                files.replace(tokens, path.name, wanted, mode=mode, group=group)
        except (OSError, DirectoryError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise StorageError(f"cannot publish {path}: {why}; the next run publishes it") from None

    def _bar_demands(self, name: str, generation: int) -> None:
        problem = demands.bar(self.directories, name, generation)
        if problem is not None and name not in self._barred:
            self._barred.add(name)
            log.warning("%s: %s; refresher ignores it: delete it", name, problem)

    def _wanted(self, record: Record) -> bytes | str | None:
        """Return what to publish, or its SHA-256 in hex if that is sealed (``token_file_hash``).

        ``None`` if a token of the grant before this one may still be valid (I5).
        """
        # The file of a healthy grant is compared and never parsed: parsing it costs more than all the rest.
        if isinstance(record, Grant) and (record.dead or record.access_token is None):
            seen = read_published(self.directories, record.name, record)
            if seen is None or seen.state == "removed":
                return token_file_hash(record) or derive(record)
            restored = record.access_token is None and policy.has_access_token(record)
            if restored or (record.dead and seen.generation > record.generation):
                # The record is from a restored backup: readers keep the newer token, and see the state of the grant.
                return fitted(seen._replace(state=state_of(record), error=problem_of(record)))[0]
            if record.access_token is None and seen.access_token is not None:
                # Both grants are of one server, so what is known of its tokens holds for the earlier one too.
                before = msgspec.structs.replace(record, issued_at=seen.issued_at, expires_at=seen.expires_at)
                if policy.expected_expiry(before) > clocks.now().wall:
                    return None
        return token_file_hash(record) or derive(record)

    def _is_up_to_date(
        self, name: str, wanted: bytes | str, published: FileWithStatus | None, sharing: Sharing | None = None
    ) -> bool:
        if published is None:
            return False
        if isinstance(wanted, str):
            same = wanted == hashlib.sha256(published.data).hexdigest()
            same = same or self._rendered.get(name) == (wanted, hash(published.data))
        else:
            same = wanted == published.data
        if not same:
            return False
        mode, group = sharing or self.directories.sharing()
        if stat.S_IMODE(published.status.st_mode) != mode:
            return False
        if group in (None, published.status.st_gid):
            return True
        if self._repaired.get(name) != hash(published.data):
            return False
        if name not in self._reported:
            self._reported.add(name)
            log.warning(
                "%s: the token file %s has group %d again and stays so until its content changes: does another "
                "refresher run with another --tokens-group? This one has group %d",
                name,
                self.directories.token(name),
                published.status.st_gid,
                group,
            )
        return True


def _read(directories: Directories, name: str) -> FileWithStatus | None:
    try:
        return files.read(f"{directories.tokens}/{name}.json", records.LARGEST)
    except (OSError, ValueError):
        return None  # what cannot be read is replaced


def _is_live(token: TokenFile) -> bool:
    """Whether the access token of a token file may still be valid."""
    if token.access_token is None:
        return False
    expires_at = token.issued_at + policy.DEFAULT_MAX_AGE if token.expires_at is None else token.expires_at
    return expires_at > clocks.now().wall


def _parsed(published: FileWithStatus | None, name: str) -> TokenFile | None:
    try:
        seen = parse(b"" if published is None else published.data)
    except TokenFileError:
        return None
    return seen if seen.name == name else None  # readers refuse the file of another name
