"""Grants whose token endpoints are behind proxies, and what is stored and published of them."""

import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import msgspec

from refresher.grants.encoding import encode
from tests.support.command import Command, Done
from tests.support.oidc import OIDC
from tests.support.proxy import Fault, Proxy, passes

__all__ = [
    "access_tokens",
    "connections",
    "fingerprint",
    "grants_behind_proxies",
    "is_accepted",
    "is_expired",
    "is_live",
    "live_grants_behind_proxies",
    "outcomes",
    "presented_at",
    "set_token_endpoint",
    "states",
]


@contextmanager
def grants_behind_proxies(
    refresher: Command,
    url: str,
    mint: Callable[[str], Mapping[str, Any]],
    faults: Mapping[str, Sequence[Fault]],
    tls: ssl.SSLContext | None = None,
) -> Iterator[dict[str, Proxy]]:
    """Import a grant for each name of ``faults``; its server is behind a separate proxy with these faults."""
    with ExitStack() as stack:
        proxies = {name: stack.enter_context(Proxy(url, *chosen, tls=tls)) for name, chosen in faults.items()}
        for name, proxy in proxies.items():
            refresher.import_grant(name, {**mint(name), "token_endpoint": proxy.url})
        yield proxies


@contextmanager
def live_grants_behind_proxies(
    refresher: Command, server: OIDC, faults: Mapping[str, Fault]
) -> Iterator[dict[str, Proxy]]:
    """Import and rotate a grant for each name of ``faults``; its next connection has its fault."""
    chosen = {name: (passes, fault) for name, fault in faults.items()}
    with grants_behind_proxies(
        refresher, server.endpoints["token_endpoint"], lambda _: server.mint(), chosen
    ) as proxies:
        assert refresher("run-once").code == 0
        yield proxies


def connections(proxies: Mapping[str, Proxy]) -> dict[str, int]:
    """Return the number of connections for each grant."""
    return {name: proxy.connections for name, proxy in proxies.items()}


def outcomes(done: Done) -> dict[str, str]:
    """Return the outcome of a run for each grant."""
    return {name: str(result["outcome"]) for name, result in done.results.items()}


def access_tokens(refresher: Command, names: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the published tokens."""
    return {name: refresher.token(name).access_token for name in names}


def states(refresher: Command, names: Mapping[str, Any]) -> dict[str, str]:
    """Return the published states."""
    return {name: refresher.token(name).state for name in names}


def is_expired(refresher: Command, name: str) -> bool:
    """Whether the published access token has expired."""
    expires_at = refresher.token(name).expires_at
    return expires_at is not None and time.time() > expires_at + 0.1


def is_live(refresher: Command, name: str) -> bool:
    """Whether the published access token has not expired."""
    expires_at = refresher.token(name).expires_at
    return expires_at is not None and time.time() < expires_at


def is_accepted(refresher: Command, server: OIDC, name: str) -> bool:
    """Whether the server accepts the published access token; true for one that is about to expire."""
    token = refresher.token(name)
    assert token.expires_at is not None
    # The server counts whole seconds: an access token may expire up to one second early.
    return bool(server.introspect(token.access_token)["active"]) or time.time() > token.expires_at - 1.1


def fingerprint(refresher: Command, name: str) -> str:
    """Return the fingerprint of the stored refresh token."""
    token = refresher.grant(name).refresh_token
    assert token is not None
    return token.fingerprint()


def presented_at(server: OIDC, token: str) -> list[float]:
    """Return when the server received the refresh token with that fingerprint, as epoch seconds."""
    return [request["at"] / 1000 for request in server.requests() if request["fingerprint"].startswith(token)]


def set_token_endpoint(refresher: Command, name: str, endpoint: str) -> None:
    """Edit the token endpoint of a record; its checksum stays correct."""
    data, _ = encode(msgspec.structs.replace(refresher.grant(name), token_endpoint=endpoint))
    (refresher.state / f"grants/{name}.json").write_bytes(data)
