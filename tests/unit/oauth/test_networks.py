"""The networks of addresses."""

import asyncio
import socket

import pytest

from refresher.oauth import networks
from refresher.oauth.http_client import RequestLoop
from refresher.oauth.networks import Limit, Network, limited, network_of, network_of_literal

PUBLIC, PRIVATE, LINK_LOCAL, LOOPBACK = Network


@pytest.mark.parametrize(
    ("address", "network"),
    [
        *((address, PUBLIC) for address in ("1.1.1.1", "93.184.216.34", "172.32.0.1", "192.169.0.1", "11.0.0.1")),
        *(
            (address, PUBLIC)
            for address in ("2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101", "2002:101:101::1")
        ),
        *((address, PRIVATE) for address in ("10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1")),
        *((address, PRIVATE) for address in ("100.64.0.1", "100.127.255.255", "100.100.100.200")),  # RFC 6598
        *((address, PRIVATE) for address in ("198.18.0.1", "192.0.2.1", "203.0.113.9", "240.0.0.1", "255.255.255.255")),
        *((address, PRIVATE) for address in ("224.0.0.1", "239.255.255.250", "ff02::1", "ff0e::1")),
        *((address, PRIVATE) for address in ("fd00::1", "fc00::1", "fd00:ec2::254", "fec0::1", "2001:db8::1")),
        *((address, PRIVATE) for address in ("::ffff:10.0.0.1", "64:ff9b::a00:1", "64:ff9b:1::1", "2002:a00:1::1")),
        *((address, PRIVATE) for address in ("::10.0.0.1", "::127.0.0.1", "2001:0:102:304::1")),
        *((address, LINK_LOCAL) for address in ("169.254.169.254", "fe80::1", "fe80::1%lo", "::ffff:a9fe:a9fe")),
        *((address, LINK_LOCAL) for address in ("64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1")),
        *((address, LOOPBACK) for address in ("127.0.0.1", "127.255.255.254", "::1", "0.0.0.0", "::")),
        *((address, LOOPBACK) for address in ("::ffff:127.0.0.1", "::ffff:7f00:1", "::ffff:0.0.0.0")),
        *((address, LOOPBACK) for address in ("64:ff9b::7f00:1", "2002:7f00:1::1")),
    ],
)
def test_each_address_belongs_to_its_network(address: str, network: Network) -> None:
    """If it failed, a remote server could name a service of this machine or of its network by another form of address."""
    assert network_of(address) is network


@pytest.mark.parametrize(
    ("host", "network"),
    [
        *((host, LOOPBACK) for host in ("127.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "0", "127.0.0.1")),
        *((host, LOOPBACK) for host in ("localhost", "LOCALHOST.", "a.localhost", "::1", "::ffff:7f00:1")),
        *((host, PRIVATE) for host in ("10.1", "0xa.1", "167772161", "192.168.257")),
        *((host, LINK_LOCAL) for host in ("2852039166", "169.254.43518", "fe80::1")),
        *((host, PUBLIC) for host in ("1.1", "16843009", "2606:4700::1111")),
        *(
            (host, None)
            for host in ("mcp.example", "localhost.example", "127.0.0.1.example", "", "a" * 64, "1.2.3.4.5")
        ),
    ],
)
def test_each_form_of_an_address_is_recognised_without_a_resolver(host: str, network: Network | None) -> None:
    """If it failed, behind a proxy a server could name a service of this machine as 127.1 or 2130706433."""
    assert network_of_literal(host) is network


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "2130706433", "localhost"])
def test_nothing_connects_to_an_address_beyond_the_limit(host: str) -> None:
    """If it failed, a name that resolves to another address at each lookup would reach services of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        async def connect() -> None:
            _, writer = await asyncio.open_connection(host, listener.getsockname()[1])
            writer.close()

        for nearest in Network:
            limit = Limit(nearest)
            with limited(limit), asyncio.Runner(loop_factory=RequestLoop) as runner:
                if nearest is LOOPBACK:
                    runner.run(connect())
                else:
                    with pytest.raises(OSError):  # noqa: PT011  several addresses give another text
                        runner.run(connect())
            assert (limit.reached, limit.refused) == ((None, LOOPBACK) if nearest is not LOOPBACK else (LOOPBACK, None))
        listener.accept()[0].close()
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert networks._LIMIT.get() is None
