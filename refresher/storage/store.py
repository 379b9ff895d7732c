"""What a store of grants must do, at the height of the steps of a rotation.

``FileStore`` keeps grants in files, under the kernel's lock of each name. ``refresher.storage.postgres`` keeps them in
PostgreSQL, with a lease for each exchange. The operations know only these protocols.

The steps: hold the name, recover what an earlier attempt left, decide, begin an attempt, exchange, persist, publish.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Final, NamedTuple, Protocol

from refresher.common.errors import GrantFileError
from refresher.grants.record import Grant, Record, Stored
from refresher.storage.directories import Directories, Listing

__all__ = [
    "PUBLISHED",
    "WAIT",
    "Attempt",
    "Comparison",
    "Demanded",
    "Held",
    "Holding",
    "Report",
    "Store",
    "ignore_report",
]

WAIT: Final = 30.0
"""Seconds for which a command waits for a name. No exchange takes longer."""

Report = Callable[[str, int | None], None]
"""Takes a finding of a recovery, and the generation of the record after it."""


def ignore_report(_finding: str, _generation: int | None) -> None:
    """Take a finding, and do nothing."""


class Demanded(NamedTuple):
    """The demands for one grant."""

    generations: frozenset[int]
    """All that are pending."""
    current: range
    """The generations whose tokens agents may hold; more than one only after a restored backup."""
    counts: bool
    """Whether one of them is for a current generation, and was made after its token had been published (I1)."""
    reason: Callable[[], str | None]
    """Returns ``EXPIRING`` of the shim, or the origin of the grant that refused the token, if a demand says so."""

    @property
    def needs_newer(self) -> bool:
        """Whether an agent demands another generation than the current ones: it has not seen the newer one."""
        return bool(self.generations) and not self.generations <= {*self.current}


class Attempt(Protocol):
    """One attempt at the next record, from before its refresh token is spent until its answer is durable."""

    def before_first_byte(self) -> None:
        """Note durably enough that the refresh token may be spent from now on. If it raises, nothing may be sent."""

    def persist(self, record: Grant, *, until_saved: bool) -> Grant:
        """Make ``record`` durable, and return the grant that is stored then.

        ``until_saved``: the record holds the only copy of a refresh token, so this returns only when it is saved
        somewhere. Otherwise it raises ``StorageError`` if it cannot be saved: the next recovery finds a doubt, if
        anything was sent.
        """

    def keep_answer(self, answer: bytes, at: float) -> str:
        """Keep an answer that could not be read, received at ``at``; return a sentence that says where it is."""

    def abandon(self) -> None:
        """Take back an attempt that sent nothing, or whose verdict is not about the stored record."""

    def close(self) -> None:
        """Leave the attempt as it is; the next recovery settles it."""


class Held(Protocol):
    """The sole right to change the grant of one name."""

    @property
    def before(self) -> Record | None:
        """The record as ``recover`` found it."""

    def recover(
        self,
        *,
        unfinished: bool = False,
        giving_up: bool = False,
        removing: bool = False,
        report: Report = ignore_report,
    ) -> Stored:
        """Settle what earlier attempts left, and return the record after that; call it before anything else.

        ``unfinished``: an inspection found that an attempt left something. ``giving_up``: a person replaces or removes
        the grant, so an answer that cannot be reached now is not needed any more. ``removing``: it is removed, and what
        is set aside is deleted with it (``delete_copies``). Raises ``GrantFileError`` for a
        record that cannot be read (nothing is changed then), and ``StorageError``.
        """

    def replace_damaged(self, report: Report = ignore_report) -> tuple[Stored, str]:
        """Keep a record that cannot be read elsewhere, recover without it, and return also where it is.

        Raises ``OSError`` and ``StorageError``.
        """

    def demanded(self, grant: Grant, listed: Collection[int]) -> Demanded:
        """Return the demands for ``grant``. ``listed``: the generations for which an inspection found one."""

    def begin(self, stored: Stored, grant: Grant, on_sent: Callable[[], None]) -> Attempt:
        """Declare an attempt that begins from ``stored``. ``on_sent`` is called when it may send.

        Raises ``StorageError``: then nothing is spent.
        """

    def changed_meanwhile(self, stored: Stored) -> Grant | None:
        """Return the grant that somebody wrote over ``stored`` without holding the name, or ``None``."""

    def backup_hint(self, grant: Grant) -> str:
        """Return a hint why the server has just rejected ``grant``; often empty."""

    def write(self, stored: Stored, record: Record) -> Stored:
        """Replace ``stored`` by ``record`` durably, without an exchange. Raises ``StorageError``."""

    def note(self, grant: Grant, *, end_warned: float) -> None:
        """Write into the record of the generation of ``grant`` that the end of its login was announced.

        Raises ``GrantFileError`` and ``StorageError``.
        """

    def delete_copies(self) -> None:
        """Delete what may hold refresh tokens of a removed grant besides its record."""

    def reseal(self, stored: Stored, *, only_published: bool = False) -> int:
        """Bring all that holds secrets of the grant to the form that is configured: sealed with the key, or plain.

        ``only_published``: change nothing but what a database publishes of it.

        Return how many things were changed. Call it after ``recover``; after a kill, the next call goes on.
        Raises ``GrantFileError`` for what cannot be opened, ``KeyUnavailable`` and ``StorageError``.
        """

    def seen_generation(self, record: Record | None) -> int:
        """Return the latest generation that agents have seen, as far as that is proved; otherwise -1."""

    def is_stale(self, record: Record) -> bool:
        """Whether readers do not see ``record``."""

    def publish(self, record: Record, *, again: bool = False) -> bool:
        """Show ``record`` to readers if they see another one, or ``again`` so that each of them reads.

        Return whether they now see it: an older generation never replaces a newer one. Raises ``StorageError``.
        """

    def remove_demands(self, generations: Collection[int] | None, *, keep: range, warned: set[str]) -> None:
        """Remove the demands for ``generations`` (``None``: for all), except for those in ``keep``."""


class Comparison(NamedTuple):
    """What is stored under one name, to compare an import with."""

    name: str
    records: list[Record | None]
    problem: str | None = None
    """Why they cannot be read."""


PUBLISHED: Final = "published"
"""What a ``Holding`` is that hosts of agents open, with the key for it."""


class Holding(NamedTuple):
    """One thing that holds secrets of a grant."""

    what: str
    """The name of a file, or what it is in a database."""
    key_id: str | None
    """Of the key that it is sealed with; ``None``: it is plain."""
    problem: str | None = None
    """Why that is not known."""


class Store(Protocol):
    """Where the grants are."""

    @property
    def directories(self) -> Directories:
        """The directories of this host: what agents read and demand here."""

    @property
    def place(self) -> str:
        """Where the grants are, for messages; it holds no secret."""

    @property
    def publishes_apart(self) -> bool:
        """Whether what is published is kept apart from the directories of a host, with a key of its own."""

    def prepare(self) -> str | None:
        """Make ready what is needed to write; return what is wrong with ``demands/``. Raises ``DirectoryError``."""

    def load_keys(self) -> None:
        """Read the keys of each write. Call it before a name is held: a source of keys can be slow.

        Raises ``KeyUnavailable``.
        """

    def listing(self, names: Collection[str] = ()) -> Listing:
        """Return the names that have a record, of all or of ``names``. Raises ``DirectoryError``."""

    def load(self, name: str) -> Stored:
        """Return the record of ``name``, without holding it. Raises ``GrantFileError``."""

    def load_each(self, names: Collection[str]) -> Iterator[tuple[str, Stored | GrantFileError]]:
        """Load many names; return an error in the place of a record that cannot be read. Raises ``StorageError``."""

    def holdings(self, names: Collection[str] = ()) -> Iterator[tuple[str, list[Holding]]]:
        """Return what holds secrets of each of ``names``, or of all, and with what key. It needs no key.

        Raises ``DirectoryError`` and ``StorageError``.
        """

    def stamps(self) -> Mapping[str, int]:
        """Return a number for each name, which changes with its record. Raises ``StorageError``."""

    def held(self, name: str, *, stopping: Callable[[], bool], wait: float = WAIT) -> AbstractContextManager[Held]:
        """Hold ``name`` alone.

        Raises ``LockBusy`` after ``wait`` seconds, ``Interrupted`` if ``stopping()`` becomes true, ``StorageError``.
        """

    def give_way(self, name: str) -> None:
        """Let others hold ``name`` for a minute at most if it was claimed: the next ``held`` claims it again.

        Raises ``StorageError``.
        """

    def importing(self, *, stopping: Callable[[], bool]) -> AbstractContextManager[None]:
        """Exclude every other import: two could store one refresh token under two names. Raises as ``held`` does."""

    def expect_imports(self, fingerprints: Collection[str]) -> None:
        """Prepare to compare many imports: of the refresh tokens with ``fingerprints``."""

    def stored_under(self, name: str, *, unfinished: bool | None = None) -> Comparison:
        """Return the records under ``name``: that of an import that was cut off too.

        ``unfinished``: whether a listing found that an attempt left something; ``None``: not known.
        """

    def compare(self, imported: Grant) -> Iterator[Comparison]:
        """Return what is stored under each name that may hold, or have spent, the refresh token of ``imported``.

        The caller is ``importing``. Raises ``DirectoryError`` and ``StorageError``.
        """

    def note_import(self, grant: Grant) -> None:
        """Note that ``grant`` is being stored, before it is. Raises ``StorageError``."""
