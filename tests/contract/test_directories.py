"""The directories: their permissions, their place, and what is refused."""

import grp
import os
import stat
from pathlib import Path

import pytest

from tests.support.cli import GRANT, one_line
from tests.support.command import Command


def modes(root: Path) -> dict[str, str]:
    """Return the permissions below ``root`` in octal."""
    return {str(path.relative_to(root)): f"{stat.S_IMODE(path.lstat().st_mode):o}" for path in [*root.rglob("*"), root]}


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777], ids=oct)
def test_all_files_are_private_with_any_umask(refresher: Command, umask: int) -> None:
    """If it failed, other users of the machine could read refresh tokens."""
    path = refresher.write_import("linear", GRANT | {"access_token": "an-access-token-of-it", "expires_in": 0})
    refresher.state.parent.mkdir(parents=True)
    before = os.umask(umask)
    try:
        assert refresher("import", "linear", "--from", str(path)).code == 0
        assert refresher("run-once").code == 4
    finally:
        os.umask(before)
    found = modes(refresher.state)
    assert {mode for name, mode in found.items() if "." in name and name != "."} == {"600"}
    assert {found[name] for name in (".", "grants", "tokens", "demands")} == {"700"}


def test_a_group_of_agents_can_read_tokens_and_nothing_else(refresher: Command) -> None:
    """If it failed, agents of other users could not read tokens, or could read refresh tokens."""
    groups = [group for group in os.getgroups() if group != os.getegid()] or ([1] if os.geteuid() == 0 else [])
    if not groups:
        pytest.skip("the user is in one group only")
    name = grp.getgrgid(groups[0]).gr_name
    path = refresher.write_import("linear", GRANT | {"access_token": "an-access-token-of-it", "expires_in": 3600})
    assert refresher("--tokens-group", name, "import", "linear", "--from", str(path)).code == 0
    found = modes(refresher.state)
    assert found["."] == "711"
    assert found["grants"] == "700"
    assert found["tokens"] == "750"
    assert found["tokens/linear.json"] == "640"
    assert found["demands"] == "3770"
    for shared in ("tokens", "tokens/linear.json", "demands"):
        assert (refresher.state / shared).stat().st_gid == groups[0]
    assert found["grants/linear.json"] == "600"


def test_a_run_without_the_group_keeps_the_tokens_readable_for_the_group(refresher: Command) -> None:
    """If it failed, one run without the option would make the tokens unreadable for all agents of the group."""
    groups = [group for group in os.getgroups() if group != os.getegid()] or ([1] if os.geteuid() == 0 else [])
    if not groups:
        pytest.skip("the user is in one group only")
    path = refresher.write_import("linear", GRANT | {"access_token": "an-access-token-of-it", "expires_in": 3600})
    assert refresher("import", "linear", "--from", str(path)).code == 0
    assert modes(refresher.state)["tokens/linear.json"] == "600"
    assert refresher("--tokens-group", str(groups[0]), "run-once").code == 0, (
        "the option has no effect after the import"
    )
    assert modes(refresher.state)["tokens/linear.json"] == "640"
    (refresher.state / "tokens/linear.json").unlink()
    assert refresher("run-once").code == 0
    shared = (refresher.state / "tokens/linear.json").stat()
    assert (stat.S_IMODE(shared.st_mode), shared.st_gid) == (0o640, groups[0])


def test_a_home_that_the_group_cannot_pass_causes_a_warning(refresher: Command) -> None:
    """If it failed, agents would get "Permission denied" after a setup without a warning."""
    path = refresher.write_import("linear", GRANT)
    done = refresher("--tokens-group", str(os.getegid() + 1 if os.geteuid() == 0 else os.getegid()), "import", "linear", "--from", str(path))  # fmt: skip
    assert done.code == 0
    assert (f"cannot enter {refresher.home}, " in done.stderr) is (os.geteuid() == 0)


@pytest.mark.parametrize("name", ["tokens", "demands"])
def test_a_directory_that_anybody_can_write_is_refused(refresher: Command, name: str) -> None:
    """If it failed, any user of the machine could replace a token file, and choose the server that gets the token."""
    refresher.import_grant("linear", GRANT)
    (refresher.state / name).chmod(0o777)
    assert "chmod o-w" in one_line(refresher("run-once"))


def test_a_given_state_directory_that_does_not_exist_is_an_error(refresher: Command) -> None:
    """If it failed, a service with a typing error in its unit file would look healthy and refresh nothing."""
    for arguments in (("run-once",), ("run-once", "--json"), ("status",)):
        assert "typo" in one_line(refresher("--state-dir", "typo", *arguments))


def test_a_directory_that_others_can_read_is_refused(refresher: Command) -> None:
    """If it failed, other users could read refresh tokens without a warning."""
    refresher.import_grant("linear", GRANT)
    (refresher.state / "grants").chmod(0o755)
    for arguments in (("run-once",), ("status",), ("remove", "linear")):
        assert "chmod 700" in one_line(refresher(*arguments))


def test_a_state_directory_that_is_a_file_is_one_line(refresher: Command) -> None:
    """If it failed, a wrong path would end in a traceback."""
    (refresher.home / "file").touch()
    one_line(refresher("--state-dir", "file", "status"))
    path = str(refresher.write_import("linear", GRANT))
    one_line(refresher("--state-dir", "file", "import", "linear", "--from", path))


def test_the_three_directories_can_be_in_different_places(refresher: Command) -> None:
    """If it failed, a sidecar could not keep tokens in memory and grants on a disk."""
    apart = ("--state-dir", "s", "--tokens-dir", "t", "--demands-dir", "d")
    path = refresher.write_import("linear", GRANT | {"access_token": "an-access-token-of-it", "expires_in": 3600})
    assert refresher(*apart, "import", "linear", "--from", str(path)).code == 0
    tokens = refresher.home / "t"
    assert [entry.name for entry in tokens.iterdir()] == ["linear.json"]
    assert sorted(entry.name for entry in (refresher.home / "s").iterdir()) == ["events.sqlite3", "grants"]
    # After a restart, files in memory are lost: the next run publishes the token again.
    (tokens / "linear.json").unlink()
    tokens.rmdir()
    assert refresher(*apart, "run-once").code == 0
    assert (tokens / "linear.json").exists()
    # At the end of the test, a token may only be in a file of such a name.
    (tokens / "linear.json").rename(refresher.home / "linear.import.json")


@pytest.mark.parametrize("arguments", [("run-once",), ("status",), ("run",)], ids=" ".join)
def test_a_state_directory_that_others_can_write_is_refused_before_it_holds_a_grant(
    refresher: Command, arguments: tuple[str, ...]
) -> None:
    """If it failed, cron on a wrong directory would look healthy, until a login there is replaced by somebody else."""
    refresher.state.mkdir(parents=True)
    refresher.state.chmod(0o777)
    assert "anybody can write to" in one_line(refresher(*arguments))
    assert list(refresher.state.iterdir()) == []


def test_a_state_directory_that_is_a_file_is_named(refresher: Command) -> None:
    """If it failed, a person with a wrong --state-dir would read about a path that they did not give."""
    refresher.state.parent.mkdir(parents=True)
    refresher.state.touch()
    assert f"{refresher.state} is not a directory; check --state-dir" in one_line(refresher("run-once"))
