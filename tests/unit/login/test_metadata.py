"""Metadata that is absent, odd, withheld or down: which server a login uses, or why it ends."""

import json
from typing import Any, NamedTuple

import httpx2
import msgspec
import pytest

from refresher.common.errors import LoginRefused, RefresherError, ServerAway
from refresher.grants.record import Login
from refresher.login.authorization_request import check_authorization_endpoint
from refresher.login.client import register
from refresher.login.discovery import Server, discover, discover_issuer
from refresher.login.options import LoginOptions, completed
from tests.support.samples import grant

HOST = "https://mcp.example"
URL = f"{HOST}/mcp"
AS, OTHER = "https://as.example", "https://other.example"
AT_PATH, AT_ROOT = "/.well-known/oauth-protected-resource/mcp", "/.well-known/oauth-protected-resource"
OAUTH, OPENID = "/.well-known/oauth-authorization-server", "/.well-known/openid-configuration"

RESOURCE = {"resource": URL, "authorization_servers": [AS]}
METADATA = {"issuer": AS, "authorization_endpoint": f"{AS}/authorize", "token_endpoint": f"{AS}/token"}
AT_HOST = {key: value.replace(AS, HOST) for key, value in METADATA.items()}
PAGE = "<!DOCTYPE html><title>Welcome</title>"


class Reply(NamedTuple):
    """An answer of a server: a status, a body, and where it redirects to."""

    status: int = 200
    body: object = ""
    location: str | None = None
    json: bool = False


def to(location: str, status: int = 307) -> Reply:
    return Reply(status, "", location)


class Web:
    """Servers that answer at given addresses and 404 elsewhere; a fake, because a test has no remote servers."""

    def __init__(self, answers: dict[str, Any], challenge: str = "Bearer") -> None:
        self.answers, self.challenge = answers, challenge
        self.asked: list[str] = []

    async def __call__(self, request: httpx2.Request) -> httpx2.Response:
        address = str(request.url)
        self.asked.append(address)
        if address == URL:
            return httpx2.Response(401, headers={"www-authenticate": self.challenge}, request=request)
        answer = self.answers.get(address, Reply(404))
        if answer is None:
            raise ServerAway(f"{address}: connection refused; nothing was changed")
        reply = answer if isinstance(answer, Reply) else Reply(200, answer)
        body = reply.body if isinstance(reply.body, str | bytes) else json.dumps(reply.body)
        headers = {} if reply.location is None else {"location": reply.location}
        if reply.json:
            headers["content-type"] = "application/json"
        return httpx2.Response(reply.status, content=body, headers=headers, request=request)


async def outcome(web: Web) -> str:
    """Return the issuer that a login uses, ``defaults``, or what ended it."""
    try:
        server = await discover(URL, web)
    except ServerAway:
        return "away"
    except LoginRefused as error:
        return f"refused: {error}" if "nothing was changed" in str(error) else "a message without its end"
    return server.issuer or "defaults"


def check(found: str, expected: str) -> None:
    """Check the outcome of a discovery: how it begins, and after a colon, which words it contains."""
    start, _, words = expected.partition(": ")
    assert found.startswith(start), found
    assert words in found


BOM = b"\xef\xbb\xbf" + json.dumps(RESOURCE).encode()

# What is at the path, at the root, and what follows; the server of the resource is AS, and that of 2025-03-26 is HOST.
RESOURCE_TABLE: list[tuple[object, object, str]] = [
    # absent
    (Reply(404), Reply(404), HOST),
    (Reply(405), Reply(410), HOST),
    (PAGE, Reply(404), HOST),
    ("", "null", HOST),
    ([RESOURCE], {"error": "not found"}, HOST),
    (Reply(404), RESOURCE, AS),
    (PAGE, RESOURCE, AS),
    # readable, although an optional member is wrong
    (RESOURCE | {"jwks_uri": "", "resource_documentation": "", "resource_name": None}, Reply(404), AS),
    (RESOURCE | {"scopes_supported": "read", "bearer_methods_supported": 7}, Reply(404), AS),
    (RESOURCE | {"authorization_servers": ["", None, 7, AS]}, Reply(404), AS),
    (BOM, Reply(404), AS),
    # redirects
    *((to("/elsewhere", status), Reply(404), AS) for status in (301, 302, 307, 308)),
    (to(f"{HOST}/elsewhere"), Reply(404), AS),
    (to("/login"), Reply(404), HOST),
    (to(f"{OTHER}/elsewhere"), RESOURCE, "refused: redirects to https://other.example/elsewhere"),
    (to("//other.example/elsewhere"), RESOURCE, "refused: redirects to //other.example"),
    (to("http://mcp.example/elsewhere"), RESOURCE, "refused: only on the same server"),
    (to("http://["), RESOURCE, "refused: redirects to http://["),
    (Reply(307), RESOURCE, "refused: redirects to an unknown address"),
    (to(AT_PATH), RESOURCE, "refused: more than 3 times"),
    # odd
    (RESOURCE | {"resource": ""}, RESOURCE, "refused: resource is missing or empty"),
    (RESOURCE | {"resource": 7}, RESOURCE, "refused: resource is wrong"),
    (RESOURCE | {"resource": "mcp"}, RESOURCE, "refused: resource is wrong"),
    (RESOURCE | {"resource": OTHER}, RESOURCE, "refused: --issuer"),
    (RESOURCE | {"authorization_servers": []}, RESOURCE, "refused: authorization_servers is missing or empty"),
    (RESOURCE | {"authorization_servers": AS}, RESOURCE, "refused: authorization_servers is wrong"),
    (RESOURCE | {"authorization_servers": [None]}, RESOURCE, "refused: authorization_servers is wrong"),
    (RESOURCE | {"authorization_servers": ["//as.example"]}, RESOURCE, "refused: authorization_servers is wrong"),
    ({"resource": URL}, RESOURCE, "refused: authorization_servers is missing or empty"),
    (json.dumps(RESOURCE)[:-1], RESOURCE, "refused: is not valid JSON"),
    (Reply(200, "no JSON", json=True), RESOURCE, "refused: is not valid JSON"),
    # withheld: the metadata of the authorization server at this address may be used, the defaults never
    (Reply(401), Reply(404), HOST),
    (Reply(403), RESOURCE, AS),
    # down
    (Reply(503), RESOURCE, AS),
    (None, RESOURCE, AS),
    (Reply(429), Reply(404), "away"),
    (Reply(403), Reply(502), "away"),
]


@pytest.mark.asyncio
@pytest.mark.parametrize(("at_path", "at_root", "expected"), RESOURCE_TABLE)
async def test_the_metadata_of_a_resource_leads_to_its_own_server_or_to_none(
    at_path: object, at_root: object, expected: str
) -> None:
    """If it failed, odd metadata would lead a login to another server, or a good server would be refused."""
    answers = {
        HOST + AT_PATH: at_path,
        HOST + AT_ROOT: at_root,
        f"{HOST}/elsewhere": RESOURCE,
        f"{HOST}/login": PAGE,
        AS + OAUTH: METADATA,
        HOST + OAUTH: AT_HOST,
    }
    web = Web(answers)
    found = await outcome(web)
    check(found, expected)
    assert not any(address.startswith(OTHER) for address in web.asked)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("named", "answers", "expected"),
    [
        ("/meta", {f"{HOST}/meta": RESOURCE}, AS),
        ("meta", {f"{HOST}/meta": RESOURCE}, AS),
        (f"{OTHER}/meta", {f"{OTHER}/meta": RESOURCE}, AS),
        ("/meta", {f"{HOST}/meta": to("/there"), f"{HOST}/there": RESOURCE}, AS),
        ("/meta", {HOST + AT_PATH: RESOURCE}, AS),
        ("//other.example/meta", {HOST + AT_PATH: RESOURCE, f"{OTHER}/meta": {}}, AS),
        ("/meta", {f"{HOST}/meta": Reply(503), HOST + AT_PATH: RESOURCE}, AS),
        ("/meta", {f"{HOST}/meta": Reply(503)}, "away"),
        ("/meta", {f"{HOST}/meta": Reply(401)}, "refused: answered 401"),
        ("/meta", {}, "refused: names its metadata at /meta, and there is none that can be used"),
        ("http://[", {}, "refused: names its metadata at http://["),
        ("/meta", {f"{HOST}/meta": RESOURCE | {"resource": None}}, "refused: resource is missing or empty"),
    ],
)
async def test_metadata_that_a_challenge_names_is_never_taken_as_absent(
    named: str, answers: dict[str, Any], expected: str
) -> None:
    """If it failed, refresher would register itself at the default endpoints of a server that has metadata."""
    found = await outcome(
        Web({AS + OAUTH: METADATA, HOST + OAUTH: AT_HOST} | answers, f'Bearer resource_metadata="{named}"')
    )
    check(found, expected)


SERVER_TABLE: list[tuple[object, object, str]] = [
    (METADATA, Reply(404), AS),
    (Reply(404), METADATA, AS),
    (PAGE, METADATA, AS),
    ({"detail": "unknown path"}, METADATA, AS),
    (Reply(503), METADATA, AS),
    (None, METADATA, AS),
    (Reply(401), METADATA, AS),
    (to("/there"), Reply(404), AS),
    (b"\xef\xbb\xbf" + json.dumps(METADATA).encode(), Reply(404), AS),
    (METADATA | {"service_documentation": "", "scopes_supported": None, "op_tos_uri": 7}, Reply(404), AS),
    (METADATA | {"registration_endpoint": "", "revocation_endpoint": "http://as.example/revoke"}, Reply(404), AS),
    (METADATA | {"token_endpoint": "/token"}, Reply(404), AS),
    ({"issuer": AS, "token_endpoint": f"{AS}/token"}, Reply(404), AS),
    (to(f"{OTHER}/there"), METADATA, "refused: only on the same server"),
    (METADATA | {"issuer": OTHER}, METADATA, "refused: names another issuer"),
    (METADATA | {"issuer": ""}, METADATA, "refused: issuer is missing or empty"),
    (METADATA | {"token_endpoint": None}, METADATA, "refused: token_endpoint is missing or empty"),
    (METADATA | {"token_endpoint": 7}, METADATA, "refused: token_endpoint is wrong"),
    (METADATA | {"token_endpoint": "//other.example/token"}, METADATA, "refused: token_endpoint"),
    (METADATA | {"authorization_endpoint": ["x"]}, METADATA, "refused: authorization_endpoint is wrong"),
    (json.dumps(METADATA)[:-9], METADATA, "refused: is not valid JSON"),
    (Reply(403), Reply(404), "refused: answered 403"),
    (Reply(404), Reply(404), "refused: publishes no readable server metadata"),
    (Reply(500), Reply(404), "away"),
    (None, None, "away"),
]


@pytest.mark.asyncio
@pytest.mark.parametrize(("oauth", "openid", "expected"), SERVER_TABLE)
async def test_the_metadata_of_an_authorization_server(oauth: object, openid: object, expected: str) -> None:
    """If it failed, odd metadata would be taken as absent, or a good server would be refused."""
    web = Web({HOST + AT_PATH: RESOURCE, AS + OAUTH: oauth, AS + OPENID: openid, f"{AS}/there": METADATA})
    found = await outcome(web)
    check(found, expected)
    assert not any(address.startswith(OTHER) for address in web.asked)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (Reply(404), "defaults"),
        (PAGE, "defaults"),
        (AT_HOST, HOST),
        (AT_HOST | {"issuer": None}, "refused: issuer is missing or empty"),
        (json.dumps(AT_HOST)[:40], "refused: is not valid JSON"),
        (Reply(403), "refused: answered 403"),
        (Reply(500), "away"),
    ],
)
async def test_the_default_endpoints_are_used_only_if_all_metadata_is_absent(document: object, expected: str) -> None:
    """If it failed, refresher would register itself at endpoints that the metadata of the server contradicts."""
    found = await outcome(Web({HOST + OAUTH: document}))
    check(found, expected)


@pytest.mark.asyncio
async def test_withheld_metadata_does_not_lead_to_the_default_endpoints() -> None:
    """If it failed, a server that hides its metadata would get a registration at its default endpoints."""
    assert "answered 403" in await outcome(Web({HOST + AT_PATH: Reply(403)}))


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [(None, METADATA, AS), (Reply(503), METADATA, AS), (None, None, "away"), (None, Reply(404), "refused")],
)
async def test_a_server_that_is_down_is_passed_over(first: object, second: object, expected: str) -> None:
    """If it failed, one authorization server that is down would prevent a login at the others."""
    resource = RESOURCE | {"authorization_servers": [OTHER, AS]}
    web = Web({HOST + AT_PATH: resource, **dict.fromkeys((OTHER + OAUTH, OTHER + OPENID), first)})
    web.answers |= dict.fromkeys((AS + OAUTH, AS + OPENID), second)
    assert (await outcome(web)).startswith(expected)


@pytest.mark.parametrize(
    ("changes", "assume", "allowed"),
    [
        ({"challenge_methods": ("S256",)}, False, True),
        ({"challenge_methods": None}, False, False),
        ({"challenge_methods": None}, True, True),
        ({"challenge_methods": ()}, True, False),
        ({"challenge_methods": ("plain",)}, True, False),
        # No metadata: a person gave the endpoints, or they are the defaults of MCP 2025-03-26.
        ({"challenge_methods": None, "has_metadata": False}, False, True),
        ({"issuer": "https://login.microsoftonline.com/t/v2.0"}, False, True),
        ({"token_endpoint": "https://pool.auth.eu-west-1.amazoncognito.com/oauth2/token"}, False, True),
        ({"token_endpoint": "https://amazoncognito.com.evil.example/token"}, False, False),
    ],
)
def test_a_code_is_requested_only_from_a_server_that_supports_pkce(
    changes: dict[str, Any], assume: bool, allowed: bool
) -> None:
    """If it failed, a code could be stolen, or a server that is known to support PKCE would be refused."""
    server = Server(
        issuer=AS, token_endpoint=f"{AS}/token", authorization_endpoint=f"{AS}/authorize", has_metadata=True
    )
    server = msgspec.structs.replace(server, **changes)
    if allowed:
        assert check_authorization_endpoint(server, assume_pkce=assume) == f"{AS}/authorize"
        return
    with pytest.raises(LoginRefused, match="PKCE"):
        check_authorization_endpoint(server, assume_pkce=assume)


def test_a_repeated_login_assumes_pkce_again() -> None:
    """If it failed, 'login NAME' would be refused where the first login was not."""
    stored = grant(server_url=URL, login=Login(client="given", assume_pkce=True))
    assert completed(LoginOptions(), stored).assume_pkce
    assert not completed(LoginOptions(url=OTHER), stored).assume_pkce


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("registration", "client_id"),
    [
        ({"client_id": 4711}, "4711"),
        ({"client_id": "me", "scope": ["read", "write"], "contacts": "nobody", "redirect_uris": "x"}, "me"),
        ({"client_id": True}, None),
        ({"client_id": ""}, None),
        ({"client_id": ["me"]}, None),
    ],
)
async def test_registration_answers_as_servers_write_them(registration: dict[str, Any], client_id: str | None) -> None:
    """If it failed, a login would end although the server registered the client."""
    registration |= {"token_endpoint_auth_method": "none"}
    server = Server(issuer=AS, token_endpoint=f"{AS}/token", registration_endpoint=f"{AS}/register")
    web = Web({f"{AS}/register": Reply(201, registration)})
    if client_id is None:
        with pytest.raises(RefresherError, match="not a registration"):
            await register(server, None, web)
        return
    assert (await register(server, None, web)).client_id == client_id


@pytest.mark.asyncio
async def test_a_relative_endpoint_is_on_the_server_of_the_metadata() -> None:
    """If it failed, a token request would go to no address, or to that of another server."""
    answers = {AS + OAUTH: METADATA | {"token_endpoint": "/token", "revocation_endpoint": "//other.example/r"}}
    server = await discover_issuer(AS, URL, Web(answers))
    assert (server.token_endpoint, server.revocation_endpoint) == (f"{AS}/token", None)
