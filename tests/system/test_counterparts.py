"""The servers and the person that the tests of logins use, driven by hand."""

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


class Place(NamedTuple):
    """oidc-provider, and an MCP server that it protects."""

    oidc: OIDC
    mcp: MCPServerProcess
    private_key: Path

    def client(self, kind: str, loopback: Loopback) -> tuple[dict[str, str], httpx.BasicAuth | None]:
        """Return how a client of a kind proves itself: fields of its token requests, and a header."""
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
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    need(oidc_module.missing())
    private_key = tmp_path_factory.mktemp("keys") / "jwt.pem"
    documents = {DOCUMENT: {**NATIVE, "client_id": DOCUMENT}}
    with OIDC(Vault(), jwk=key(private_key), documents=documents) as oidc, MCPServerProcess(oidc) as mcp:
        yield Place(oidc, mcp, private_key)


@pytest.mark.parametrize("kind", ["registered", "document", "public", "basic", "post", "jwt"])
def test_a_person_logs_in_at_oidc_provider(place: Place, loopback: Loopback, kind: str) -> None:
    """If it failed, no login of such a client could be tested."""
    metadata, resource = discovered(place.mcp.url), place.mcp.url
    fields, auth = place.client(kind, loopback)
    assert Person().open(asking(metadata, fields["client_id"], loopback, resource)) == WELCOME
    (came,) = loopback.came
    assert (came["state"], came["iss"]) == (STATE, place.oidc.endpoints["issuer"])
    tokens = exchange(metadata, code(loopback, resource) | fields, auth)
    assert tokens["refresh_token"]
    assert taken(resource, tokens["access_token"])
    assert not taken(resource, "another")
    assert place.oidc.introspect(tokens["access_token"])["aud"] == resource


@pytest.mark.parametrize(
    ("options", "refreshable"),
    [({}, True), ({"consent": "page"}, True), ({"discovery": "server"}, True), ({"refresh_tokens": False}, False)],
)
def test_a_person_logs_in_at_an_mcp_server_of_its_own(
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
        gone = {"client_id": client_id, "client_secret": "", "token": tokens["access_token"]}  # the SDK insists on both
        httpx.post(metadata["revocation_endpoint"], data=gone, trust_env=False).raise_for_status()
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
def test_a_person_has_habits(
    place: Place, loopback: Loopback, habit: str, came: list[tuple[str | None, str, bool]]
) -> None:
    """If it failed, logins that go wrong could not be tested."""
    address = asking(discovered(place.mcp.url), "public", loopback, place.mcp.url)
    text = Person(habit).open(address)
    issuer = place.oidc.endpoints["issuer"]
    assert [(query.get("error"), query["state"], query["iss"] == issuer) for query in loopback.came] == came
    assert (f"state={STATE}" in text) == (habit == "paste")


def test_a_person_is_known_who_comes_again(place: Place, loopback: Loopback, tmp_path: Path) -> None:
    """If it failed, what a second login does to the first could not be tested."""
    metadata = discovered(place.mcp.url)
    client = {"client_id": register(metadata, loopback)}
    tokens = []
    for _ in range(2):
        Person(jar=tmp_path / "jar").open(asking(metadata, client["client_id"], loopback, place.mcp.url))
        tokens.append(exchange(metadata, code(loopback, place.mcp.url) | client))
    old = client | {"token": tokens[0]["refresh_token"]}
    httpx.post(metadata["revocation_endpoint"], data=old, trust_env=False).raise_for_status()
    # The server knows one grant of this person to this client, and ends it with all that came of it.
    assert not taken(place.mcp.url, tokens[1]["access_token"])


@pytest.mark.parametrize(
    ("discovery", "statuses"), [("resource", [200, 200]), ("server", [404, 200]), ("nothing", [404, 404])]
)
def test_servers_of_three_ages(discovery: str, statuses: list[int]) -> None:
    """If it failed, a login at an old server could pass for want of one."""
    with MCPLogin(discovery=discovery) as mcp:
        addresses = [
            f"{mcp.issuer}/.well-known/{name}"
            for name in ("oauth-protected-resource/mcp", "oauth-authorization-server")
        ]
        assert [httpx.get(address, trust_env=False).status_code for address in addresses] == statuses
        told = httpx.post(mcp.url, json={}, trust_env=False).headers["WWW-Authenticate"]
        assert ("resource_metadata" in told) == (discovery == "resource")
        assert httpx.get(f"{mcp.issuer}/authorize", trust_env=False).status_code == 400


@pytest.mark.parametrize(("config", "error"), [({"deny": True}, "access_denied"), ({"refreshTokens": False}, None)])
def test_a_server_that_gives_less(
    own_oidc: Start, loopback: Loopback, config: dict[str, Any], error: str | None
) -> None:
    """If it failed, logins that bring nothing to keep could not be tested."""
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
def test_a_person_approves_a_device(place: Place, habit: str | None, error: str | None, typed: bool) -> None:
    """If it failed, no login without a browser of its own could be tested."""
    endpoints = place.oidc.endpoints
    asked = {"client_id": "public", "scope": "offline_access", "resource": place.mcp.url}
    device = (
        httpx.post(endpoints["device_authorization_endpoint"], data=asked, trust_env=False).raise_for_status().json()
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
        assert place.oidc.introspect(tokens["access_token"])["aud"] == place.mcp.url


@pytest.mark.parametrize("browser", ["person", "chromium"])
def test_a_command_opens_a_browser(loopback: Loopback, tmp_path: Path, browser: str) -> None:
    """If it failed, logins would be tested with no browser, or Python's way to one would not be."""
    need(chromium.missing() if browser == "chromium" else None)
    with MCPLogin(consent="auto") as mcp:
        metadata = discovered(mcp.url)
        address = asking(metadata, register(metadata, loopback), loopback, mcp.url)
        page = tmp_path / "page"
        opened = [sys.executable, "-c", f"import webbrowser; assert webbrowser.open({address!r})"]
        subprocess.run(opened, env={**os.environ, **as_browser(browser, "--to", str(page))}, cwd=tmp_path, check=True)
        wait_until(lambda: page.is_file() and WELCOME in page.read_text(), "the browser has come back")
    assert loopback.came[-1]["state"] == STATE


def test_the_conformance_suite_finds_fault_with_a_client_that_does_nothing(tmp_path: Path) -> None:
    """If it failed, a client could pass that never logged in."""
    need(conformance.missing())
    told = tmp_path / "told"
    does = f"import os, pathlib, sys; pathlib.Path({str(told)!r}).write_text(os.environ['MCP_CONFORMANCE_CONTEXT'])"
    verdict = conformance.run("auth/pre-registration", [sys.executable, "-c", does])
    assert not verdict.passed
    assert verdict.failed == {"pre-registration-auth": "Client did not make a token request"}
    assert {"client_id", "client_secret"} <= json.loads(told.read_text()).keys()
