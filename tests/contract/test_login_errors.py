"""login: a wrong argument, or a server without a usable login, is one line and changes nothing."""

import json
import socket
from typing import Any

import pytest

from tests.support.answering import Answer, Answering
from tests.support.cli import PERSON, UNREACHABLE, WORKING_LOGIN, all_files, last_line
from tests.support.command import Command

API = "https://api.example"


ISSUER_DOCUMENT = {
    "authorization_endpoint": "{}/authorize",
    "token_endpoint": "{}/token",
    "issuer": "{}",
    "code_challenge_methods_supported": ["S256"],
}


METADATA = "/.well-known/oauth-authorization-server"


RESOURCE = "/.well-known/oauth-protected-resource"


def at(server: Answering, value: Any) -> Any:
    """Return a document with the server's URL in place of ``{}``."""
    return json.loads(json.dumps(value).replace("{}", server.url))


@pytest.mark.parametrize(
    ("answers", "options", "code", "words"),
    [
        (
            {"/mcp": Answer(404)},
            ("{}/mcp",),
            2,
            "there is no MCP server at {}/mcp (404); nothing was changed. Check the URL",
        ),
        (
            {"/mcp": Answer(403)},
            ("{}/mcp",),
            2,
            "answered 403 and names no authorization server; nothing was changed. Check the URL",
        ),
        (
            {"/mcp": Answer(401), RESOURCE: Answer(503)},
            ("{}/mcp",),
            4,
            "answered 503; nothing was changed. Log in again later",
        ),
        (
            {"/mcp": Answer(401), METADATA: Answer(500)},
            ("{}/mcp",),
            4,
            "answered 500; nothing was changed. Log in again later",
        ),
        ({"/mcp": Answer(None)}, ("{}/mcp",), 4, "closed the connection without an answer"),
        (
            {"/mcp": Answer(308, "", (("Location", f"{API}/mcp"),))},
            ("{}/mcp",),
            2,
            f"redirects to {API}/mcp; nothing was changed. Log in at that URL",
        ),
        (
            {RESOURCE: Answer(200, {"resource": "https://other.example/", "authorization_servers": ["{}"]})},
            ("{}/mcp",),
            2,
            "describes https://other.example/, not {}/mcp",
        ),
        (
            {RESOURCE: Answer(200, {"resource": "{}/", "authorization_servers": ["{}"]})},
            ("{}/mcp",),
            2,
            "publishes no readable server metadata (RFC 8414); nothing was changed. Give --authorization-endpoint and --t",
        ),
        (
            {RESOURCE: Answer(200, {"resource": "{}/", "authorization_servers": ["http://as.example"]})},
            ("{}/mcp",),
            2,
            "must be https",
        ),
        (
            {METADATA: Answer(200, ISSUER_DOCUMENT | {"issuer": "https://attacker.example"})},
            ("{}", "--issuer", "{}"),
            2,
            "names another issuer (https://attacker.example), which is not safe",
        ),
        (
            {METADATA: Answer(200, ISSUER_DOCUMENT | {"token_endpoint": "http://as.example/token"})},
            ("{}", "--issuer", "{}"),
            2,
            "token_endpoint (http://as.example/token) must be https",
        ),
        ({METADATA: Answer(200, ISSUER_DOCUMENT)}, ("{}", "--issuer", "{}"), 2, "has no client registration"),
        (
            {METADATA: Answer(200, ISSUER_DOCUMENT)},
            ("{}", "--issuer", "{}", "--device"),
            2,
            "has no login by device (RFC 8628); nothing was changed. Omit --device",
        ),
        (
            {
                METADATA: Answer(200, ISSUER_DOCUMENT | {"registration_endpoint": "{}/register"}),
                "/register": Answer(403, {"error": "access_denied", "error_description": "ask the administrator"}),
            },
            ("{}", "--issuer", "{}"),
            2,
            "ask the administrator",
        ),
        (
            {
                METADATA: Answer(200, ISSUER_DOCUMENT | {"registration_endpoint": "{}/register"}),
                "/register": Answer(503),
            },
            ("{}", "--issuer", "{}"),
            4,
            "answered 503; nothing was changed. Log in again later",
        ),
        (
            {"/mcp": Answer(401), RESOURCE: Answer(200, {"resource": "{}/mcp", "authorization_servers": [""]})},
            ("{}/mcp",),
            2,
            "authorization_servers is wrong; nothing was changed. Give the authorization server with --issuer",
        ),
        (
            {"/mcp": Answer(401), RESOURCE: Answer(307, "", (("Location", f"{API}/metadata"),))},
            ("{}/mcp",),
            2,
            f"answered 307 and redirects to {API}/metadata; refresher follows a redirect of metadata only on the same",
        ),
        (
            {METADATA: Answer(200, ISSUER_DOCUMENT | {"code_challenge_methods_supported": None})},
            ("{}", "--issuer", "{}"),
            2,
            "does not say that the server supports PKCE (it has no list code_challenge_methods_supported), so a code could",
        ),
        (
            {METADATA: Answer(200, ISSUER_DOCUMENT | {"code_challenge_methods_supported": None})},
            ("{}", "--issuer", "{}", "--assume-pkce"),
            2,
            "has no client registration",
        ),
        (
            {METADATA: Answer(200, ISSUER_DOCUMENT | {"authorization_endpoint": None})},
            ("{}", "--issuer", "{}", "--client-id", "me"),
            2,
            "has no authorization_endpoint, and a login with a browser needs one; nothing was changed. Try --device",
        ),
        (
            {METADATA: Answer(200, ISSUER_DOCUMENT | {"code_challenge_methods_supported": ["plain"]})},
            ("{}", "--issuer", "{}", "--client-id", "me"),
            2,
            "does not support PKCE with S256",
        ),
        (
            {
                METADATA: Answer(200, ISSUER_DOCUMENT | {"device_authorization_endpoint": "{}/device"}),
                "/device": Answer(
                    200, {"device_code": "x", "user_code": "y", "verification_uri": "javascript:alert(1)"}
                ),
            },
            ("{}", "--issuer", "{}", "--client-id", "me", "--device"),
            2,
            "nothing was changed",
        ),
        (
            {
                METADATA: Answer(200, ISSUER_DOCUMENT | {"device_authorization_endpoint": "{}/device"}),
                "/device": Answer(400, {"error": "invalid_scope"}),
            },
            ("{}", "--issuer", "{}", "--client-id", "me", "--device", "--scope", "read"),
            2,
            "/device answered 400 invalid_scope; nothing was changed. Request another --scope",
        ),
    ],
)
def test_a_server_without_a_usable_login_is_one_line_and_changes_nothing(
    logged_in: Command, answers: dict[str, Answer], options: tuple[str, ...], code: int, words: str
) -> None:
    """If it failed, a person would not learn why the login failed, or would lose the working grant."""
    before = all_files(logged_in)
    with Answering() as server:
        scripted = {"/mcp": Answer(401)} | answers
        server.answers = {path: [answer._replace(body=at(server, answer.body))] for path, answer in scripted.items()}
        done = logged_in("login", "linear", "--replace", *(option.replace("{}", server.url) for option in options))
        line = last_line(done, code)
        assert words.replace("{}", server.url) in line
        assert len(done.stderr.splitlines()) == 1
    after = all_files(logged_in)
    assert {path: data for path, data in after.items() if not path.endswith(".lock")} == {
        path: data for path, data in before.items() if not path.endswith(".lock")
    }


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("linear", 2, "there is no saved login linear; give its URL: 'refresher login linear URL'"),
        ("Linear {api}", 2, "a name is 1 to 64 lower-case letters"),
        ("linear mcp.example", 2, "the URL has no scheme; did you mean: refresher login linear https://mcp.example"),
        ("linear mcp.example:x/mcp", 2, "URL is not a valid URL"),
        ("{api}/mcp", 2, "NAME is missing; did you mean: refresher login api {api}/mcp"),
        (
            "{api}/mcp linear --device",
            2,
            "NAME and URL are swapped; did you mean: refresher login linear {api}/mcp --d",
        ),
        ("linear {nobody}/mcp", 4, "127.0.0.1:9: connection refused; nothing was changed"),
        ("linear https://nowhere.invalid/mcp", 4, "nowhere.invalid:443: no such host; nothing was changed"),
        ("linear {api} --issuer {nobody}", 4, "127.0.0.1:9: connection refused; nothing was changed"),
        ("linear {api} --port 8765 --redirect-uri http://localhost:1/", 2, "exclude each other"),
        ("linear {api} --param access_type", 2, "it must be KEY=VALUE"),
        ("linear {api} --wait soon", 2, "it must be seconds, or a duration"),
        ("linear {api} --auth-method secret", 2, "is not one of 'none'"),
        ("taken https://other.example", 2, f"taken is a grant for {API}/mcp: choose another name, or replace it"),
        ("linear {api} {hand} --client-id me --client-secret-file none", 2, "cannot read the client secret"),
        ("linear {api} {hand} --client-id me --client-secret-file empty", 2, "must contain the client secret"),
        ("linear {api} {hand} --client-id me --private-key-file none", 2, "cannot read the private key"),
        ("linear {api} {hand} --client-id me --private-key-file empty", 2, "is not a PEM private key"),
        ("linear {api} {hand} --client-id me --client-cert none", 2, "cannot read "),
        ("linear {api} {hand} --client-id me --client-cert empty", 2, "cannot use the certificate in"),
        ("linear {api} {hand} --client-id me --port {port}", 2, "choose another --port"),
    ],
)
def test_a_wrong_argument_is_one_line(quick: Command, arguments: str, code: int, words: str) -> None:
    """If it failed, a mistake would end in a traceback, or open a browser for a login that cannot succeed."""
    quick.import_grant("taken", WORKING_LOGIN | {"server_url": f"{API}/mcp"})
    before = all_files(quick)
    (quick.home / "empty").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        hand = f"--authorization-endpoint {UNREACHABLE}/authorize --token-endpoint {UNREACHABLE}/token"
        given = arguments.format(api=API, nobody=UNREACHABLE, hand=hand, port=port).split()
        done = quick("login", *given, environment=PERSON)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert words.format(api=API) in last_line(done, code)
    assert all_files(quick) == before
