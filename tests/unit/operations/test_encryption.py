"""What the commands of encryption need in the configuration."""

from pathlib import Path

import msgspec
import pytest

from refresher.common.errors import ConfigError, KeyUnavailable
from refresher.operations.encryption import Change, check
from refresher.storage.file_store import FileStore
from refresher.storage.keys import KeyRing, Source
from refresher.storage.postgres.postgres_store import PostgresStore
from tests.support.fake_state import directories
from tests.support.sealed import make_key

NOWHERE = "postgresql://127.0.0.1:1/nowhere"
"""Nothing is asked of this database."""


@pytest.mark.parametrize(
    ("change", "sources", "setting"),
    [
        ("enable", ("a", None), "published_key"),
        ("rekey", ("a", "b"), "previous_published_key"),
        ("disable", (None, "a"), "previous_published_key"),
    ],
    ids=["enable", "rekey", "disable"],
)
def test_the_key_of_what_is_published_is_enough(
    tmp_path: Path, change: Change, sources: tuple[str | None, str | None], setting: str
) -> None:
    """If it failed, a key for the published tokens alone could not be used, replaced or taken back."""
    made = {name: Source("file", str(make_key(tmp_path, name))) for name in ("a", "b")}
    current, previous = (None if name is None else made[name] for name in sources)
    ring = KeyRing(current, previous)
    plain = directories(tmp_path)
    apart = msgspec.structs.replace(plain, keys=KeyRing(published=ring))
    assert check(PostgresStore(NOWHERE, apart), change) == "published"
    assert check(PostgresStore(NOWHERE, msgspec.structs.replace(plain, keys=ring)), change) == "grants"
    if change == "disable":
        assert check(FileStore(plain), change) == "grants"  # nothing is sealed
        return
    for store in (PostgresStore(NOWHERE, plain), FileStore(plain), FileStore(apart)):
        with pytest.raises(ConfigError, match=setting):
            check(store, change)


def test_each_key_must_be_readable_before_a_grant_is_changed(tmp_path: Path) -> None:
    """If it failed, ``enable`` would wait for a key under the lock of each grant, and fail for each."""
    key, nowhere = Source("file", str(make_key(tmp_path, "key"))), Source("file", str(tmp_path / "nowhere"))
    for ring in (KeyRing(key, nowhere), KeyRing(nowhere, key), KeyRing(key, None, KeyRing(nowhere))):
        with pytest.raises(KeyUnavailable):
            check(PostgresStore(NOWHERE, msgspec.structs.replace(directories(tmp_path), keys=ring)), "enable")
