"""``FileTokenSource``: where it looks for the token file, and when it reads it."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from shim import (
    FileTokenSource,
    TokenFile,
    TokenFileError,
    UnsupportedVersion,
)
from shim._token import parse
from tests.support.published import Published, token


def _generation(source: FileTokenSource) -> int | None:
    token = source.current()
    return None if token is None else token.generation


def test_a_token_file_that_appears_later_is_read(published: Published) -> None:
    """If it failed, an agent that starts before refresher would need a restart."""
    source = published.source()
    assert source.current() is None
    assert isinstance(source.problem(), TokenFileError)
    published.put(1)
    assert _generation(source) == 1
    assert source.problem() is None


def test_the_problem_is_that_of_the_token_that_a_subclass_returns(published: Published) -> None:
    """If it failed, a program with a token source of its own would be told that its grant was removed."""

    class Own(FileTokenSource):
        def current(self) -> TokenFile | None:
            super().current()
            return token(5)

    published.put(4, state="removed", access_token=None)
    assert Own("linear", tokens_dir=published.tokens, demands_dir=published.demands).problem() is None


@pytest.mark.parametrize("damage", ["torn", "empty", "not JSON", "gone", "directory", "fifo", "huge", "another name", "version 2", "dangling"])  # fmt: skip
def test_a_damaged_file_keeps_the_last_good_token_and_reports_a_problem(published: Published, damage: str) -> None:
    """If it failed, a file that is damaged for a moment would stop every agent with a good token."""
    made = published.put(1)
    source = published.source()
    assert source.current() == made
    content = published.path.read_bytes()
    published.path.unlink()
    match damage:
        case "torn":
            published.path.write_bytes(content[:50])
        case "empty":
            published.path.touch()
        case "not JSON":
            published.path.write_bytes(b"hello")
        case "directory":
            published.path.mkdir()
        case "fifo":
            os.mkfifo(published.path)
        case "huge":
            published.path.write_bytes(b" " * (1024 * 1024 + 1))
        case "another name":
            published.put(5, name="notion")
        case "version 2":
            published.path.write_bytes(content.replace(b'"version": 1', b'"version": 2'))
        case "dangling":
            published.path.symlink_to("nowhere")
        case _:
            assert damage == "gone"
    for _ in range(2):
        assert source.current() == made
        problem = source.problem()
        assert isinstance(problem, UnsupportedVersion if damage == "version 2" else TokenFileError)
        assert str(published.path) in str(problem)
    if damage == "directory":
        published.path.rmdir()
    published.put(2)
    assert _generation(source) == 2
    assert source.problem() is None


@pytest.mark.parametrize("kind", ["fifo", "device", "directory"])
def test_what_takes_the_place_of_the_file_between_stat_and_open_blocks_no_agent(
    published: Published, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """If it failed, an agent would hang for ever in the read of a FIFO that replaced its token file."""
    made = published.put(1)
    source = published.source()
    assert source.current() == made
    published.put(2)

    def stat_then_replace(path: str) -> os.stat_result:
        status = Path(path).stat()
        published.path.unlink()
        if kind == "fifo":
            os.mkfifo(published.path)
        elif kind == "device":
            published.path.symlink_to("/dev/zero")
        else:
            published.path.mkdir()
        return status

    monkeypatch.setattr("shim._source._stat", stat_then_replace)
    found: list[TokenFile | None] = []
    reading = threading.Thread(target=lambda: found.append(source.current()), daemon=True)
    reading.start()
    reading.join(60)
    assert found == [made], "the reader hangs, or has lost its token"
    monkeypatch.undo()
    assert isinstance(source.problem(), TokenFileError)
    published.path.rmdir() if kind == "directory" else published.path.unlink()
    published.put(3)
    assert _generation(source) == 3
    assert source.problem() is None


def test_an_unreadable_file_keeps_the_last_good_token(published: Published) -> None:
    """If it failed, a wrong file mode for a moment would stop every agent with a good token."""
    published.put(1)
    source = published.source()
    assert _generation(source) == 1
    published.put(2)
    published.path.chmod(0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)  # root can read every file
    try:
        assert _generation(source) == 1
        assert isinstance(source.problem(), TokenFileError)
    finally:
        if root:
            os.seteuid(0)
    published.path.chmod(0o600)
    assert _generation(source) == 2


@pytest.mark.parametrize("shift", [-86400.0, 86400.0, 0.0])
def test_a_change_is_seen_even_if_the_clock_was_set(published: Published, shift: float) -> None:
    """If it failed, an agent would keep a dead token after the clock was set back."""
    published.put(1)
    source = published.source()
    assert _generation(source) == 1
    before = published.path.stat()
    published.put(2)
    os.utime(published.path, ns=(before.st_atime_ns, before.st_mtime_ns + int(shift * 1e9)))
    assert _generation(source) == 2


def test_an_unchanged_file_is_read_once(published: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, each request would cost a read and a parse."""
    from shim import _source

    reads = []

    def counted(data: bytes) -> TokenFile:
        reads.append(1)
        return parse(data)

    monkeypatch.setattr(_source, "parse", counted)
    published.put(1)
    source = published.source()
    first = source.current()
    assert all(source.current() is first for _ in range(100))
    assert len(reads) == 1


def test_symbolic_links_are_followed_at_each_read(published: Published) -> None:
    """If it failed, an agent would never see a new token in a Kubernetes mount."""
    target = published.tokens / "..data-1"
    target.mkdir()
    published.put(1)
    published.path.rename(target / "linear.json")
    (published.tokens / "..data").symlink_to(target.name)
    published.path.symlink_to("..data/linear.json")
    source = published.source()
    assert _generation(source) == 1
    new = published.tokens / "..data-2"
    new.mkdir()
    published.path.unlink()
    published.put(2)
    published.path.rename(new / "linear.json")
    published.path.symlink_to("..data/linear.json")
    (published.tokens / "..data_tmp").symlink_to(new.name)
    (published.tokens / "..data_tmp").rename(published.tokens / "..data")
    assert _generation(source) == 2


def test_defaults_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, `BearerAuth("linear")` would not find the token."""
    for name in ("REFRESHER_STATE_DIR", "REFRESHER_TOKENS_DIR", "REFRESHER_DEMANDS_DIR", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert f"{tmp_path}/.local/state/refresher/tokens/linear.json" in repr(FileTokenSource("linear"))
    monkeypatch.setenv("XDG_STATE_HOME", "/xdg")
    assert "/xdg/refresher/tokens/linear.json" in repr(FileTokenSource("linear"))
    monkeypatch.setenv("REFRESHER_STATE_DIR", "/state")
    assert "/state/tokens/linear.json" in repr(FileTokenSource("linear"))
    monkeypatch.setenv("REFRESHER_TOKENS_DIR", "/tokens")
    assert "'/tokens/linear.json'" in repr(FileTokenSource("linear"))


@pytest.mark.parametrize("name", ["", "Linear", "../etc/passwd", "a/b"])
def test_an_invalid_name_is_an_error_at_once(name: str) -> None:
    """If it failed, a name from an untrusted place could make any file a token file."""
    with pytest.raises(ValueError, match="not a valid name"):
        FileTokenSource(name)


@pytest.mark.parametrize("bad", [{"tokens_dir": ""}, {"tokens_dir": "a\0b"}, {"demands_dir": b"bytes"}])
def test_an_invalid_directory_is_an_error_at_once(bad: dict[str, Any]) -> None:
    """If it failed, tokens would be read from the root directory, or the first request would raise."""
    with pytest.raises(ValueError, match="must be directories"):
        FileTokenSource("linear", **bad)
