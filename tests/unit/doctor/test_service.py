"""Who refreshes, and who answers demands: what the doctor finds."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from refresher.common import clocks
from refresher.doctor import service
from refresher.grants.record import Grant
from refresher.storage import last_run
from refresher.storage.directories import Directories
from refresher.storage.health_socket import PrivateSocket
from refresher.storage.publishing import Publisher
from tests.support.fake_state import directories, put
from tests.support.samples import grant


@pytest.fixture
def made(tmp_path: Path) -> Directories:
    return directories(tmp_path)


@pytest.fixture
def served(made: Directories) -> Iterator[None]:
    """A socket at which somebody listens, as that of a service."""
    private = PrivateSocket(made.health_socket)
    yield
    private.socket.close()


def fresh(made: Directories, **changes: object) -> Grant:
    """Store and publish a grant with a token for an hour."""
    now = time.time()
    times = {"issued_at": now, "expires_at": now + 3600, "last_rotation_at": now, "issued": clocks.now()}
    stored = put(made.record("linear"), grant(**{**times, **changes}))
    assert isinstance(stored.record, Grant)
    Publisher(made).publish(stored.record)
    return stored.record


def findings(made: Directories, *grants: Grant) -> list[str]:
    """Return the codes of what is found."""
    found = service.check(made, grants, made.listing(), served=service.is_served(made))
    return [finding.code for finding in found]


def ran(made: Directories, limit: float, ago: float) -> None:
    """Note a run so many seconds ago."""
    last_run.note(made, limit)
    os.utime(made.last_run, (time.time() - ago,) * 2)


@pytest.mark.parametrize(
    ("limit", "ago", "code"),
    [(120, 60, None), (120, 300, "not_running"), (0, 300, None), (7200, 3600, None), (7200, 9000, "not_running")],
)
def test_nobody_runs_once_the_next_run_should_have_come(
    made: Directories, limit: float, ago: float, code: str | None
) -> None:
    """If it failed, a service that ended would be noticed by agents without tokens, or a healthy crontab would be reported."""
    ran(made, limit, ago)
    assert findings(made, fresh(made)) == ([code] if code else [])


def test_grants_that_nobody_has_refreshed_yet_are_found(made: Directories) -> None:
    """If it failed, a person who forgot to start the service would not learn why tokens expire."""
    assert findings(made, fresh(made)) == ["not_running"]
    assert findings(made, fresh(made, renewable=False, refresh_token=None)) == [], "there is nothing to refresh"
    assert findings(made) == []


def test_without_a_known_interval_an_expired_token_says_that_nobody_refreshes(made: Directories) -> None:
    """If it failed, runs by hand would count for ever."""
    ran(made, 0, 300)
    before = time.time() - 7200
    times = {"issued_at": before, "expires_at": before + 60, "issued": None, "last_rotation_at": before}
    assert findings(made, fresh(made, **times)) == ["not_running"]


@pytest.mark.usefixtures("served")
def test_a_service_that_is_there_and_does_not_work_is_found(made: Directories) -> None:
    """If it failed, a service that hangs would count as one that runs."""
    stored = fresh(made)
    assert findings(made, stored) == [], "it has not had time to look"
    ran(made, 120, 10)
    assert findings(made, stored) == []
    ran(made, 120, 600)
    assert findings(made, stored) == ["not_responding"]


def test_a_demand_that_nobody_answers_is_found(made: Directories) -> None:
    """If it failed, an agent could wait for a token, and nobody would know."""
    ran(made, 7200, 10)
    stored = fresh(made, last_rotation_at=time.time() - 3600)
    demand = made.demands / f"linear.{stored.generation}"
    demand.touch()
    assert findings(made, stored) == [], "a run takes a moment"
    os.utime(demand, (time.time() - 600,) * 2)
    assert findings(made, stored) == ["demand_unanswered"]
    demand.rename(made.demands / f"linear.{stored.generation - 1}")
    assert findings(made, stored) == [], "a demand for an older token is answered by the token that is there"


def test_a_demand_for_a_grant_that_does_not_exist_is_found(made: Directories) -> None:
    """If it failed, an agent with a wrong name would wait without an end."""
    ran(made, 7200, 10)
    for entry in ("liner.3", "ignored-0123", "README", "linear.3"):
        (made.demands / entry).touch()
    stored = fresh(made)
    (finding,) = service.check(made, [stored], made.listing(), served=False)
    assert finding.code == "demand_unknown"
    assert "tokens of liner," in finding.what
