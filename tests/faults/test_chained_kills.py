"""A rotation that needs the token of another grant, killed at each of its requests."""

import subprocess
import threading
from collections.abc import Iterator

import pytest

from tests.support.assertion_server import AssertionServer
from tests.support.command import Command, wait_until
from tests.support.daemon import running, stopped
from tests.support.vault import Vault

STEPS = ("refresh_token", "token_exchange", "jwt_bearer")


@pytest.fixture
def company(vault: Vault) -> Iterator[AssertionServer]:
    """The identity provider of a company."""
    with AssertionServer() as made:
        yield made
    vault.learn(*made.issued)


@pytest.fixture
def saas(company: AssertionServer, vault: Vault) -> Iterator[AssertionServer]:
    """The authorization server of an MCP server."""
    with AssertionServer(company.own) as made:
        yield made
    vault.learn(*made.issued, *(fields["assertion"] for fields in made.requests))


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("replay", [True, False], ids=["replay", "no replay"])
def test_a_chained_rotation_that_is_killed_goes_on_or_names_the_login(
    refresher: Command, company: AssertionServer, saas: AssertionServer, step: str, replay: bool
) -> None:
    """If it failed, a kill between two grants would leave one in doubt, or send a refresh token twice (I1, I4)."""
    expired = company.own.token("company", lifetime=-10.0)
    more = {"replay": "unlimited"} if replay else {}
    refresher.import_grant("company", company.person(id_token=expired, **more))
    refresher.import_grant("saas", saas.managed("company"))
    wanted = AssertionServer.grant_type(step)
    killed = threading.Event()
    process: list[subprocess.Popen[str]] = []
    spent = company.refresh_token

    def kill(fields: dict[str, str]) -> None:
        if fields["grant_type"] == wanted and not killed.is_set():
            killed.set()
            process[0].kill()
            process[0].wait()

    company.before = saas.before = kill
    process.append(refresher.start("run-once", "saas"))
    refresher.finish(process[0])
    assert killed.is_set()
    company.replayed = spent if replay else None
    done = refresher("run-once", "saas", "--json")
    sent = [fields["refresh_token"] for fields in company.asked("refresh_token")]
    if step == "refresh_token" and not replay:
        # The only copy of the refresh token was in the answer.
        assert done.outcome == "transient"
        assert "its source company has no valid id_token now" in done.results["saas"]["detail"]
        assert sent == [spent]
        assert refresher("run-once", "company", "--force").code == 3
        done = refresher("run-once", "saas", "--json")  # at once, without a wait for the end of its backoff
        assert done.outcome == "reauthorization_required"
        assert "'refresher login company' brings back every grant that needs it" in done.results["saas"]["detail"]
    else:
        assert done.outcome == "rotated", done
        assert sent == [spent, spent] if step == "refresh_token" else [spent]
        assert refresher.grant("company").doubt is None
    assert refresher.grant("saas").doubt is None, "nothing was spent"
    assert refresher.leftovers() == []


def test_run_renews_what_another_grant_feeds(
    refresher: Command, company: AssertionServer, saas: AssertionServer
) -> None:
    """If it failed, agents would wait for the backoff after a login has brought back what they need."""
    refresher.import_grant("company", company.person())
    refresher.import_grant("saas", saas.managed("company"))
    about = {"grant_type": "token_exchange", "client_id": "api", "server_url": "https://api.example"}
    refresher.import_grant("api", {"token_endpoint": company.token_endpoint, "subject_grant": "company", **about})

    def generations() -> list[int]:
        return [refresher.grant(name).generation for name in ("company", "saas", "api")]

    with running(refresher) as process:
        wait_until(lambda: generations() == [1, 1, 1], "each grant has a token")
        assert len(company.asked("refresh_token")) == 1
        assert refresher("run-once", "company", "--force").code == 0
        wait_until(lambda: generations() == [2, 1, 2], "the exchanged token is renewed")
        company.dead = True
        assert refresher("run-once", "company", "--force").code == 3
        assert refresher("run-once", "saas", "--force").code == 0, "the id_token is still valid"
        company.answer = lambda fields: (400, {"error": "access_denied"}) if "audience" in fields else None
        assert refresher("run-once", "saas", "--force").code == 3
        company.dead, company.answer = False, lambda _: None
        refresher.import_grant("company", company.person(refresh_token=company.renew()), "--replace")
        wait_until(lambda: refresher.grant("api").generation >= 3, "the login brings it back")
        assert refresher.grant("saas").dead, "a denial does not end by a login"
        stopped(refresher, process)
