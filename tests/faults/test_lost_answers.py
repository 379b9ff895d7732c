"""Requests and answers that get lost, late or broken between the command and its authorization server.

Each test runs the command against a server behind a proxy. ``test_answers`` tests a single token request.
"""

import itertools
import json
import signal
import stat
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from refresher.grants import policy
from tests.support.command import Command, wait_until
from tests.support.daemon import running
from tests.support.keys import server_context
from tests.support.oidc import OIDC
from tests.support.proxied import (
    access_tokens,
    connections,
    fingerprint,
    grants_behind_proxies,
    is_accepted,
    is_expired,
    is_live,
    live_grants_behind_proxies,
    outcomes,
    presented_at,
    states,
)
from tests.support.proxy import (
    Fault,
    answers,
    closes_after,
    closes_before,
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
    swallows,
    truncates,
)
from tests.support.samples import grant as sample
from tests.support.token_server import TokenServer

Start = Callable[..., OIDC]

# With this grace period, an exchange has a deadline of 5 s.
SHORT = ("--grace", "10s")

PAGE = b"<html><title>Welcome to our network</title>Please accept our terms.</html>"
HTML = ["Content-Type: text/html"]


# --- lost ---------------------------------------------------------------------------------------------------------


UNSEEN: dict[str, Fault] = {
    "reset-at-once": refuses,
    "reset-midway": resets_midway,
    "reset-before": resets_before,
    "closed-before": closes_before,
    "portal": answers("200 OK", PAGE, HTML),
    "gateway": answers("502 Bad Gateway", PAGE, HTML),
}


def test_a_lost_request_is_sent_again_once_the_access_token_has_expired(refresher: Command, own_oidc: Start) -> None:
    """If it failed, a network error would revoke a live token, or require a person although waiting is enough (I1, I4)."""
    server = own_oidc(accessTokenTtl=5)
    with live_grants_behind_proxies(refresher, server, UNSEEN) as proxies:
        before = access_tokens(refresher, UNSEEN)
        done = refresher("run-once", "--force", "--json")
        found = outcomes(done)
        # If the client sees the reset before it writes the first byte, nothing was sent.
        assert found.pop("reset-at-once") in ("in_doubt", "transient")
        assert (done.code, set(found.values())) == (5, {"in_doubt"}), done.stdout
        assert access_tokens(refresher, UNSEEN) == before
        assert set(states(refresher, UNSEEN).values()) == {"failing"}
        assert all(is_accepted(refresher, server, name) for name in UNSEEN)
        (kept,) = refresher.leftovers()
        page = refresher.state / "grants" / kept
        assert kept.startswith("portal.answer.")
        assert (page.read_bytes(), stat.S_IMODE(page.stat().st_mode)) == (PAGE, 0o600)
        again = refresher("run-once", "--force", *found)
        if all(is_live(refresher, name) for name in UNSEEN):
            assert again.code == 5
            assert {proxies[name].connections for name in found} == {2}, "sent although the access token was live"
        assert server.log()["presented_twice"] == 0
        wait_until(lambda: all(is_expired(refresher, name) for name in UNSEEN), "the access tokens have expired")
        done = refresher("run-once", "--force", "--json")
        assert done.code == 0, done.stdout
        assert set(states(refresher, UNSEEN).values()) == {"active"}
        assert all(is_accepted(refresher, server, name) for name in UNSEEN)
    assert (server.log()["reused"], server.log()["presented_twice"]) == (0, 0)
    assert refresher.leftovers() == [kept]


SPENT: dict[str, Fault] = {
    "reset-after": resets_after,
    "closed-after": closes_after,
    "in-the-header": truncates(30),
    "in-the-body": truncates(b'"refresh_token"'),
}


def test_a_lost_answer_is_reported_as_lost_once_the_access_token_has_expired(
    refresher: Command, own_oidc: Start
) -> None:
    """If it failed, a lost answer would revoke a live token, or the grant would end without an explanation (I1, I5)."""
    server = own_oidc(accessTokenTtl=5)
    with live_grants_behind_proxies(refresher, server, SPENT) as proxies:
        before = access_tokens(refresher, SPENT)
        spent = {name: fingerprint(refresher, name) for name in SPENT}
        done = refresher("run-once", "--force", "--json")
        assert (done.code, set(outcomes(done).values())) == (5, {"in_doubt"}), done.stdout
        assert {proxy.answered for proxy in proxies.values()} == {2}
        assert access_tokens(refresher, SPENT) == before
        assert set(states(refresher, SPENT).values()) == {"failing"}
        assert all(is_accepted(refresher, server, name) for name in SPENT)
        (kept,) = refresher.leftovers()
        assert kept.startswith("in-the-body.answer.")
        answer = json.loads((refresher.state / "grants" / kept).read_bytes() + b":0}")
        assert answer["access_token"], "the part of the answer that arrived is lost (I6)"
        refresher.vault.learn(answer["access_token"])
        wait_until(lambda: all(is_expired(refresher, name) for name in SPENT), "the access tokens have expired")
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
            _, second = presented_at(server, token)
            assert second > expires_at, f"{name}: a spent token was sent although the access token was live"
        assert refresher("run-once").code == 3
        assert set(connections(proxies).values()) == {3}, "a token request for an ended grant was sent"
    assert server.log()["reused"] == len(SPENT)


def test_a_lost_request_for_the_first_access_token_is_retried_at_once(refresher: Command, oidc: OIDC) -> None:
    """If it failed, a new login on a bad network would be unusable for an hour, although no access token is at risk."""
    endpoint, fields = oidc.endpoints["token_endpoint"], oidc.mint()
    with grants_behind_proxies(refresher, endpoint, lambda _: fields, {"linear": (closes_before,)}) as proxies:
        token = fingerprint(refresher, "linear")
        done = refresher("run-once", "--json")
        assert (done.code, outcomes(done)) == (5, {"linear": "in_doubt"})
        assert refresher.token("linear").access_token is None
        done = refresher("run-once", "--force", "--json")
        assert (done.code, outcomes(done)) == (0, {"linear": "rotated"}), done.stdout
        assert connections(proxies) == {"linear": 2}
    assert len(presented_at(oidc, token)) == 1


def test_a_lost_answer_is_replayed_at_once_within_the_grace_period(refresher: Command) -> None:
    """If it failed, the grace period of a server, which exists for lost answers, would end unused."""
    lost: dict[str, Sequence[Fault]] = {
        **{name: [fault] for name, fault in SPENT.items()},
        "before": [closes_before],
        "both": [resets_after, resets_after],
    }
    with (
        TokenServer(lambda _: 3600) as server,
        grants_behind_proxies(
            refresher, server.token_endpoint, lambda name: server.grant(name, replay="30s"), lost
        ) as proxies,
    ):
        done = refresher("run-once", "--json")
        assert (done.code, outcomes(done)) == (5, dict.fromkeys(lost, "rotated") | {"both": "in_doubt"}), done.stdout
        assert set(connections(proxies).values()) == {2}
        assert refresher.token("both").access_token is None
        # Within the grace period, a grant in doubt waits only for its backoff, which --force skips.
        done = refresher("run-once", "--force", "both", "--json")
        assert (done.code, outcomes(done)) == (0, {"both": "rotated"}), done.stdout
        assert connections(proxies) == dict.fromkeys(lost, 2) | {"both": 3}
        assert set(states(refresher, lost).values()) == {"active"}
        assert {name: len(times) for name, times in server.asked.items()} == dict.fromkeys(lost, 2) | {
            "before": 1,
            "both": 3,
        }


# --- slow ---------------------------------------------------------------------------------------------------------


def test_a_slow_late_repeated_or_truncated_answer_with_both_tokens_is_used(refresher: Command, own_oidc: Start) -> None:
    """If it failed, a slow network would put every rotation in doubt, or received tokens would be discarded."""
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
    with live_grants_behind_proxies(refresher, server, faults) as proxies:
        before = access_tokens(refresher, faults)
        process = refresher.start("run-once", "--force", "--json")
        wait_until(
            lambda: refresher.token("doubled").generation == 2,
            "the other grants rotate without waiting for the late answer",
        )
        wait_until(lambda: proxies["late"].answered == 2, "the server has answered")
        token = refresher.token("late")
        assert (token.generation, token.state, token.access_token) == (1, "active", before["late"])
        release.set()
        done = refresher.finish(process)
        assert (done.code, outcomes(done)) == (0, dict.fromkeys(faults, "rotated")), done.stdout
        assert {refresher.token(name).generation for name in faults} == {2}
        assert all(is_accepted(refresher, server, name) for name in faults)
        done = refresher("run-once", "--force", "--json")
        assert (done.code, set(connections(proxies).values())) == (0, {3}), done.stdout
    assert (server.log()["reused"], server.log()["presented_twice"]) == (0, 0)
    assert refresher.leftovers() == []


def with_short_backoff(name: str, generation: int = 1) -> str:
    """Return a name whose first backoff is short: it depends on the name, and the test waits for it."""
    names = (f"{name}-{number}" for number in itertools.count())
    return next(name for name in names if policy.backoff(sample(name=name, generation=generation), 1) < 5.5)


def wait_for(refresher: Command, name: str, state: str) -> None:
    """Wait until the published state, or the code of its error, is ``state``."""

    def is_published() -> bool:
        if not (refresher.state / f"tokens/{name}.json").exists():
            return False
        token = refresher.token(name)
        return state in (token.state, None if token.error is None else token.error.code)

    wait_until(is_published, f"{name} is {state}")


def test_a_request_that_hangs_past_the_expiry_is_given_up_and_sent_again_without_a_person(
    refresher: Command, own_oidc: Start, tmp_path: Path
) -> None:
    """If it failed, one connection without an answer would stop the grants of a daemon for ever (I4)."""
    # Rotation is due after 9 s, and the exchange lasts 5 s.
    server = own_oidc(accessTokenTtl=12)
    endpoint = server.endpoints["token_endpoint"]
    too_late = threading.Event()
    faults: dict[str, Fault] = {
        with_short_backoff("swallowed"): swallows,
        with_short_backoff("late"): holds(too_late),
        with_short_backoff("header"): drips(1.0),
        with_short_backoff("body"): drips(1.0, body_only=True),
        with_short_backoff("down"): passes,
    }
    swallowed, late, header, body, down = faults
    hanging = (swallowed, late, header, body)
    silent = with_short_backoff("silent", 0)
    certificate = tmp_path / "certificate.pem"

    def forgiven(name: str) -> dict[str, Any]:
        return forgiving.grant(name, replay="30s")

    with (
        TokenServer(lambda _: 3600) as forgiving,
        live_grants_behind_proxies(refresher, server, faults) as proxies,
        grants_behind_proxies(refresher, forgiving.token_endpoint, forgiven, {"forgiven": (holds(too_late),)}),
        grants_behind_proxies(
            refresher, endpoint, lambda _: server.mint(), {silent: (hangs,)}, server_context(certificate, "localhost")
        ),
    ):
        before = access_tokens(refresher, faults)
        tokens = {name: fingerprint(refresher, name) for name in (*faults, silent)}
        ends = {name: refresher.grant(name).expires_at or 0.0 for name in faults}
        proxies[down].down()
        with running(refresher, *SHORT, options=("--ca-file", str(certificate))) as process:
            wait_for(refresher, silent, "temporarily_unavailable")
            assert refresher.grant(silent).doubt is None, "without TLS nothing was sent"
            wait_until(lambda: all(proxies[name].connections > 1 for name in hanging), "all requests hang")
            wait_for(refresher, down, "temporarily_unavailable")
            assert refresher.grant(down).doubt is None
            proxies[down].up()
            assert access_tokens(refresher, faults) == before
            assert all(is_accepted(refresher, server, name) for name in faults)
            for name in hanging:
                wait_for(refresher, name, "in_doubt")
                assert refresher.token(name).access_token == before[name], "the access token was withdrawn (I5)"
                assert is_expired(refresher, name), "the request did not hang past the expiry"
            assert refresher.token("forgiven").state == "active", "the same exchange did not use the grace period"
            too_late.set()
            for name in (swallowed, down, silent):
                wait_for(refresher, name, "active")
                assert refresher.token(name).generation > (0 if name == silent else 1)
                assert is_accepted(refresher, server, name)
            for name in (late, header, body):
                wait_for(refresher, name, "reauthorization_required")
                error = refresher.token(name).error
                assert error is not None
                assert "the rotation was lost" in error.description
                assert [at > ends[name] for at in presented_at(server, tokens[name])] == [False, True]
            assert [len(presented_at(server, tokens[name])) for name in (swallowed, down, silent)] == [1, 1, 1]
            process.send_signal(signal.SIGTERM)
            done = refresher.finish(process)
    assert done.code == 0, done.stderr
    assert len(forgiving.asked["forgiven"]) == 2
    assert [name.partition(".answer.")[0] for name in refresher.leftovers()] == [body], (
        "the part of the answer that arrived is not kept"
    )
    assert server.log()["reused"] == 3, "a refresh token was sent twice although its answer was not lost"
