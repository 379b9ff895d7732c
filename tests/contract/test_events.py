"""The command events, as a person and a program use it."""

import json
import signal

import pytest

from tests.support.command import Command, wait_until
from tests.support.token_server import TokenServer

_KEYS = (
    *("at", "name", "kind", "generation", "outcome", "state_before", "state", "detail", "demanded"),
    *("exchange_seconds", "lock_seconds", "late_seconds", "program", "pid"),
)


def test_what_happened_can_be_seen(refresher: Command) -> None:
    """If it failed, nobody could see what happened last night, or to a grant that is removed."""
    with TokenServer(lambda _: 3600) as server:
        refresher.import_grant("linear", server.grant("linear"))
        for _ in range(3):
            assert refresher("run-once", "--force").code == 0
    assert refresher("run-once", "--force").code == 4
    refresher("remove", "linear")
    done = refresher("events")
    assert done.code == 0
    lines = [line[2:].partition("  ")[2] for line in done.stdout.splitlines()]
    assert lines[0] == "linear  imported, generation 0: for https://mcp.example"
    assert lines[1].startswith("linear  rotated 3 times, generations 1 to 3 (until ")
    assert lines[2].startswith("linear  failed (transient): nothing was sent")
    assert lines[3].startswith("linear  active -> failing: nothing was sent")
    assert lines[4].startswith("linear  removed: ")
    assert [line[0] for line in done.stdout.splitlines()] == [" ", " ", " ", "!", " "]
    assert len(refresher("events", "linear", "--all").stdout.splitlines()) == 7
    events = json.loads(refresher("events", "linear", "--json").stdout)["events"]
    assert {tuple(event) for event in events} == {_KEYS}
    assert [event["generation"] for event in events if event["kind"] == "rotated"] == [1, 2, 3]


def test_each_result_is_one_line_of_the_log(refresher: Command) -> None:
    """If it failed, the history would take the place of the log, or the log would say everything twice."""
    with TokenServer(lambda _: 3600) as server:
        refresher.bring("linear", server.grant("linear"))
        assert refresher("run-once", "-v").stderr.count("linear: rotated: ") == 1
    assert refresher("run-once", "--force").stderr.count("linear: transient: ") == 1


@pytest.mark.parametrize("key", ["DAYS", "MB"])
def test_the_history_can_be_turned_off(refresher: Command, key: str) -> None:
    """If it failed, a person could not keep what happens off the disk."""
    with TokenServer(lambda _: 3600) as server:
        refresher.environment[f"REFRESHER_HISTORY_{key}"] = "0"
        refresher.import_grant("linear", server.grant("linear"))
    done = refresher("events")
    assert (done.code, done.stdout) == (0, "")
    assert "the history is off" in done.stderr
    assert not list(refresher.state.glob("events*"))
    refresher.environment[f"REFRESHER_HISTORY_{key}"] = "many"
    done = refresher("events")
    assert done.code == 2
    assert f"history_{key.lower()} must be a number from" in done.stderr


def test_mistakes_are_explained(refresher: Command) -> None:
    """If it failed, a mistyped name would look like a grant to which nothing happened."""
    with TokenServer(lambda _: 3600) as server:
        refresher.import_grant("linear", server.grant("linear"))
    done = refresher("events", "linaer")
    assert done.code == 2
    assert "did you mean: refresher events linear" in done.stderr
    refresher.directories.history.write_bytes(b"no database" * 1000)
    done = refresher("events")
    assert done.code == 4
    assert "cannot use the history" in done.stderr


def test_events_are_followed_as_they_come(cold: Command) -> None:
    """If it failed, a person could not watch what happens, in any process."""
    with TokenServer(lambda _: 3600) as server:
        cold.import_grant("linear", server.grant("linear"))
        following = cold.start("events", "--follow", "--json")
        try:
            assert following.stdout is not None
            assert json.loads(following.stdout.readline())["kind"] == "imported"
            assert cold("run-once").code == 0
            assert json.loads(following.stdout.readline())["kind"] == "rotated"
            assert cold("run-once", "--force").code == 0
            assert json.loads(following.stdout.readline())["generation"] == 2
        finally:
            following.send_signal(signal.SIGINT)
        cold.finish(following)
    wait_until(lambda: following.poll() is not None, "it ends")
    assert following.returncode == 130
