"""Who may send a request."""

from pathlib import Path

import pytest
from multidict import CIMultiDict

from refresher.gateway.access import Access
from refresher.gateway.headers import for_agent, for_server
from refresher.gateway.keys import Keys, make, render
from refresher.gateway.routes import Target


@pytest.mark.parametrize(
    ("headers", "error"),
    [
        ({"Host": "127.0.0.1:8765"}, None),
        ({"Host": "localhost:8765"}, None),
        ({"Host": "[::1]:8765"}, None),
        ({"Host": "evil.example:8765"}, "wrong_host"),
        ({"Host": "localhost.evil.example"}, "wrong_host"),
        ({"Host": "127.0.0.1:8765", "Origin": "https://evil.example"}, "web_page"),
        ({"Host": "127.0.0.1:8765", "Origin": "null"}, "web_page"),
        ({"Host": "127.0.0.1:8765", "Origin": "http://["}, "web_page"),
        ({"Host": "127.0.0.1:8765", "Sec-Fetch-Site": "none"}, "web_page"),
        ({"Host": "127.0.0.1:8765", "Sec-Fetch-Mode": "cors"}, None),
    ],
)
def test_no_web_page_gets_an_answer(tmp_path: Path, headers: dict[str, str], error: str | None) -> None:
    """If it failed, a web page could use the logins, by DNS rebinding too; or an agent on Node could not."""
    given = CIMultiDict(headers)
    found = Access(Keys(str(tmp_path / "keys"))).refusal(given, given.getall("Host", []), None)
    assert (None if found is None else found.error) == error


def test_a_request_needs_a_key_for_its_grant(tmp_path: Path) -> None:
    """If it failed, any program could use each login; or a client would read a 401 and begin a login of its own."""
    path = tmp_path / "keys"
    text, made = make("cursor", ["linear"])
    path.touch(mode=0o600)
    path.write_bytes(render([made]))
    access = Access(Keys(str(path)))

    def error(name: str, key: str | None = None, authorization: str = "") -> str | None:
        found = access.key_refusal(CIMultiDict(Authorization=authorization), Target(key, name, f"/{name}", "/"))
        assert found is None or found.status == 403
        return None if found is None else found.error

    assert error("linear", text) is error("linear", None, f"bearer {text}") is None
    assert error("linear") == error("linear", None, f"Basic {text}") == "no_key"
    assert error("linear", text + "x") == error("linear", text[:-1], f"Bearer {text}") == "wrong_key"
    assert error("github", text) == "not_allowed"


def test_headers_of_the_connection_and_of_logins_do_not_pass() -> None:
    """If it failed, a key would reach a server, or a challenge an agent, which would begin a login of its own."""
    dropped = {"Authorization": "Bearer KEY", "Cookie": "a", "Origin": "b", "Referer": "/KEY/", "Host": "c"}
    dropped |= {"Connection": "close, X-Hop", "X-Hop": "d", "TE": "trailers", "Proxy-Authorization": "e"}
    passed = [("Accept", "x"), ("accept", "y"), ("Mcp-Session-Id", "f"), ("Accept-Encoding", "gzip")]
    sent = CIMultiDict([*dropped.items(), *passed, ("Expect", "100-continue")])
    assert list(for_server(sent, "Bearer TOKEN", 7).items()) == [
        *passed,
        *[("Authorization", "Bearer TOKEN"), ("Content-Length", "7")],
    ]
    passed = [("Link", "1"), ("Link", "2"), ("Content-Encoding", "br")]
    dropped = {"WWW-Authenticate": "Bearer", "Set-Cookie": "a", "Transfer-Encoding": "chunked", "Trailer": "x"}
    assert list(for_agent(CIMultiDict([*dropped.items(), *passed])).items()) == passed
