"""The servers and the person of the login tests, used without refresher."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote_plus

import httpx
import jwt
import pytest

from tests.conftest import need
from tests.support import chromium, conformance
from tests.support import oidc as oidc_module
from tests.support.browser import as_browser
from tests.support.command import wait_until
from tests.support.keys import key
from tests.support.login_requests import (
    DEVICE,
    NATIVE,
    STATE,
    WELCOME,
    Loopback,
    asking,
    code,
    discovered,
    exchange,
    register,
    taken,
)
from tests.support.mcp_login import MCPLogin
from tests.support.mcp_server import MCPServerProcess
from tests.support.oidc import OIDC
from tests.support.person import Person
from tests.support.vault import Vault

Start = Callable[..., OIDC]
DOCUMENT = "https://refresher.example/client.json"


@pytest.fixture
def loopback() -> Iterator[Loopback]:
    with Loopback().listening() as made:
        yield made


class Servers(NamedTuple):
    """oidc-provider, and an MCP server that accepts its tokens."""

    oidc: OIDC
    mcp: MCPServerProcess
    private_key: Path

    def client(self, kind: str, loopback: Loopback) -> tuple[dict[str, str], httpx.BasicAuth | None]:
        """Return how a client of a kind authenticates: fields of its token requests, and a header."""
        if kind == "registered":
            return {"client_id": register(discovered(self.mcp.url), loopback)}, None
        if kind == "document":
            return {"client_id": DOCUMENT}, None
        if kind in self.oidc.secrets:
            return {"client_id": kind}, httpx.BasicAuth(kind, quote_plus(self.oidc.secrets[kind]))
        if kind != "jwt":
            return {"client_id": kind}, None
        claims = {"iss": kind, "sub": kind, "aud": self.oidc.endpoints["issuer"], "jti": kind, "exp": 2**33}
        signed = jwt.encode(claims, self.private_key.read_bytes(), "ES256")
        bearer = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
        return {"client_id": kind, "client_assertion_type": bearer, "client_assertion": signed}, None


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    need(oidc_module.missing())
    private_key = tmp_path_factory.mktemp("keys") / "jwt.pem"
    documents = {DOCUMENT: {**NATIVE, "client_id": DOCUMENT}}
    with OIDC(Vault(), jwk=key(private_key), documents=documents) as oidc, MCPServerProcess(oidc) as mcp:
        yield Servers(oidc, mcp, private_key)


@pytest.mark.parametrize("kind", ["registered", "document", "public", "basic", "post", "jwt"])
def test_a_person_logs_in_at_oidc_provider(servers: Servers, loopback: Loopback, kind: str) -> None:
    """If it failed, no login of such a client could be tested."""
    metadata, resource = discovered(servers.mcp.url), servers.mcp.url
    fields, auth = servers.client(kind, loopback)
    assert Person().open(asking(metadata, fields["client_id"], loopback, resource)) == WELCOME
    (came,) = loopback.came
    assert (came["state"], came["iss"]) == (STATE, servers.oidc.endpoints["issuer"])
    tokens = exchange(metadata, code(loopback, resource) | fields, auth)
    assert tokens["refresh_token"]
    assert taken(resource, tokens["access_token"])
    assert not taken(resource, "another")
    assert servers.oidc.introspect(tokens["access_token"])["aud"] == resource


@pytest.mark.parametrize(
    ("options", "refreshable"),
    [({}, True), ({"consent": "page"}, True), ({"discovery": "server"}, True), ({"refresh_tokens": False}, False)],
)
def test_a_person_logs_in_at_an_mcp_server_with_its_own_authorization_server(
    loopback: Loopback, options: dict[str, Any], refreshable: bool
) -> None:
    """If it failed, no login at such a server could be tested."""
    with MCPLogin(**options) as mcp:
        metadata = discovered(mcp.url)
        client_id = register(metadata, loopback)
        address = asking(metadata, client_id, loopback, mcp.url)
        assert Person().open(address) == WELCOME
        tokens = exchange(metadata, code(loopback, mcp.url) | {"client_id": client_id})
        assert tokens["refresh_token"] is not None if refreshable else "refresh_token" not in tokens
        assert taken(mcp.url, tokens["access_token"])
        gone = {"client_id": client_id, "client_secret": "", "token": tokens["access_token"]}  # the SDK requires both
        httpx.post(
            metadata["revocation_endpoint"], data=gone, trust_env=False, verify=False, timeout=60
        ).raise_for_status()
        assert not taken(mcp.url, tokens["access_token"])
        assert mcp.seen() == {"registered": 1, "authorized": 1, "exchanged": 1, "revoked": 1}
        mcp.forget()
        assert "not found" in Person().open(address)


@pytest.mark.parametrize(
    ("habit", "came"),
    [
        ("deny", [("access_denied", STATE, True)]),
        ("wrong-state", [(None, "wrong", True), (None, STATE, True)]),
        ("wrong-issuer", [(None, STATE, False)]),
        ("twice", [(None, STATE, True), (None, STATE, True)]),
        ("paste", []),
        ("close", []),
    ],
)
def test_a_person_can_deny_close_or_send_a_wrong_redirect(
    servers: Servers, loopback: Loopback, habit: str, came: list[tuple[str | None, str, bool]]
) -> None:
    """If it failed, logins that go wrong could not be tested."""
    address = asking(discovered(servers.mcp.url), "public", loopback, servers.mcp.url)
    text = Person(habit).open(address)
    issuer = servers.oidc.endpoints["issuer"]
    assert [(query.get("error"), query["state"], query["iss"] == issuer) for query in loopback.came] == came
    assert (f"state={STATE}" in text) == (habit == "paste")


def test_two_logins_of_one_person_share_a_grant_at_the_server(
    servers: Servers, loopback: Loopback, tmp_path: Path
) -> None:
    """If it failed, the effect of a second login on the first could not be tested."""
    metadata = discovered(servers.mcp.url)
    client = {"client_id": register(metadata, loopback)}
    tokens = []
    for _ in range(2):
        Person(jar=tmp_path / "jar").open(asking(metadata, client["client_id"], loopback, servers.mcp.url))
        tokens.append(exchange(metadata, code(loopback, servers.mcp.url) | client))
    old = client | {"token": tokens[0]["refresh_token"]}
    httpx.post(metadata["revocation_endpoint"], data=old, trust_env=False, verify=False, timeout=60).raise_for_status()
    # The server has one grant of this person to this client, and revokes it with all its tokens.
    assert not taken(servers.mcp.url, tokens[1]["access_token"])


@pytest.mark.parametrize(
    ("discovery", "statuses"), [("resource", [200, 200]), ("server", [404, 200]), ("nothing", [404, 404])]
)
def test_discovery_documents_of_three_mcp_versions(discovery: str, statuses: list[int]) -> None:
    """If it failed, the test of a login at an old server would use a new one."""
    with MCPLogin(discovery=discovery) as mcp:
        addresses = [
            f"{mcp.issuer}/.well-known/{name}"
            for name in ("oauth-protected-resource/mcp", "oauth-authorization-server")
        ]
        assert [
            httpx.get(address, trust_env=False, verify=False, timeout=60).status_code for address in addresses
        ] == statuses
        challenge = httpx.post(mcp.url, json={}, trust_env=False, verify=False, timeout=60).headers["WWW-Authenticate"]
        assert ("resource_metadata" in challenge) == (discovery == "resource")
        assert httpx.get(f"{mcp.issuer}/authorize", trust_env=False, verify=False, timeout=60).status_code == 400


@pytest.mark.parametrize(("config", "error"), [({"deny": True}, "access_denied"), ({"refreshTokens": False}, None)])
def test_a_server_denies_access_or_issues_no_refresh_token(
    own_oidc: Start, loopback: Loopback, config: dict[str, Any], error: str | None
) -> None:
    """If it failed, logins without a refresh token could not be tested."""
    oidc = own_oidc(**config)
    client_id = register(oidc.endpoints, loopback)
    address = asking(
        {**oidc.endpoints, "scopes_supported": ["offline_access"]}, client_id, loopback, "https://mcp.example"
    )
    Person().open(address)
    assert loopback.came[-1].get("error") == error
    if error is None:
        tokens = exchange(oidc.endpoints, code(loopback, "https://mcp.example") | {"client_id": client_id})
        assert "refresh_token" not in tokens
        assert oidc.introspect(tokens["access_token"])["active"]
    oidc.forget(client_id)
    assert "invalid_client" in Person().open(address)


@pytest.mark.parametrize("typed", [True, False])
@pytest.mark.parametrize(("habit", "error"), [(None, None), ("deny", "access_denied")])
def test_a_person_approves_a_device(servers: Servers, habit: str | None, error: str | None, typed: bool) -> None:
    """If it failed, login on another device could not be tested."""
    endpoints = servers.oidc.endpoints
    fields = {"client_id": "public", "scope": "offline_access", "resource": servers.mcp.url}
    device = (
        httpx.post(endpoints["device_authorization_endpoint"], data=fields, trust_env=False, verify=False, timeout=60)
        .raise_for_status()
        .json()
    )
    assert device["interval"] == 1
    poll = {"grant_type": DEVICE, "client_id": "public", "device_code": device["device_code"]}
    assert exchange(endpoints, poll)["error"] == "authorization_pending"
    if typed:
        Person(habit, device["user_code"]).open(device["verification_uri"])
    else:
        Person(habit).open(device["verification_uri_complete"])
    tokens = exchange(endpoints, poll)
    assert tokens.get("error") == error
    if error is None:
        assert tokens["refresh_token"]
        assert servers.oidc.introspect(tokens["access_token"])["aud"] == servers.mcp.url


@pytest.mark.parametrize("browser", ["person", "chromium"])
def test_a_command_opens_a_browser(loopback: Loopback, tmp_path: Path, browser: str) -> None:
    """If it failed, the tests of logins would open no browser."""
    need(chromium.missing() if browser == "chromium" else None)
    with MCPLogin(consent="auto") as mcp:
        metadata = discovered(mcp.url)
        address = asking(metadata, register(metadata, loopback), loopback, mcp.url)
        page = tmp_path / "page"
        opened = [sys.executable, "-c", f"import webbrowser; assert webbrowser.open({address!r})"]
        subprocess.run(opened, env={**os.environ, **as_browser(browser, "--to", str(page))}, cwd=tmp_path, check=True)
        wait_until(lambda: page.is_file() and WELCOME in page.read_text(), "the browser has come back")
    assert loopback.came[-1]["state"] == STATE


def test_the_conformance_suite_fails_a_client_that_does_nothing(tmp_path: Path) -> None:
    """If it failed, a client that never logs in could pass."""
    need(conformance.missing())
    context = tmp_path / "context"
    code = f"import os, pathlib, sys; pathlib.Path({str(context)!r}).write_text(os.environ['MCP_CONFORMANCE_CONTEXT'])"
    verdict = conformance.run("auth/pre-registration", [sys.executable, "-c", code])
    assert not verdict.passed
    assert verdict.failed == {"pre-registration-auth": "Client did not make a token request"}
    assert {"client_id", "client_secret"} <= json.loads(context.read_text()).keys()
