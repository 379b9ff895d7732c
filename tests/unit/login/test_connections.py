"""The networks that the connections of a login reach.

The classification of addresses is a fake here, because a test connects to loopback only: 127.0.0.9 counts as an address
of the Internet, and 127.0.0.8 as one of a private network. ``tests/faults/test_named_addresses.py`` has no fake.
"""

import socket
from collections.abc import Callable, Iterator
from typing import Any, Final

import httpx2
import pytest

from refresher.common.errors import LoginRefused
from refresher.login.discovery import ENDPOINTS, Server
from refresher.login.flow import find_server
from refresher.login.http_client import NAMED_BY, Connections
from refresher.login.options import LoginOptions
from refresher.login.token_request import send
from refresher.oauth import networks
from refresher.oauth.networks import Network, network_of
from tests.support.answering import Answer, Answering
from tests.support.samples import grant

PUBLIC, PRIVATE, HERE = "127.0.0.9", "127.0.0.8", "127.0.0.1"
_FAKED: Final = {PUBLIC: Network.PUBLIC, PRIVATE: Network.PRIVATE}

Resolver = Callable[[str, list[list[str]]], None]


class PublicServer(Answering):
    """A server with an address that counts as public."""

    host = PUBLIC


@pytest.fixture(autouse=True)
def _classification(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        networks, "network_of", lambda address: _FAKED[address] if address in _FAKED else network_of(address)
    )
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    """Return what sets the addresses of a name: those of the first lookup, of the second ..., the last ones repeat."""
    original = socket.getaddrinfo
    names: dict[str, list[list[str]]] = {}

    def resolved(host: Any, port: Any, *args: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name not in names or options.get("flags", 0) & socket.AI_NUMERICHOST:
            return original(host, port, *args, **options)
        addresses = names[name].pop(0) if len(names[name]) > 1 else names[name][0]
        return [entry for address in addresses for entry in original(address, port, type=socket.SOCK_STREAM)]

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    return names.__setitem__


@pytest.fixture
def here() -> Iterator[socket.socket]:
    """Return a listener of this machine, which nothing connects to."""
    with socket.create_server((HERE, 0)) as listener:
        yield listener
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


def port_of(listener: socket.socket) -> int:
    """Return the port of a listener."""
    return int(listener.getsockname()[1])


def find(url: str, **options: Any) -> Server:
    """Discover the server of ``url`` as a login does."""
    connections = Connections(None)
    return connections.run(find_server, LoginOptions(url=url, **options), connections)


def get(connections: Connections, url: str, namer: str | None = None) -> httpx2.Response:
    """Fetch ``url``, which the server at ``namer`` named."""
    extensions = {} if namer is None else {NAMED_BY: namer}
    return connections.run(connections.fetch, httpx2.Request("GET", url, extensions=extensions))


def publish(server: Answering, **endpoints: str) -> str:
    """Make ``server`` an MCP server with its own authorization server; return its URL."""
    own = {"issuer": server.url} | dict.fromkeys(("authorization_endpoint", "token_endpoint"), f"{server.url}/x")
    server.answers["/mcp"] = [Answer(401)]
    server.answers["/.well-known/oauth-authorization-server"] = [Answer(200, own | endpoints)]
    return f"{server.url}/mcp"


@pytest.mark.parametrize("key", ENDPOINTS)
@pytest.mark.parametrize("host", [HERE, PRIVATE, "localhost", "127.1", "inside.example"])
def test_a_public_server_cannot_name_an_endpoint_on_a_nearer_network(
    here: socket.socket, resolve: Resolver, key: str, host: str
) -> None:
    """If it failed, a server on the Internet could make a login or a logout send requests into this network."""
    resolve("inside.example", [[PRIVATE]])
    scheme = "https" if host in ("127.1", "inside.example") else "http"
    named = f"{scheme}://{host}:{port_of(here)}/containers"
    with PublicServer() as server:
        url = publish(server, **{key: named})
        with pytest.raises(LoginRefused, match=f"refused to use the {key} {named}: it is on (this machine|a private)"):
            find(url)


def test_a_person_and_a_server_of_this_machine_may_name_any_address(here: socket.socket) -> None:
    """If it failed, a person could not log in at a server of this machine or of the network of a company."""
    named = f"http://{HERE}:{port_of(here)}/x"
    with PublicServer() as server, Answering() as local:
        url = publish(server, revocation_endpoint=named)
        assert find(url, revocation_endpoint=named).revocation_endpoint == named
        given = {f"{key}_endpoint": named for key in ("token", "authorization")}
        assert find(url, client_id="x", **given).token_endpoint == named
        for endpoint in (named, f"http://{PRIVATE}/x", f"{server.url}/x"):
            assert find(publish(local, token_endpoint=endpoint)).token_endpoint == endpoint


def test_a_name_that_resolves_to_another_address_later_reaches_nothing(here: socket.socket, resolve: Resolver) -> None:
    """If it failed, a server could pass each check with a public address, and then name this machine (DNS rebinding)."""
    resolve("rebind.example", [[PUBLIC], [HERE]])
    with PublicServer() as server:
        port = server.url.rpartition(":")[2]
        connections = Connections(None)
        assert get(connections, f"http://rebind.example:{port}/").status_code == 404
        with pytest.raises(LoginRefused, match=r"refused to use http://rebind.example:.*: it is on this machine"):
            get(connections, f"http://rebind.example:{port_of(here)}/")
        # The same for the token endpoint, after its check.
        endpoint = f"https://later.example:{port_of(here)}/token"
        resolve("later.example", [[PUBLIC], [HERE]])
        connections.run(connections.check, "token_endpoint", endpoint, f"http://rebind.example:{port}")
        with pytest.raises(LoginRefused, match=r"refused to use https://later.example:.*: it is on this machine"):
            send("token_endpoint", endpoint, grant(token_endpoint=endpoint), {}, connections)


def test_of_several_addresses_only_the_permitted_ones_are_used(resolve: Resolver) -> None:
    """If it failed, a login would fail at a server that has another address inside its own network."""
    resolve("both.example", [[HERE, PRIVATE, PUBLIC]])
    with PublicServer() as server:
        connections = Connections(None)
        assert get(connections, f"{server.url}/").status_code == 404
        url = server.url.replace(PUBLIC, "both.example")
        assert get(connections, f"{url}/", namer=server.url).status_code == 404
        assert server.seen == ["GET /", "GET /"]


def test_a_private_server_that_becomes_a_public_one_loses_its_rights(here: socket.socket, resolve: Resolver) -> None:
    """If it failed, a public server could first use the address of a private one, and then name the private network."""
    resolve("rebind.example", [[HERE], [PUBLIC]])
    with Answering() as first, PublicServer() as server:
        connections = Connections(None)
        for used in (first, server):
            url = f"http://rebind.example:{used.url.rpartition(':')[2]}/"
            assert get(connections, url).status_code == 404
        with pytest.raises(LoginRefused, match="it is on this machine, and the server that names it is on the public"):
            get(connections, f"http://{HERE}:{port_of(here)}/", namer=url)


def test_a_proxy_may_be_anywhere_and_literal_addresses_are_checked(
    monkeypatch: pytest.MonkeyPatch, resolve: Resolver
) -> None:
    """If it failed, a login behind a proxy would fail, or a server could name the machine of the proxy."""
    resolve("mcp.example", [[HERE]])  # nothing here resolves it
    with Answering() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        connections = Connections(None)
        for url in ("http://mcp.example/a", "http://as.example/b"):
            assert get(connections, url, namer=None if url.endswith("a") else "http://mcp.example").status_code == 404
        for host in ("10.0.0.1", "127.1", "2130706433", "localhost.", "[::ffff:a00:1]", "0xa9fea9fe"):
            with pytest.raises(LoginRefused, match="refused to use http://"):
                get(connections, f"http://{host}/", namer="http://mcp.example/")
            with pytest.raises(LoginRefused, match="refused to use the token_endpoint http://"):
                connections.run(connections.check, "token_endpoint", f"http://{host}/", "http://mcp.example/")
        assert proxy.seen == ["GET http://mcp.example/a", "GET http://as.example/b"]
