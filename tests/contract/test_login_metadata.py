"""login at a server whose metadata lacks what the chosen way does not need, or names too much."""

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
