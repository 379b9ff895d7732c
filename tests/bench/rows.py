"""The rows of the table: what is measured, beside what, in which unit, and the goal."""

from typing import Final, Literal, NamedTuple

__all__ = ["IN_README", "ROWS", "Goal", "Row", "questions"]


class Goal(NamedTuple):
    """A limit, of the ratio to the counterpart or of the figure itself."""

    limit: float
    kind: Literal["at most", "at least"] = "at most"
    of: Literal["ratio", "figure"] = "ratio"

    def is_met(self, value: float) -> bool:
        return value <= self.limit if self.kind == "at most" else value >= self.limit


class Row(NamedTuple):
    """A row; ``key`` begins with the module that measures it."""

    key: str
    what: str
    """``{}`` stands for ``number``, which --quick makes smaller."""
    peer: str
    unit: str
    goal: Goal
    number: int = 0

    @property
    def question(self) -> str:
        return self.key.partition(".")[0]


def _figure(limit: float) -> Goal:
    return Goal(limit, of="figure")


ROWS: Final = (
    Row("rotation.flat", "processor time of a rotation among {} grants", "among 10", "ms", Goal(1.1), 100_000),
    Row("rotation.floor", "a forced rotation among 10 grants", "a bare POST and two durable files", "ms", Goal(3)),
    Row("rotation.window", "from the server's answer to the disk", "a durable file", "ms", Goal(3)),
    Row("rotation.syncs", "fsyncs of a rotation", "two durable files", "fsyncs", _figure(7)),
    Row("rotation.bytes", "bytes written by a rotation", "the record and the token file", "KiB", _figure(70)),
    Row("grants.run_once_1", "run-once, nothing due, {} grant", "python -c pass", "ms", Goal(5), 1),
    Row("grants.token", "token, 1 grant", "run-once, nothing due, 1 grant", "ms", Goal(1.2)),
    Row("grants.run_once", "run-once, nothing due, {} grants", "python -c pass", "ms", Goal(30), 10_000),
    Row("grants.status", "status, {} grants", "python -c pass", "s", _figure(1), 10_000),
    Row("grants.ready", "run with {} grants, until it is ready", "reading each file once", "s", _figure(1.5), 10_000),
    Row("grants.ready_all", "run with {} grants, until it is ready", "reading each file once", "s", _figure(15), 100_000),
    Row("grants.idle", "run with {} grants, idle", "five stats a second", "% of a core", _figure(0.2), 10_000),
    Row("grants.idle_all", "run with {} grants, idle", "five stats a second", "% of a core", _figure(1), 100_000),
    Row("grants.memory", "memory of run with {} grants", "a bare interpreter", "MiB", _figure(60), 10_000),
    Row("grants.memory_all", "memory of run with {} grants", "a bare interpreter", "MiB", _figure(250), 100_000),
    Row("throughput.forced", "run-once --force, {} grants of 100 servers", "bare POSTs, 64 at once", "/s", Goal(0.5, "at least"), 1000),
    Row("throughput.linear", "run-once --force, each of {} grants", "each of a third as many", "ms", Goal(1.1), 1000),
    Row("sealing.rotation", "a forced rotation of a sealed grant", "of a plain one", "ms", Goal(1.2)),
    Row("sealing.cpu", "its processor time", "of a plain one", "ms", Goal(1.2)),
    Row("sealing.bytes", "bytes written by a rotation of a sealed grant", "of a plain one", "KiB", Goal(1.2)),
    Row("sealing.record", "bytes of a sealed record", "of a plain one", "KiB", _figure(3)),
    Row("sealing.idle", "run-once, {} sealed grants, none due, without the key", "plain grants", "ms", Goal(1.1), 1000),
    Row("throughput.sustained", "rotations of run, {} grants always due", "bare POSTs, 64 at once", "/s", Goal(0.5, "at least"), 10_000),
    Row("imports.linear", "import --from a directory, each of {} grants", "each of a third as many", "ms", Goal(1.2), 600),
    Row("imports.many", "import --from a directory, {} grants", "as many durable files", "s", _figure(15), 3000),
    Row("lateness.p99", "lateness of {} grants with short lives, p99", "bare timers and POSTs", "ms", _figure(250), 1000),
    Row("mirror.p50", "from an answer to the token file on another host, p50", "to the token file on its own host", "ms", _figure(500)),
    Row("mirror.p99", "from an answer to the token file on another host, p99", "to the token file on its own host", "ms", _figure(1000)),
    Row("database.rate", "rotations with grants in PostgreSQL, 8 at once", "bare UPDATEs, one at a time", "/s", Goal(0.01, "at least")),
    Row("database.files", "rotations with grants in PostgreSQL, 8 at once", "with grants in files, 8 at once", "/s", Goal(0.4, "at least")),
    Row("database.claim", "a claim of 16 grants among {}", "among 1,000", "ms", _figure(20), 1_000_000),
    Row("reading.current", "FileTokenSource.current()", "os.stat", "µs", Goal(1.1)),
    Row("reading.start", "import shim", "python -c pass", "ms", Goal(3)),
    Row("reading.memory", "memory of an agent with 100 sources", "a bare interpreter", "MiB", Goal(1.3)),
    Row("calls.http", "50 requests at once, BearerAuth", "a fixed header", "ms", Goal(1.05)),
    Row("calls.http_sdk", "50 requests at once, BearerAuth", "the SDK's OAuth provider", "ms", Goal(0.2)),
    Row("calls.http_fastmcp", "50 requests at once, BearerAuth", "FastMCP's OAuth provider", "ms", Goal(0.2)),
    Row("calls.mcp", "50 tool calls at once, ReconnectingClient", "a fixed header", "ms", Goal(1.05)),
    Row("calls.mcp_sdk", "50 tool calls at once, ReconnectingClient", "the SDK's OAuth provider", "ms", Goal(0.5)),
    Row("calls.mcp_fastmcp", "50 tool calls at once, ReconnectingClient", "FastMCP's OAuth provider", "ms", Goal(0.5)),
    Row("calls.beside", "a quick call beside a slow one, ReconnectingClient", "a fixed header", "ms", Goal(1.1)),
    Row("calls.beside_sdk", "a quick call beside a slow one, ReconnectingClient", "the SDK's OAuth provider", "ms", Goal(0.1)),
    Row("refused.exchanges", "{} callers with one refused token: exchanges", "one", "exchanges", Goal(1), 10_000),
    Row("refused.calls", "{} callers with one refused token: calls that succeed", "all", "calls", Goal(1, "at least"), 10_000),
    Row("refused.wall", "{} callers with one refused token", "an exchange, and as many plain requests", "s", Goal(1.5), 10_000),
    Row("refused.expiry", "64 processes when their token expires: exchanges", "one", "exchanges", Goal(1)),
    Row("refused.expiry_calls", "64 processes when their token expires: calls that succeed", "all", "calls", Goal(1, "at least")),
    Row("gateway.p50", "a call through the gateway, p50", "a direct call", "ms", _figure(2)),
    Row("gateway.p99", "a call through the gateway, p99", "a direct call", "ms", _figure(10)),
    Row("gateway.p50_nginx", "a call through the gateway, p50", "through nginx with a fixed header", "ms", _figure(2)),
    Row("gateway.p99_nginx", "a call through the gateway, p99", "through nginx with a fixed header", "ms", _figure(10)),
    Row("gateway.rate", "calls through the gateway, 32 at once", "through nginx with a fixed header", "/s", Goal(0.5, "at least")),
    Row("sdk.failed", "calls that failed or never ended, six situations", "the SDK's OAuth provider", "calls", _figure(0)),
    Row("sdk.logins", "new logins asked for, six situations", "the SDK's OAuth provider", "logins", _figure(0)),
)  # fmt: skip

IN_README: Final = (
    "sdk.failed",
    "sdk.logins",
    "calls.mcp",
    "refused.wall",
    "rotation.flat",
    "throughput.forced",
    "lateness.p99",
)
"""The rows of the table in README.md, in order: with its two lines of heading, ten lines."""


def questions() -> list[str]:
    """Return the modules that measure the rows, in order."""
    return list(dict.fromkeys(row.question for row in ROWS))
