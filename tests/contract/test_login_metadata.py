"""login at a server whose metadata lacks what the chosen way does not need, or names more than a person asks for."""

from urllib.parse import parse_qs

import pytest

from tests.support.answering import Answer, Answering
from tests.support.command import Command

TOKENS = {
    "access_token": "an-access-token",
    "token_type": "Bearer",
    "expires_in": 3600,
    "refresh_token": "a-refresh-token",
}


def test_client_credentials_need_no_authorization_endpoint_and_700_scopes_are_a_warning(refresher: Command) -> None:
    """If it failed, a server for programs could not be used, or a person would not learn why a login is refused."""
    secret = refresher.home / "secret.import.json"  # where the vault permits a secret
    secret.write_text("a-client-secret")
    with Answering() as server:
        resource = {
            "resource": f"{server.url}/mcp",
            "authorization_servers": [server.url],
            "scopes_supported": [f"scope:{number}" for number in range(700)],
        }
        server.answers = {
            "/mcp": [Answer(401)],
            "/.well-known/oauth-protected-resource": [Answer(200, resource)],
            "/.well-known/oauth-authorization-server": [
                Answer(200, {"issuer": server.url, "token_endpoint": f"{server.url}/token"})
            ],
            "/token": [Answer(200, TOKENS)],
        }
        client = ("--client-id", "me", "--client-secret-file", str(secret), "--client-credentials")
        done = refresher("login", "api", f"{server.url}/mcp", *client, "--assume-pkce", "--no-verify")
        assert done.code == 0, done.stderr
        assert "api: warning: the server names 700 scopes" in done.stderr
        again = refresher("login", "api", "--scope", "read", "--no-verify")
    assert again.code == 0, again.stderr
    assert "scopes" not in again.stderr
    login = refresher.grant("api").login
    assert login is not None
    assert login.assume_pkce, "login NAME repeats the option"


@pytest.mark.parametrize(("only", "scope"), [((), "read offline_access"), (("--scope-only",), "read")])
def test_a_login_by_device_asks_for_what_a_person_gives(refresher: Command, only: tuple[str, ...], scope: str) -> None:
    """If it failed, a login by device would lack its audience, or a person would get more scope than the one asked for."""
    with Answering() as server:
        metadata = {
            "issuer": server.url,
            "token_endpoint": f"{server.url}/token",
            "device_authorization_endpoint": f"{server.url}/device",
            "scopes_supported": ["read", "offline_access"],
        }
        code = {"device_code": "d", "user_code": "ABCD", "verification_uri": server.url, "interval": 0.1}
        server.answers = {
            "/.well-known/oauth-authorization-server": [Answer(200, metadata)],
            "/device": [Answer(200, code)],
            "/token": [Answer(200, TOKENS)],
        }
        options = ("--issuer", server.url, "--client-id", "me", "--device", "--scope", "read", *only)
        done = refresher("login", "api", "https://api.example", *options, "--param", "audience=here")
        assert done.code == 0, done.stderr
        request = parse_qs(server.bodies[server.seen.index("POST /device")])
    assert (request["audience"], request["scope"]) == (["here"], [scope])
