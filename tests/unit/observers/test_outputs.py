"""Outputs as files: written only if they differ, never through a link or over another file, and one never stops another."""

import errno
import logging
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from refresher.common import reading
from refresher.config import resolve
from refresher.grants.outputs import FileOutput, Output, SecretOutput
from refresher.observers import hub, kubernetes_secret, outputs
from refresher.observers.hub import Observers
from refresher.observers.outputs import bring_up_to_date, look, problems
from refresher.operations.events import happened
from refresher.storage import files, lock
from refresher.storage.directories import Directories
from shim._token import render
from tests.conftest import need
from tests.support.command import wait_until
from tests.support.parts import dead_mount, mounted, no_dead_mounts, no_mounts
from tests.support.published import Published, token


@pytest.fixture
def published(tmp_path: Path) -> Published:
    """A state directory with a published token."""
    made = Published(tmp_path / "state")
    made.put(1)
    return made


@pytest.fixture
def directories(tmp_path: Path, published: Published) -> Directories:
    """Its directories."""
    (tmp_path / "outputs").mkdir()
    return resolve({"state_dir": str(tmp_path / "state")}, None).directories


def file(tmp_path: Path, name: str = "token", **more: Any) -> FileOutput:
    """Return an output of the raw token."""
    fields: dict[str, Any] = {"grant": "linear", "format": "raw", "path": tmp_path / "outputs" / name}
    return FileOutput(**(fields | more))


def problem(output: Output, directories: Directories, work: Any = bring_up_to_date) -> str | None:
    """Return what is wrong with an output."""
    ((_, found),) = problems([output], directories, work)
    return found


def test_an_output_follows_its_token_file_and_is_written_only_if_it_differs(
    tmp_path: Path, published: Published, directories: Directories
) -> None:
    """If it failed, a program would read an old token, or wake up each minute for a file that has not changed."""
    output = file(tmp_path)
    assert problem(output, directories, look) == "it differs from the token file: run 'refresher run-once'"
    assert not output.path.exists()
    assert problem(output, directories) is None
    before = output.path.stat()
    assert (output.path.read_bytes(), stat.S_IMODE(before.st_mode)) == (b"access-token-1", 0o600)
    assert problem(output, directories) is problem(output, directories, look) is None
    assert (output.path.stat().st_ino, output.path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    published.put(2)
    assert problem(output, directories) is None
    assert output.path.read_bytes() == b"access-token-2"
    output.path.chmod(0o644)
    assert problem(output, directories) is None
    assert stat.S_IMODE(output.path.stat().st_mode) == 0o600
    output.path.unlink()
    assert problem(output, directories) is None
    assert output.path.read_bytes() == b"access-token-2"
    assert [path.name for path in output.path.parent.iterdir()] == ["token"]


def test_a_removed_grant_leaves_no_output(tmp_path: Path, published: Published, directories: Directories) -> None:
    """If it failed, programs would use the token of a login that a person has ended."""
    assert problem(file(tmp_path), directories) is None
    published.put(2, access_token=None, state="removed")
    assert problem(file(tmp_path), directories) is None
    assert not file(tmp_path).path.exists()
    assert problem(file(tmp_path, path=tmp_path / "nowhere/token"), directories) is None, "there is nothing to remove"
    published.path.unlink()
    file(tmp_path).path.write_bytes(b"access-token-1")
    assert problem(file(tmp_path), directories) is None
    assert file(tmp_path).path.exists(), "a token file that is not there yet says nothing"


def test_a_path_that_must_not_be_written_is_reported_and_left_as_it_is(
    tmp_path: Path, published: Published, directories: Directories
) -> None:
    """If it failed, a mistake in the configuration would destroy a file, or a link would lead a token elsewhere."""
    other = tmp_path / "other"
    other.write_bytes(b"access-token-0")
    link = file(tmp_path, "link")
    link.path.symlink_to(other)
    assert "it is a symbolic link: remove the file" in str(problem(link, directories))
    assert (link.path.is_symlink(), other.read_bytes()) == (True, b"access-token-0")
    foreign = file(tmp_path, "netrc")
    foreign.path.write_text("machine a login b password c\nmachine d login e password f\n")
    assert "a file with other content: remove the file" in str(problem(foreign, directories))
    assert foreign.path.read_text().count("\n") == 2
    assert "not a regular file" in str(problem(file(tmp_path, path=tmp_path / "outputs"), directories))
    assert "create the directory" in str(problem(file(tmp_path, path=tmp_path / "nowhere/token"), directories))
    assert not (tmp_path / "nowhere").exists()
    for own in (directories.state, directories.tokens):
        assert "is a directory of refresher" in str(problem(file(tmp_path, path=own / "token"), directories))
        assert not (own / "token").exists()
    assert "there is no user 'nobody-of-this-name'" in str(
        problem(file(tmp_path, owner="nobody-of-this-name"), directories)
    )
    published.path.write_bytes(b"{")
    assert "the token file is not JSON" in str(problem(file(tmp_path), directories))


def test_two_outputs_that_are_one_file_through_a_link_are_reported(
    tmp_path: Path, published: Published, directories: Directories
) -> None:
    """If it failed, two logins would take turns in one file, and a program would send a token to the wrong server."""
    published.tokens.joinpath("other.json").write_bytes(render(token(name="other", access_token="access-token-o")))
    (tmp_path / "link").symlink_to(tmp_path / "outputs")
    made = [file(tmp_path), file(tmp_path, grant="other", path=tmp_path / "link/token")]
    work = partial(bring_up_to_date, claimed={})
    for _ in range(2):
        first, second = (found for _, found in problems(made, directories, work))
        assert {first is None, second is None} == {True, False}
        assert "it is the same file as the output" in str(first or second)
    written = made[0].path.read_bytes()
    assert written == (b"access-token-1" if first is None else b"access-token-o")
    # A link that leads elsewhere later is no reason any more.
    (tmp_path / "link").unlink()
    (tmp_path / "link").mkdir()
    assert [found for _, found in problems(made, directories, work)] == [None, None]
    assert made[1].path.read_bytes() == b"access-token-o"


def test_a_token_file_that_cannot_be_read_is_named_itself(
    tmp_path: Path, published: Published, directories: Directories, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, a person would change the directory of the output, which is not at fault."""
    read = files.read

    def refused(path: Path | str, *arguments: Any, **more: Any) -> Any:
        if path == published.path:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))  # root is never refused
        return read(path, *arguments, **more)

    monkeypatch.setattr(files, "read", refused)
    words = f"cannot read the token file {published.path}: Permission denied: run 'refresher doctor'"
    assert problem(file(tmp_path), directories) == words
    assert problem(SecretOutput(grant="linear", secret="s"), directories) == words


def test_root_gives_a_file_to_its_owner_and_group(tmp_path: Path, directories: Directories) -> None:
    """If it failed, the program that needs the token could not read it, or others could."""
    need("it needs root" if os.geteuid() else None)
    output = file(tmp_path, owner="nobody", group=12345, mode=0o640)
    assert problem(output, directories) is None
    status = output.path.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (65534, 12345, 0o640)
    os.chown(output.path, 1, 1)
    assert problem(output, directories) is None
    assert (output.path.stat().st_uid, output.path.stat().st_gid) == (65534, 12345)


def test_a_full_or_read_only_disk_leaves_the_former_file(
    tmp_path: Path, published: Published, directories: Directories
) -> None:
    """If it failed, a full disk would leave half a token, and a person would not learn why it is old."""
    need(no_mounts())
    with mounted(tmp_path / "outputs", "size=16k"):
        assert problem(file(tmp_path), directories) is None
        published.put(2, access_token="t" * 60_000)
        assert problem(file(tmp_path), directories) == "its file system is full: make room"
        assert file(tmp_path).path.read_bytes() == b"access-token-1"
        assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["token"]
    with mounted(tmp_path / "outputs", "ro"):
        assert "read-only" in str(problem(file(tmp_path), directories))


def test_an_older_token_never_replaces_a_newer_one(
    tmp_path: Path, published: Published, directories: Directories, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, two processes could leave the token before the last one in a file."""
    output, waiting = file(tmp_path), threading.Event()
    held = lock.held

    def noticed(*arguments: Any, **more: Any) -> Any:
        waiting.set()
        return held(*arguments, **more | {"wait": 90.0})

    thread = threading.Thread(target=bring_up_to_date, args=(output, directories), daemon=True)
    (path,) = _lock_of(output, directories)
    monkeypatch.setattr(lock, "held", noticed)
    with held(path, stopping=lambda: False):
        thread.start()
        assert waiting.wait(90)
        published.put(2)
    thread.join(90)
    assert output.path.read_bytes() == b"access-token-2"


def _lock_of(output: FileOutput, directories: Directories) -> list[Path]:
    bring_up_to_date(output, directories)
    output.path.unlink()
    return [*directories.state.glob("output-*.lock")]


def test_a_busy_lock_leaves_time_for_the_work_and_is_named(
    tmp_path: Path, published: Published, directories: Directories, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, a person would look at the mount or the cluster, and the fault is another process."""
    clock, seconds, secret = [0.0], [], SecretOutput(grant="linear", secret="s")

    @contextmanager
    def late(*_: Any, wait: float, **__: Any) -> Iterator[None]:
        clock[0] += wait
        yield

    with monkeypatch.context() as patched:
        patched.setattr(outputs, "time", SimpleNamespace(monotonic=lambda: clock[0]))
        patched.setattr(lock, "held", late)
        patched.setattr(kubernetes_secret, "apply", lambda *_, **more: seconds.append(more["seconds"]))
        bring_up_to_date(secret, directories)
    assert 1 < seconds[0] < seconds[0] + clock[0] < reading._WAIT
    (path,) = _lock_of(file(tmp_path), directories)
    monkeypatch.setattr(outputs, "_LOCK_WAIT", 0.1)
    with lock.held(path, stopping=lambda: False):
        assert f"another process has held {path}" in str(problem(file(tmp_path), directories))


def test_outputs_that_hang_delay_no_other_however_many_there_are(
    tmp_path: Path, directories: Directories, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, one output on a dead mount would keep the last of many outputs old at each run of cron."""
    monkeypatch.setattr(reading, "_WAIT", 180.0)
    made = [file(tmp_path, str(number)) for number in range(100)]
    begun: list[Output] = []
    all_begun = threading.Event()

    def work(output: Output, _: Directories) -> None:
        begun.append(output)
        if len(begun) == len(made):
            all_begun.set()
        if output is made[0] and not all_begun.wait(90):
            raise ValueError("the others have not begun")

    assert [found for _, found in problems(made, directories, work)] == [None] * 100


def observing(tmp_path: Path, *made: Output) -> Observers:
    """Return observers with these outputs."""
    settings = resolve({"state_dir": str(tmp_path / "state"), "history_days": 0}, None)
    return Observers("run", msgspec.structs.replace(settings, outputs=made))


def test_an_output_on_a_dead_mount_stops_no_other_and_is_reported_once(
    tmp_path: Path,
    published: Published,
    directories: Directories,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """If it failed, a dead mount would keep the tokens of all other programs old, or fill the log."""
    need(no_dead_mounts())
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    (tmp_path / "dead").mkdir()
    first, second = file(tmp_path, path=tmp_path / "dead/token"), file(tmp_path, "second")
    observers = observing(tmp_path, first, second, SecretOutput(grant="linear", secret="none"))
    with caplog.at_level(logging.WARNING):
        with dead_mount(tmp_path / "dead"):
            for generation in (1, 2, 3):
                published.put(generation)
                observers.emit(happened("linear", "rotated", generation=generation))
                _wait_for(second, f"access-token-{generation}")
            wait_until(lambda: len(caplog.records) >= 2, "both faults are reported")
        published.put(4)

        def written() -> bool:
            observers.emit(happened("linear", "published", generation=4))
            return first.path.exists()

        wait_until(written, "it is written when the mount is gone")
        observers.close()
    begin = f"linear: the output {first.path} is not up to date: "
    of_mount = [record.getMessage() for record in caplog.records if record.getMessage().startswith(begin)]
    assert of_mount[0] == f"{begin}it does not answer in time: check its mount, or the API of the cluster"
    assert len(of_mount) <= 2, "the end of the mount is another fault"
    assert [record.getMessage() for record in caplog.records if record.getMessage() not in of_mount] == [
        "linear: the output key token of the Secret none is not up to date: refresher does not run in a cluster "
        "(KUBERNETES_SERVICE_HOST is not set): use it in a pod only",
    ]


def _wait_for(output: FileOutput, text: str) -> None:
    wait_until(lambda: output.path.exists() and output.path.read_text() == text, f"{output.path} is written")


def test_all_outputs_are_checked_from_time_to_time_and_after_a_reload(
    tmp_path: Path, published: Published, directories: Directories, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, an output that somebody deleted would be gone until the next rotation."""
    output = file(tmp_path)
    observers = observing(tmp_path, output)
    observers.check_outputs()
    wait_until(output.path.exists, "it is written at the start")
    output.path.unlink()
    observers.check_outputs()
    observers.use(observers._settings)
    observers.check_outputs()
    wait_until(output.path.exists, "it is written after a reload")
    output.path.unlink()
    monkeypatch.setattr(hub, "_OUTPUTS_INTERVAL", 0.0)
    observers.check_outputs()
    wait_until(output.path.exists, "it is written when the time has come")
    observers.close()
    assert observers.dropped() == {"outputs": 0}


def test_all_outputs_are_not_checked_at_each_heartbeat(
    tmp_path: Path, published: Published, directories: Directories
) -> None:
    """If it failed, each Secret would be a request each few seconds."""
    output = file(tmp_path)
    observers = observing(tmp_path, output)
    observers.check_outputs()
    wait_until(output.path.exists, "it is written at the start")
    output.path.unlink()
    observers.check_outputs()
    observers.close()
    assert not output.path.exists()


def test_without_outputs_nothing_is_made(tmp_path: Path) -> None:
    """If it failed, each run of a configuration without outputs would pay for them."""
    observers = Observers("run", resolve({"state_dir": str(tmp_path), "history_days": 0}, None))
    observers.check_outputs()
    assert observers._runners is None
    observers.close()
