"""What the doctor finds at authorization servers, on loopback and behind a proxy."""

import json
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from refresher.doctor import servers
from refresher.doctor.finding import Finding
from refresher.grants.record import Grant, Login
from tests.support.answering import Answer, Answering
from tests.support.keys import server_context
from tests.support.proxy import Proxy, answers, drips, hangs, tunnels
from tests.support.samples import grant

PLACE = "/.well-known/oauth-authorization-server"
HTML = ("Content-Type: text/html",)


def of(issuer: str | None, server: str, **changes: Any) -> Grant:
    """Return a grant of a server."""
    return grant(
        **{"issuer": issuer, "token_endpoint": f"{server}/token", "login": Login(client="registered"), **changes}
    )


def metadata(issuer: str, **changes: str) -> dict[str, str]:
    """Return the metadata of a server."""
    ends = ("authorization", "token", "revocation")
    return {"issuer": issuer, **{f"{end}_endpoint": f"{issuer}/{end}" for end in ends}, **changes}


def found(*grants: Grant, ca_file: Path | None = None) -> list[Finding]:
    """Return what is found."""
    return servers.check(grants, None if ca_file is None else str(ca_file), waiting=lambda _: None)


def codes(*grants: Grant, ca_file: Path | None = None) -> list[str]:
    """Return the codes of what is found."""
    return [finding.code for finding in found(*grants, ca_file=ca_file)]


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def test_a_server_is_asked_once_for_all_its_grants_and_gets_no_secret() -> None:
    """If it failed, the doctor would send many requests, or a token, to a server that is in trouble."""
    with Answering() as server:
        server.answers = {PLACE: [Answer(200, metadata(server.url))]}
        grants = [of(server.url, server.url, name=f"linear{number}") for number in range(20)]
        assert found(*grants, of(None, server.url, name="imported", login=None)) == []
    assert server.seen == [f"GET {PLACE}"]


def test_endpoints_that_moved_are_found_for_each_grant() -> None:
    """If it failed, nobody would learn that a server closes the endpoint that refresher uses."""
    with Answering() as server:
        server.answers = {PLACE: [Answer(200, metadata(server.url, token_endpoint=f"{server.url}/new"))]}
        given = Login(client="given", endpoints_given=True)
        grants = of(server.url, server.url), of(server.url, server.url, name="notion", login=given)
        (finding,) = found(*grants)
        assert (finding.code, finding.name, finding.mend) == ("endpoint_changed", "linear", "refresher login linear")
        assert f"{server.url}/new" in finding.what
        server.answers = {PLACE: [Answer(200, metadata(server.url, revocation_endpoint=f"{server.url}/other"))]}
        moved = of(server.url, server.url, revocation_endpoint=f"{server.url}/revoke")
        assert codes(moved) == ["endpoint_changed"]


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Answer(404), "metadata_unusable"),
        (Answer(403), "metadata_unusable"),
        (Answer(200, '{"issuer": '), "metadata_unusable"),
        (Answer(200, "<html>", (("Content-Type", "text/html"),)), "metadata_unusable"),
        (Answer(200, metadata("https://evil.example")), "issuer_changed"),
        (Answer(503), "server_away"),
        (Answer(None), "server_away"),
    ],
)
def test_what_is_wrong_with_metadata_is_found(answer: Answer, code: str) -> None:
    """If it failed, the next login would be the first to notice that a server has changed or is down."""
    with Answering() as server:
        places = (PLACE, "/.well-known/openid-configuration")
        server.answers = {place: [answer] for place in places}
        grants = of(server.url, server.url), of(server.url, server.url, name="notion")
        (finding,) = found(*grants)
    assert finding.code == code, finding
    assert "linear, notion" in finding.what
    assert "nothing was changed" not in finding.what


def test_a_grant_that_never_had_metadata_needs_none() -> None:
    """If it failed, each server without metadata would be reported."""
    with Answering() as server:
        given = Login(client="given", endpoints_given=True)
        grants = of(server.url, server.url, login=None), of(server.url, server.url, name="notion", login=given)
        assert found(*grants) == []
        assert found(of(None, server.url)) == []


def test_a_server_that_hangs_or_drips_delays_only_its_own_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, one server that hangs would keep the doctor from an answer about all others."""
    monkeypatch.setattr(servers, "DEADLINE", 8.0)
    shown: list[list[str]] = []
    with Answering() as server:
        server.answers = {PLACE: [Answer(200, metadata(server.url, token_endpoint=f"{server.url}/new"))]}
        with Proxy(server.url, otherwise=hangs) as hanging, Proxy(server.url, otherwise=drips(1.0)) as dripping:
            urls = (hanging.url, server.url, dripping.url)
            grants = [of(url, url, name=f"linear{number}") for number, url in enumerate(urls)]
            findings = servers.check(grants, None, waiting=shown.append)
    assert {(finding.code, finding.name) for finding in findings} == {
        ("server_away", "linear0"),
        ("endpoint_changed", "linear1"),
        ("server_away", "linear2"),
    }
    assert shown[-1] == sorted([hanging.url, dripping.url]), "a person does not see which servers are waited for"


@pytest.mark.parametrize(("ahead", "words"), [(0, ""), (900, "15 min behind"), (-900, "15 min ahead of")])
def test_a_clock_that_differs_from_that_of_a_server_is_found(ahead: float, words: str) -> None:
    """If it failed, a wrong clock would look like tokens that expire at once."""
    with Answering() as server, Proxy(server.url) as front:
        date = f"Date: {formatdate(time.time() + ahead, usegmt=True)}"
        body = json.dumps(metadata(front.url)).encode()
        front.faults.append(answers("200 OK", body, ("Content-Type: application/json", date)))
        findings = found(of(front.url, front.url))
    assert [finding.code for finding in findings] == (["clock_differs"] if ahead else [])
    assert all(words in finding.what for finding in findings)


def test_the_date_of_a_cached_answer_is_not_the_time_of_the_server() -> None:
    """If it failed, a cache before a server would be taken for a wrong clock."""
    with Answering() as server, Proxy(server.url) as front:
        body = json.dumps(metadata(front.url)).encode()
        front.faults.append(answers("200 OK", body, ("Date: Tue, 15 Nov 1994 08:12:31 GMT", "Age: 900000000")))
        assert found(of(front.url, front.url)) == []


def test_a_proxy_that_refuses_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, a proxy that asks for a password would look like a server that is down."""
    with Answering() as server, Proxy(server.url, otherwise=answers("407 Proxy Authentication Required", b"")) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("http://", "http://me:the-password-of-the-proxy@"))
        (finding,) = found(of("https://as.example", "https://as.example"))
    assert finding.code == "proxy_answers", finding
    assert "407" in finding.what
    assert "the-password-of-the-proxy" not in finding.what
    monkeypatch.setenv("HTTPS_PROXY", "http://[not-a-proxy")
    assert codes(of("https://as.example", "https://as.example")) == ["proxy_answers"]


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        ("200 OK", b"<html>Please accept our terms.</html>", HTML),
        ("511 Network Authentication Required", b"<html>", HTML),
        ("403 Forbidden", b"<html>", HTML),
        ("200 OK", json.dumps(metadata("https://other.invalid")).encode(), ()),
    ],
)
def test_a_proxy_that_answers_in_place_of_the_server_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str, body: bytes, headers: tuple[str, ...]
) -> None:
    """If it failed, the page of a network's proxy would look like the answer of the server."""
    trusted = tmp_path / "authority.pem"
    context = server_context(trusted, "as.invalid")
    with (
        Answering() as server,
        Proxy(server.url, otherwise=answers(status, body, headers), tls=context) as inspecting,
        # The proxy opens the tunnel to itself, and answers with a certificate that this machine trusts.
        Proxy(inspecting.url, otherwise=tunnels) as proxy,
    ):
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        issuer = "https://as.invalid"
        (finding,) = found(of(issuer, issuer), ca_file=trusted)
        assert finding.code == "proxy_answers", finding
        assert proxy.url.removeprefix("http://") in finding.what
        assert codes(of(issuer, issuer)) == ["proxy_answers"], "its certificate is not trusted"
