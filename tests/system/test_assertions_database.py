"""Grants that need the token of another one, in a database that several hosts share."""

from tests.support.assertion_server import AssertionServer
from tests.support.command import wait_until
from tests.support.daemon import running, stopped
from tests.support.site import Site


def test_hosts_that_share_a_source_exchange_it_once(site: Site) -> None:
    """If it failed, each host and each grant would spend a refresh token of the login at the company (I3)."""
    with AssertionServer() as company, AssertionServer(company.own) as saas:
        one, two = site.host("one"), site.host("two")
        one.import_grant("company", company.person())
        about = {"grant_type": "token_exchange", "client_id": "api", "server_url": "https://api.example"}
        names = [f"{kind}-{number}" for kind in ("saas", "api") for number in range(3)]
        for name in names:
            exchanged = {"token_endpoint": company.token_endpoint, "subject_grant": "company", **about}
            one.import_grant(name, saas.managed("company") if name.startswith("saas") else exchanged)
        with running(one) as first, running(two) as second:
            wait_until(lambda: [site.generation(name) for name in names] == [1] * len(names), "each has a token")
            logs = stopped(one, first), stopped(two, second)
        assert len(company.asked("refresh_token")) == 1
        assert len(company.asked("token_exchange")) == len(names)
        assert len(saas.requests) == 3
        assert not [log for log in logs if "transient" in log]


def test_a_source_that_rotates_early_renews_what_it_feeds_on_any_host(site: Site) -> None:
    """If it failed, agents would keep a token made from one that was replaced, until its own schedule an hour later."""
    with AssertionServer() as company:
        one, two = site.host("one"), site.host("two")
        one.import_grant("company", company.person())
        about = {"grant_type": "token_exchange", "client_id": "api", "server_url": "https://api.example"}
        one.import_grant("api", {"token_endpoint": company.token_endpoint, "subject_grant": "company", **about})
        with running(one) as process:
            wait_until(lambda: site.generation("api") == 1, "it has a token")
            assert two("run-once", "company", "--force").code == 0
            wait_until(lambda: site.generation("api") == 2, "it has a token from the new one of its source")
            stopped(one, process)
        assert len(company.asked("refresh_token")) == 2
