"""Encryption at rest: bring grants to the form that is configured, and say in which form they are."""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Final, Literal, NamedTuple

from refresher.common.errors import ConfigError, KeyUnavailable
from refresher.operations.events import Emit, emitting, ignore, recoveries
from refresher.storage.keys import KeyRing, Role
from refresher.storage.store import PUBLISHED, Holding, Store

__all__ = ["Change", "Form", "Scope", "Seal", "check", "names", "reseal", "seals"]

Form = Literal["current", "previous", "unknown", "plain", "damaged", "mixed"]
"""With which key a grant is sealed: ``unknown`` is neither of the two that are configured, or they cannot be read."""


Scope = Literal["grants", "published"]
"""What a command changes: all of each grant, or nothing but what a database publishes, which can have its own key."""


class Seal(NamedTuple):
    """The form of all that holds secrets of one grant."""

    name: str
    form: Form
    as_configured: bool
    """Whether ``enable``, ``rekey`` or ``disable`` would change nothing."""
    holdings: tuple[tuple[Holding, Form], ...]


Change = Literal["enable", "rekey", "disable"]

_NEEDED: Final[dict[Change, tuple[Callable[[KeyRing], bool], str]]] = {
    "enable": (
        lambda keys: keys.has_current,
        "give the key to seal with: 'openssl rand -base64 32' makes one, and --encryption-key file:PATH, or "
        "encryption_key in the configuration, names the file (published_key alone seals what a database publishes)",
    ),
    "rekey": (
        lambda keys: keys.has_current and keys.has_previous,
        "name the new key as encryption_key and the present one as previous_encryption_key (for what a database "
        "publishes: published_key and previous_published_key), in the configuration of every refresher that uses these "
        "grants; restart them, then run this again",
    ),
    "disable": (
        lambda keys: keys.has_previous and not keys.has_current,
        "rename encryption_key to previous_encryption_key (for what a database publishes: published_key to "
        "previous_published_key) in the configuration of every refresher that uses these grants; restart them, then "
        "run this again",
    ),
}
"""What each command needs in the configuration, and what to do without it."""


def check(store: Store, change: Change) -> Scope:
    """Return what ``change`` is for. Raises ``ConfigError`` if its keys are not named, and ``KeyUnavailable``."""
    fits, otherwise = _NEEDED[change]
    keys = store.directories.keys
    scope: Scope | None = "grants" if fits(keys) else None
    if scope is None and store.publishes_apart and fits(keys.published):
        scope = "published"
    if scope is None and change == "disable" and not (keys.has_current or keys.published.has_current):
        # Without a key, all may be plain already.
        scope = "grants" if all(seal.as_configured for seal in seals(store)) else None
    if scope is None:
        raise ConfigError(otherwise)
    if problems := keys.problems(published=store.publishes_apart):
        raise KeyUnavailable(problems[0])
    return scope


def names(store: Store, scope: Scope) -> list[str]:
    """Return the names that hold something of ``scope``. Raises ``DirectoryError`` and ``StorageError``."""
    return [
        name for name, found in store.holdings() if any(scope == "grants" or each.what == PUBLISHED for each in found)
    ]


def reseal(
    store: Store, name: str, scope: Scope = "grants", *, stopping: Callable[[], bool], emit: Emit = ignore
) -> int:
    """Bring what holds secrets of ``name`` to the form that is configured; return how many things were changed.

    Raises ``GrantFileError``, ``KeyUnavailable``, ``LockBusy``, ``Interrupted`` and ``StorageError``: then what was
    changed before stays so, and the next call goes on.
    """
    with emitting(emit) as events, store.held(name, stopping=stopping) as held:
        stored = held.recover(unfinished=True, report=recoveries(name, events))
        return held.reseal(stored, only_published=scope == "published")


def seals(store: Store, names: Collection[str] = ()) -> Iterator[Seal]:
    """Return the form of each grant that holds a secret. Raises ``DirectoryError`` and ``StorageError``."""
    directories = store.directories
    known: dict[bool, Mapping[str, Role]] = {}
    for name, found in store.holdings(names):
        holdings = []
        as_configured = True
        for each in found:
            published = each.what == PUBLISHED
            keys = directories.keys.published if published else directories.keys
            if each.key_id is not None and published not in known:
                known[published] = keys.known()
            form = _form(each, known.get(published, {}))
            as_configured &= form == ("current" if keys.has_current else "plain")
            holdings.append((each, form))
        if forms := {form for _, form in holdings}:
            yield Seal(name, forms.pop() if len(forms) == 1 else "mixed", as_configured, tuple(holdings))


def _form(holding: Holding, known: Mapping[str, Role]) -> Form:
    if holding.problem is not None:
        return "damaged"
    if holding.key_id is None:
        return "plain"
    return known.get(holding.key_id, "unknown")
