"""Several ``refresher run`` with one database: its budget, its restarts, its silence, and kills."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.soak import cluster
from tests.support.command import wait_until
from tests.support.daemon import running, stopped
from tests.support.postgres import FAST, Cluster
from tests.support.site import Site, opened
from tests.support.token_server import Gate, TokenServer
from tests.support.vault import Vault


@pytest.fixture
def own(postgres: Cluster) -> Iterator[Cluster]:
    """A server that a test may stop."""
    from tests.support import postgres as support

    with support.running(*FAST) as made:
        yield made


@pytest.fixture
def site(tmp_path: Path, own: Cluster, vault: Vault) -> Iterator[Site]:
    with opened(tmp_path, own, vault) as made:
        yield made


def test_two_daemons_keep_the_budget_of_a_server(site: Site) -> None:
    """If it failed, each further refresher would send a server as many requests again, until it blocks them all."""
    first, second = site.host("a"), site.host("b")
    with TokenServer(lambda _: 3600, grace=0) as server:
        for number in range(90):
            first.bring(f"grant-{number}", server.grant(f"grant-{number}"), store=site.store)
        with running(first) as one, running(second) as other:
            wait_until(lambda: len(server.asked) == 90, "all have rotated")
            stopped(first, one)
            stopped(second, other)
        assert server.reused == 0
        # What each of the two had claimed before a second can come in it: at most 8.
        assert cluster.busiest(server) <= 40 + 20 + 2 * 8


def test_daemons_outlive_a_restart_of_their_database(site: Site, own: Cluster) -> None:
    """If it failed, a restart of the database would end refreshers, or cost a login."""
    first, second = site.host("a"), site.host("b")
    names = [f"grant-{number}" for number in range(4)]
    with TokenServer(lambda _: 3, grace=0) as server:
        for name in names:
            first.import_grant(name, server.grant(name))
        with running(first) as one, running(second) as other:
            wait_until(lambda: all(len(server.asked[name]) > 1 for name in names), "all rotate")
            own.stop("immediate")
            own.start()
            reached = {name: site.generation(name) for name in names}
            wait_until(lambda: all(site.generation(n) > reached[n] + 1 for n in names), "all rotate again")
            logs = stopped(first, one), stopped(second, other)
        assert server.reused == 0
        assert site.orphans() == []
        assert all(log.count("nothing is rotated until it is back") <= 4 for log in logs), logs


def test_a_daemon_ends_although_its_database_does_not_answer(site: Site, own: Cluster) -> None:
    """If it failed, a stop would last as long as the fault of a disk, and be ended by a kill that loses a token."""
    gate = Gate()
    host = site.host("a")
    with TokenServer(lambda _: 3600, gate, grace=0) as server:
        host.import_grant("linear", server.grant("linear"))
        with running(host) as process:
            assert gate.reached.wait(90)
            with own.frozen():
                gate.opened.set()
                process.send_signal(signal.SIGTERM)
                done = host.finish(process)
                assert done.code == 0, done.stderr
                assert list((host.state / "grants").glob("linear.*.spill"))
        assert host("run-once").code == 0
        assert site.generation("linear") == 1
        assert not list((host.state / "grants").glob("*.spill"))
        assert server.reused == 0


def test_short_chaos_costs_only_what_a_kill_can_cost(postgres: Cluster) -> None:
    """If it failed, refreshers that share a database would lose logins when one of them dies or sleeps."""
    found = cluster.Chaos(7, 10.0, grants=40, refreshers=4, interval=1.5, hasten=True).run()
    assert found.violations == [], cluster.text(found)
    assert found.faults["kills"] > 0
    assert found.exchanges > 40
