"""Tokens of others at oidc-provider, a certified server; its extension points accept them as the RFCs say."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from tests.support.assertion_server import Issuer
from tests.support.command import Command
from tests.support.oidc import OIDC

Start = Callable[..., OIDC]


def _keys(server: OIDC) -> dict[str, Any]:
    keys: dict[str, Any] = httpx.get(server.endpoints["jwks_uri"], trust_env=False).raise_for_status().json()
    return {"issuer": server.endpoints["issuer"], "jwks": keys}


def test_a_workload_gets_tokens_from_a_certified_server(refresher: Command, own_oidc: Start, tmp_path: Path) -> None:
    """If it failed, a platform's token could not be used at a real server."""
    platform, path = Issuer(), tmp_path / "token"
    server = own_oidc(trusted=[{"issuer": platform.issuer, "jwks": platform.jwks}])
    refresher.vault.learn(platform.write(path, server.endpoints["token_endpoint"]))
    fields = {
        "token_endpoint": server.endpoints["token_endpoint"],
        "client_id": "workload",
        "grant_type": "jwt_bearer",
        "assertion_file": str(path),
        "server_url": "https://mcp.example/mcp",
    }
    refresher.import_grant("work", fields)
    assert refresher("run-once", "--json").outcome == "rotated"
    assert server.introspect(refresher.token("work").access_token)["sub"] == "workload"
    refresher.vault.learn(platform.write(path, "https://other.example"))
    refused = refresher("run-once", "--force", "--json")
    assert refused.outcome == "transient"
    assert "whose audience is https://other.example" in refused.results["work"]["detail"]
    path.unlink()


def test_one_login_feeds_a_server_and_an_exchange(refresher: Command, own_oidc: Start) -> None:
    """If it failed, enterprise-managed authorization would work with the servers of these tests alone."""
    company = own_oidc()
    saas = own_oidc(trusted=[_keys(company)])
    refresher.import_grant("company", company.mint("public"))
    managed = {
        "token_endpoint": saas.endpoints["token_endpoint"],
        "issuer": saas.endpoints["issuer"],
        "client_id": "workload",
        "grant_type": "jwt_bearer",
        "idp": "company",
        "resource": "https://mcp.example/mcp",
        "server_url": "https://mcp.example/mcp",
    }
    exchanged = {
        "token_endpoint": company.endpoints["token_endpoint"],
        "client_id": "public",
        "grant_type": "token_exchange",
        "subject_grant": "company",
        "audience": "https://api.example",
        "server_url": "https://api.example",
    }
    assert refresher("run-once", "company", "--json").outcome == "rotated"
    refresher.import_grant("saas", managed)
    refresher.import_grant("api", exchanged)
    done = refresher("run-once", "--json")
    assert {name: each["outcome"] for name, each in done.results.items()} == {
        "api": "rotated",
        "company": "not_due",
        "saas": "rotated",
    }, done
    assert saas.introspect(refresher.token("saas").access_token)["sub"] == "test-user"
    assert company.introspect(refresher.token("api").access_token)["active"]
    assert company.log()["reused"] == 0


def test_a_denial_of_a_certified_server_is_shown(refresher: Command, own_oidc: Start) -> None:
    """If it failed, a real policy would look like a fault, and be asked all the time."""
    company = own_oidc(denied=["https://as.example"])
    refresher.import_grant("company", company.mint("public"))
    managed = {
        "token_endpoint": "https://as.example/token",
        "issuer": "https://as.example",
        "client_id": "workload",
        "grant_type": "jwt_bearer",
        "idp": "company",
        "server_url": "https://mcp.example/mcp",
    }
    assert refresher("run-once", "company", "--json").outcome == "rotated"
    refresher.import_grant("saas", managed)
    done = refresher("run-once", "saas", "--json")
    assert (done.code, done.outcome) == (3, "reauthorization_required")
    assert done.results["saas"]["detail"].startswith("blocked by an administrator: the identity provider company")
