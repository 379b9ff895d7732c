"""Rotations against a certified authorization server that revokes the family on reuse."""

from collections.abc import Callable

import pytest

from tests.support.command import Command, wait_until
from tests.support.oidc import OIDC

RESOURCE = "https://mcp.example/mcp"


def test_twenty_rotations_give_valid_tokens_and_send_no_refresh_token_twice(
    refresher: Command, own_oidc: Callable[..., OIDC]
) -> None:
    """If it failed, ordinary rotations would end the login."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("basic", RESOURCE))
    for generation in range(1, 21):
        done = refresher("run-once", "--force", "--json", "linear")
        assert done.code == 0, done.stdout
        assert done.results["linear"]["outcome"] == "rotated"
        token = refresher.token("linear")
        assert (token.generation, token.state) == (generation, "active")
        claims = server.introspect(token.access_token)
        assert claims["active"], f"generation {generation} is not accepted"
        assert claims["aud"] == RESOURCE
    log = server.log()
    assert len(log["requests"]) == 20
    assert (log["reused"], log["presented_twice"]) == (0, 0)
    assert refresher.leftovers() == []


@pytest.mark.parametrize("client", ["basic", "post", "public"])
def test_each_way_of_client_authentication_is_accepted(
    refresher: Command, own_oidc: Callable[..., OIDC], client: str
) -> None:
    """If it failed, grants of clients with this authentication could not rotate."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint(client))
    done = refresher("run-once", "--json")
    assert done.results["linear"]["outcome"] == "rotated"
    request = server.requests()[0]
    assert request["client_auth"] == {"public": "none"}.get(client, client)
    assert request["user_agent"].startswith("refresher/")
    assert server.introspect(refresher.token("linear").access_token)["active"]


@pytest.mark.parametrize("send_resource", [True, False])
def test_the_resource_is_sent_verbatim_unless_it_is_switched_off(
    refresher: Command, own_oidc: Callable[..., OIDC], send_resource: bool
) -> None:
    """If it failed, MCP servers would get tokens for another audience, or Entra would refuse every refresh."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public", RESOURCE) | {"send_resource": send_resource})
    assert refresher("run-once").code == 0
    assert server.requests()[0]["resource"] == (RESOURCE if send_resource else None)


def test_eight_forced_runs_at_once_never_send_a_refresh_token_twice(
    refresher: Command, own_oidc: Callable[..., OIDC]
) -> None:
    """If it failed, processes that start together would end each other's login."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("basic"))
    for _ in range(8):
        running = [refresher.start("run-once", "--force", "--json", "linear") for _ in range(8)]
        for done in [refresher.finish(process) for process in running]:
            assert done.code == 0, done.stdout
            assert done.results["linear"]["outcome"] in ("rotated", "adopted")
    log = server.log()
    assert (log["reused"], log["presented_twice"]) == (0, 0)
    assert {request["status"] for request in log["requests"]} == {200}
    token = refresher.token("linear")
    assert token.generation == len(log["requests"])
    assert server.introspect(token.access_token)["active"], "the grant was revoked"
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
    assert len(server.requests()) == 2, "a dead grant was refreshed again without a person"


def test_force_repairs_a_grant_that_was_rejected_by_mistake(refresher: Command, own_oidc: Callable[..., OIDC]) -> None:
    """If it failed, one mistaken answer of a server would cost a login."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public"))
    assert refresher("run-once").code == 0
    server.script(status=401, body={"error": "invalid_grant"})
    assert refresher("run-once", "--force").code == 3
    done = refresher("run-once", "--force", "--json")
    assert (done.code, done.results["linear"]["outcome"]) == (0, "rotated")
    assert refresher.token("linear").state == "active"
    assert refresher.grant("linear").refuses_early


def test_a_new_import_continues_the_generation_and_replaces_a_dead_grant(
    refresher: Command, own_oidc: Callable[..., OIDC]
) -> None:
    """If it failed, agents would keep the dead token, because the new one would have a lower generation."""
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
    """If it failed, an agent whose token was revoked could not ask for another, or an outdated demand would cause a rotation."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public"))
    refresher("run-once")
    demands = refresher.state / "demands"
    (demands / "linear.1").touch()
    (demands / "nobody.1").touch()
    first = refresher.grant("linear").last_rotation_at
    assert first is not None

    def rotated() -> bool:
        outcome = refresher("run-once", "--json").results["linear"]["outcome"]
        assert outcome in ("not_due", "rotated")
        return bool(outcome == "rotated")

    wait_until(rotated, "the demand is answered")
    second = refresher.grant("linear")
    assert second.generation == 2
    assert second.last_rotation_at is not None
    assert second.last_rotation_at >= first + 1.0, "the second rotation followed within a second"
    assert [path.name for path in demands.iterdir()] == ["nobody.1"]
    published = (refresher.state / "tokens/linear.json").stat()
    (demands / "linear.1").touch()
    done = refresher("run-once", "--json")
    assert done.results["linear"]["outcome"] == "not_due"
    assert (refresher.state / "tokens/linear.json").stat().st_ino != published.st_ino, "it was not published again"
    assert [path.name for path in demands.iterdir()] == ["nobody.1"]
    assert len(server.requests()) == 2
