"""The keys of agents: what is stored, and what is accepted after a change."""

from pathlib import Path

import pytest

from refresher.common.errors import ConfigError
from refresher.gateway.keys import Key, Keys, load, make, render


def write(path: Path, *keys: Key) -> None:
    temporary = path.with_name("new")
    temporary.touch(mode=0o600)
    temporary.write_bytes(render(keys))
    temporary.rename(path)


def test_a_key_is_accepted_until_it_is_removed(tmp_path: Path) -> None:
    """If it failed, an agent would be refused, or a removed key would work until a restart."""
    path = tmp_path / "keys.json"
    keys = Keys(str(path))
    (one, made), (two, other) = make("one", ()), make("two", ["linear"])
    assert keys.find(one) is None
    write(path, made, other)
    assert keys.find(one) == made
    assert keys.find(two) == other
    assert keys.find(one[:-1]) is keys.find(made.sha256) is keys.find("") is None
    write(path, other)
    assert keys.find(one) is None
    path.unlink()
    assert keys.find(two) is None
    assert one.encode() not in render([made])


def test_a_file_that_others_can_change_or_that_is_damaged_has_no_keys(tmp_path: Path) -> None:
    """If it failed, another user could add a key, or a damaged file would let everybody in."""
    path = tmp_path / "keys.json"
    text, made = make("one", ())
    write(path, made)
    keys = Keys(str(path))
    assert keys.find(text)
    for content in (
        b"",
        b"{}",
        b'{"version": 2, "keys": []}',
        b'{"version": 1, "keys": [{"agent": "one"}]}',
        b"[" * 9999,
    ):
        path.write_bytes(content)
        assert keys.find(text) is None
        with pytest.raises(ConfigError, match="not a file of keys"):
            load(str(path))
    write(path, made)
    assert keys.find(text)
    path.chmod(0o644)
    assert keys.find(text) is None
    with pytest.raises(ConfigError, match="chmod 600"):
        load(str(path))
    path.chmod(0o600)
    assert keys.find(text)


def test_a_key_is_for_its_grants_only() -> None:
    """If it failed, each agent could use each login."""
    assert make("one", ())[1].may_use("github")
    assert make("one", ["linear"])[1].may_use("linear")
    assert not make("one", ["linear"])[1].may_use("github")
