"""The options of a login, its authorization request, its redirect and its pages."""

import re
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest

from refresher.common.errors import ConfigError, LoginNotGiven, LoginRefused, RefresherError, ServerAway
from refresher.common.secret import Secret
from refresher.grants.record import Login, hidden, revealed
from refresher.login import pages
from refresher.login.authorization_request import (
    AuthorizationRequest,
    ForeignRedirect,
    new_authorization_request,
    pasted_query,
)
from refresher.login.discovery import Server
from refresher.login.loopback import Loopback
from refresher.login.options import LoginOptions, completed, validated
from refresher.login.token_request import advice
from tests.support.command import wait_until
from tests.support.samples import grant

STATE = "state-of-this-login"
ISSUER = "https://as.example"
SERVER = Server(issuer=ISSUER, authorization_endpoint=f"{ISSUER}/authorize", token_endpoint=f"{ISSUER}/token")
URL = "https://mcp.example/mcp"
CLIENT = {"client_id": "client"}
ENDPOINTS = {"token_endpoint": f"{ISSUER}/token", "authorization_endpoint": f"{ISSUER}/authorize"}


# --- options -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"url": "mcp.example"}, "URL must begin with https://"),
        ({"url": "https://me:secret-word@mcp.example"}, "URL must not contain a user name or password"),
        ({"issuer": "http://as.example"}, "--issuer must be https"),
        (CLIENT | ENDPOINTS | {"token_endpoint": "http://as.example"}, "--token-endpoint must be https"),
        ({"redirect_uri": "https://127.0.0.1:80/"}, "--redirect-uri must be a port of this machine"),
        ({"redirect_uri": "http://127.0.0.1/callback"}, "--redirect-uri must be a port of this machine"),
        ({"redirect_uri": "http://mcp.example:80/callback"}, "--redirect-uri must be https"),
        ({"client_secret_file": "file"}, "--client-secret-file needs a --client-id"),
        ({"auth_method": "none"}, "--auth-method needs a --client-id"),
        (CLIENT | {"auth_method": "client_secret_post"}, "client_secret_post needs --client-secret-file"),
        (CLIENT | {"auth_method": "private_key_jwt"}, "private_key_jwt needs --private-key-file"),
        (CLIENT | {"auth_method": "tls_client_auth"}, "tls_client_auth needs --client-cert"),
        ({"way": "client_credentials"}, "--client-credentials needs a --client-id"),
        (CLIENT | {"authorization_endpoint": ISSUER}, "--authorization-endpoint needs a --token-endpoint"),
        (CLIENT | {"token_endpoint": ISSUER}, "--token-endpoint needs an --authorization-endpoint"),
        (ENDPOINTS, "--token-endpoint needs a --client-id"),
        ({"params": (("state", "mine"),)}, "--param must be KEY=VALUE"),
        ({"params": (("prompt", "a\nb"),)}, "--param must be KEY=VALUE"),
        ({"params": (("client_secret", "mine"),)}, "--param must be KEY=VALUE"),
        ({"refresh_params": (("scope", "all"),)}, "--refresh-param must be KEY=VALUE"),
        ({"refresh_params": (("grant_type", "password"),)}, "--refresh-param must be KEY=VALUE"),
        ({"refresh_params": (("audience", ""),)}, "--refresh-param must be KEY=VALUE"),
        ({"scope_only": True}, "--scope-only needs a --scope"),
        ({"scope": ""}, "--scope must be printable"),
        ({"resource": "über"}, "--resource must be printable"),
    ],
)
def test_invalid_options_are_refused_before_the_login_begins(asked: dict[str, Any], words: str) -> None:
    """If it failed, a mistake in an option would show only at the end of a login, or never."""
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        validated(LoginOptions(**{"url": URL, **asked}))
    assert "secret-word" not in str(caught.value)


ENDPOINTS_GIVEN = Login(
    client="given", endpoints_given=True, authorization_endpoint=f"{ISSUER}/authorize", way="device"
)
OPTIONS = Login(
    client="given",
    issuer_given=True,
    scope="read offline_access",
    resource="none",
    params=hidden((("access_type", "offline"),)),
)


@pytest.mark.parametrize(
    ("login", "asked", "then"),
    [
        (None, {}, {"url": URL}),
        (
            OPTIONS,
            {},
            {
                "url": URL,
                "issuer": ISSUER,
                "scope": OPTIONS.scope,
                "resource": "none",
                "params": revealed(OPTIONS.params),
            },
        ),
        (
            OPTIONS,
            {"scope": "write", "issuer": "https://another.example"},
            {"url": URL, "issuer": "https://another.example", "scope": "write"},
        ),
        (
            ENDPOINTS_GIVEN,
            {},
            {"url": URL, "way": "device", "token_endpoint": "https://as.example/token", "issuer": ISSUER},
        ),
        (ENDPOINTS_GIVEN, {"issuer": ISSUER}, {"url": URL, "way": "device", "issuer": ISSUER, "token_endpoint": None}),
        # For another server, no option of the stored login may be used.
        (OPTIONS, {"url": "https://other.example/mcp"}, {"url": "https://other.example/mcp", "issuer": None}),
        (ENDPOINTS_GIVEN, {"url": "https://other.example"}, {"token_endpoint": None, "way": None, "issuer": None}),
        (OPTIONS, {"url": "https://other.example"}, {"scope": None, "resource": None, "params": ()}),
        (ENDPOINTS_GIVEN, {"url": "https://mcp.example/other"}, {"url": "https://mcp.example/other", "way": "device"}),
    ],
)
def test_a_login_is_repeated_with_the_same_options(
    login: Login | None, asked: dict[str, Any], then: dict[str, Any]
) -> None:
    """If it failed, a repeated login would request less than the first, or send options to another server."""
    stored = grant(server_url=URL, issuer=ISSUER, token_endpoint=f"{ISSUER}/token", login=login)
    again = completed(LoginOptions(**asked), stored)
    assert {key: getattr(again, key) for key in then} == then


# --- the redirect --------------------------------------------------------------------------------------------------


def authorization(**changes: Any) -> AuthorizationRequest:
    """Return an authorization request with a known state."""
    server = msgspec.structs.replace(SERVER, **changes)
    made = new_authorization_request(server, grant(), redirect_uri="http://127.0.0.1:9/callback", params=())
    return msgspec.structs.replace(made, state=Secret(STATE))


@pytest.mark.parametrize(
    "form",
    [
        "http://127.0.0.1:9/callback?{}",
        "?{}",
        "{}",
        "127.0.0.1:9/callback?{}",
        '"http://127.0.0.1:9/callback?{}"',
        "'127.0.0.1:9/callback?{}'",
        "<http://127.0.0.1:9/callback?{}>",
        "view-source:http://127.0.0.1:9/callback?{}",
        "Location: http://127.0.0.1:9/callback?{}",
        "location: /callback?{}\r",
        "http://127.0.0.1:9/callback?{}#_=_",
        "{}&next=a?b",
        '<a href="http://127.0.0.1:9/callback?{}">',
        "http://127.0.0.1:9/callback?{}&next=a?b",
    ],
)
def test_a_redirect_is_read_in_each_form_that_a_person_can_paste(form: str) -> None:
    """If it failed, a person who pastes the address of the browser could not log in."""
    made = authorization()
    assert made.token_request(pasted_query(form.format(f"code=the%20code&more=1&state={STATE}"))) == {
        "grant_type": "authorization_code",
        "code": "the code",
        "redirect_uri": "http://127.0.0.1:9/callback",
        "code_verifier": made.code_verifier.reveal(),
    }


@pytest.mark.parametrize(
    "redirect",
    [
        "",
        "hello",
        "http://[",
        "http://127.0.0.1:9/callback",
        f"http://127.0.0.1:9/callback#code=x&state={STATE}",
        "code=x",
        "code=x&state=",
        "code=x&state=wrong",
        f"code=x&state={STATE}x",
        f"code=x&code=y&state={STATE}",
        f"code=x&state={STATE}&state={STATE}",
        "code=x&state=\udcff",
        "code=x&state=%ff",
        "error=access_denied&state=wrong",
    ],
)
def test_a_redirect_with_another_state_is_foreign(redirect: str) -> None:
    """If it failed, an attacker could end a login or inject a code, or invalid input would end it."""
    with pytest.raises(ForeignRedirect):
        authorization().token_request(pasted_query(redirect))


@pytest.mark.parametrize(
    ("query", "sends_iss", "error", "words"),
    [
        ("code=x", False, None, ""),
        (f"code=x&iss={ISSUER}", True, None, ""),
        ("code=x", True, LoginRefused, "iss, RFC 9207"),
        ("code=x&iss=https://attacker.example", False, LoginRefused, "may be an attack"),
        (f"code=x&iss={ISSUER}/", True, LoginRefused, "may be an attack"),
        ("code=x&iss=", False, LoginRefused, "may be an attack"),
        ("error=access_denied&error_description=no+thanks", False, LoginNotGiven, "(access_denied: no thanks)"),
        ("error=invalid_scope", False, LoginRefused, "(invalid_scope); nothing was changed. Request another --scope"),
        ("error=invalid_target", False, LoginRefused, "Try --resource none"),
        ("error=unauthorized_client", False, LoginRefused, "another --client-id"),
        ("error=strange", False, LoginRefused, "Log in again"),
        ("error=temporarily_unavailable", False, ServerAway, "not available now"),
        ("error=server_error&code=x", False, ServerAway, "not available now"),
        (f"error=strange&error_description={STATE}", False, LoginRefused, "strange: "),
        ("code=", False, LoginRefused, "neither a code nor an error"),
        ("", False, LoginRefused, "neither a code nor an error"),
        ("code=a%0d%0ab", False, LoginRefused, "neither a code nor an error"),
    ],
)
def test_a_redirect_gives_a_code_or_the_matching_error(
    query: str, sends_iss: bool, error: type[RefresherError] | None, words: str
) -> None:
    """If it failed, a code of another server would be redeemed, or a message would not say what to do."""
    made = authorization(sends_iss=sends_iss)
    redirect = f"state={STATE}&{query}"
    if error is None:
        assert made.token_request(redirect)["code"] == "x"
        return
    with pytest.raises(error, match=re.escape(words)) as caught:
        made.token_request(redirect)
    assert type(caught.value) is error
    assert STATE not in str(caught.value)
    assert "nothing was changed" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"authorization_endpoint": None}, "Try --device"), ({"challenge_methods": ("plain",)}, "S256")],
)
def test_a_server_without_pkce_is_refused(changes: dict[str, Any], words: str) -> None:
    """If it failed, an attacker who sees the code could redeem it."""
    with pytest.raises(LoginRefused, match=words):
        authorization(**changes)


def test_an_authorization_request_has_all_its_parameters() -> None:
    """If it failed, a server would refuse the login, or issue no refresh token."""
    server = msgspec.structs.replace(SERVER, authorization_endpoint=f"{ISSUER}/authorize?tenant=a%20b")
    client = grant(resource="https://MCP.example/mcp", send_resource=None, asked_scope="read offline_access")
    made = new_authorization_request(
        server,
        client,
        redirect_uri="http://127.0.0.1:9/callback",
        params=(("access_type", "offline"), ("prompt", "login consent")),
    )
    asked = httpx.URL(made.url).params
    assert dict(asked) == {
        "tenant": "a b",
        "response_type": "code",
        "client_id": "client",
        "redirect_uri": "http://127.0.0.1:9/callback",
        "state": made.state.reveal(),
        "code_challenge": asked["code_challenge"],
        "code_challenge_method": "S256",
        "resource": "https://MCP.example/mcp",
        "scope": "read offline_access",
        "prompt": "login consent",
        "access_type": "offline",
    }
    assert made.code_verifier.reveal() not in repr(made)


@pytest.mark.parametrize(
    ("issuer", "params", "prompt"),
    [
        (ISSUER, (), "consent"),
        ("https://login.microsoftonline.com/common/v2.0", (), None),
        ("https://login.microsoftonline.com/common/v2.0", (("prompt", "select_account"),), "select_account"),
        (ISSUER, (("prompt", ""),), None),
    ],
)
def test_consent_is_not_asked_for_where_that_shuts_people_out(
    issuer: str, params: tuple[tuple[str, str], ...], prompt: str | None
) -> None:
    """If it failed, members of a tenant in which only an administrator consents could not log in."""
    client = grant(issuer=issuer, asked_scope="read offline_access")
    made = new_authorization_request(SERVER, client, redirect_uri="http://127.0.0.1:9/callback", params=params)
    assert httpx.URL(made.url).params.get("prompt") == prompt


def test_an_empty_parameter_leaves_out_what_refresher_would_add() -> None:
    """If it failed, a server that refuses a parameter of refresher could not be used."""
    client = grant(resource="https://mcp.example/mcp", send_resource=None, asked_scope="read")
    params = (("resource", ""), ("scope", ""), ("unknown", ""))
    made = new_authorization_request(SERVER, client, redirect_uri="http://127.0.0.1:9/callback", params=params)
    assert httpx.URL(made.url).params.keys().isdisjoint(("resource", "scope", "unknown"))


@pytest.mark.parametrize(
    ("stored", "asked", "scope"),
    [
        ({"scope": "read list"}, {"scope": "write read"}, "read list write"),
        ({"scope": "read list"}, {"scope": "write", "scope_only": True}, "write"),
        ({"scope": None, "asked_scope": "read"}, {"scope": "write"}, "read write"),
        ({"scope": None, "asked_scope": None}, {"scope": "write"}, "write"),
        ({"scope": "read", "login": Login(client="given", scope="read write")}, {}, "read write"),
        ({"scope": "read"}, {"scope": "write", "url": "https://other.example/mcp"}, "write"),
        (None, {"scope": "write"}, "write"),
    ],
)
def test_more_scope_is_asked_for_beside_what_was_granted(
    stored: dict[str, Any] | None, asked: dict[str, Any], scope: str
) -> None:
    """If it failed, a person who logs in for one more permission would lose the others, or send them elsewhere."""
    there = None if stored is None else grant(server_url=URL, **stored)
    assert completed(LoginOptions(**asked), there).scope == scope


def test_parameters_of_refreshes_are_repeated() -> None:
    """If it failed, a second login would end in refreshes that the server refuses."""
    stored = grant(server_url=URL, refresh_params=hidden((("audience", "api"),)))
    assert completed(LoginOptions(), stored).refresh_params == (("audience", "api"),)


@pytest.mark.parametrize("code", ["", "strange", "invalid_scope", "unauthorized_client", "invalid_grant"])
def test_advice_is_a_sentence(code: str) -> None:
    """If it failed, an error message would not say what to do next."""
    assert re.fullmatch(r"[A-Z].{10,}[^.]", advice(code))


# --- the listener and its pages ------------------------------------------------------------------------------------


class Listening:
    """A listener that accepts a query with "state=good" at its end; ``received``: all queries."""

    def __init__(self, redirect_uri: str | None = None) -> None:
        self.received: list[str] = []
        self.loopback = Loopback(redirect_uri)
        self.loopback.accept = self._take
        self.http = httpx.Client(trust_env=False, timeout=90)

    def _take(self, query: str) -> str | None:
        self.received.append(query)
        return None if query.endswith("state=good") else pages.foreign_redirect()

    def get(self, query: str, **headers: str) -> httpx.Response:
        """Send a redirect."""
        return self.http.get(f"{self.loopback.redirect_uri}{query}", headers=headers)


@pytest.fixture
def listening() -> Iterator[Listening]:
    made = Listening()
    with made.loopback, made.http:
        yield made


def test_foreign_requests_are_refused_and_the_login_goes_on(listening: Listening) -> None:
    """If it failed, any page in the browser could end a login or take it over."""
    loopback = listening.loopback
    root = loopback.redirect_uri.removesuffix("/callback")
    assert listening.http.get(f"{root}/favicon.ico").status_code == 404
    assert listening.http.get(f"{root}/callback/more?state=good").status_code == 404
    assert listening.get("?state=good", Host="attacker.example").status_code == 404
    assert listening.get("?state=good", Host=f"attacker.example:{root.rpartition(':')[2]}").status_code == 404
    assert listening.http.post(loopback.redirect_uri, params={"state": "good"}).status_code == 501
    assert listening.received == []
    answer = listening.get("?state=bad")
    assert (answer.status_code, answer.text) == (400, pages.foreign_redirect())
    loopback.show(pages.done("linear", renewable=True, served=True))
    assert listening.get("?code=x&state=good").text == pages.done("linear", renewable=True, served=True)
    assert listening.received == ["state=bad", "code=x&state=good"]


def test_two_redirects_get_one_page(listening: Listening) -> None:
    """If it failed, a browser that sends the redirect twice would show an error for a successful login."""
    texts: list[str] = []
    requests = [threading.Thread(target=lambda: texts.append(listening.get("?state=good").text)) for _ in range(2)]
    for thread in requests:
        thread.start()
    listening.loopback.show(pages.done("linear", renewable=True, served=True))
    listening.loopback.show(pages.failed("it came too late"))
    for thread in requests:
        thread.join(90)
    assert texts == [pages.done("linear", renewable=True, served=True)] * 2


def test_silent_connections_do_not_delay_the_login() -> None:
    """If it failed, a browser that opens a connection in advance would delay the end of a login."""
    made = Listening()
    with made.loopback, made.http:
        port = int(made.loopback.redirect_uri.rpartition(":")[2].partition("/")[0])
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
        silent[0].sendall(b"GET /callback?state=go")
        made.loopback.show(pages.done("linear", renewable=True, served=True))
        assert made.get("?state=good").text == pages.done("linear", renewable=True, served=True)
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port))
    for connection in silent:
        connection.setblocking(False)
        with pytest.raises(BlockingIOError):  # the listener did not wait for its timeout
            connection.recv(1)
        connection.close()


def test_an_interrupted_login_leaves_no_browser_waiting() -> None:
    """If it failed, the browser would load without end, or the port would stay in use."""
    texts: list[str] = []
    made = Listening()
    with made.http:
        with made.loopback:
            thread = threading.Thread(target=lambda: texts.append(made.get("?state=good").text))
            thread.start()
            wait_until(lambda: bool(made.received), "the redirect has arrived")
        thread.join(90)
    assert texts == [pages.failed("the login was interrupted")]
    Loopback(made.loopback.redirect_uri).server_close()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
def test_the_listener_is_on_loopback_at_the_registered_address(host: str) -> None:
    """If it failed, another machine could send a code, or the registered redirect address would not work."""
    # A socket that is bound and does not listen keeps other processes off the port; the listener can still use it.
    address = "::1" if host == "[::1]" else "127.0.0.1"
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind((address, 0))
        port = reserved.getsockname()[1]
        made = Listening(f"http://{host}:{port}/come/back")
    with made.loopback, made.http:
        made.loopback.show(pages.done("linear", renewable=True, served=True))
        assert made.loopback.server_address[0] == address
        assert made.get("?state=good").text == pages.done("linear", renewable=True, served=True)
        with pytest.raises(ConfigError, match=f"port {port}: .*; choose another --port"):
            Loopback(made.loopback.redirect_uri)


PAGES = {
    "done": pages.done("linear", renewable=True, served=True),
    "declined": pages.failed("the login was declined in the browser (<script>alert(1)</script>)", declined=True),
    "failed": pages.failed('</main><img src=x onerror="alert(1)">'),
    "not_ours": pages.foreign_redirect(),
}


@pytest.mark.parametrize("which", PAGES)
def test_a_page_loads_nothing_and_runs_nothing(which: str) -> None:
    """If it failed, text of a server could run in the browser, or a page would leak the login."""
    page = PAGES[which]
    assert re.findall(r"\b(?:src|href|action|url|import)\b\s*[=(]", re.sub(r"&\w+;|<p>.*?</p>", "", page)) == []
    assert re.findall("<(script|img|link|iframe|form|a)\\b", page) == []
    assert page.count("<main>") == page.count("</main>") == page.count("<h1>") == 1
    assert "close this page" in page or "terminal" in page
    assert pages.HEADERS["Content-Security-Policy"].startswith("default-src 'none'")
    assert (pages.HEADERS["Cache-Control"], pages.HEADERS["Referrer-Policy"]) == ("no-store", "no-referrer")


def test_the_page_of_a_failed_login_says_that_the_earlier_login_still_works() -> None:
    """If it failed, a person who declines would think that the earlier login is lost."""
    for page in (PAGES["declined"], PAGES["failed"]):
        assert "still works" in page
    assert "&lt;script&gt;" in PAGES["declined"]
