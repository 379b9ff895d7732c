"""The version of records and intents: the fields of each, the conversion to the next, the refusal by the previous."""

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from msgspec import inspect

from refresher.common.secret import Secret
from refresher.config import resolve
from refresher.grants import encoding
from refresher.grants.encoding import CONVERTERS, VERSION, decode, unwrap, wrap
from refresher.grants.record import Grant, Moved, Tombstone
from refresher.operations.result import Result
from refresher.operations.rotate import Order, Terms, rotate
from refresher.operations.run_once import run_once
from refresher.storage.file_store import FileStore
from refresher.storage.journal import Intent
from refresher.storage.lock import held
from tests.support.command import Command
from tests.support.stored_state import (
    NEVER_ROTATE,
    ORIGIN,
    OUTCOMES,
    SPILL,
    STORED,
    TOMBSTONES,
    copied,
    opened,
    prepared,
)
from tests.support.token_server import TokenServer
from tests.support.vault import Vault

FIXTURES = STORED.parent

NAMES = sorted(path.stem for path in STORED.glob("grants/*.json"))

STATES = {1: "state-0.1.0", 2: "state-2", 3: "state-3"}
"""A state directory of each version."""

_PLAIN = {
    inspect.StructType: "object",
    inspect.StrType: "text",
    inspect.IntType: "integer",
    inspect.FloatType: "number",
    inspect.BoolType: "true or false",
    inspect.NoneType: "null",
}

WHAT_TO_DO = f"""
This changes the records or intents on the disk, and an older refresher cannot read them. If that is intended:
  1. raise VERSION, where CONVERTERS is, to {VERSION + 1};
  2. add to CONVERTERS, under {VERSION}, the function that converts the old fields to the new ones;
  3. keep wire-{VERSION}.txt and add wire-{VERSION + 1}.txt with the table below;
  4. if STATES in this file has no state directory of version {VERSION}, add one, written by the code before the change.
To rename only a Python name, keep the name on the disk with msgspec.field(name=...).
"""


def wire(path: str, kind: inspect.Type) -> Iterator[str]:
    """List the fields below ``path`` by their names on the disk, not by their Python names."""
    for struct in kind.types if isinstance(kind, inspect.UnionType) else (kind,):
        if not isinstance(struct, inspect.StructType):
            continue
        assert struct.forbid_unknown_fields, f"{path}: the next write would drop an unknown field"
        assert not struct.array_like
        if struct.tag_field is not None:
            yield f'{path}.{struct.tag_field}: "{struct.tag}"'
        for field in struct.fields:
            below = f"{path}.{field.encode_name}"
            yield f"{below}: {_kind(field.type)}{'' if field.required else ', may be absent'}"
            yield from wire(below, field.type)


def _kind(kind: inspect.Type) -> str:
    match kind:
        case inspect.UnionType(types=types):
            return " or ".join(map(_kind, types))
        case inspect.LiteralType(values=values):
            return " or ".join(f'"{value}"' for value in values)
        case inspect.VarTupleType(item_type=item):
            return f"list of ({_kind(item)})"
        case inspect.TupleType(item_types=items):
            return f"[{', '.join(map(_kind, items))}]"
        case inspect.CustomType(cls=custom):
            assert custom is Secret
            return "text"
        case _:
            return _PLAIN[type(kind)]


def table() -> list[str]:
    """List all fields on the disk."""
    roots = {"grant": Grant, "tombstone": Tombstone, "moved": Moved, "intent": Intent}
    return sorted(line for name, root in roots.items() for line in wire(name, inspect.type_info(root)))


def test_the_fields_on_the_disk_change_only_with_the_version() -> None:
    """If it failed, a new field would make records that the previous version reports as damaged."""
    path = FIXTURES / f"wire-{VERSION}.txt"
    pinned = path.read_text().splitlines() if path.exists() else []
    changes = [line for line in difflib.ndiff(pinned, table()) if line[0] in "+-"]
    assert not changes, "\n".join([WHAT_TO_DO, "Changed:", *changes, "", "The table:", *table()])


def test_every_earlier_version_has_a_converter_and_a_state_directory() -> None:
    """If it failed, refresher would refuse every record after an upgrade from an earlier version."""
    earlier = set(range(1, VERSION))
    assert set(CONVERTERS) == earlier, WHAT_TO_DO
    assert earlier <= set(STATES), WHAT_TO_DO
    for version, name in STATES.items():
        envelope = f'{{"version":{version},"checksum":"'.encode()
        assert all(path.read_bytes().startswith(envelope) for path in (FIXTURES / name).glob("grants/*.json"))


def rotated(refresher: Command, server: TokenServer, version: int, day: str) -> dict[str, str]:
    """Rotate the grants of a state directory that an earlier version wrote on ``day``; return the outcome of each."""
    spill = refresher.home / "spill"
    refresher.environment["REFRESHER_SPILL_DIR"] = str(spill)
    # Their access tokens expired on the day on which they were written.
    changes = {ORIGIN: server.token_endpoint.removesuffix("/token"), SPILL: str(spill), day: f"41023{day[5:]}"}
    copied(refresher.state, spill, changes, source=FIXTURES / STATES[version])
    done = refresher("run-once", "--force", "--json")
    return {name: result["outcome"] for name, result in done.results.items()}


def test_the_grants_of_version_2_rotate(refresher: Command, vault: Vault, server: TokenServer) -> None:
    """If it failed, an upgrade from version 2 would lose logins."""
    assert rotated(refresher, server, 2, "17959356") == {
        "healthy": "rotated",
        "rotated": "rotated",
        "left-sent": "in_doubt",
        "left-unsent": "in_doubt",  # in another boot, an intent says nothing of how far it came
    }
    assert isinstance(refresher.record("removed"), Tombstone)
    assert version_of(refresher.directories.record("healthy")) == VERSION
    assert refresher.grant("rotated").generation == 6


def test_the_grants_of_version_3_rotate(refresher: Command, vault: Vault, server: TokenServer) -> None:
    """If it failed, an upgrade from version 3 would lose logins, or a move that was cut off."""
    assert rotated(refresher, server, 3, "17959473") == {
        "healthy": "rotated",
        "left-sent": "in_doubt",
    }
    assert server.presented["healthy"] == ["rt-healthy-1"]
    assert isinstance(refresher.record("removed"), Tombstone)
    moved, arriving = refresher.record("moved"), refresher.record("arriving")
    assert isinstance(moved, Moved)
    assert isinstance(arriving, Moved)
    assert arriving.fingerprint() == Secret("rt-arriving-1").fingerprint()
    assert version_of(refresher.directories.record("healthy")) == VERSION


# --- a next version that does not exist ---------------------------------------------------------------------------


NEXT = VERSION + 1
CONVERTED = "converted"
LATER = 1_790_000_999.0
REFUSED = f"the file has version {NEXT}, this refresher reads version {VERSION}: use the newer refresher"


def to_next(fields: dict[str, Any]) -> dict[str, Any]:
    """Convert to an invented next version: records get another scope, intents another time."""
    if "kind" in fields:
        return fields | {"scope": CONVERTED}
    return fields | {"at": fields["at"] | {"wall": LATER}}


@pytest.fixture
def server() -> Iterator[TokenServer]:
    """A token endpoint."""
    with TokenServer(lambda _: 3600.0) as running:
        yield running


@pytest.fixture
def stored(refresher: Command, vault: Vault, server: TokenServer) -> Command:
    """The command with the state directory of 0.1.0."""
    return prepared(refresher.home, vault, server)


@pytest.fixture
def next_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next version in this process; a command in its own process has the present version."""
    monkeypatch.setattr(encoding, "VERSION", NEXT)
    monkeypatch.setitem(encoding.CONVERTERS, VERSION, to_next)


def run_here(refresher: Command, *names: str, force: bool = False) -> dict[str, Result]:
    """Run once in this process."""
    given = {"state_dir": str(refresher.state), "spill_dir": refresher.environment["REFRESHER_SPILL_DIR"]}
    results = run_once(resolve(given, None), names, force=force, horizon=0.0, stopping=lambda: False)
    return {result.name: result for result in results}


def version_of(path: Path) -> int:
    """Read the version of a record or an intent."""
    version: int = msgspec.json.decode(path.read_bytes().partition(b"\n")[0])["version"]
    return version


def raise_version(path: Path) -> None:
    """Rewrite a record or an intent as the next version writes it."""
    line, _, mark = path.read_bytes().partition(b"\n")
    key: Literal["record", "intent"] = "intent" if path.suffix == ".intent" else "record"
    path.write_bytes(wrap(key, bytes(unwrap(key, line)[0]))[0] + mark)
    assert version_of(path) == NEXT


def all_files(refresher: Command) -> dict[str, bytes]:
    """Return the files in ``grants/``, except the locks."""
    return {path.name: path.read_bytes() for path in refresher.directories.grants.iterdir() if path.suffix != ".lock"}


@pytest.mark.usefixtures("next_version")
def test_the_next_version_reads_a_record_without_a_write(stored: Command) -> None:
    """If it failed, a command that only reads a grant would change its record without the lock."""
    before = all_files(stored)
    for name in NAMES:
        found = decode(before[f"{name}.json"], name)
        assert isinstance(found.record, Grant | Tombstone)
        assert found.record.scope == CONVERTED
        sealed = opened(before[f"{name}.json"])
        assert sealed is not None
        assert found.checksum == sealed.checksum, (
            "an intent or a successor would not match the record that it was made from"
        )
    assert all_files(stored) == before


@pytest.mark.usefixtures("next_version")
def test_a_record_is_converted_at_its_next_write_under_the_lock(stored: Command) -> None:
    """If it failed, two processes could write one record at the same time."""
    made = stored.directories
    before = all_files(stored)
    with held(made.lock("healthy"), stopping=lambda: False):
        assert run_here(stored, "rotated")["rotated"].outcome == "rotated"
        assert version_of(made.record("rotated")) == NEXT
        waiting = Terms(ca_file=None, stopping=lambda: False, lock_wait=0.1)
        result = rotate(FileStore(made), Order(name="healthy", seen=0), waiting)
        assert result is not None
        assert result.outcome == "lock_busy"
        assert all_files(stored)["healthy.json"] == before["healthy.json"]
    assert run_here(stored, "healthy")["healthy"].outcome == "rotated"
    assert version_of(made.record("healthy")) == NEXT
    assert stored.grant("healthy").scope == CONVERTED


@pytest.mark.usefixtures("next_version")
def test_the_next_version_recovers_and_rotates_the_grants_of_the_previous_one(
    stored: Command, server: TokenServer
) -> None:
    """If it failed, an upgrade to the next version would lose logins, or the leftovers of a kill before the upgrade."""
    names = (set(NAMES) - set(TOMBSTONES)) | {"left-import"}
    plain = {name: result.outcome for name, result in run_here(stored).items()}
    assert plain == dict.fromkeys(names, "rotated") | OUTCOMES
    doubt = stored.grant("left-sent").doubt
    assert doubt is not None
    assert doubt.since.wall == LATER, "the intent was not converted"
    # An adopted successor is written in the next version, and its source is still recognised as a copy.
    assert not [name for name in all_files(stored) if name.startswith("left-") and "aside" in name]
    forced = {name: result.outcome for name, result in run_here(stored, force=True).items()}
    assert forced == dict.fromkeys(names, "rotated") | {name: OUTCOMES[name] for name in NEVER_ROTATE}
    for name in names - set(NEVER_ROTATE):
        assert version_of(stored.directories.record(name)) == NEXT, name
        assert stored.grant(name).scope == CONVERTED, name
    assert server.presented["left-sent-next"][0] == "rt-left-sent-next-1"


@pytest.mark.usefixtures("next_version")
def test_the_previous_version_refuses_a_record_of_the_next_one(stored: Command, server: TokenServer) -> None:
    """If it failed, an older refresher would report a newer record as damaged, or drop its unknown fields."""
    assert run_here(stored, "healthy")["healthy"].outcome == "rotated"
    before = all_files(stored)
    done = stored("run-once", "--json", "healthy")
    assert (done.code, done.outcome) == (2, "invalid_grant_file")
    assert f"{stored.directories.record('healthy')}: {REFUSED}" in done.results["healthy"]["detail"]
    assert all_files(stored) == before
    assert len(server.presented["healthy"]) == 1


@pytest.mark.parametrize("kinds", [("next",), ("intent",), ("intent", "next")], ids="+".join)
@pytest.mark.usefixtures("next_version")
def test_the_previous_version_does_not_change_the_leftovers_of_the_next_one(
    stored: Command, server: TokenServer, kinds: tuple[str, ...]
) -> None:
    """If it failed, a downgrade during a rotation would set the only copy of a refresh token aside (I6)."""
    for kind in kinds:
        raise_version(stored.state / f"grants/left-sent-next.{kind}")
    before = all_files(stored)
    done = stored("run-once", "--json", "left-sent-next")
    assert (done.code, done.outcome) == (2, "invalid_grant_file")
    assert f"left-sent-next.{kinds[0]}: {REFUSED}" in done.results["left-sent-next"]["detail"]
    assert all_files(stored) == before
    assert run_here(stored, "left-sent-next")["left-sent-next"].outcome == "rotated"
    assert server.presented["left-sent-next"] == ["rt-left-sent-next-1"]


@pytest.mark.usefixtures("next_version")
def test_a_new_import_sets_a_leftover_of_the_next_version_aside(stored: Command, server: TokenServer) -> None:
    """If it failed, a leftover with a damaged version number would prevent every new login."""
    path = stored.state / "grants/left-sent-next.next"
    raise_version(path)
    there = path.read_bytes()
    stored.import_grant("left-sent-next", server.grant("left-sent-next"), "--replace")
    (aside,) = stored.directories.grants.glob("left-sent-next.next.aside.*")
    assert aside.read_bytes() == there
    assert stored("run-once", "--json", "left-sent-next").outcome == "rotated"
    aside.unlink()
