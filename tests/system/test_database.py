"""The commands with their grants in a database, as real processes on hosts of their own."""

import json
import signal
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import psycopg
import pytest

from refresher.grants.record import Grant
from shim._token import render
from tests.support.command import Command, Done, wait_until
from tests.support.cut_proxy import CutProxy
from tests.support.daemon import running, stopped
from tests.support.postgres import Cluster, free_port
from tests.support.site import Site
from tests.support.token_server import Gate, TokenServer


def _import(host: Command, server: TokenServer, name: str) -> None:
    host.import_grant(name, server.grant(name))


def _outcomes(done: Done) -> dict[str, str]:
    return {row["name"]: row["outcome"] for row in json.loads(done.stdout)["results"]}


def _all_reach(site: Site, names: list[str], generation: int) -> Callable[[], bool]:
    return lambda: all(site.generation(name) >= generation for name in names)


def test_two_daemons_share_the_grants_and_one_takes_over(site: Site) -> None:
    """If it failed, two refreshers would send one refresh token, or a grant would die with its refresher (I3)."""
    names = [f"grant-{number}" for number in range(6)]
    first, second = site.host("a"), site.host("b")
    with TokenServer(lambda _: 2, grace=0) as server:
        for name in names:
            _import(first, server, name)
        with running(first) as one, running(second) as other:
            wait_until(_all_reach(site, names, 2), "both rotate")
            one.kill()
            one.communicate()
            site.end_leases()
            at = max(site.generation(name) for name in names)
            wait_until(_all_reach(site, names, at + 1), "the other goes on")
            log = stopped(second, other)
        assert server.reused == 0, log
        assert all(isinstance(site.store.load(name).record, Grant) for name in names)


def test_a_daemon_that_is_stopped_in_an_exchange_keeps_its_answer(site: Site) -> None:
    """If it failed, a machine that sleeps during an exchange would lose a login (I6)."""
    gate = Gate()
    first, second = site.host("a"), site.host("b")
    with TokenServer(lambda _: 3600, gate, grace=0) as server:
        _import(first, server, "linear")
        gate.opened.set()
        assert first("run-once").code == 0
        gate.opened.clear()
        gate.reached.clear()
        process = first.start("run-once", "--force", "linear")
        assert gate.reached.wait(90)
        process.send_signal(signal.SIGSTOP)
        gate.opened.set()
        site.end_leases()
        done = second("run-once", "linear", "--json")
        assert _outcomes(done) == {"linear": "in_doubt"}
        record = site.store.load("linear").record
        assert isinstance(record, Grant)
        assert record.doubt is not None
        process.send_signal(signal.SIGCONT)
        assert first.finish(process).code == 0
        record = site.store.load("linear").record
        assert isinstance(record, Grant)
        assert (record.generation, record.doubt) == (2, None)
        assert second("run-once", "--force", "linear").code == 0
        assert server.reused == 0


def test_a_daemon_that_ends_completes_its_exchange(site: Site) -> None:
    """If it failed, each new deployment would put grants in doubt."""
    gate = Gate()
    host = site.host("a")
    with TokenServer(lambda _: 3600, gate, grace=0) as server:
        _import(host, server, "linear")
        with running(host) as process:
            assert gate.reached.wait(90)
            process.send_signal(signal.SIGTERM)
            gate.opened.set()
            log = host.finish(process).stderr
        assert "stopped" in log
        assert site.generation("linear") == 1
        assert site.execute("SELECT 1 FROM refresher.lease WHERE attempt IS NOT NULL") == []


def test_a_daemon_outlives_its_database(site: Site) -> None:
    """If it failed, a restart of the database would end every refresher, or be told a thousand times."""
    host = site.host("a")
    with TokenServer(lambda _: 2, grace=0) as server:
        _import(host, server, "linear")
        with running(host) as process:
            wait_until(lambda: site.generation("linear") >= 1, "it rotates")
            site.execute("ALTER SCHEMA refresher RENAME TO away")
            asked = len(server.asked["linear"])
            site.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
                "AND datname = current_database()"
            )
            site.execute("ALTER SCHEMA away RENAME TO refresher")
            wait_until(lambda: len(server.asked["linear"]) >= asked + 2, "it goes on")
            stopped(host, process)
        assert server.reused == 0


def test_run_once_rotates_what_is_due_once(site: Site) -> None:
    """If it failed, cron would leave grants to expire, or rotate short ones for ever in one run."""
    host = site.host("a")
    with TokenServer(lambda _: 3600, grace=0) as server, TokenServer(lambda _: 2, grace=0) as short:
        for number in range(3):
            _import(host, server, f"long-{number}")
        _import(host, short, "short")
        done = host("run-once", "--horizon", "70s", "--json")
        assert _outcomes(done) == dict.fromkeys(("long-0", "long-1", "long-2", "short"), "rotated")
        assert _outcomes(host("run-once", "long-0", "--json")) == {"long-0": "not_due"}
        assert host("run-once", "nosuch").code == 2
        assert host("remove", "short").code == 0
        assert "nothing was due" in host("run-once").stderr
        assert host("status").code == 0
        assert "long-0" in host("status").stdout
        assert host("remove", "long-0").code == 0
        assert "long-0" not in host("status").stdout
        assert server.reused == 0


def _shown(host: Command, name: str) -> tuple[int, str]:
    """Return the generation and the state of a token file; -1 without one."""
    try:
        token = host.token(name)
    except FileNotFoundError:
        return -1, ""
    return token.generation, token.state


def _shows(host: Command, name: str, generation: int) -> bool:
    return _shown(host, name) == (generation, "active")


@contextmanager
def _mirroring(host: Command, *arguments: str) -> Iterator[None]:
    process = host.start("mirror", *arguments)
    try:
        yield
        stopped(host, process)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def test_a_rotation_anywhere_is_published_everywhere(site: Site) -> None:
    """If it failed, agents on other hosts would keep tokens that are dead."""
    first, second, third = site.host("a"), site.host("b"), site.host("c")
    with TokenServer(lambda _: 3600, grace=0) as server:
        for name in ("team-one", "other"):
            _import(first, server, name)
        with _mirroring(second), _mirroring(third, "--only", "team-*"):
            assert first("run-once").code == 0
            wait_until(lambda: _shown(second, "other") == (1, "active"), "the second host has all")
            wait_until(lambda: _shown(third, "team-one") == (1, "active"), "the third host has its names")
            assert first("run-once", "--force").code == 0
            wait_until(lambda: _shown(second, "other") == (2, "active"), "each generation comes")
            assert second.token("other").access_token == first.token("other").access_token
            assert first("remove", "other").code == 0
            wait_until(lambda: _shown(second, "other") == (2, "removed"), "a removal comes")
            assert _shown(third, "other") == (-1, "")
        # With other patterns, a name that is not needed any more is withdrawn.
        with _mirroring(third, "--only", "nothing-*"):
            wait_until(lambda: _shown(third, "team-one") == (2, "removed"), "it is withdrawn")
        assert site.store.load("team-one").record is not None


def test_a_host_publishes_although_its_listening_connection_is_silent(site: Site, postgres: Cluster) -> None:
    """If it failed, a firewall that forgets a connection would keep new tokens from agents."""
    first = site.host("a")
    with TokenServer(lambda _: 3600, grace=0) as server, CutProxy(postgres.port) as proxy:
        proxy.mute = b"LISTEN"
        second = site.host("b", proxy.port)
        _import(first, server, "linear")
        with _mirroring(second):
            assert proxy.muted.wait(90)
            for generation in (1, 2):
                assert first("run-once", "--force").code == 0
                wait_until(partial(_shows, second, "linear", generation), "it is found")


def test_a_rotation_that_is_committed_late_is_published(site: Site) -> None:
    """If it failed, the token of a slow transaction would stay on no host but its own."""
    first, second = site.host("a"), site.host("b")
    with TokenServer(lambda _: 3600, grace=0) as server:
        for name in ("late", "other"):
            _import(first, server, name)
        assert first("run-once").code == 0
        later = "UPDATE refresher.record SET published = %s, generation = 2, xid = pg_current_xact_id() WHERE name = %s"
        with _mirroring(second), psycopg.connect(site.url) as slow:
            wait_until(lambda: _shown(second, "other") == (1, "active"), "it runs")
            wait_until(lambda: _shown(second, "late") == (1, "active"), "it runs")
            slow.execute(later, (_next(first, "late", 2), "late"))
            for _ in range(100):
                site.execute("UPDATE refresher.record SET xid = pg_current_xact_id() WHERE name = 'other'")
            site.execute(later, _next(first, "other", 2), "other")
            wait_until(lambda: _shown(second, "other") == (2, "active"), "what came before is published")
            assert _shown(second, "late") == (1, "active")
            slow.commit()
            wait_until(lambda: _shown(second, "late") == (2, "active"), "what was late is published")


def _next(host: Command, name: str, generation: int) -> bytes:
    """Return the token file of ``name`` as after another rotation."""
    return render(host.token(name)._replace(generation=generation))


def test_a_host_without_its_database_is_ready_while_its_tokens_live(site: Site, postgres: Cluster) -> None:
    """If it failed, agents would lose tokens that live, or a host with dead ones would stay in service."""
    first = site.host("a")
    with TokenServer(lambda _: 12, grace=0) as server, CutProxy(postgres.port) as proxy:
        second = site.host("b", proxy.port)
        _import(first, server, "linear")
        with _mirroring(second):
            # It rotates again where this machine is so busy that the token expires meanwhile.
            wait_until(lambda: first("run-once").code == second("health").code == 0, "it is ready")
            generation = site.generation("linear")
            wait_until(lambda: _shows(second, "linear", generation), "it has the last token")
            proxy.cut = "always"
            proxy.break_off()
            wait_until(lambda: second("health").code == 1, "its token has expired")
            assert _shows(second, "linear", generation)
            assert "waiting for a token: linear" in second("health").stdout
            assert second("health", "--live").code == 0
            demand = second.state / f"demands/linear.{generation}"
            demand.touch()
            proxy.cut = "never"
            wait_until(lambda: bool(site.execute("SELECT * FROM refresher.demand")), "the demand waited for it")
            assert demand.exists()
            assert first("run-once").code == 0
            wait_until(lambda: not demand.exists(), "the demand is answered")
            assert _shown(second, "linear")[0] > generation
            wait_until(lambda: first("run-once").code == second("health").code == 0, "it is ready again")
        assert server.reused == 0


def test_a_demand_on_a_host_of_agents_makes_a_refresher_rotate(site: Site) -> None:
    """If it failed, a token that a server refuses would stay on every host until it expires."""
    first, second = site.host("a"), site.host("b")
    with TokenServer(lambda _: 3600, grace=0) as server:
        _import(first, server, "linear")
        with running(first) as process, _mirroring(second):
            wait_until(lambda: _shown(second, "linear") == (1, "active"), "the first token is there")
            demands = second.state / "demands"
            (demands / "linear.1").write_text("https://mcp.example")
            wait_until(lambda: _shown(second, "linear") == (2, "active"), "it is rotated")
            wait_until(lambda: not list(demands.iterdir()), "the demand is answered")
            # A demand for a generation that was never published here counts for nothing.
            (demands / "linear.7").touch()
            wait_until(lambda: not list(demands.iterdir()), "a wrong demand is removed")
            stopped(first, process)
        assert site.execute("SELECT * FROM refresher.demand") == []
        assert len(server.asked["linear"]) == 2


def test_a_host_keeps_a_later_token_than_a_restored_database(site: Site) -> None:
    """If it failed, a restored database would give agents tokens that are dead, and let a spent one be sent (I1)."""
    first, second = site.host("a"), site.host("b")
    with TokenServer(lambda _: 3600, grace=0) as server:
        _import(first, server, "linear")
        assert first("run-once").code == 0
        record = site.execute("SELECT bytes, published FROM refresher.record")[0]
        lease = site.execute("SELECT fingerprint FROM refresher.lease")[0]
        with _mirroring(second):
            assert first("run-once", "--force").code == 0
            wait_until(lambda: _shown(second, "linear") == (2, "active"), "the second generation is there")
        # What a backup of before the last rotation has.
        site.execute(
            "UPDATE refresher.record SET bytes = %s, published = %s, generation = 1, xid = pg_current_xact_id()",
            *record,
        )
        site.execute("DELETE FROM refresher.spent WHERE fingerprint = %s", *lease)
        site.execute("UPDATE refresher.lease SET generation = 1, fingerprint = %s, last_attempt = NULL", *lease)
        with _mirroring(second):
            wait_until(lambda: bool(site.execute("SELECT * FROM refresher.seen")), "the host reports what it has")
        assert _shown(second, "linear") == (2, "active")
        assert _outcomes(first("run-once", "linear", "--json")) == {"linear": "in_doubt"}
        assert len(server.presented["linear"]) == 2
        assert site.generation("linear") == 2


def test_a_helper_gets_a_token_without_a_daemon(site: Site) -> None:
    """If it failed, programs that run a helper would get no token on a host where only cron runs."""
    host = site.host("a")
    with TokenServer(lambda _: 3600, grace=0) as server:
        _import(host, server, "linear")
        done = host("token", "linear")
        assert done.code == 0, done.stderr
        assert done.stdout.strip() == host.token("linear").access_token
        assert host("token", "linear").stdout == done.stdout
        assert len(server.asked["linear"]) == 1
        (host.state / "demands/linear.1").touch()
        wait_until(lambda: host("run-once").code == 0 and site.generation("linear") == 2, "the demand is followed")
        assert list((host.state / "demands").iterdir()) == []


def test_a_host_of_agents_needs_no_right_to_read_a_refresh_token(site: Site) -> None:
    """If it failed, an agent host that is taken over would give away refresh tokens, or tokens of other teams."""
    role = f"host_{uuid.uuid4().hex[:8]}"
    site.execute(f"CREATE ROLE {role} LOGIN")
    first, second = site.host("a"), site.host("b")
    url = site.url.replace("//owner@", f"//{role}@")
    second.environment["REFRESHER_STORE"] = url
    try:
        site.execute(f"SELECT refresher.allow_mirror('{role}', 'team-*')")
        with TokenServer(lambda _: 3600, grace=0) as server:
            for name in ("team-one", "other"):
                _import(first, server, name)
            with running(first) as process, _mirroring(second):
                wait_until(lambda: _shown(second, "team-one") == (1, "active"), "the host has its name")
                (second.state / "demands/team-one.1").touch()
                wait_until(lambda: _shown(second, "team-one") == (2, "active"), "its demand counts")
                stopped(first, process)
            assert _shown(second, "other") == (-1, "")
        for statement in (
            "SELECT bytes FROM refresher.record",
            "SELECT * FROM refresher.lease",
            "SELECT * FROM refresher.orphan",
            "SELECT * FROM refresher.spent",
            "SELECT * FROM refresher.demand",
            "SELECT * FROM refresher.mirror",
            "INSERT INTO refresher.demand (name, generation) VALUES ('other', 1)",
            "INSERT INTO refresher.seen (name, grant_id, generation, host) VALUES ('other', 'x', 9, 'h')",
            f"SELECT refresher.allow_mirror('{role}', '*')",
            "UPDATE refresher.record SET published = NULL",
            "DELETE FROM refresher.demand",
        ):
            with (
                psycopg.connect(url, autocommit=True) as connection,
                pytest.raises(psycopg.Error, match=r"permission|policy"),
            ):
                connection.execute(statement.encode())
    finally:
        site.execute(f"DROP OWNED BY {role}")
        site.execute(f"DROP ROLE {role}")


def test_the_pages_of_run_show_the_grants_of_the_database(site: Site) -> None:
    """If it failed, a person would see no grant on the page, and monitoring none in the metrics."""
    host = site.host("a")
    with TokenServer(lambda _: 3600, grace=0) as server:
        _import(host, server, "linear")
        port = free_port()
        with running(host, "--listen", f"127.0.0.1:{port}") as process:
            url = f"http://127.0.0.1:{port}"
            wait_until(lambda: site.generation("linear") == 1, "it is rotated")
            wait_until(lambda: "linear" in _get(f"{url}/metrics"), "the metrics have it")
            wait_until(lambda: '"fresh": 1' in _get(f"{url}/readyz").replace(":1", ": 1"), "it is ready")
            stopped(host, process)


def _get(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            text: str = answer.read().decode()
            return text
    except OSError:
        return ""
