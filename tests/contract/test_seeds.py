"""The import of a directory at each start: a mounted Secret, or the credentials of a service."""

import json
from pathlib import Path
from typing import Any

import pytest

from refresher.grants.record import Tombstone
from tests.support.command import Command, Done, without_times
from tests.support.token_server import TokenServer


def seed(refresher: Command, **grants: dict[str, Any]) -> Path:
    """Fill a directory as Kubernetes does: the files are links, and the rename of one link replaces all of them."""
    directory = refresher.home / "seed"
    data = directory / "..2026_11_23"
    data.mkdir(parents=True, exist_ok=True)
    if not (directory / "..data").is_symlink():
        (directory / "..data").symlink_to(data.name)
    for name, fields in grants.items():
        refresher.vault.learn(fields["refresh_token"])
        (data / f"{name}.json").touch(mode=0o400)
        (data / f"{name}.json").write_text(json.dumps(fields))
        (directory / f"{name}.json").symlink_to(f"..data/{name}.json")
    return directory


def start_up(refresher: Command, directory: Path) -> Done:
    """Run the import of a start script."""
    return refresher("import", "--from", str(directory), "--if-absent")


def fields(number: int = 0, **more: Any) -> dict[str, Any]:
    """Return a grant at an unreachable server."""
    return {
        "token_endpoint": "http://127.0.0.1:9/token",
        "client_id": "client",
        "refresh_token": f"refresh-token-of-the-seed-{number}",
        "server_url": "https://mcp.example/mcp",
        **more,
    }


def test_each_file_is_imported_once(refresher: Command) -> None:
    """If it failed, each restart would replace the refresh token by one that is used up."""
    with TokenServer(lambda _: 3600.0) as server:
        directory = seed(refresher, linear=server.grant("1"), notion=server.grant("2"))
        done = start_up(refresher, directory)
        assert (done.code, done.stderr) == (0, "")
        assert done.stdout.count("imported ") == 2
        assert refresher("run-once").code == 0
        before = refresher.refresh_token("linear")
        done = start_up(refresher, directory)
        assert (done.code, done.stderr) == (0, "")
        assert done.stdout.count("exists already; it is kept") == 2
        assert refresher.refresh_token("linear") == before
        assert refresher("run-once", "--force").code == 0
        assert server.reused == 0


def test_an_empty_directory_is_not_an_error(refresher: Command) -> None:
    """If it failed, a service would not start any more after its import files are deleted."""
    done = start_up(refresher, seed(refresher))
    assert (done.code, done.stdout.count("nothing to import"), done.stderr) == (0, 1, "")
    assert (refresher.state / "demands").is_dir(), "agents cannot mount the directory"
    assert refresher("run-once", environment={"REFRESHER_STATE_DIR": str(refresher.state)}).code == 0


def test_a_removed_grant_is_not_imported_again_and_does_not_prevent_the_start(refresher: Command) -> None:
    """If it failed, the next start would undo a logout, or every later start would fail."""
    with TokenServer(lambda _: 3600.0) as server:
        directory = seed(refresher, linear=server.grant("1"))
        assert start_up(refresher, directory).code == 0
        assert refresher("run-once").code == 0
        assert refresher("remove", "linear").code == 0
        done = start_up(refresher, directory)
        assert done.code == 0
        assert "has already spent this refresh token" in done.stderr
        assert isinstance(refresher.record("linear"), Tombstone)
        assert refresher("import", "linear", "--from", str(directory / "linear.json")).code == 2, (
            "a person gets no error"
        )


def test_a_file_that_cannot_be_imported_does_not_prevent_the_import_of_the_others(refresher: Command) -> None:
    """If it failed, a mistake in one file would leave all agents without tokens."""
    directory = seed(refresher, a=fields(1, client_id=None), b=fields(2), c=fields(2))
    (directory / "README").write_text("these are seeds")
    (directory / "Linear.json").write_text(json.dumps(fields(3)))
    (directory / "d.json").mkdir()
    done = start_up(refresher, directory)
    assert done.code == 2
    assert [
        line.split(":")[1].strip() for line in without_times(done.stderr).splitlines() if "warning" not in line
    ] == ["a", "c", "d"]
    assert "b holds this refresh token already" in done.stderr
    assert done.stderr.count("is skipped: its name must be the name of a grant") == 2
    assert refresher.grant("b").generation == 0
    assert done.stdout.count("imported ") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("import", "linear", "--from", "seed"), "imported as a whole: omit NAME"),
        (("import", "--from", "seed", "--replace"), "imported as a whole: omit NAME"),
        (("import", "--from", "seed/linear.json"), "did you mean: refresher import linear --from seed/linear.json"),
        (("import", "--from", "nowhere", "--if-absent"), "there is no such file or directory"),
        (("import", "--from", "-"), "did you mean: refresher import NAME --from -"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_wrong_argument_of_an_import_is_one_line(refresher: Command, arguments: tuple[str, ...], words: str) -> None:
    """If it failed, a start script with a mistake would import something else, or nothing, without an error."""
    seed(refresher, linear=fields())
    done = refresher(*arguments)
    assert (done.code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert words in done.stderr
    assert not (refresher.state / "grants/linear.json").exists()
