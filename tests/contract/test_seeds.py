"""Imports at each start, from a directory that somebody else has filled: a Secret's mount, a service's credentials."""

import json
from pathlib import Path
from typing import Any

import pytest

from refresher.grants.record import Tombstone
from tests.support.command import Command, Done, without_times
from tests.support.token_server import TokenServer


def seed(refresher: Command, **grants: dict[str, Any]) -> Path:
    """Fill a directory as Kubernetes does: what is seen are links, and a rename of one link replaces all."""
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
    """Run what a start-up script runs each time."""
    return refresher("import", "--from", str(directory), "--if-absent")


def fields(number: int = 0, **more: Any) -> dict[str, Any]:
    """Return a grant at a server that is not there."""
    return {
        "token_endpoint": "http://127.0.0.1:9/token",
        "client_id": "client",
        "refresh_token": f"refresh-token-of-the-seed-{number}",
        "server_url": "https://mcp.example/mcp",
        **more,
    }


def test_each_file_is_a_grant_and_is_taken_over_once(refresher: Command) -> None:
    """If it failed, each restart would put back a refresh token that has long been used up."""
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


def test_a_seed_that_is_empty_by_now_is_no_failure(refresher: Command) -> None:
    """If it failed, who deletes the seed once it is taken over would find that nothing starts any more."""
    done = start_up(refresher, seed(refresher))
    assert (done.code, done.stdout.count("nothing to import"), done.stderr) == (0, 1, "")
    assert (refresher.state / "demands").is_dir(), "what agents mount must be there before them"
    assert refresher("run-once", environment={"REFRESHER_STATE_DIR": str(refresher.state)}).code == 0


def test_a_grant_that_was_given_up_does_not_come_back_and_keeps_nothing_from_starting(refresher: Command) -> None:
    """If it failed, a logout would be undone at the next start, or the start would fail for ever."""
    with TokenServer(lambda _: 3600.0) as server:
        directory = seed(refresher, linear=server.grant("1"))
        assert start_up(refresher, directory).code == 0
        assert refresher("run-once").code == 0
        assert refresher("remove", "linear").code == 0
        done = start_up(refresher, directory)
        assert done.code == 0
        assert "has already spent this refresh token" in done.stderr
        assert isinstance(refresher.record("linear"), Tombstone)
        assert refresher("import", "linear", "--from", str(directory / "linear.json")).code == 2, "a person is told"


def test_one_that_cannot_be_taken_over_keeps_the_others_from_nothing(refresher: Command) -> None:
    """If it failed, a mistake in one file would cost all agents their tokens."""
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
        (("import", "linear", "--from", "seed"), "imported whole: omit NAME"),
        (("import", "--from", "seed", "--replace"), "imported whole: omit NAME"),
        (("import", "--from", "seed/linear.json"), "did you mean: refresher import linear --from seed/linear.json"),
        (("import", "--from", "nowhere", "--if-absent"), "there is no such file or directory"),
        (("import", "--from", "-"), "did you mean: refresher import NAME --from -"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_is_no_import_of_a_directory_is_one_line(
    refresher: Command, arguments: tuple[str, ...], words: str
) -> None:
    """If it failed, a start-up script with a mistake would take over something else, or nothing, in silence."""
    seed(refresher, linear=fields())
    done = refresher(*arguments)
    assert (done.code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert words in done.stderr
    assert not (refresher.state / "grants/linear.json").exists()
