"""Login at servers that are hostile or broken."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest

from refresher.common import logs
from refresher.common.errors import ClientUnknown, ImportRefused
from refresher.common.secret import Secret
from refresher.grants.record import Doubt
from refresher.login import device
from refresher.login.client import given_client, stored_client
from refresher.login.discovery import Server, discover
from refresher.login.http_client import Connections
from refresher.login.options import LoginOptions
from refresher.login.token_request import request_tokens
from refresher.operations.import_grant import store_grant
from refresher.operations.remove import remove
from refresher.storage.file_store import FileStore
from tests.support.answering import Answer, Answering
from tests.support.fake_state import directories, put
from tests.support.samples import NOON, at, grant

URL = "https://mcp.example/mcp"
GOOD, EVIL = "https://as.example", "https://evil.example"
SERVER = Server(issuer=GOOD, token_endpoint=f"{GOOD}/token")


@pytest.mark.parametrize(
    ("stored", "server", "known"),
    [
        ({"issuer": GOOD}, SERVER, True),
        ({"issuer": EVIL}, SERVER, False),
        ({"issuer": GOOD}, Server(issuer=EVIL, token_endpoint=f"{GOOD}/token"), False),
        ({"issuer": GOOD}, Server(token_endpoint=f"{GOOD}/token"), False),
        ({"issuer": None}, SERVER, True),
        ({"issuer": None}, Server(token_endpoint=f"{GOOD}/token"), True),
        ({"issuer": None}, Server(token_endpoint=f"{EVIL}/token"), False),
        ({"issuer": None}, Server(issuer=f" {GOOD}", token_endpoint=f"{EVIL}/token"), False),
        # A hostile server that names the token endpoint of another one.
        ({"issuer": None}, Server(issuer=EVIL, token_endpoint=f"{GOOD}/token"), False),
    ],
)
def test_a_stored_client_is_used_only_at_its_own_server(stored: dict[str, Any], server: Server, known: bool) -> None:
    """If it failed, a hostile server would receive the client secret of another one, or end the login in a traceback."""
    there = grant(token_endpoint=f"{GOOD}/token", client_secret=Secret("secret-of-the-client"), **stored)
    assert (stored_client(there, server, NOON) is not None) is known


CODE = {"device_code": "a-device-code", "user_code": "ABCD", "verification_uri": "https://as.example/device"}


@pytest.mark.parametrize(
    ("changes", "life", "interval"),
    [
        ({}, 600.0, 5.0),
        ({"expires_in": 120, "interval": 1}, 120.0, 1.0),
        ({"expires_in": "120", "interval": None}, 120.0, 5.0),
        ({"expires_in": math.nan, "interval": math.inf}, 600.0, 5.0),
        ({"expires_in": -5, "interval": -5}, 600.0, 5.0),
        ({"expires_in": 0.01, "interval": 0.01}, 1.0, 0.1),
        ({"expires_in": 1e300, "interval": 1e300}, 86_400.0, 60.0),
        ({"expires_in": [1], "interval": {}}, 600.0, 5.0),
    ],
)
def test_invalid_times_do_not_end_a_login_by_device(changes: dict[str, Any], life: float, interval: float) -> None:
    """If it failed, a login would end before the code can be entered, or with a traceback."""
    code = device._parse(CODE | changes)
    assert (code.lifetime, code.interval) == (life, interval)


def test_the_verification_url_of_google_is_accepted() -> None:
    """If it failed, login by device at Google would not work."""
    address = CODE["verification_uri"]
    renamed = {key: value for key, value in CODE.items() if key != "verification_uri"} | {"verification_url": address}
    assert device._parse(renamed).verification_uri == address


@pytest.mark.parametrize(
    "changes",
    [
        {"device_code": 5},
        {"user_code": "\x1b[31m"},
        {"verification_uri": 5},
        {"verification_uri": "javascript:alert(1)"},
        {"verification_uri": f"https://as.example/{'x' * 4000}"},
        {"verification_uri_complete": ["https://as.example"]},
        {"verification_uri": None},
    ],
)
def test_an_invalid_device_code_is_not_shown(changes: dict[str, Any]) -> None:
    """If it failed, a server could send control characters to the terminal, or cause a traceback."""
    with pytest.raises((ValueError, KeyError)):
        device._parse(CODE | changes)


class Web:
    """The documents that a login fetches, by a part of their URL; all other URLs are 404.

    A fake, because a test has no remote servers.
    """

    def __init__(self, challenge: str, **documents: Any) -> None:
        self.challenge = challenge
        self.documents = {name.replace("_", "-"): document for name, document in documents.items()}
        self.asked: list[str] = []

    async def __call__(self, request: httpx2.Request) -> httpx2.Response:
        address = str(request.url)
        self.asked.append(address)
        if request.method == "POST":
            return httpx2.Response(401, headers={"www-authenticate": self.challenge}, request=request)
        document = next((known for name, known in self.documents.items() if name in address), None)
        if document is None:
            return httpx2.Response(404, request=request)
        return httpx2.Response(200, content=json.dumps(document), request=request)


RESOURCE = {"resource": URL, "authorization_servers": [GOOD]}
METADATA = {"issuer": GOOD, "authorization_endpoint": f"{GOOD}/authorize", "token_endpoint": f"{GOOD}/token"}


@pytest.mark.asyncio
@pytest.mark.parametrize("named", ["http://[", "/metadata", "ftp://x/y", "http://10.0.0.1/x", "http://127.0.0.1:2375/"])
async def test_metadata_is_not_fetched_from_an_unsafe_address(named: str) -> None:
    """If it failed, a server could make this machine send requests into its network, or cause a traceback."""
    web = Web(f'Bearer resource_metadata="{named}"', oauth_protected=RESOURCE, oauth_authorization=METADATA)
    found = await discover(URL, web)
    assert found.issuer == GOOD
    assert named not in web.asked


@pytest.mark.asyncio
async def test_an_invalid_scope_is_not_requested() -> None:
    """If it failed, a server could put control characters into the token file and the terminal."""
    resource = RESOURCE | {"scopes_supported": ["read", "a\x1b[31m", "wr\u202eite", '"x"', "mcp:use"]}
    found = await discover(URL, Web("Bearer", oauth_protected=resource, oauth_authorization=METADATA))
    assert found.scope == "read mcp:use"


def test_a_refresh_token_that_was_just_issued_is_stored_even_if_it_is_spent(tmp_path: Path) -> None:
    """If it failed, a second login would fail at a server that always issues the same refresh token."""
    made = directories(tmp_path)
    there = grant(refresh_token=Secret("the-one-and-only"), doubt=Doubt(since=at()))
    other = grant(name="other", refresh_token=Secret("another"), spent=(Secret("the-one-and-only").fingerprint(),))
    for stored in (there, other):
        put(made.record(stored.name), stored)
    remove(FileStore(made), there.name, stopping=lambda: False)
    how: dict[str, Any] = {"replace": True, "if_absent": False, "stopping": lambda: False}
    with pytest.raises(ImportRefused, match="already spent"):
        store_grant(FileStore(made), grant(refresh_token=Secret("the-one-and-only")), **how)
    again = store_grant(FileStore(made), grant(refresh_token=Secret("the-one-and-only")), just_issued=True, **how).grant
    assert (again.doubt, again.spent) == (None, ())
    put(made.record(there.name), msgspec.structs.replace(again, doubt=Doubt(since=at())))
    once_more = store_grant(
        FileStore(made), grant(refresh_token=Secret("the-one-and-only")), just_issued=True, **how
    ).grant
    assert once_more.doubt is None, "a working login would be in doubt"


def test_log_messages_of_libraries_are_not_printed(capfd: pytest.CaptureFixture[str]) -> None:
    """If it failed, a library could print a token that a server echoed."""
    root = logging.getLogger()
    before = root.handlers[:]
    root.handlers[:] = []
    try:
        logs.setup("text", 0)
        logging.getLogger("mcp.client").error("echoed: %s", "access-token-of-somebody")
    finally:
        root.handlers[:] = before
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("offered", "method"),
    [
        (None, "client_secret_basic"),
        (("client_secret_basic",), "client_secret_basic"),
        (("client_secret_post",), "client_secret_post"),
        (("client_secret_basic", "client_secret_post"), "client_secret_post"),
        (("private_key_jwt", "client_secret_basic"), "client_secret_basic"),
    ],
)
def test_a_secret_goes_into_the_body_where_the_server_offers_that(
    tmp_path: Path, offered: tuple[str, ...] | None, method: str
) -> None:
    """If it failed, servers that refuse client_id beside HTTP Basic would refuse a new client."""
    file = tmp_path / "secret"
    file.write_text("secret-of-the-client")
    server = msgspec.structs.replace(SERVER, auth_methods=offered)
    client = given_client(LoginOptions(client_id="agent", client_secret_file=str(file)), server)
    assert client is not None
    assert client.token_endpoint_auth_method == method


@pytest.mark.parametrize(
    ("fields", "requests"),
    [({"grant_type": "authorization_code", "code": "a-code"}, 1), ({"grant_type": "client_credentials"}, 2)],
    ids=lambda value: value["grant_type"] if isinstance(value, dict) else "",
)
def test_a_code_is_never_sent_twice(fields: dict[str, str], requests: int) -> None:
    """If it failed, a server that refuses client_id beside HTTP Basic would see a code twice, and end the login."""
    with Answering(**{"/token": Answer(401, {"error": "invalid_client"})}) as server:
        client = grant(
            token_endpoint=f"{server.url}/token",
            client_secret=Secret("secret-of-the-client"),
            token_endpoint_auth_method="client_secret_basic",
        )
        with pytest.raises(ClientUnknown):
            request_tokens(client, fields, Connections(None))
        assert ["client_id=" in body for body in server.bodies] == [True, False][:requests]
