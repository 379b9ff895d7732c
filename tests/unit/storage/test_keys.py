"""Where keys come from: each source, its forms, and what is said if it gives none."""

import base64
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import keyring
import pytest
from keyrings.alt.file import PlaintextKeyring

from refresher.common.errors import ConfigError, KeyUnavailable
from refresher.grants.envelope import Key
from refresher.storage import keys
from refresher.storage.keys import KeyRing, parse_source
from tests.conftest import need
from tests.support.command import wait_until
from tests.support.sealed import key_source, make_key

RAW = os.urandom(32)
ID = Key(RAW).id
TEXT = base64.b64encode(RAW).decode()


def found(source: str) -> str:
    """Return the id of the key of a source."""
    key = KeyRing(parse_source("encryption_key", source)).current()
    assert key is not None
    return key.id


def refused(source: str) -> str:
    """Return why a source gives no key."""
    with pytest.raises(KeyUnavailable) as raised:
        found(source)
    assert TEXT not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    "form",
    [RAW, RAW.hex().encode() + b"\n", f"{TEXT}\n".encode(), base64.urlsafe_b64encode(RAW)],
    ids=["bytes", "hex", "base64", "urlsafe"],
)
def test_a_key_is_read_in_each_form(tmp_path: Path, form: bytes) -> None:
    """If it failed, a person could not use the key that a tool has made."""
    path = tmp_path / "key"
    path.touch(0o600)
    path.write_bytes(form)
    assert found(f"file:{path}") == ID


@pytest.mark.parametrize(
    "form",
    [
        b"",
        b"short",
        TEXT[:-4].encode(),
        RAW + b"x",
        b"0" * 63,
        b"\xff" * 64,
        RAW[:16].hex().encode(),
        b"correct horse battery staple 31\n",
    ],
    ids=["empty", "a word", "cut off", "33 bytes", "63 digits", "64 bytes", "32 digits", "32 letters"],
)
def test_what_is_no_key_is_refused(tmp_path: Path, form: bytes) -> None:
    """If it failed, grants would be sealed with a weak key, or with one that cannot be given again."""
    path = tmp_path / "key"
    path.touch(0o600)
    path.write_bytes(form)
    assert "it is no key of 256 bits" in refused(f"file:{path}")


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    """If it failed, a seal would protect nothing from other users."""
    path = tmp_path / "key"
    path.write_text(TEXT)
    path.chmod(0o644)
    assert "other users can read it" in refused(f"file:{path}")
    assert "No such file" in refused(f"file:{tmp_path / 'nowhere'}")


def test_a_file_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, another user could read the key, or give one that they know."""
    path = make_key(tmp_path, "key")
    owner = path.stat().st_uid
    # A fake: this process has another user than the file.
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    path.chmod(0o600 if owner else 0o640)
    if owner:
        assert "another user" in refused(f"file:{path}")
    else:
        assert KeyRing(parse_source("encryption_key", f"file:{path}")).current() is not None, "it is root's"
        os.chown(path, owner + 2, -1)
        path.chmod(0o600)
        assert "another user" in refused(f"file:{path}")


@pytest.mark.parametrize("form", [bytes(32), b"0" * 64, base64.b64encode(bytes(32))], ids=["bytes", "hex", "base64"])
def test_a_key_of_zeros_is_refused(tmp_path: Path, form: bytes) -> None:
    """If it failed, grants would be sealed with a key that everybody knows."""
    path = tmp_path / "key"
    path.touch(0o600)
    path.write_bytes(form)
    assert refused(f"file:{path}")


def test_a_credential_of_systemd_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, a service could not get its key from systemd."""
    need(None if shutil.which("systemd-creds") else "systemd-creds")
    sealed, there = str(tmp_path / "sealed"), str(tmp_path / "refresher-key")
    # Without a key of this machine, which a test must not make: systemd 252 calls that by another name.
    for without in ("tpm2-absent", "null"):
        made = ("systemd-creds", "encrypt", f"--with-key={without}", "--name=refresher-key", "-", sealed)
        if subprocess.run(made, input=TEXT.encode(), check=False, capture_output=True).returncode == 0:
            break
    subprocess.run(("systemd-creds", "decrypt", "--name=refresher-key", sealed, there), check=True, capture_output=True)
    (tmp_path / "refresher-key").chmod(0o400)
    assert "CREDENTIALS_DIRECTORY is not set" in refused("systemd:refresher-key")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert found("systemd:refresher-key") == ID


def test_a_keyring_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, a person could not keep the key in the keyring of the system."""
    before = keyring.get_keyring()
    backend = PlaintextKeyring()  # a back end of files of the library keyrings.alt
    backend.file_path = str(tmp_path / "keyring.cfg")
    keyring.set_keyring(backend)
    try:
        assert "keyring set refresher refresher" in refused("keyring:refresher")
        keyring.set_password("refresher", "refresher", TEXT)
        assert found("keyring:refresher") == ID
    finally:
        keyring.set_keyring(before)
    monkeypatch.setitem(sys.modules, "keyring", None)
    assert "pip install 'refresher[keyring]'" in refused("keyring:refresher")


def test_a_command_prints_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, a key management service could not give the key, or a command that hangs would stop refresher."""
    program = tmp_path / "a key"  # a stand-in for the client of a service
    program.write_text(f'#!/bin/sh\necho called >>{tmp_path}/calls\n[ "$1" = --of ] && echo {TEXT}\n')
    program.chmod(0o700)
    ring = KeyRing(parse_source("encryption_key", f"command:'{program}' --of refresher"))
    for _ in range(3):
        key = ring.current()
        assert key is not None
        assert key.id == ID
    assert (tmp_path / "calls").read_text() == "called\n"
    assert refused("command:false secret").endswith("cannot read the key command:false: the command failed with code 1")
    assert "No such file" in refused("command:/nowhere/program")
    monkeypatch.setattr(keys, "_WAIT", 0.2)
    assert "did not end in" in refused("command:sh -c 'sleep 60 & wait'")
    assert "prints more than 4096 bytes" in refused("command:yes")


def test_a_keyring_that_is_locked_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, a daemon beside a locked keyring would start one more thread every few seconds."""
    asked, unlocked = [], threading.Event()

    def wait_for_a_person(service: str, username: str) -> str:
        # A stand-in: no keyring of a test can be locked.
        asked.append((service, username))
        unlocked.wait()
        return TEXT

    monkeypatch.setattr(keyring, "get_password", wait_for_a_person)
    try:
        monkeypatch.setattr(keys, "_WAIT", 0.01)
        for _ in range(3):
            assert "did not answer" in refused("keyring:refresher")
    finally:
        unlocked.set()
    monkeypatch.setattr(keys, "_WAIT", 10.0)
    assert found("keyring:refresher") == ID
    assert asked == [("refresher", "refresher")]


def test_a_failure_is_remembered_for_a_short_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, a thousand grants would ask a service that is away a thousand times, or never again."""
    path = tmp_path / "key"
    ring = KeyRing(parse_source("encryption_key", f"file:{path}"))
    with pytest.raises(KeyUnavailable):
        ring.current()
    path.touch(0o600)
    path.write_text(TEXT)
    with pytest.raises(KeyUnavailable):
        ring.current()
    monkeypatch.setattr(keys, "_RETRY_AFTER", 0.0)
    wait_until(lambda: ring.problems() == [], "the key is read")
    path.unlink()
    assert ring.current() is not None, "the key is read again"


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(TEXT, id="a key"),
        *(pytest.param(f"{kind}:{TEXT}", id=f"{kind}: a key") for kind in ("file", "keyring", "systemd", "command")),
        "file:",
        "file: ",
        "gpg:key",
        "systemd:a/b",
        "command:'",
        "keyring",
    ],
)
def test_a_setting_that_is_no_source_is_refused_without_being_shown(given: str) -> None:
    """If it failed, a person who gives the key itself would find it in a log (I7)."""
    with pytest.raises(ConfigError) as raised:
        parse_source("encryption_key", given)
    assert TEXT not in str(raised.value)
    assert parse_source("encryption_key", "") is None
    path = "/home/m\u00fcller/the-encryption-key"
    assert len(path.encode()) == 32
    assert parse_source("encryption_key", f"file:{path}") == ("file", path)


def test_both_keys_can_be_read(tmp_path: Path) -> None:
    """If it failed, a key could only be changed while nothing runs."""
    for name in ("new", "old"):
        (tmp_path / name).touch(0o600)
        (tmp_path / name).write_bytes(os.urandom(32))
    new, old = (parse_source("encryption_key", f"file:{tmp_path / name}") for name in ("new", "old"))
    ring = KeyRing(new, old)
    ids = {Key((tmp_path / name).read_bytes()).id: role for name, role in (("new", "current"), ("old", "previous"))}
    assert ring.known() == ids
    assert {ring.find(key_id).id for key_id in ids} == set(ids)
    with pytest.raises(KeyUnavailable, match="is not here"):
        ring.find(ID)


def test_what_is_published_is_sealed_with_the_key_of_records_without_another(tmp_path: Path) -> None:
    """If it failed, the published tokens would be in the clear after their own key is given up."""
    records, before = key_source(tmp_path, "records"), key_source(tmp_path, "before")
    ring = KeyRing(records, None, KeyRing(None, before))
    current, old = KeyRing(records).current(), KeyRing(before).current()
    assert current is not None
    assert old is not None
    assert ring.published.has_current
    assert ring.published.known() == {current.id: "current", old.id: "previous"}
    assert ring.known() == {current.id: "current"}
    with pytest.raises(KeyUnavailable, match="as published_key or previous_published_key"):
        ring.published.find(ID)
