"""Rotations against a certified authorization server that revokes the family on reuse."""

from collections.abc import Callable

import pytest

from tests.support.command import Command
from tests.support.oidc import OIDC

RESOURCE = "https://mcp.example/mcp"


def test_fifty_rotations_leave_every_token_good_and_no_refresh_token_presented_twice(
    refresher: Command, own_oidc: Callable[..., OIDC]
) -> None:
    """If it failed, a plain run of rotations would destroy the login that it is there to keep."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("basic", RESOURCE))
    for generation in range(1, 51):
        done = refresher("run-once", "--force", "--json", "linear")
        assert done.code == 0, done.stdout
        assert done.results["linear"]["outcome"] == "rotated"
        token = refresher.token("linear")
        assert (token.generation, token.state) == (generation, "active")
        seen = server.introspect(token.access_token)
        assert seen["active"], f"generation {generation} is not accepted"
        assert seen["aud"] == RESOURCE
    log = server.log()
    assert len(log["requests"]) == 50
    assert (log["reused"], log["presented_twice"]) == (0, 0)
    assert refresher.leftovers() == []


@pytest.mark.parametrize("client", ["basic", "post", "public"])
def test_each_way_of_client_authentication_is_accepted(
    refresher: Command, own_oidc: Callable[..., OIDC], client: str
) -> None:
    """If it failed, clients with this kind of authentication could not rotate at all."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint(client))
    done = refresher("run-once", "--json")
    assert done.results["linear"]["outcome"] == "rotated"
    request = server.requests()[0]
    assert request["client_auth"] == {"public": "none"}.get(client, client)
    assert request["user_agent"].startswith("refresher/")
    assert server.introspect(refresher.token("linear").access_token)["active"]


@pytest.mark.parametrize("send_resource", [True, False])
def test_the_resource_goes_along_verbatim_unless_it_is_switched_off(
    refresher: Command, own_oidc: Callable[..., OIDC], send_resource: bool
) -> None:
    """If it failed, MCP servers would get tokens for another audience, or Entra would refuse every refresh."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public", RESOURCE) | {"send_resource": send_resource})
    assert refresher("run-once").code == 0
    assert server.requests()[0]["resource"] == (RESOURCE if send_resource else None)


def test_eight_forced_runs_at_once_never_present_a_refresh_token_twice(
    refresher: Command, own_oidc: Callable[..., OIDC]
) -> None:
    """If it failed, processes that start together would revoke each other's login: why this product exists."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("basic"))
    for _ in range(20):
        running = [refresher.start("run-once", "--force", "--json", "linear") for _ in range(8)]
        for done in [refresher.finish(process) for process in running]:
            assert done.code == 0, done.stdout
            assert done.results["linear"]["outcome"] in ("rotated", "adopted")
    log = server.log()
    assert (log["reused"], log["presented_twice"]) == (0, 0)
    assert {request["status"] for request in log["requests"]} == {200}
    token = refresher.token("linear")
    assert token.generation == len(log["requests"])
    assert server.introspect(token.access_token)["active"], "the grant did not live through it"
    assert refresher.leftovers() == []


def test_a_dead_grant_needs_a_person_and_its_live_token_stays_published(
    refresher: Command, own_oidc: Callable[..., OIDC]
) -> None:
    """If it failed, agents would lose a live token to a failed refresh, or the grant's record would be gone."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public"))
    assert refresher("run-once").code == 0
    before = refresher.grant("linear")
    live = refresher.token("linear").access_token
    server.script(status=400, body={"error": "invalid_grant", "error_description": "the user left the company"})
    done = refresher("run-once", "--force", "--json")
    assert (done.code, done.results["linear"]["outcome"]) == (3, "reauthorization_required")
    assert "the user left the company" in done.results["linear"]["detail"]
    after = refresher.grant("linear")
    assert (after.refresh_token, after.generation) == (before.refresh_token, before.generation)
    token = refresher.token("linear")
    assert (token.state, token.access_token) == ("reauthorization_required", live)
    assert server.introspect(live)["active"]
    assert token.error is not None
    assert (token.error.code, token.error.retry_at) == ("invalid_grant", None)
    assert "the user left the company" in token.error.description
    again = refresher("run-once", "--json")
    assert (again.code, again.results["linear"]["outcome"]) == (3, "reauthorization_required")
    assert len(server.requests()) == 2, "a dead grant was asked again without a person"


def test_a_mistaken_verdict_is_healed_by_force_and_remembered(
    refresher: Command, own_oidc: Callable[..., OIDC]
) -> None:
    """If it failed, a server's moment of confusion would cost a login for good."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public"))
    assert refresher("run-once").code == 0
    server.script(status=401, body={"error": "invalid_grant"})
    assert refresher("run-once", "--force").code == 3
    done = refresher("run-once", "--force", "--json")
    assert (done.code, done.results["linear"]["outcome"]) == (0, "rotated")
    assert refresher.token("linear").state == "active"
    assert refresher.grant("linear").refuses_early


def test_a_new_import_goes_on_counting_and_heals_a_dead_grant(
    refresher: Command, own_oidc: Callable[..., OIDC]
) -> None:
    """If it failed, agents would take a new login for an older token and keep the dead one."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public"))
    refresher("run-once")
    server.revoke(server.last_grant_id)
    assert refresher("run-once", "--force").code == 3
    refresher.import_grant("linear", server.mint("public"), "--replace")
    assert refresher.grant("linear").generation == 2
    assert refresher("run-once").code == 0
    token = refresher.token("linear")
    assert (token.generation, token.state) == (3, "active")
    assert server.introspect(token.access_token)["active"]


def test_demands_rotate_the_current_generation_and_republish_an_older_one(
    refresher: Command, own_oidc: Callable[..., OIDC]
) -> None:
    """If it failed, an agent whose token was revoked could not ask for another, or an old cry would burn a grant."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public"))
    refresher("run-once")
    demands = refresher.state / "demands"
    (demands / "linear.1").touch()
    (demands / "nobody.1").touch()
    done = refresher("run-once", "--json")
    assert done.results["linear"]["outcome"] == "not_due", "a rotation within a second of the last was not held back"
    refresher_waits_for_its_second(refresher)
    done = refresher("run-once", "--json")
    assert (done.results["linear"]["outcome"], done.results["linear"]["generation"]) == ("rotated", 2)
    assert [path.name for path in demands.iterdir()] == ["nobody.1"]
    published = (refresher.state / "tokens/linear.json").stat()
    (demands / "linear.1").touch()
    done = refresher("run-once", "--json")
    assert done.results["linear"]["outcome"] == "not_due"
    assert (refresher.state / "tokens/linear.json").stat().st_ino != published.st_ino, "it was not published again"
    assert [path.name for path in demands.iterdir()] == ["nobody.1"]
    assert len(server.requests()) == 2


def refresher_waits_for_its_second(refresher: Command) -> None:
    """Wait until a demand may be honoured: one second after the last rotation."""
    import time

    from tests.support.command import wait_until

    last = refresher.grant("linear").last_rotation_at or 0.0
    wait_until(lambda: time.time() > last + 1.0, "a second has passed since the last rotation")
