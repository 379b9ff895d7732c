"""The servers of a soak test: authorization servers that rotate, each with an API that checks every token with it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final, Protocol

import httpx

from tests.faults.soak.ledger import Ledger
from tests.faults.soak.logins import Login, Terms
from tests.faults.soak.network import Network
from tests.support.api import API
from tests.support.oidc import OIDC
from tests.support.token_server import TokenServer

__all__ = ["Site", "running_sites"]

GRACE: Final = 15.0


class Authority(Protocol):
    """An authorization server, and the state of its tokens."""

    def mint(self) -> dict[str, Any]:
        """Return what ``import`` needs for a new login."""

    def lives(self, token: str) -> bool:
        """Whether an access token is valid."""

    def revoke(self, token: str) -> None:
        """End an access token before its time."""


class _StrictServer:
    """oidc-provider: a second use of a refresh token ends the whole login."""

    def __init__(self, server: OIDC) -> None:
        self.token_endpoint = server.endpoints["token_endpoint"]
        self._server = server
        self._count = 0

    def mint(self) -> dict[str, Any]:
        self._count += 1
        return self._server.mint(("public", "basic", "post")[self._count % 3])

    def lives(self, token: str) -> bool:
        return bool(self._server.introspect(token)["active"])

    def revoke(self, token: str) -> None:
        self._server.end(token)


class _GraceServer:
    """A server that accepts a spent refresh token within a grace period."""

    def __init__(self, server: TokenServer) -> None:
        self.token_endpoint = server.token_endpoint
        self.revoke = server.revoke
        self.lives = server.lives
        self._server = server
        self._count = 0

    def mint(self) -> dict[str, Any]:
        self._count += 1
        return self._server.grant(f"client-{self._count}", replay=f"{GRACE:.0f}s")


class Site:
    """An authorization server behind its network, the API that accepts its tokens, and the names of its grants."""

    def __init__(self, authority: Authority, network: Network, terms: Terms, names: tuple[str, ...]) -> None:
        self.authority = authority
        self.network = network
        self.terms = terms
        self.names = names
        self.api = API(lambda token, _: token is not None and self.lives(token))

    def lives(self, token: str) -> bool:
        """Whether an access token is valid; false if the server does not answer."""
        try:
            return self.authority.lives(token)
        except httpx.HTTPError:
            return False

    def login(self, ledger: Ledger, name: str) -> tuple[Login, dict[str, Any]]:
        """Authorize a new login, as a person in a browser; return it with the fields for ``import``."""
        fields = self.authority.mint()
        login = ledger.minted(name, self.terms, fields["refresh_token"])
        return login, fields | {"token_endpoint": self.network.proxy.url, "server_url": f"{self.api.origin}/mcp"}


@contextmanager
def running_sites(ledger: Ledger, seed: int, *, small: bool) -> Iterator[list[Site]]:
    """Run the servers; ``small``: few servers with short lifetimes, for a soak test of seconds."""
    # Lifetime of access tokens in seconds, number of grants, and share of connections with a fault.
    strict = [(3, 2, 0.1), (5, 2, 0.0)] if small else [(4, 4, 0.1), (8, 4, 0.12), (40, 4, 0.3), (6, 2, 0.0)]
    with ExitStack() as stack:
        sites = []
        for number, (life, count, share) in enumerate(strict):
            authority = _StrictServer(stack.enter_context(OIDC(ledger.vault, accessTokenTtl=life)))
            names = tuple(f"strict{number}-{letter}" for letter in "abcd"[:count])
            network = Network(authority.token_endpoint, ledger, f"{seed} {number}", share)
            sites.append(Site(authority, network, Terms(life), names))
        server = stack.enter_context(TokenServer(lambda _: 6.0, grace=GRACE))
        forgiving = _GraceServer(server)
        network = Network(forgiving.token_endpoint, ledger, f"{seed} forgiving", 0.2)
        names = ("forgiving-a",) if small else ("forgiving-a", "forgiving-b", "forgiving-c", "forgiving-d")
        sites.append(Site(forgiving, network, Terms(6.0, GRACE), names))
        for site in sites:
            stack.enter_context(site.network.proxy)
            stack.enter_context(site.api)
        yield sites
