"""What the metrics count and show, and how many names they have."""

import threading
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from refresher.common import clocks
from refresher.common.secret import Secret
from refresher.grants.record import Account, Grant, Login, Stored
from refresher.observers import metrics, metrics_file
from refresher.observers.metrics import Counts, Grants, Row, grants_of, read_rows, render
from refresher.operations.events import Event, happened
from refresher.storage import records, rest_index, stamps
from refresher.storage.directories import Directories
from refresher.storage.file_store import FileStore
from refresher.storage.publishing import Publisher
from tests.conftest import need
from tests.support.fake_state import directories, put
from tests.support.keys import certificate
from tests.support.prometheus import check_metrics, missing
from tests.support.samples import doubt, failure, grant

Samples = dict[tuple[str, ...], float]


def rotated(name: str = "linear") -> Event:
    """Return the event of a rotation."""
    return happened(name, "rotated", outcome="rotated", exchange_seconds=0.2, lock_seconds=0.0, late_seconds=7.0)


def counts(*events: Event) -> Counts:
    """Return the counts of some events."""
    counted = Counts()
    counted.observe(events)
    return counted


def shown(
    counted: Counts, grants: Grants | None = None, dropped: dict[str, int] | None = None, last_run: float | None = 5.0
) -> Samples:
    """Return the samples by their name and the values of their labels."""
    text, _ = render(counted, grants or grants_of([]), last_run=last_run, dropped=dropped or {})
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_each_kind_of_event_is_counted_where_it_belongs() -> None:
    """If it failed, a dashboard would show other rotations, demands or times than there were."""
    failed = happened("notion", "failed", outcome="transient", exchange_seconds=20.0)
    found = shown(counts(rotated(), rotated(), failed, happened("linear", "demanded"), happened("linear", "published")))
    assert found["refresher_rotations_total", "linear", "rotated"] == 2
    assert found["refresher_rotations_total", "notion", "transient"] == 1
    assert found["refresher_demands_total",] == 1
    assert found["refresher_exchange_duration_seconds_bucket", "0.25"] == 2
    assert found["refresher_exchange_duration_seconds_bucket", "20.0"] == 3
    assert found["refresher_exchange_duration_seconds_sum",] == pytest.approx(20.4)
    assert found["refresher_lock_wait_seconds_count",] == 2
    assert found["refresher_rotation_lateness_seconds_bucket", "5.0"] == 0
    assert found["refresher_rotation_lateness_seconds_bucket", "15.0"] == 2


def test_each_grant_shows_its_state_and_its_ends_and_nothing_else(tmp_path: Path) -> None:
    """If it failed, an alert would miss a grant, or an account or a secret would get into a monitoring system."""
    made = directories(tmp_path)
    account = Account(issuer="https://as.example", subject="subject-1", label="person@example.com")
    put(made.record("active"), grant(name="active", account=account, login_ends_at=1e10, expires_at=2e9))
    put(made.record("failing"), grant(name="failing", failures=1, failure=failure(), doubt=doubt()))
    put(made.record("dead"), grant(name="dead", dead=True, access_token=None, client_secret=Secret("a-client-secret")))
    made.record("damaged").write_text("{")
    certificate(path := tmp_path / "client.pem", "client", lifetime=timedelta(days=30))
    login = Login(client="registered", client_expires_at=4e9)
    put(made.record("bank"), grant(name="bank", client_cert=str(path), login=login))
    rows = read_rows(FileStore(made), ("active", "bank", "damaged", "dead", "failing", "nobody"))
    found = shown(Counts(), grants_of(rows))
    states = {
        "active": "active",
        "failing": "failing",
        "dead": "reauthorization_required",
        "damaged": "invalid_grant_file",
    }
    for name, state in states.items():
        assert {each: found["refresher_grant_state", name, each] for each in metrics.STATES} == {
            each: float(each == state) for each in metrics.STATES
        }
        assert found["refresher_grants", state] == (2 if state == "active" else 1)
    assert found["refresher_client_expiration_timestamp_seconds", "client_secret", "bank"] == 4e9
    ends = found["refresher_client_expiration_timestamp_seconds", "certificate", "bank"]
    assert ends == pytest.approx(clocks.now().wall + 30 * 86400, abs=600)
    assert found["refresher_grant_expiration_timestamp_seconds", "active"] == 2e9
    assert found["refresher_login_expiration_timestamp_seconds", "active"] == 1e10
    assert ("refresher_grant_expiration_timestamp_seconds", "dead") not in found
    assert ("refresher_login_expiration_timestamp_seconds", "failing") not in found
    assert (found["refresher_grant_in_doubt", "failing"], found["refresher_grant_in_doubt", "active"]) == (1, 0)
    text = render(Counts(), grants_of(rows), last_run=None, dropped={})[0].decode()
    assert not [
        word
        for word in ("person", "subject-1", "example", "a-client-secret", "token-of", str(tmp_path))
        if word in text
    ]
    assert {key[0].split("_")[0] for key in found} == {"refresher"}, "the library describes the process"


def test_what_was_lost_is_shown_for_each_observer_and_the_last_run_only_if_it_is_known() -> None:
    """If it failed, nobody would see lost events, or a run at the beginning of 1970 would raise an alarm."""
    found = shown(Counts(), dropped={"history": 3})
    assert found["refresher_events_dropped_total", "history"] == 3
    assert found["refresher_last_run_timestamp_seconds",] == 5
    assert ("refresher_last_run_timestamp_seconds",) not in shown(Counts(), last_run=None)


def test_a_thousand_grants_have_series_first_those_that_are_urgent() -> None:
    """If it failed, a large number of grants would overload Prometheus, or hide the one that needs a person."""
    now = clocks.now().wall
    rows = [Row(f"g{number}", "active", now + 3600 + number) for number in range(1000)]
    urgent = [
        Row("dead", "reauthorization_required"),
        Row("damaged", "invalid_grant_file"),
        Row("failing", "failing", now + 9999),
        Row("doubtful", "active", now + 9999, in_doubt=True),
        Row("ending", "active", now + 9999, now + 6 * 86400),
        Row("client", "active", now + 9999, client_ends=(("certificate", now + 7 * 86400),)),
    ]
    found = grants_of([*rows, *urgent, Row("later", "active", now + 9999, now + 30 * 86400)], unread=7)
    assert [row.name for row in found.rows[:6]] == ["dead", "damaged", "failing", "doubtful", "ending", "client"]
    assert [row.name for row in found.rows[6:8]] == ["g0", "g1"], "not the token that expires first"
    assert (len(found.rows), sum(found.by_state.values())) == (1000, 1014)
    assert shown(Counts(), found)["refresher_grants_without_series",] == 14


def test_a_thousand_names_have_counters_and_those_of_a_removed_grant_end() -> None:
    """If it failed, counters would grow with each name that ever existed, or rotations of others would not count."""
    counted = counts(*(rotated(f"g{number}") for number in range(1003)))
    assert shown(counted)["refresher_rotations_total", "", "rotated"] == 3
    counted.keep(lambda name: name != "g5")
    counted.observe([rotated("new")])
    found = shown(counted)
    assert ("refresher_rotations_total", "g5", "rotated") not in found
    assert found["refresher_rotations_total", "new", "rotated"] == 1
    assert found["refresher_rotations_total", "", "rotated"] == 3, "the place of a removed grant is not used again"


def test_counters_continue_from_the_text_of_an_earlier_process() -> None:
    """If it failed, each run of cron would begin at 0, and Prometheus would see resets instead of rotations."""
    earlier = counts(rotated(), happened("linear", "demanded"), *(rotated(f"g{number}") for number in range(1003)))
    text, _ = render(earlier, grants_of([]), last_run=5.0, dropped={"history": 2}, hook_failures={"on_rotated": 4})
    counted = counts(rotated())
    counted.add(text.decode())
    found, before = shown(counted, dropped={"history": 1}), shown(earlier)
    assert found["refresher_rotations_total", "linear", "rotated"] == 2
    assert found["refresher_rotations_total", "", "rotated"] == before["refresher_rotations_total", "", "rotated"]
    assert found["refresher_demands_total",] == 1
    assert found["refresher_events_dropped_total", "history"] == 3
    assert found["refresher_hook_failures_total", "on_rotated"] == 4
    assert found["refresher_lock_wait_seconds_count",] == before["refresher_lock_wait_seconds_count",] + 1
    assert found["refresher_rotation_lateness_seconds_sum",] == before["refresher_rotation_lateness_seconds_sum",] + 7


@pytest.mark.parametrize(
    ("part", "instead"),
    [
        ("refresher_demands_total 0.0", "refresher_demands_total -1"),
        ("refresher_demands_total 0.0", "refresher_demands_total NaN"),
        ("refresher_demands_total 0.0", "refresher_demands_total +Inf"),
        ("refresher_demands_total 0.0", "refresher_demands_total 1e300"),
        ("refresher_demands_total 0.0", "refresher_demands_total 0.5"),
        ("refresher_demands_total 0.0", "refresher_demands_total"),
        ("refresher_demands_total 0.0", "refresher_demands_total{"),
        ('name="linear",', ""),
        ('name="linear",', 'name="Linear",'),
        ('outcome="rotated"', 'outcome="stolen"'),
        ('_seconds_bucket{le="0.1"} 0.0', '_seconds_bucket{le="0.1"} 5.0'),
        ('refresher_lock_wait_seconds_bucket{le="0.1"}', 'refresher_lock_wait_seconds_bucket{le="0.2"}'),
        ("refresher_lock_wait_seconds_sum 0.0", ""),
    ],
)
def test_a_damaged_text_adds_nothing(part: str, instead: str) -> None:
    """If it failed, a damaged metrics file would end a run, or counters would never be right again."""
    text = render(counts(rotated()), grants_of([]), last_run=5.0, dropped={})[0].decode()
    assert part in text
    counted = counts(rotated("notion"))
    before = shown(counted)
    with pytest.raises(ValueError, match=r"\w"):
        counted.add(text.replace(part, instead))
    with pytest.raises(ValueError, match=r"\w"):
        counted.add("")
    assert shown(counted) == before


def test_promtool_has_no_remark_on_a_page_with_everything() -> None:
    """If it failed, Prometheus would refuse the page, or a name would break its conventions."""
    need(missing())
    rows = [Row("linear", "active", 2e9, 3e9, True), Row("notion", "failing")]
    check_metrics(render(counts(rotated()), grants_of(rows), last_run=5.0, dropped={"history": 1})[0])


@pytest.fixture
def state(tmp_path: Path) -> Directories:
    """A state directory without grants."""
    return directories(tmp_path)


def write(state: Directories, counted: Counts) -> Samples:
    """Write the metrics file, and return its samples."""
    path = state.state.parent / "refresher.prom"
    metrics_file.write(path, state, counted, {})
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(path.read_text())
        for sample in family.samples
    }


def store(state: Directories, record: Grant) -> None:
    """Store and publish a record."""
    put(state.record(record.name), record)
    Publisher(state).publish(record)


def test_runs_at_the_same_time_lose_no_counts(state: Directories) -> None:
    """If it failed, two overlapping runs of cron would lose the rotations of one of them."""
    store(state, grant())
    threads = [threading.Thread(target=write, args=(state, counts(rotated()))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert write(state, Counts())["refresher_rotations_total", "linear", "rotated"] == 8


def test_of_many_grants_those_that_rest_are_not_read_and_still_counted(
    state: Directories, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, a run with thousands of grants would read them all twice, or show a wrong number of grants."""
    monkeypatch.setattr(metrics, "MOST_NAMES", 4)
    monkeypatch.setattr(metrics_file, "MOST_NAMES", 4)
    monkeypatch.setattr(stamps, "_SETTLED_NS", -(10**18))
    now = clocks.now()
    fresh = grant(issued_at=now.wall, issued=now, expires_at=now.wall + 36000, last_rotation_at=now.wall)
    for number in range(6):
        store(state, msgspec.structs.replace(fresh, name=f"rests{number}"))
    by_name = stamps.find_all(state).by_name
    rests = {name: rest_index.Rest(stamp, 3, now.wall + 9999) for name, stamp in by_name.items()}
    rest_index.save(state, state.listing().sharing, now, rests)
    store(state, msgspec.structs.replace(fresh, name="dead", dead=True))
    store(state, msgspec.structs.replace(fresh, name="ending", login_ends_at=now.wall + 86400))
    read: list[str] = []
    load = records.load

    def noted(there: Directories, name: str) -> Stored:
        read.append(name)
        return load(there, name)

    monkeypatch.setattr(records, "load", noted)
    found = write(state, Counts())
    assert sorted(read) == ["dead", "ending", "rests0", "rests1"]
    assert found["refresher_grants", "active"] == 7
    assert found["refresher_grants", "reauthorization_required"] == 1
    assert found["refresher_grants_without_series",] == 4
    assert found["refresher_login_expiration_timestamp_seconds", "ending"] == pytest.approx(now.wall + 86400)
