"""Metrics: counts of what happened, the state of each grant, and both in the text format of Prometheus.

They name grants and nothing else: no account, no address, no secret. The number of names is bounded. Nothing here uses
the default registry of prometheus-client, whose collectors describe the process.
"""

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

from refresher import __version__
from refresher.common import clocks
from refresher.common.errors import GrantFileError
from refresher.grants import forecast, policy
from refresher.grants.forecast import End
from refresher.grants.record import Grant
from refresher.grants.token_file import state_of
from refresher.operations import certificates
from refresher.operations.events import Event
from refresher.operations.grant_report import INVALID
from refresher.operations.inspection import read_grants
from refresher.operations.result import EXIT_CODES
from refresher.storage.store import Store
from shim._token import is_name

if TYPE_CHECKING:
    from prometheus_client.core import GaugeMetricFamily, Metric

__all__ = ["ENDS_SOON", "MOST_NAMES", "STATES", "Counts", "Grants", "Row", "grants_of", "read_rows", "render"]

MOST_NAMES: Final = 1000
"""How many grants have series of their own."""

ENDS_SOON: Final = 9 * 86400.0
"""Seconds. A login or a client that ends within them is more urgent than a token: an alert looks 7 days ahead."""

STATES: Final = ("active", "failing", "reauthorization_required", INVALID)

_URGENCY: Final = {"reauthorization_required": 0, INVALID: 0, "failing": 1}
_EXCHANGE: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0)
_LOCK_WAIT: Final = (0.001, 0.01, 0.1, 0.5, 1.0, 5.0, 30.0)
_LATENESS: Final = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 21600.0)

_ROTATIONS: Final = "refresher_rotations"
_DEMANDS: Final = "refresher_demands"
_DROPPED: Final = "refresher_events_dropped"
_HOOKS: Final = "refresher_hook_failures"


class Row(NamedTuple):
    """What the metrics show of one grant. Times are epoch seconds."""

    name: str
    state: str
    expires_at: float | None = None
    """When its access token expires; ``None`` if it has none, or if that is unknown."""
    login_ends_at: float | None = None
    in_doubt: bool = False
    client_ends: tuple[tuple[str, float], ...] = ()
    """When its client secret and its certificate end, as far as that is known: kind and time."""

    def urgency(self, now: float) -> tuple[int, float]:
        """Return a key that sorts first what needs a person, then what fails, then what ends soon."""
        known = [at for _, at in self.client_ends] + ([] if self.login_ends_at is None else [self.login_ends_at])
        ends = min(known, default=float("inf"))
        order = _URGENCY.get(self.state, 1 if self.in_doubt else 2 if ends < now + ENDS_SOON else 3)
        return order, min(ends, float("inf") if self.expires_at is None else self.expires_at)


class Grants(NamedTuple):
    """The grants that have series of their own, and the number of all in each state."""

    rows: Sequence[Row]
    by_state: Mapping[str, int]


class _Histogram:
    """How many values there were up to each of some bounds, and their sum."""

    def __init__(self, name: str, documentation: str, bounds: Sequence[float]) -> None:
        self.name: Final = name
        self.documentation: Final = documentation
        self.bounds: Final = (*bounds, float("inf"))
        self.counts = [0] * len(self.bounds)
        self.sum = 0.0

    def add(self, value: float | None) -> None:
        """Count a value; ``None`` is none."""
        if value is not None:
            self.counts[bisect_left(self.bounds, value)] += 1
            self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """Return each bound, and how many values there were up to it."""
        up_to = [sum(self.counts[: index + 1]) for index in range(len(self.counts))]
        return [
            ("+Inf" if bound == float("inf") else str(bound), up) for bound, up in zip(self.bounds, up_to, strict=True)
        ]

    def checked(self, values: Mapping[str, float], total: float) -> tuple[list[int], float]:
        """Return the counts and the sum behind the values of ``buckets``. Raises ``ValueError`` for other buckets."""
        if list(values) != [bound for bound, _ in self.buckets()]:
            raise ValueError("other buckets")
        up_to = [0, *map(_count, values.values())]
        return [_count(after - before) for before, after in pairwise(up_to)], _positive(total)


class Counts:
    """Counts events: an observer. Only the first ``MOST_NAMES`` names that rotate have counters of their own.

    The rotations of all others are counted together, without a name.
    """

    name = "metrics"
    patience = 5.0

    def __init__(self) -> None:
        self._lock: Final = threading.Lock()
        self._rotations: Counter[tuple[str, str]] = Counter()
        self._named: set[str] = set()
        self._demands = 0
        self._dropped: Counter[str] = Counter()
        self._hook_failures: Counter[str] = Counter()
        self._exchange: Final = _Histogram(
            "refresher_exchange_duration_seconds", "The time of a request to an authorization server.", _EXCHANGE
        )
        self._lock_wait: Final = _Histogram(
            "refresher_lock_wait_seconds", "The time that a rotation waited for the lock of its grant.", _LOCK_WAIT
        )
        self._lateness: Final = _Histogram(
            "refresher_rotation_lateness_seconds", "The time from when a rotation was due to its request.", _LATENESS
        )
        self._histograms: Final = (self._exchange, self._lock_wait, self._lateness)

    def observe(self, events: Sequence[Event]) -> None:
        """Count events."""
        with self._lock:
            for event in events:
                if event.kind == "demanded":
                    self._demands += 1
                elif event.kind in ("rotated", "failed") and event.outcome is not None:
                    self._rotations[self._series(event.name), event.outcome] += 1
                    self._exchange.add(event.exchange_seconds)
                    self._lock_wait.add(event.lock_seconds)
                    self._lateness.add(event.late_seconds)

    def close(self) -> None:
        """Do nothing: the counts stay."""

    def keep(self, exists: Callable[[str], bool]) -> None:
        """End the counters of the names that do not exist any more."""
        with self._lock:
            gone = {name for name in self._named if not exists(name)}
            self._named -= gone
            for key in [key for key in self._rotations if key[0] in gone]:
                del self._rotations[key]

    def _series(self, name: str) -> str:
        if name and name not in self._named:
            if len(self._named) >= MOST_NAMES:
                return ""  # to Prometheus an empty label is none
            self._named.add(name)
        return name

    def add(self, text: str) -> None:
        """Add the counts in a text of ``render``. Raises ``ValueError``, and then adds nothing."""
        from prometheus_client.parser import text_string_to_metric_families

        rotations: Counter[tuple[str, str]] = Counter()
        demands, dropped, hook_failures = 0, Counter[str](), Counter[str]()
        buckets: dict[str, dict[str, float]] = {each.name: {} for each in self._histograms}
        sums: dict[str, float] = {}
        # Only counters: the other lines of a thousand grants would take longer than a run.
        counters = (_ROTATIONS, _DEMANDS, _DROPPED, _HOOKS, *buckets)
        lines = "".join(line for line in text.splitlines(keepends=True) if line.startswith(counters))
        try:
            for family in text_string_to_metric_families(lines):
                for sample in family.samples:
                    base, _, kind = sample.name.rpartition("_")
                    if base == _ROTATIONS:
                        name, outcome = sample.labels["name"], sample.labels["outcome"]
                        if outcome not in EXIT_CODES or not (name == "" or is_name(name)):
                            raise ValueError("other labels")
                        rotations[name, outcome] = _count(sample.value)
                    elif base == _DEMANDS:
                        demands = _count(sample.value)
                    elif base == _DROPPED:
                        dropped[sample.labels["observer"]] = _count(sample.value)
                    elif base == _HOOKS:
                        hook_failures[sample.labels["hook"]] = _count(sample.value)
                    elif kind == "bucket":
                        buckets[base][sample.labels["le"]] = sample.value
                    elif kind == "sum":
                        sums[base] = sample.value
            histograms = [each.checked(buckets[each.name], sums[each.name]) for each in self._histograms]
        except (KeyError, IndexError, OverflowError) as error:
            raise ValueError(f"unexpected: {error}") from None
        with self._lock:
            for (name, outcome), count in rotations.items():
                self._rotations[self._series(name), outcome] += count
            self._demands += demands
            self._dropped.update(dropped)
            self._hook_failures.update(hook_failures)
            for each, (counts, total) in zip(self._histograms, histograms, strict=True):
                each.counts = [mine + other for mine, other in zip(each.counts, counts, strict=True)]
                each.sum += total

    def families(self, dropped: Mapping[str, int], hook_failures: Mapping[str, int]) -> "list[Metric]":
        """Return the counters; the arguments are what the observers of this process count themselves."""
        from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

        rotations = CounterMetricFamily(
            _ROTATIONS, "Attempts to rotate a grant, by outcome.", labels=("name", "outcome")
        )
        lost = CounterMetricFamily(_DROPPED, "Events that an observer has lost.", labels=("observer",))
        hooks = CounterMetricFamily(_HOOKS, "Commands of a hook that failed.", labels=("hook",))
        with self._lock:
            for key, count in sorted(self._rotations.items()):
                rotations.add_metric(key, count)
            for family, before, now in ((lost, self._dropped, dropped), (hooks, self._hook_failures, hook_failures)):
                for label in sorted({*before, *now}):
                    family.add_metric((label,), before[label] + now.get(label, 0))
            demands = CounterMetricFamily(_DEMANDS, "Demands of agents that were answered.", value=self._demands)
            histograms = [
                HistogramMetricFamily(each.name, each.documentation, buckets=each.buckets(), sum_value=each.sum)
                for each in self._histograms
            ]
        return [rotations, demands, *histograms, lost, hooks]


def _count(value: float) -> int:
    if value != int(value):
        raise ValueError("not a count")
    return int(_positive(value))


def _positive(value: float) -> float:
    if not 0 <= value < 2**53:
        raise ValueError("not a sum")
    return value


def read_rows(store: Store, names: Collection[str]) -> list[Row]:
    """Read the grants ``names``; removed ones are left out."""
    rows: list[Row] = []
    certified: list[tuple[int, Grant]] = []
    for name, record in read_grants(store, names).items():
        if isinstance(record, GrantFileError):
            rows.append(Row(name, INVALID))
        elif record is not None:
            if record.client_cert is not None:
                certified.append((len(rows), record))
            expires_at = record.expires_at if policy.has_access_token(record) else None
            ends = _client_ends(forecast.ends_of(record))
            rows.append(Row(name, state_of(record), expires_at, record.login_ends_at, record.doubt is not None, ends))
    if certified:
        with certificates.reading(grant for _, grant in certified):
            for index, grant in certified:
                ends = _client_ends(forecast.ends_of(grant, certificates.end_of(grant)))
                rows[index] = rows[index]._replace(client_ends=ends)
    return rows


def _client_ends(ends: Iterable[End]) -> tuple[tuple[str, float], ...]:
    return tuple((end.kind, end.at) for end in ends if end.kind in ("client_secret", "certificate"))


def grants_of(rows: Sequence[Row], unread: int = 0) -> Grants:
    """Return the most urgent of ``rows``; ``unread``: how many active grants there are besides."""
    now = clocks.now().wall
    by_state = Counter(row.state for row in rows)
    by_state["active"] += unread
    return Grants(sorted(rows, key=lambda row: row.urgency(now))[:MOST_NAMES], by_state)


def render(
    counts: Counts,
    grants: Grants,
    *,
    last_run: float | None,
    dropped: Mapping[str, int],
    hook_failures: Mapping[str, int] = {},
) -> tuple[bytes, str]:
    """Return the metrics as text, and its content type.

    ``last_run``: epoch seconds, if that is known. ``dropped``: how many events each observer of this process has lost.
    ``hook_failures``: how many commands of each hook have failed.
    """
    from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
    from prometheus_client.registry import Collector

    class _Page(Collector):
        def collect(self) -> "Iterator[Metric]":
            yield from _gauges(grants, last_run)
            yield from counts.families(dropped, hook_failures)

    return generate_latest(_Page()), CONTENT_TYPE_PLAIN_0_0_4


def _gauges(grants: Grants, last_run: float | None) -> "Iterator[Metric]":
    from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily

    yield InfoMetricFamily("refresher_build", "The version of refresher.", {"version": __version__})
    yield GaugeMetricFamily(
        "refresher_last_run_timestamp_seconds", "When refresher last looked at the grants.", value=last_run
    )
    total = GaugeMetricFamily("refresher_grants", "Grants in each state.", labels=("state",))
    for state in STATES:
        total.add_metric((state,), grants.by_state.get(state, 0))
    yield total
    yield GaugeMetricFamily(
        "refresher_grants_without_series",
        f"Grants that have no series of their own: only the {MOST_NAMES} most urgent ones have.",
        value=sum(grants.by_state.values()) - len(grants.rows),
    )
    states = GaugeMetricFamily(
        "refresher_grant_state", "1 for the present state of a grant, 0 for the others.", labels=("name", "state")
    )
    expires = _of_name("refresher_grant_expiration_timestamp_seconds", "When the access token of a grant expires.")
    ends = _of_name("refresher_login_expiration_timestamp_seconds", "When the server ends the login of a grant.")
    client = GaugeMetricFamily(
        "refresher_client_expiration_timestamp_seconds",
        "When the client secret or the certificate of a grant ends.",
        labels=("name", "kind"),
    )
    doubt = _of_name(
        "refresher_grant_in_doubt", "1 if a refresh token may be spent: the answer of its server was lost."
    )
    for row in sorted(grants.rows):
        for state in STATES:
            states.add_metric((row.name, state), 1 if row.state == state else 0)
        if row.expires_at is not None:
            expires.add_metric((row.name,), row.expires_at)
        if row.login_ends_at is not None:
            ends.add_metric((row.name,), row.login_ends_at)
        for kind, at in row.client_ends:
            client.add_metric((row.name, kind), at)
        doubt.add_metric((row.name,), 1 if row.in_doubt else 0)
    yield from (states, expires, ends, client, doubt)


def _of_name(name: str, documentation: str) -> "GaugeMetricFamily":
    from prometheus_client.core import GaugeMetricFamily

    return GaugeMetricFamily(name, documentation, labels=("name",))
