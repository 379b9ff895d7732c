"""Damaged files: each is reported, other grants keep working, and no file is overwritten."""

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from refresher.common.errors import GrantFileError
from refresher.operations.remove import remove
from refresher.storage.directories import Directories
from refresher.storage.file_store import FileStore
from shim import FileTokenSource
from shim.errors import TokenFileError
from tests.support.command import Command, Done, wait_until
from tests.support.damage import DAMAGES, LARGE, elsewhere
from tests.support.token_server import TokenServer

# The capabilities of root that the owner of a file does not have.
_PRIVILEGES = "-dac_override,-dac_read_search"
_AS_OWNER = ("setpriv", "--bounding-set", _PRIVILEGES, "--inh-caps", _PRIVILEGES) if os.geteuid() == 0 else ()
# Enough memory for one rotation at a time, and less than one of the large files needs.
_LITTLE_MEMORY = (*_AS_OWNER, "sh", "-c", f'ulimit -d {(LARGE - 1) // 1024}; exec "$@"', "sh")


# Only these damages start a command; the others call the function behind it.
_BY_COMMAND = ("half", "large", "fifo", "unreadable")


@pytest.fixture
def server() -> Iterator[TokenServer]:
    """A token endpoint."""
    with TokenServer(lambda _: 3600) as running:
        yield running


@pytest.fixture
def run(refresher: Command) -> Callable[..., Done]:
    """Run as an owner who is not root, with little memory."""
    return lambda *arguments: refresher(*arguments, prefix=_LITTLE_MEMORY)


@pytest.fixture
def run_many(refresher: Command) -> Callable[..., Done]:
    """Run as an owner who is not root, with enough memory for many rotations at once."""
    return lambda *arguments: refresher(*arguments, prefix=_AS_OWNER)


def import_live(refresher: Command, server: TokenServer, *names: str) -> None:
    """Import grants with live access tokens."""
    for name in names:
        fields = server.grant(name, access_token=f"access-token-of-{name}", expires_in=3600)
        refresher.bring(name, fields)


def damaged_records(refresher: Command, server: TokenServer) -> Directories:
    """Make one intact grant, and a damaged one for each kind of damage."""
    import_live(refresher, server, "linear", *DAMAGES)
    for name, damage in DAMAGES.items():
        damage(refresher.directories.record(name))
    return refresher.directories


def snapshot(path: Path) -> tuple[object, ...]:
    """Return the state of ``path``; every change changes it."""
    status = path.lstat()
    small = path.is_file() and status.st_size < LARGE
    target = os.readlink(path) if path.is_symlink() else None  # noqa: PTH115  unchanged
    data = path.read_bytes() if small else None
    return status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns, target, data


def test_damaged_records_are_reported_and_other_grants_rotate(
    refresher: Command, run: Callable[..., Done], server: TokenServer
) -> None:
    """If it failed, one damaged file would stop every grant on the machine."""
    made = damaged_records(refresher, server)
    before = {name: (snapshot(made.record(name)), snapshot(made.token(name))) for name in DAMAGES}

    def demand() -> None:
        (made.demands / f"linear.{refresher.token('linear').generation}").touch()

    demand()
    done = run("run-once", "--json")
    assert done.code == 2
    outcomes = {name: result["outcome"] for name, result in done.results.items()}
    assert outcomes == dict.fromkeys(DAMAGES, "invalid_grant_file") | {"linear": "rotated"}
    listed = {grant["name"]: grant["state"] for grant in json.loads(run("status", "--json").stdout)["grants"]}
    assert listed == dict.fromkeys(DAMAGES, "invalid_grant_file") | {"linear": "active"}
    process = refresher.start("run", prefix=_LITTLE_MEMORY)
    demand()
    wait_until(lambda: refresher.token("linear").generation == 2, "the daemon rotates the other grant")
    process.send_signal(signal.SIGTERM)
    done = refresher.finish(process)
    assert done.code == 0
    assert [name for name in DAMAGES if done.stderr.count(f" {name}: invalid_grant_file") != 1] == []
    assert {name: (snapshot(made.record(name)), snapshot(made.token(name))) for name in DAMAGES} == before
    assert len(server.asked) == 1


def test_a_damaged_record_is_kept_until_a_person_replaces_it(
    refresher: Command, run: Callable[..., Done], server: TokenServer
) -> None:
    """If it failed, a damaged record could not be replaced, or its only copy would be overwritten."""
    made = damaged_records(refresher, server)
    for name in DAMAGES:
        inode, before = made.record(name).lstat().st_ino, snapshot(made.record(name))
        fresh = server.grant(name)
        source = str(refresher.write_import("new", fresh))
        if name in _BY_COMMAND:
            # A live access token is valid, even if the record of its grant is damaged.
            assert run("token", name).stdout == f"access-token-of-{name}\n"
            refused = (("import", name, "--from", source), ("remove", name), ("token", name, "--min-valid", "2h"))
            for done in (run(*arguments) for arguments in refused):
                assert (done.code, done.stdout) == (2, ""), (name, done)
                assert str(made.record(name)) in done.stderr
        else:
            with pytest.raises(GrantFileError, match=re.escape(str(made.record(name)))):
                refresher.bring(name, fresh)
            with pytest.raises(GrantFileError, match=re.escape(str(made.record(name)))):
                remove(FileStore(made), name, stopping=lambda: False)
        assert snapshot(made.record(name)) == before, name
        done = run("import", name, "--replace", "--from", source)
        assert done.code == 0, (name, done.stderr)
        (aside,) = made.grants.glob(f"{name}.json.aside.*")
        assert str(aside) in done.stderr
        assert (aside.lstat().st_ino, snapshot(aside)) == (inode, before), name
        assert refresher.grant(name).generation == 1, "readers would see an earlier generation again"
    done = refresher("run-once", "--json")
    assert (done.code, {result["outcome"] for result in done.results.values()}) == (0, {"rotated", "not_due"})
    for path in made.grants.glob("*.aside.*"):
        path.rmdir() if path.is_dir() else path.unlink()


def test_damaged_token_files_are_published_again(
    refresher: Command, run_many: Callable[..., Done], server: TokenServer
) -> None:
    """If it failed, agents would not get a valid token, or refresher would write a token through a link."""
    import_live(refresher, server, "linear", *DAMAGES)
    made = refresher.directories
    whole = {name: made.token(name).read_bytes() for name in DAMAGES}
    for name, damage in DAMAGES.items():
        damage(made.token(name))
        source = FileTokenSource(name, tokens_dir=made.tokens, demands_dir=made.demands)
        if name not in ("unreadable", "link"):  # root can read the first, and a link to a token is allowed
            assert source.current() is None
            assert isinstance(source.problem(), TokenFileError)
    targets = {name: snapshot(elsewhere(made.token(name))) for name in DAMAGES if elsewhere(made.token(name)).exists()}
    done = run_many("run-once", "--json")
    outcomes = {name: result["outcome"] for name, result in done.results.items()}
    # Only a directory prevents the rename; a person must move it.
    assert outcomes == dict.fromkeys([*DAMAGES, "linear"], "not_due") | {"directory": "storage_failed"}
    assert done.code == 4
    assert str(made.token("directory")) in done.results["directory"]["detail"]
    for name in set(DAMAGES) - {"directory"}:
        assert not made.token(name).is_symlink()
        assert made.token(name).read_bytes() == whole[name], name
    assert {name: snapshot(elsewhere(made.token(name))) for name in targets} == targets
    made.token("directory").rmdir()
    assert run_many("run-once").code == 0
    assert server.asked == {}


def test_a_token_file_of_another_grant_with_a_later_generation_is_replaced(
    refresher: Command, server: TokenServer
) -> None:
    """If it failed, a file copied under a wrong name would leave agents without a token for days."""
    import_live(refresher, server, "linear", "notion")
    made = refresher.directories
    foreign = made.token("notion").read_bytes().replace(b'"generation": 0', b'"generation": 50')
    made.token("linear").write_bytes(foreign)
    assert refresher("run-once", "linear", "--json").outcome == "not_due"
    assert (refresher.token("linear").name, refresher.token("linear").generation) == ("linear", 0)


@pytest.mark.parametrize("digits", [19, 4300])
def test_a_token_file_with_a_huge_generation_costs_no_refresh_token(
    refresher: Command, server: TokenServer, digits: int
) -> None:
    """If it failed, the record could not be written after the next rotation, and its refresh token would be lost."""
    import_live(refresher, server, "linear")
    path = refresher.directories.token("linear")
    path.write_bytes(re.sub(rb'"generation": \d+', b'"generation": ' + b"9" * digits, path.read_bytes()))
    done = refresher("run-once", "--force", "--json")
    assert (done.code, done.outcome) == (0, "rotated")
    assert (refresher.grant("linear").generation, refresher.token("linear").generation) == (1, 1)
    assert refresher("run-once", "--force", "--json").outcome == "rotated"
    assert server.reused == 0


@pytest.mark.parametrize("kind", ["next", "intent"])
def test_damaged_files_of_an_attempt_are_set_aside(
    refresher: Command, run_many: Callable[..., Done], server: TokenServer, kind: str
) -> None:
    """If it failed, a damaged file beside a record would stop the grant, be adopted, or be deleted."""
    import_live(refresher, server, "linear", *DAMAGES)
    made = refresher.directories
    paths = {name: made.grants / f"{name}.{kind}" for name in DAMAGES}
    (made.grants / "linear.json").with_name(f"linear.{kind}").write_bytes(made.record("linear").read_bytes())
    before = {}
    for name, damage in DAMAGES.items():
        paths[name].write_bytes(made.record(name).read_bytes())
        if name == "another-s":
            continue
        damage(paths[name])
        before[name] = snapshot(paths[name])
    records = {name: refresher.grant(name) for name in DAMAGES}
    done = run_many("run-once", "--json")
    outcomes = {name: result["outcome"] for name, result in done.results.items()}
    blank = {"emptied", "zeros"}
    # A copy of the record itself can be removed.
    copies = {"another-s"} if kind == "next" else set()
    expected = {name: "not_due" if kind == "next" or name in blank else "in_doubt" for name in [*DAMAGES, "linear"]}
    # A file of a later version may be an only copy: it is kept for that version.
    assert outcomes == expected | {"unreadable": "storage_failed", "later-version": "invalid_grant_file"}
    assert f"{paths['later-version']}: the file has version 99" in done.results["later-version"]["detail"]
    assert snapshot(paths["later-version"]) == before["later-version"]
    for name in set(DAMAGES) - blank - copies - {"unreadable", "another-s", "later-version"}:
        (aside,) = made.grants.glob(f"{name}.{kind}.aside.*")
        assert snapshot(aside) == before[name], name
        assert str(aside) in done.stderr, name
    assert snapshot(paths["unreadable"]) == before["unreadable"]
    assert "unreadable" in done.results["unreadable"]["detail"]
    assert {name: refresher.grant(name).refresh_token for name in DAMAGES} == {
        name: record.refresh_token for name, record in records.items()
    }
    files = sorted(path.name for path in made.grants.iterdir())
    assert run_many("run-once", "--json").code == done.code
    assert sorted(path.name for path in made.grants.iterdir()) == files, "each run leaves more files"
    assert server.asked == {}


def test_invalid_names_in_demands_are_ignored(
    refresher: Command, run: Callable[..., Done], server: TokenServer
) -> None:
    """If it failed, invalid files among the demands would stop a rotation, or cause one."""
    import_live(refresher, server, "linear")
    made = refresher.directories
    (made.demands / "linear").mkdir()
    os.mkfifo(made.demands / "linear.")
    (made.demands / "linear.0x").symlink_to(made.record("linear"))
    (made.demands / "linear.00").touch()
    (made.demands / f"linear.{'9' * 200}").touch()
    (made.demands / "linear.json").touch()
    inodes = {path.name: path.lstat().st_ino for path in made.demands.iterdir()}
    assert run("run-once", "--json").outcome == "not_due"
    assert {path.name: path.lstat().st_ino for path in made.demands.iterdir()} == inodes
    with (made.demands / "linear.0").open("wb") as file:
        file.truncate(LARGE)
    (made.demands / "linear.0").chmod(0)
    assert run("run-once", "--json").outcome == "rotated", "a demand needs no particular content"
    assert len(server.asked["linear"]) == 1
