"""The network between the command and its server: what it does to a request and to an answer, and where it leads.

Whole runs through a proxy. What one exchange makes of each answer is the business of ``test_answers``.
"""

import gzip
import itertools
import json
import re
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from refresher.grants import policy
from refresher.grants.record import encode
from tests.conftest import need
from tests.support.command import Command, Done, wait_until
from tests.support.daemon import running
from tests.support.oidc import OIDC
from tests.support.parts import no_strace
from tests.support.proxy import (
    Fault,
    Proxy,
    answers,
    closes_after,
    closes_before,
    cuts_handshake,
    drips,
    duplicates,
    hangs,
    holds,
    passes,
    refuses,
    resets_after,
    resets_before,
    resets_behind,
    resets_midway,
    speaks_no_tls,
    swallows,
    truncates,
    tunnels,
)
from tests.support.raw_server import RawServer
from tests.support.samples import grant as sample
from tests.support.token_server import TokenServer

Start = Callable[..., OIDC]

PAGE = b"<html><title>Welcome to our network</title>Please accept our terms.</html>"
HTML = ["Content-Type: text/html"]

# An exchange is then given 5 s.
SHORT = ("--grace", "10s")


# --- helpers ------------------------------------------------------------------------------------------------------


@contextmanager
def behind(
    refresher: Command,
    url: str,
    mint: Callable[[str], Mapping[str, Any]],
    faults: Mapping[str, Sequence[Fault]],
    tls: ssl.SSLContext | None = None,
) -> Iterator[dict[str, Proxy]]:
    """Have a grant for each name, whose server stands behind a proxy of its own with those faults."""
    with ExitStack() as stack:
        proxies = {name: stack.enter_context(Proxy(url, *chosen, tls=tls)) for name, chosen in faults.items()}
        for name, proxy in proxies.items():
            refresher.import_grant(name, {**mint(name), "token_endpoint": proxy.url})
        yield proxies


@contextmanager
def live(refresher: Command, server: OIDC, faults: Mapping[str, Fault]) -> Iterator[dict[str, Proxy]]:
    """Have a grant for each name with a live access token; its next connection meets its fault."""
    chosen = {name: (passes, fault) for name, fault in faults.items()}
    with behind(refresher, server.endpoints["token_endpoint"], lambda _: server.mint(), chosen) as proxies:
        assert refresher("run-once").code == 0
        yield proxies


def connections(proxies: Mapping[str, Proxy]) -> dict[str, int]:
    """Return how often each grant has gone to its server."""
    return {name: proxy.connections for name, proxy in proxies.items()}


def outcomes(done: Done) -> dict[str, str]:
    """Return what a run says of each grant."""
    return {name: str(result["outcome"]) for name, result in done.results.items()}


def access_tokens(refresher: Command, names: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the published tokens."""
    return {name: refresher.token(name).access_token for name in names}


def states(refresher: Command, names: Mapping[str, Any]) -> dict[str, str]:
    """Return the published states."""
    return {name: refresher.token(name).state for name in names}


def ended(refresher: Command, name: str) -> bool:
    """Whether the published access token has expired."""
    expires_at = refresher.token(name).expires_at
    return expires_at is not None and time.time() > expires_at + 0.1


def is_good(refresher: Command, server: OIDC, name: str) -> bool:
    """Whether the server takes the published access token; once its end has come nothing can be said any more."""
    token = refresher.token(name)
    assert token.expires_at is not None
    # The server counts in whole seconds: up to one less than it has promised.
    return bool(server.introspect(token.access_token)["active"]) or time.time() > token.expires_at - 1.1


def fingerprint(refresher: Command, name: str) -> str:
    """Name the refresh token that is stored."""
    token = refresher.grant(name).refresh_token
    assert token is not None
    return token.fingerprint()


def came(server: OIDC, token: str) -> list[float]:
    """Return when the server saw the refresh token with that fingerprint, as epoch seconds."""
    return [request["at"] / 1000 for request in server.requests() if request["fingerprint"].startswith(token)]


def moved(refresher: Command, name: str, endpoint: str) -> None:
    """Change a record's token endpoint by hand; its checksum fits."""
    data, _ = encode(msgspec.structs.replace(refresher.grant(name), token_endpoint=endpoint))
    (refresher.state / f"grants/{name}.json").write_bytes(data)


class Authority(NamedTuple):
    """A certificate that vouches for itself and for two hosts' names, and a server's side of it."""

    certificate: Path
    context: ssl.SSLContext


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Return one that nobody knows."""
    need(None if shutil.which("openssl") else "openssl is not installed")
    place = tmp_path_factory.mktemp("authority")
    key, certificate = place / "key.pem", place / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,DNS:as.invalid", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return Authority(certificate, context)


# --- answers lost -------------------------------------------------------------------------------------------------

UNSEEN: dict[str, Fault] = {
    "reset-at-once": refuses,
    "reset-midway": resets_midway,
    "reset-before": resets_before,
    "closed-before": closes_before,
    "portal": answers("200 OK", PAGE, HTML),
    "gateway": answers("502 Bad Gateway", PAGE, HTML),
}


def test_what_the_server_never_saw_is_asked_again_at_the_end_of_the_access_token(
    refresher: Command, own_oidc: Start
) -> None:
    """If it failed, a broken cable would cost a live token, or call for a person where waiting is enough (I1, I4)."""
    server = own_oidc(accessTokenTtl=5)
    with live(refresher, server, UNSEEN) as proxies:
        before = access_tokens(refresher, UNSEEN)
        done = refresher("run-once", "--force", "--json")
        said = outcomes(done)
        # Where the reset is seen before the first byte is written, nothing was sent.
        assert said.pop("reset-at-once") in ("in_doubt", "transient")
        assert (done.code, set(said.values())) == (5, {"in_doubt"}), done.stdout
        assert access_tokens(refresher, UNSEEN) == before
        assert set(states(refresher, UNSEEN).values()) == {"failing"}
        assert all(is_good(refresher, server, name) for name in UNSEEN)
        (kept,) = refresher.leftovers()
        page = refresher.state / "grants" / kept
        assert kept.startswith("portal.answer.")
        assert (page.read_bytes(), stat.S_IMODE(page.stat().st_mode)) == (PAGE, 0o600)
        again = refresher("run-once", "--force", *said)
        if not any(ended(refresher, name) for name in said):
            assert again.code == 5
            assert {proxies[name].connections for name in said} == {2}, "sent while the access token lived"
        assert server.log()["presented_twice"] == 0
        wait_until(lambda: all(ended(refresher, name) for name in UNSEEN), "the access tokens have expired")
        done = refresher("run-once", "--force", "--json")
        assert done.code == 0, done.stdout
        assert set(states(refresher, UNSEEN).values()) == {"active"}
        assert all(is_good(refresher, server, name) for name in UNSEEN)
    assert (server.log()["reused"], server.log()["presented_twice"]) == (0, 0)
    assert refresher.leftovers() == [kept]


SPENT: dict[str, Fault] = {
    "reset-after": resets_after,
    "closed-after": closes_after,
    "in-the-header": truncates(30),
    "in-the-body": truncates(b'"refresh_token"'),
}


def test_what_the_server_answered_in_vain_is_said_to_be_lost_and_only_at_the_end(
    refresher: Command, own_oidc: Start
) -> None:
    """If it failed, a lost answer would revoke a live token, or end in a death that nobody can explain (I1, I5)."""
    server = own_oidc(accessTokenTtl=5)
    with live(refresher, server, SPENT) as proxies:
        before = access_tokens(refresher, SPENT)
        spent = {name: fingerprint(refresher, name) for name in SPENT}
        done = refresher("run-once", "--force", "--json")
        assert (done.code, set(outcomes(done).values())) == (5, {"in_doubt"}), done.stdout
        assert {proxy.answered for proxy in proxies.values()} == {2}
        assert access_tokens(refresher, SPENT) == before
        assert set(states(refresher, SPENT).values()) == {"failing"}
        assert all(is_good(refresher, server, name) for name in SPENT)
        (kept,) = refresher.leftovers()
        assert kept.startswith("in-the-body.answer.")
        answer = json.loads((refresher.state / "grants" / kept).read_bytes() + b":0}")
        assert answer["access_token"], "what came is gone (I6)"
        refresher.vault.learn(answer["access_token"])
        wait_until(lambda: all(ended(refresher, name) for name in SPENT), "the access tokens have expired")
        done = refresher("run-once", "--force", "--json")
        assert (done.code, set(outcomes(done).values())) == (3, {"reauthorization_required"}), done.stdout
        for name, result in done.results.items():
            assert "the rotation was lost" in result["detail"]
            published = refresher.token(name)
            assert published.state == "reauthorization_required"
            assert published.error is not None
            assert published.error.code == "invalid_grant"
            assert "the rotation was lost" in published.error.description
        for name, token in spent.items():
            expires_at = refresher.grant(name).expires_at
            assert expires_at is not None
            first, second = came(server, token)
            assert first < expires_at < second, f"{name}: a spent token was sent while there was one to lose"
        assert refresher("run-once").code == 3
        assert set(connections(proxies).values()) == {3}, "a dead grant was tried again"
    assert server.log()["reused"] == len(SPENT)


def test_before_the_first_token_there_is_nothing_to_wait_for(refresher: Command, oidc: OIDC) -> None:
    """If it failed, a new login on a bad network would be useless for an hour, protecting a token nobody has."""
    endpoint, fields = oidc.endpoints["token_endpoint"], oidc.mint()
    with behind(refresher, endpoint, lambda _: fields, {"linear": (closes_before,)}) as proxies:
        token = fingerprint(refresher, "linear")
        done = refresher("run-once", "--json")
        assert (done.code, outcomes(done)) == (5, {"linear": "in_doubt"})
        assert refresher.token("linear").access_token is None
        done = refresher("run-once", "--force", "--json")
        assert (done.code, outcomes(done)) == (0, {"linear": "rotated"}), done.stdout
        assert connections(proxies) == {"linear": 2}
    assert len(came(oidc, token)) == 1


def test_where_the_server_allows_it_what_was_lost_is_fetched_at_once(refresher: Command) -> None:
    """If it failed, a server's grace, made for lost answers, would pass unused when one is lost."""
    lost: dict[str, Sequence[Fault]] = {
        **{name: [fault] for name, fault in SPENT.items()},
        "before": [closes_before],
        "both": [resets_after, resets_after],
    }
    with (
        TokenServer(lambda _: 3600) as server,
        behind(refresher, server.token_endpoint, lambda name: server.grant(name, replay="30s"), lost) as proxies,
    ):
        done = refresher("run-once", "--json")
        assert (done.code, outcomes(done)) == (5, dict.fromkeys(lost, "rotated") | {"both": "in_doubt"}), done.stdout
        assert set(connections(proxies).values()) == {2}
        assert refresher.token("both").access_token is None
        # The grace is still open: a doubt in it waits for nothing but its backoff, which force skips.
        done = refresher("run-once", "--force", "both", "--json")
        assert (done.code, outcomes(done)) == (0, {"both": "rotated"}), done.stdout
        assert connections(proxies) == dict.fromkeys(lost, 2) | {"both": 3}
        assert set(states(refresher, lost).values()) == {"active"}
        assert {name: len(asked) for name, asked in server.asked.items()} == dict.fromkeys(lost, 2) | {
            "before": 1,
            "both": 3,
        }


def test_what_is_slow_late_doubled_or_breaks_off_behind_its_tokens_is_as_good_as_any_answer(
    refresher: Command, own_oidc: Start
) -> None:
    """If it failed, a slow line would put every rotation in doubt, or tokens that have come would be thrown away."""
    server = own_oidc()
    release = threading.Event()
    faults: dict[str, Fault] = {
        "late": holds(release),
        "doubled": duplicates,
        "reset-behind": resets_behind,
        "cut-behind": truncates(-1),
        "dripped": drips(0.001),
        "dripped-body": drips(0.001, body_only=True),
    }
    with live(refresher, server, faults) as proxies:
        before = access_tokens(refresher, faults)
        process = refresher.start("run-once", "--force", "--json")
        wait_until(lambda: refresher.token("doubled").generation == 2, "the others do not wait for the late one")
        wait_until(lambda: proxies["late"].answered == 2, "the server has answered")
        token = refresher.token("late")
        assert (token.generation, token.state, token.access_token) == (1, "active", before["late"])
        release.set()
        done = refresher.finish(process)
        assert (done.code, outcomes(done)) == (0, dict.fromkeys(faults, "rotated")), done.stdout
        assert {refresher.token(name).generation for name in faults} == {2}
        assert all(is_good(refresher, server, name) for name in faults)
        done = refresher("run-once", "--force", "--json")
        assert (done.code, set(connections(proxies).values())) == (0, {3}), done.stdout
    assert (server.log()["reused"], server.log()["presented_twice"]) == (0, 0)
    assert refresher.leftovers() == []


# --- across the token's expiry ------------------------------------------------------------------------------------


def impatient(name: str, generation: int = 1) -> str:
    """Return a name whose first backoff is among the shortest: it comes from the name, and tests wait for it."""
    names = (f"{name}-{number}" for number in itertools.count())
    return next(name for name in names if policy.backoff(sample(name=name, generation=generation), 1) < 5.5)


def until_it_is(refresher: Command, name: str, said: str) -> None:
    """Wait until a published state, or the code of its error, is ``said``."""

    def is_said() -> bool:
        if not (refresher.state / f"tokens/{name}.json").exists():
            return False
        token = refresher.token(name)
        return said in (token.state, None if token.error is None else token.error.code)

    wait_until(is_said, f"{name} is {said}")


def test_what_hangs_across_the_expiry_is_left_and_asked_anew_without_a_person(
    refresher: Command, own_oidc: Start, authority: Authority
) -> None:
    """If it failed, one connection that is never answered would end a daemon's grants for good (I4)."""
    server = own_oidc(accessTokenTtl=6)
    endpoint = server.endpoints["token_endpoint"]
    too_late = threading.Event()
    faults: dict[str, Fault] = {
        impatient("swallowed"): swallows,
        impatient("late"): holds(too_late),
        impatient("header"): drips(1.0),
        impatient("body"): drips(1.0, body_only=True),
        impatient("down"): passes,
    }
    swallowed, late, header, body, down = faults
    hanging = (swallowed, late, header, body)
    silent = impatient("silent", 0)

    def forgiven(name: str) -> dict[str, Any]:
        return forgiving.grant(name, replay="30s")

    with (
        TokenServer(lambda _: 3600) as forgiving,
        live(refresher, server, faults) as proxies,
        behind(refresher, forgiving.token_endpoint, forgiven, {"forgiven": (holds(too_late),)}),
        behind(refresher, endpoint, lambda _: server.mint(), {silent: (hangs,)}, authority.context),
    ):
        before = access_tokens(refresher, faults)
        tokens = {name: fingerprint(refresher, name) for name in (*faults, silent)}
        ends = {name: refresher.grant(name).expires_at or 0.0 for name in faults}
        proxies[down].down()
        with running(refresher, *SHORT, options=("--ca-file", str(authority.certificate))) as process:
            wait_until(lambda: all(proxies[name].connections > 1 for name in hanging), "they hang")
            until_it_is(refresher, down, "temporarily_unavailable")
            assert refresher.grant(down).doubt is None
            proxies[down].up()
            assert access_tokens(refresher, faults) == before
            assert all(is_good(refresher, server, name) for name in faults)
            until_it_is(refresher, silent, "temporarily_unavailable")
            assert refresher.grant(silent).doubt is None, "without TLS nothing was sent"
            for name in hanging:
                until_it_is(refresher, name, "in_doubt")
                assert refresher.token(name).access_token == before[name], "a token was withdrawn (I5)"
                assert ended(refresher, name), "it was not across the expiry"
            assert refresher.token("forgiven").state == "active", "its grace was not used within the same exchange"
            too_late.set()
            for name in (swallowed, down, silent):
                until_it_is(refresher, name, "active")
                assert refresher.token(name).generation > (0 if name == silent else 1)
                assert is_good(refresher, server, name)
            for name in (late, header, body):
                until_it_is(refresher, name, "reauthorization_required")
                error = refresher.token(name).error
                assert error is not None
                assert "the rotation was lost" in error.description
                assert [at > ends[name] for at in came(server, tokens[name])] == [False, True]
            assert [len(came(server, tokens[name])) for name in (swallowed, down, silent)] == [1, 1, 1]
            process.send_signal(signal.SIGTERM)
            done = refresher.finish(process)
    assert done.code == 0, done.stderr
    assert len(forgiving.asked["forgiven"]) == 2
    assert [name.partition(".answer.")[0] for name in refresher.leftovers()] == [body], "what came of it is kept"
    assert server.log()["reused"] == 3, "more was sent twice than what was lost"


# --- no way there -------------------------------------------------------------------------------------------------


TROUBLES: dict[str, tuple[Sequence[Fault], str]] = {
    "nobody listens": ((), "localhost"),
    "no such host": ((), "as.invalid"),
    "unknown authority": ((), "localhost"),
    "another's certificate": ((), "127.0.0.1"),
    "handshake cut": ((cuts_handshake,), "localhost"),
    "no TLS": ((speaks_no_tls,), "localhost"),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_where_the_server_cannot_be_reached_nothing_is_sent_or_in_doubt(
    refresher: Command, oidc: OIDC, authority: Authority, trouble: str
) -> None:
    """If it failed, a name server's bad day would put every grant in doubt, or send its token to a stranger (I8)."""
    faults, host = TROUBLES[trouble]
    trusting = ("--ca-file", str(authority.certificate))
    with Proxy(oidc.endpoints["token_endpoint"], *faults, tls=authority.context) as proxy:
        there = proxy.url.replace("localhost", host)
        more = {"token_endpoint": there, "access_token": "a-live-access-token", "expires_in": 3600}
        refresher.import_grant("linear", oidc.mint() | more)
        token = fingerprint(refresher, "linear")
        if trouble == "nobody listens":
            proxy.down()
        options = () if trouble == "unknown authority" else trusting
        done = refresher(*options, "run-once", "--force", "--json")
        assert (done.code, outcomes(done)) == (4, {"linear": "transient"}), done.stdout
        assert "nothing was sent" in done.results["linear"]["detail"]
        assert proxy.requests == []
        grant, published = refresher.grant("linear"), refresher.token("linear")
        assert (grant.doubt, grant.generation, fingerprint(refresher, "linear")) == (None, 0, token)
        assert (published.state, published.access_token) == ("failing", "a-live-access-token")
        assert refresher.leftovers() == []
        if trouble == "nobody listens":
            proxy.up()
        if there != proxy.url:
            moved(refresher, "linear", proxy.url)
        done = refresher(*trusting, "run-once", "--force", "--json")
        assert (done.code, outcomes(done)) == (0, {"linear": "rotated"}), done.stdout
    assert oidc.introspect(refresher.token("linear").access_token)["active"]
    assert len(came(oidc, token)) == 1


def test_a_proxy_of_the_environment_sees_no_token_whatever_it_does(
    refresher: Command, oidc: OIDC, authority: Authority
) -> None:
    """If it failed, a company's proxy that refuses would put every grant in doubt, or read its tokens (I8)."""
    trusting = ("--ca-file", str(authority.certificate))
    refusals = [answers("407 Proxy Authentication Required", PAGE, HTML), answers("502 Bad Gateway", PAGE, HTML)]
    refusals += [closes_before, resets_before, answers("200 OK", b"")]
    with (
        Proxy(oidc.endpoints["token_endpoint"], tls=authority.context) as server,
        Proxy(server.url, *refusals, tunnels) as gate,
    ):
        refresher.import_grant("linear", oidc.mint() | {"token_endpoint": "https://as.invalid/token"})
        token = refresher.refresh_token("linear")
        environment = {"HTTPS_PROXY": gate.url.removesuffix("/token")}
        for _ in refusals:
            done = refresher(*trusting, "run-once", "--force", "--json", environment=environment)
            assert (done.code, outcomes(done)) == (4, {"linear": "transient"}), done.stdout
            assert "nothing was sent" in done.results["linear"]["detail"]
            assert refresher.grant("linear").doubt is None
        assert server.connections == 0
        done = refresher(*trusting, "run-once", "--force", "--json", environment=environment)
        assert (done.code, outcomes(done)) == (0, {"linear": "rotated"}), done.stdout
        assert len(server.requests) == 1
        assert gate.requests[0].startswith(b"CONNECT as.invalid:443 ")
        seen = b"".join(gate.requests)
        assert token.encode() not in seen
        assert b"refresh_token" not in seen
    assert oidc.introspect(refresher.token("linear").access_token)["active"]


# --- answers without end ------------------------------------------------------------------------------------------

GIB = 1024**3

# A process of its own measures: what a large parent once used counts for its children until they run their own program.
MEASURE = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
with open(sys.argv[1], "w") as file:
    file.write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(code)
"""


def pours(head: bytes, chunk: bytes) -> Callable[[socket.socket], None]:
    """Answer with ``head`` and then 1 GiB."""

    def pour(connection: socket.socket) -> None:
        connection.sendall(head)
        for _ in range(GIB // len(chunk)):
            connection.sendall(chunk)

    return pour


def unfolds(connection: socket.socket) -> None:
    """Answer with a little that unpacks to much."""
    packed = gzip.compress(bytes(GIB // 8), compresslevel=1)
    assert len(packed) < 1024**2
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(packed)}\r\n\r\n"
    connection.sendall(head.encode() + packed)


@pytest.mark.parametrize(
    ("endless", "kept"),
    [
        (pours(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % GIB, b"x" * 65536), 1024**2),
        (pours(b"HTTP/1.1 200 OK\r\n", b"X-More: " + b"x" * 1014 + b"\r\n"), None),
        (unfolds, 1024**2),
    ],
    ids=["body", "header", "gzip"],
)
def test_an_answer_of_a_gibibyte_costs_no_memory(
    refresher: Command, endless: Callable[[socket.socket], None], kept: int | None
) -> None:
    """If it failed, one broken server could have the daemon killed, and with it the rotation of every grant."""
    good = {"access_token": "the-first-access-token", "refresh_token": "the-second-refresh-token", "expires_in": 3600}
    body = json.dumps(good).encode()
    refresher.vault.learn(good["access_token"], good["refresh_token"])
    measured = refresher.home / "measured"
    swallowed: list[bool] = []

    def answer(connection: socket.socket, _: bytes) -> None:
        if len(server.requests) == 1:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        else:
            endless(connection)
            swallowed.append(True)

    def peak(code: int) -> int:
        prefix = (sys.executable, "-c", MEASURE, str(measured))
        done = refresher.finish(refresher.start("run-once", "--force", prefix=prefix))
        assert done.code == code, done.stderr
        return int(measured.read_text())

    with RawServer(answer) as server:
        fields = {"token_endpoint": server.token_endpoint, "client_id": "client", "server_url": "https://mcp.example"}
        refresher.import_grant("linear", {**fields, "refresh_token": "the-first-refresh-token"})
        usual = peak(0)
        assert peak(5) < 2 * usual
    assert swallowed == ([True] if endless is unfolds else []), "it was read to its end"
    token = refresher.token("linear")
    assert (token.state, token.access_token) == ("failing", good["access_token"])
    sizes = [(refresher.state / "grants" / name).stat().st_size for name in refresher.leftovers()]
    assert sizes == ([] if kept is None else [kept])


def test_a_form_of_unknown_length_that_breaks_off_replaces_nothing(refresher: Command) -> None:
    """If it failed, the first half of a refresh token would be stored in place of one that may still be good (I6)."""
    half = b"access_token=the-next-access-token&expires_in=28800&refresh_token=the-next-ref"
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-www-form-urlencoded\r\n\r\n"
    with RawServer(lambda connection, _: connection.sendall(head + half)) as server:
        fields = {"token_endpoint": server.token_endpoint, "client_id": "client", "server_url": "https://mcp.example"}
        refresher.import_grant("linear", {**fields, "refresh_token": "the-first-refresh-token"})
        done = refresher("run-once", "--json")
    assert (done.code, outcomes(done)) == (5, {"linear": "in_doubt"}), done.stdout
    assert refresher.refresh_token("linear") == "the-first-refresh-token"
    (kept,) = refresher.leftovers()
    assert (refresher.state / "grants" / kept).read_bytes() == half


# --- endpoints that move (I8) -------------------------------------------------------------------------------------


def any_connection() -> RawServer:
    """Return a server of somebody else, which notes each client that connects, with or without a request."""
    return RawServer(lambda *_: None, marker=b"")


def test_a_redirect_to_another_origin_gets_nothing(refresher: Command, own_oidc: Start) -> None:
    """If it failed, a server that answers once for a token endpoint could collect its refresh tokens (I8)."""
    server = own_oidc()
    with any_connection() as thief:
        there = [f"Location: {thief.token_endpoint}"]
        redirects = [answers(status, b"", there) for status in ("302 Found", "303 See Other")]
        redirects += [answers(status, b"", there) for status in ("307 Temporary Redirect", "308 Permanent Redirect")]
        with live(refresher, server, {"linear": redirects[0]}) as proxies:
            proxies["linear"].faults.extend(redirects[1:])
            before = refresher.token("linear").access_token
            for _ in redirects:
                done = refresher("run-once", "--force", "--json")
                assert (done.code, outcomes(done)) == (4, {"linear": "transient"}), done.stdout
                assert "redirect" in done.results["linear"]["detail"]
                assert refresher.grant("linear").doubt is None
                assert refresher.token("linear").access_token == before
            assert is_good(refresher, server, "linear")
            # The redirect is gone: no person is needed, and nothing was spent meanwhile.
            done = refresher("run-once", "--force", "--json")
            assert (done.code, outcomes(done)) == (0, {"linear": "rotated"}), done.stdout
        assert thief.requests == []
    assert (server.log()["presented_twice"], len(server.requests())) == (0, 2)


def test_metadata_that_names_another_endpoint_moves_nothing(refresher: Command, own_oidc: Start) -> None:
    """If it failed, a person who can change a metadata document could have every refresh token sent to himself (I8)."""
    server = own_oidc()

    def metadata(connection: socket.socket, _: bytes) -> None:
        other = thief.token_endpoint.removesuffix("/token")
        body = json.dumps({"issuer": other, "token_endpoint": thief.token_endpoint}).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)

    with (
        any_connection() as thief,
        RawServer(metadata, marker=b"\r\n\r\n") as issuer,
        Proxy(server.endpoints["token_endpoint"], passes, answers("404 Not Found", b"it has moved")) as proxy,
    ):
        said = {"issuer": issuer.token_endpoint.removesuffix("/token"), "token_endpoint": proxy.url}
        refresher.import_grant("linear", server.mint() | said)
        tokens = {refresher.refresh_token("linear")}
        assert refresher("run-once").code == 0
        tokens.add(refresher.refresh_token("linear"))
        # Where the endpoint is gone, and where its host is: then one would look where it has gone.
        assert outcomes(refresher("run-once", "--force", "--json")) == {"linear": "transient"}
        proxy.down()
        assert outcomes(refresher("run-once", "--force", "--json")) == {"linear": "transient"}
        assert is_good(refresher, server, "linear")
        proxy.up()
        assert outcomes(refresher("run-once", "--force", "--json")) == {"linear": "rotated"}
        assert thief.requests == []
        assert not [request for request in issuer.requests if any(token.encode() in request for token in tokens)]
        assert refresher.grant("linear").token_endpoint == proxy.url
    assert server.log()["presented_twice"] == 0


CHANGED = [
    "http://192.0.2.1/token",
    "http://as.invalid/token",
    "http://127.0.0.1.as.invalid/token",
    "https://as.invalid/token#part",
    "ftp://as.invalid/token",
    "https://user@as.invalid/token",
]


@pytest.mark.parametrize("endpoint", CHANGED)
def test_an_endpoint_that_was_changed_by_hand_is_not_even_looked_up(refresher: Command, endpoint: str) -> None:
    """If it failed, an edited record would send a refresh token in the clear, or stop every other grant (I8)."""
    need(no_strace())
    trace = refresher.home / "trace"
    with TokenServer(lambda _: 3600) as server:
        live = {"access_token": "a-live-access-token", "expires_in": 3600}
        refresher.import_grant("linear", server.grant("linear", **live))
        refresher.import_grant("other", server.grant("other"))
        moved(refresher, "linear", endpoint)
        prefix = ("strace", "-f", "-qq", "-o", str(trace), "-e", "trace=connect,sendto,sendmsg,sendmmsg")
        done = refresher.finish(refresher.start("run-once", "--force", "--json", prefix=prefix))
        # A resolver would be asked over the network, or by a socket of this machine.
        reached = re.findall(r"sa_family=(AF_UNIX|AF_INET6?).*?(?:htons\((\d+)\)|})", trace.read_text())
        assert set(reached) == {("AF_INET", server.token_endpoint.split(":")[2].partition("/")[0])}
    assert (done.code, outcomes(done)) == (4, {"linear": "transient", "other": "rotated"}), done.stdout
    assert "nothing was sent: the token_endpoint must" in done.results["linear"]["detail"]
    token = refresher.token("linear")
    assert (token.state, token.access_token) == ("failing", live["access_token"])
    assert (list(server.asked), refresher.grant("linear").doubt) == (["other"], None)
    assert refresher.leftovers() == []


def test_a_daemon_lives_with_an_endpoint_that_was_changed_by_hand(refresher: Command) -> None:
    """If it failed, one record that is no good would end the daemon, and with it the rotation of every grant."""
    with TokenServer(lambda _: 3600) as server:
        for name in ("linear", "other"):
            refresher.import_grant(name, server.grant(name))
        moved(refresher, "linear", "ftp://as.invalid/token")
        with running(refresher, *SHORT) as process:
            tokens = [refresher.state / f"tokens/{name}.json" for name in ("linear", "other")]
            wait_until(
                lambda: all(token.exists() for token in tokens) or process.poll() is not None, "both are told of"
            )
            assert process.poll() is None, "it has ended"
            process.send_signal(signal.SIGTERM)
            done = refresher.finish(process)
    assert done.code == 0
    assert (refresher.token("linear").state, refresher.token("other").state) == ("failing", "active")
    assert list(server.asked) == ["other"]
