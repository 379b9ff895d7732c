"""Logins at real servers, each followed by a rotation and a request with the published token."""

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx
import pytest

from refresher.grants.record import Login
from tests.conftest import need
from tests.support import oidc as oidc_module
from tests.support.browser import as_browser
from tests.support.command import Command, Done
from tests.support.keys import key
from tests.support.mcp_login import MCPLogin
from tests.support.mcp_server import MCPServerProcess
from tests.support.oidc import OIDC
from tests.support.vault import Vault

Start = Callable[..., OIDC]
PERSON = as_browser("person")
WELCOME = "You are logged in"
DOCUMENT = "https://refresher.example/client.json"
NATIVE = {
    "client_id": DOCUMENT,
    "redirect_uris": ["http://127.0.0.1/callback"],
    "token_endpoint_auth_method": "none",
    "grant_types": ["authorization_code", "refresh_token"],
    "application_type": "native",
}


class Servers(NamedTuple):
    """oidc-provider, and an MCP server that accepts its tokens."""

    oidc: OIDC
    mcp: MCPServerProcess
    private_key: Path


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    need(oidc_module.missing())
    private_key = tmp_path_factory.mktemp("keys") / "jwt.pem"
    with OIDC(Vault(), jwk=key(private_key), documents={DOCUMENT: NATIVE}) as oidc, MCPServerProcess(oidc) as mcp:
        yield Servers(oidc, mcp, private_key)


def logged_in(done: Done) -> Done:
    """Check that a login succeeded, in the browser and at the terminal."""
    assert done.code == 0, (done.stdout, done.stderr)
    assert WELCOME in done.stdout
    assert "accepted the new token (" in done.stdout
    return done


def accepts(url: str, token: str | None) -> bool:
    """Whether an MCP server accepts a token."""
    headers = {"Authorization": f"Bearer {token}", "Accept": "application/json, text/event-stream"}
    return httpx.post(url, json={}, headers=headers, trust_env=False, verify=False, timeout=60).status_code != 401


def check_rotation(refresher: Command, url: str, name: str = "linear") -> None:
    """Check that the grant rotates, and that the server accepts the published token before and after."""
    before = refresher.token(name)
    assert accepts(url, before.access_token)
    done = refresher("run-once", "--force", "--json", name)
    assert (done.code, done.outcome) == (0, "rotated")
    after = refresher.token(name)
    assert (after.generation, after.origins) == (before.generation + 1, before.origins)
    assert after.origins[0] == url.removesuffix("/mcp")
    assert after.access_token != before.access_token
    assert accepts(url, after.access_token)


def secret_file(refresher: Command, secret: str) -> str:
    """Write a client secret to a file; the vault searches for it everywhere else."""
    path = refresher.home / "secret.import.json"
    path.touch(mode=0o600)
    path.write_text(f"{secret}\n")
    return path.name


@pytest.mark.parametrize("kind", ["registered", "document", "public", "basic", "post", "jwt"])
def test_a_client_of_every_kind_logs_in_and_rotates(refresher: Command, servers: Servers, kind: str) -> None:
    """If it failed, login with such a client would fail, or its grant could not be rotated."""
    url, endpoints = servers.mcp.url, servers.oidc.endpoints
    options: list[str] = [] if kind in ("registered", "document") else ["--client-id", kind]
    method = {"basic": "client_secret_basic", "post": "client_secret_post", "jwt": "private_key_jwt"}.get(kind, "none")
    if kind in servers.oidc.secrets:
        options += ["--client-secret-file", secret_file(refresher, servers.oidc.secrets[kind])]
        options += ["--auth-method", method] if kind == "basic" else []
    if kind == "jwt":
        options += ["--private-key-file", str(servers.private_key)]
    variables = {"REFRESHER_CLIENT_METADATA": DOCUMENT} if kind == "document" else {}
    logged_in(refresher("login", "linear", url, *options, environment=PERSON | variables))
    grant = refresher.grant("linear")
    assert (grant.token_endpoint, grant.revocation_endpoint) == (
        endpoints["token_endpoint"],
        endpoints["revocation_endpoint"],
    )
    assert (grant.issuer, grant.server_url, grant.resource) == (endpoints["issuer"], url, url)
    assert grant.token_endpoint_auth_method == method
    assert grant.private_key_file == (str(servers.private_key) if kind == "jwt" else None)
    assert "offline_access" in (grant.asked_scope or "").split()
    assert set((grant.scope or "").split()) <= set((grant.asked_scope or "").split())
    assert grant.authorized_at == grant.issued_at
    assert grant.expires_at is not None
    assert 3500 < grant.expires_at - grant.issued_at <= 3600
    login = grant.login
    assert login is not None
    assert login.client == {"registered": "registered", "document": "metadata_document"}.get(kind, "given")
    assert login.authorization_endpoint == endpoints["authorization_endpoint"]
    assert (login.redirect_uri is not None) == (kind == "registered")
    assert servers.oidc.introspect(refresher.token("linear").access_token)["aud"] == url
    check_rotation(refresher, url)


@pytest.mark.parametrize("discovery", ["resource", "server", "nothing"])
def test_the_discovery_of_each_mcp_version_works(refresher: Command, discovery: str) -> None:
    """If it failed, login at a server of an earlier MCP version would fail."""
    with MCPLogin(discovery=discovery) as mcp:
        logged_in(refresher("login", "linear", mcp.url, environment=PERSON))
        grant = refresher.grant("linear")
        assert grant.resource == (mcp.url if discovery == "resource" else None)
        assert (grant.issuer is None) == (discovery == "nothing")
        check_rotation(refresher, mcp.url)
        assert mcp.seen() == {"registered": 1, "authorized": 1, "exchanged": 1, "refreshed": 1}


def test_a_login_is_repeated_by_its_name(refresher: Command) -> None:
    """If it failed, a person would have to repeat all options to log in again."""
    with MCPLogin() as mcp:
        logged_in(refresher("login", "linear", mcp.url, "--param", "prompt=login", environment=PERSON))
        first = refresher.grant("linear")
        logged_in(refresher("login", "linear", environment=PERSON))
        again = refresher.grant("linear")
        assert (again.client_id, again.login, again.resource) == (first.client_id, first.login, first.resource)
        assert (again.generation, again.grant_id == first.grant_id) == (1, False)
        assert mcp.seen()["registered"] == 1
        # The port is in use now, and a server that compares redirect addresses needs a new registration.
        assert first.login is not None
        port = urlsplit(first.login.redirect_uri or "").port
        with socket.create_server(("127.0.0.1", port or 0)):
            assert "forgotten" not in logged_in(refresher("login", "linear", environment=PERSON)).stderr
        elsewhere = refresher.grant("linear")
        assert elsewhere.client_id != first.client_id
        # The server has forgotten the registration.
        mcp.forget()
        done = logged_in(refresher("login", "linear", environment=PERSON))
        assert "no longer knows this client" in done.stderr
        assert refresher.grant("linear").client_id != elsewhere.client_id
        logged_in(refresher("login", "linear", "--new-client", environment=PERSON))
        assert mcp.seen()["registered"] == 4
        assert refresher.grant("linear").generation == 4
        check_rotation(refresher, mcp.url)
        assert mcp.seen()["reused"] == 0


def test_login_at_an_api_that_is_not_an_mcp_server(refresher: Command, servers: Servers) -> None:
    """If it failed, refresher would work with MCP servers only, or such a login could not be repeated by its name."""
    endpoints = servers.oidc.endpoints
    by_issuer = ("--issuer", endpoints["issuer"], "--client-id", "public", "--scope", "openid offline_access")
    with_endpoints = [
        word
        for key in ("authorization_endpoint", "token_endpoint", "revocation_endpoint")
        for word in (f"--{key.replace('_', '-')}", endpoints[key])
    ]
    with_endpoints += [
        "--client-id",
        "public",
        "--scope",
        "openid offline_access",
        "--resource",
        "https://api.example/x/",
    ]
    for name, options in (("issuer", by_issuer), ("endpoints", tuple(with_endpoints))):
        for generation, arguments in enumerate((("https://api.example/v1", *options), ())):
            done = refresher("login", name, *arguments, environment=PERSON)
            assert done.code == 0, done.stderr
            assert WELCOME in done.stdout
            grant = refresher.grant(name)
            assert (grant.generation, grant.client_id, grant.origins) == (
                generation,
                "public",
                ("https://api.example",),
            )
            assert grant.scope == "openid offline_access"
            assert grant.resource == (None if name == "issuer" else "https://api.example/x/")
            assert grant.revocation_endpoint == endpoints["revocation_endpoint"]
        done = refresher("run-once", "--force", "--json", name)
        assert (done.code, done.outcome) == (0, "rotated")
        assert servers.oidc.introspect(refresher.token(name).access_token)["active"]
    assert servers.oidc.introspect(refresher.token("endpoints").access_token)["aud"] == "https://api.example/x/"


def test_a_login_replaces_an_imported_removed_or_damaged_grant(refresher: Command, servers: Servers) -> None:
    """If it failed, login could not repair an imported, removed or damaged grant."""
    url = servers.mcp.url
    more = {"replay": "30s", "max_age": 600, "origins": [url.removesuffix("/mcp"), "https://other.example"]}
    fields = servers.oidc.mint("public", url, live=True) | {"server_url": url} | more
    refresher.import_grant("linear", fields)
    old = refresher.grant("linear")
    logged_in(refresher("login", "linear", environment=PERSON))
    grant = refresher.grant("linear")
    # The imported client stays in use: it is registered at this server.
    assert (grant.generation, grant.client_id) == (old.generation + 1, "public")
    assert (grant.replay, grant.max_age, grant.origins) == (30.0, 600.0, old.origins), "login has lost a setting"
    assert servers.oidc.introspect(fields["refresh_token"])["active"]
    check_rotation(refresher, url)
    assert refresher("remove", "linear").code == 0
    done = refresher("login", "linear", environment=PERSON)
    assert (done.code, done.stdout) == (2, "")
    assert "there is no saved login linear; give its URL: 'refresher login linear URL'" in done.stderr
    logged_in(refresher("login", "linear", url, environment=PERSON))
    generation = refresher.grant("linear").generation
    assert generation == old.generation + 3
    record = refresher.state / "grants/linear.json"
    record.write_bytes(b'{"torn":')
    done = logged_in(refresher("login", "linear", url, environment=PERSON))
    assert "the damaged record is now" in done.stderr
    assert refresher.grant("linear").generation == generation + 1
    (aside,) = record.parent.glob("linear.json.aside.*")
    assert aside.read_bytes() == b'{"torn":'
    check_rotation(refresher, url)


def test_a_resource_is_stored_and_sent_verbatim(refresher: Command, own_oidc: Start) -> None:
    """If it failed, a server that compares it exactly would refuse every refresh."""
    oidc = own_oidc()
    with MCPServerProcess(oidc, "mcp:read") as mcp:
        logged_in(refresher("login", "linear", mcp.url, environment=PERSON))
        grant = refresher.grant("linear")
        assert grant.asked_scope == "mcp:read offline_access"
        metadata = httpx.get(
            f"{mcp.url.removesuffix('/mcp')}/.well-known/oauth-protected-resource/mcp", trust_env=False, timeout=60
        ).json()
        assert grant.resource == metadata["resource"]
        check_rotation(refresher, mcp.url)
        assert [request["resource"] for request in oidc.requests()] == [metadata["resource"]] * 2
        # The person can override the resource, but a server that refuses the token ends the login.
        before = (refresher.state / "grants/linear.json").read_bytes()
        done = refresher("login", "linear", "--resource", "none", environment=PERSON)
        assert done.code == 2
        assert "refused the new token (401); nothing was changed. Log in with an account that may use it" in done.stderr
        assert "The login failed" in done.stdout
        assert (refresher.state / "grants/linear.json").read_bytes() == before
        done = refresher("login", "linear", "--resource", "none", "--no-verify", environment=PERSON)
        assert done.code == 0
        assert refresher.grant("linear").resource is None


@pytest.mark.parametrize("server", ["oidc-provider", "the SDK's"])
def test_a_login_without_refresh_token_warns(refresher: Command, own_oidc: Start, server: str) -> None:
    """If it failed, a person would not learn that the login ends with its access token."""
    if server == "oidc-provider":
        oidc = own_oidc(refreshTokens=False)
        options = ("https://api.example", "--issuer", oidc.endpoints["issuer"], "--client-id", "public")
        done = refresher("login", "linear", *options, "--scope", "openid", environment=PERSON)
    else:
        with MCPLogin(refresh_tokens=False) as mcp:
            done = logged_in(refresher("login", "linear", mcp.url, environment=PERSON))
    assert done.code == 0
    assert "linear: warning: the server gave no refresh token: the grant works until 20" in done.stderr
    assert "--scope '... offline_access'" in done.stderr
    assert "refresher run" not in done.stdout.splitlines()[-1]
    grant = refresher.grant("linear")
    assert (grant.refresh_token, grant.renewable) == (None, False)
    # The access token is used until it expires, without an error and without a request.
    assert refresher("run-once").code == 0
    done = refresher("run-once", "--force", "--json")
    assert (done.code, done.outcome) == (0, "too_early")
    assert refresher.token("linear").state == "active"
    (status,) = json.loads(refresher("status", "--json").stdout)["grants"]
    assert status["state"] == "active"


def test_client_credentials_need_no_person(refresher: Command, own_oidc: Start) -> None:
    """If it failed, a machine with its own client would need a person."""
    oidc = own_oidc()
    options = ["--issuer", oidc.endpoints["issuer"], "--client-id", "machine", "--client-credentials"]
    options += ["--client-secret-file", secret_file(refresher, oidc.secrets["basic"]), "--scope", "mcp:read"]
    options += ["--auth-method", "client_secret_basic", "--param", "tenant=a b"]
    for arguments in (("https://api.example", *options), ()):
        done = refresher("login", "machine", *arguments)
        assert done.code == 0, done.stderr
    done = refresher("run-once", "--force", "--json")
    assert (done.code, done.outcome) == (0, "rotated")
    assert {request["grant_type"] for request in oidc.requests()} == {"client_credentials"}
    assert refresher.token("machine").generation == 2
    login: Login | None = refresher.grant("machine").login
    assert login is not None
    assert login.way == "client_credentials"
