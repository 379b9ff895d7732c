"""Logins and refreshes at ten real providers, as their documentation describes them."""

import re
from typing import Any

import pytest

from tests.support.browser import as_browser
from tests.support.command import Command
from tests.support.scripted_provider import PROVIDERS, ScriptedProvider

PERSON = as_browser("person")


def check_stored(refresher: Command, provider: dict[str, Any], server: ScriptedProvider, *, refreshed: bool) -> None:
    """Check the record and the token file after a login or a refresh."""
    grant, stored = refresher.grant("linear"), provider["stored"]
    assert grant.scope == stored["scope"][refreshed]
    assert grant.expires_at == grant.issued_at + stored["lifetime"]
    life = stored.get("refresh_lifetime")
    assert grant.refresh_token_expires_at == (None if life is None else pytest.approx(grant.issued_at + life, abs=1))
    assert (None if grant.account is None else grant.account.label) == stored.get("account")
    # RFC 8414 section 2: without a list, a server takes Basic; each request has one proof.
    offered = provider["metadata"].get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
    assert grant.token_endpoint_auth_method in offered
    assert server.requests[-1].methods == {grant.token_endpoint_auth_method}
    token = refresher.token("linear")
    assert (token.state, token.generation, token.token_type.lower()) == ("active", int(refreshed), "bearer")
    assert token.expires_at == grant.expires_at


@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda provider: provider["name"])
def test_a_login_at_a_documented_provider_is_stored_refreshed_and_ended(
    refresher: Command, provider: dict[str, Any]
) -> None:
    """If it failed, a login at this provider could not be made, or would be lost at its first refresh."""
    with ScriptedProvider(provider) as server:
        secret = refresher.home / "secret.import.json"
        secret.touch(mode=0o600)
        secret.write_text(server.secret)
        refresher.vault.learn(server.secret)
        options = ["--issuer", server.issuer, "--client-id", "client", "--client-secret-file", str(secret)]
        if "requested_scope" in provider:
            options += ["--scope", provider["requested_scope"]]
        if "code_challenge_methods_supported" not in provider["metadata"]:
            options.append("--assume-pkce")
        done = refresher("login", "linear", "https://api.example/v1", *options, environment=PERSON)
        assert done.code == 0, (done.stdout, done.stderr)
        assert server.requests[0].fields["code_verifier"]
        check_stored(refresher, provider, server, refreshed=False)
        before = refresher.refresh_token("linear")

        done = refresher("run-once", "--force", "--json", "linear")
        assert (done.code, done.outcome) == (0, "rotated"), done
        assert server.requests[-1].fields["refresh_token"] == before
        check_stored(refresher, provider, server, refreshed=True)
        keeps = provider.get("same_refresh_token") or "refresh_token" not in provider["refresh"]
        assert (refresher.refresh_token("linear") == before) == keeps

        server.refuses = True
        done = refresher("run-once", "--force", "--json", "linear")
        assert (done.code, done.outcome) == (3, "reauthorization_required"), done
        assert len(server.requests) == 3
        assert refresher.token("linear").state == "reauthorization_required"


def test_each_provider_names_its_sources() -> None:
    """If it failed, nobody could check whether a provider behaves like that."""
    assert len(PROVIDERS) == len({provider["name"] for provider in PROVIDERS}) >= 10
    for provider in PROVIDERS:
        assert {"metadata", "code", "refresh", "refusal"} <= provider["sources"].keys()
        assert provider["sources"].keys() <= provider.keys()
        for source in provider["sources"].values():
            assert re.search(r"\w\.(?:com|dev|de|us|net|io)\b|\bsame (?:page|section)", source), source
