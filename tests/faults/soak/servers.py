"""The servers of a soak: authorization servers that rotate, each with an API that asks it about every token."""

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

__all__ = ["Place", "opened"]

GRACE: Final = 15.0


class Authority(Protocol):
    """An authorization server, and what it knows."""

    def mint(self) -> dict[str, Any]:
        """Return what ``import`` needs for a new login."""

    def lives(self, token: str) -> bool:
        """Whether an access token is good."""

    def revoke(self, token: str) -> None:
        """End an access token before its time."""


class _Strict:
    """oidc-provider: a spent refresh token that comes back ends the whole login."""

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


class _Forgiving:
    """A server that takes a spent refresh token again for a while."""

    def __init__(self, server: TokenServer) -> None:
        self.token_endpoint = server.token_endpoint
        self.revoke = server.revoke
        self.lives = server.lives
        self._server = server
        self._count = 0

    def mint(self) -> dict[str, Any]:
        self._count += 1
        return self._server.grant(f"client-{self._count}", replay=f"{GRACE:.0f}s")


class Place:
    """An authorization server behind its network, the API that takes its tokens, and the names of its grants."""

    def __init__(self, authority: Authority, network: Network, terms: Terms, names: tuple[str, ...]) -> None:
        self.authority = authority
        self.network = network
        self.terms = terms
        self.names = names
        self.api = API(lambda token, _: token is not None and self.lives(token))

    def lives(self, token: str) -> bool:
        """Whether an access token is good; no where the server is going away."""
        try:
            return self.authority.lives(token)
        except httpx.HTTPError:
            return False

    def login(self, ledger: Ledger, name: str) -> tuple[Login, dict[str, Any]]:
        """Authorize anew, as a person would in a browser; return the login and what ``import`` needs."""
        fields = self.authority.mint()
        login = ledger.minted(name, self.terms, fields["refresh_token"])
        return login, fields | {"token_endpoint": self.network.proxy.url, "server_url": f"{self.api.origin}/mcp"}


@contextmanager
def opened(ledger: Ledger, seed: int, *, small: bool) -> Iterator[list[Place]]:
    """Run the servers; ``small``: few and quick ones, for a soak of seconds."""
    # Life of access tokens in seconds, how many grants, and the share of connections that suffer.
    strict = [(3, 2, 0.1), (5, 2, 0.0)] if small else [(4, 4, 0.1), (8, 4, 0.12), (40, 4, 0.3), (6, 2, 0.0)]
    with ExitStack() as stack:
        places = []
        for number, (life, count, share) in enumerate(strict):
            authority = _Strict(stack.enter_context(OIDC(ledger.vault, accessTokenTtl=life)))
            names = tuple(f"strict{number}-{letter}" for letter in "abcd"[:count])
            network = Network(authority.token_endpoint, ledger, f"{seed} {number}", share)
            places.append(Place(authority, network, Terms(life), names))
        server = stack.enter_context(TokenServer(lambda _: 6.0, grace=GRACE))
        forgiving = _Forgiving(server)
        network = Network(forgiving.token_endpoint, ledger, f"{seed} forgiving", 0.2)
        names = ("forgiving-a",) if small else ("forgiving-a", "forgiving-b", "forgiving-c", "forgiving-d")
        places.append(Place(forgiving, network, Terms(6.0, GRACE), names))
        for place in places:
            stack.enter_context(place.network.proxy)
            stack.enter_context(place.api)
        yield places
