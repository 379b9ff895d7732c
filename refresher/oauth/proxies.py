"""Which proxy leads to a token endpoint, by the environment's word; never one to loopback (I8)."""

from collections.abc import Callable
from ipaddress import ip_address, ip_network
from typing import TypeVar
from urllib.request import getproxies, proxy_bypass

from refresher.common.errors import ConfigError
from refresher.oauth.urls import is_loopback

__all__ = ["made_for", "proxy_for"]

_Made = TypeVar("_Made")


def made_for(scheme: str, host: str, make: Callable[[str], _Made]) -> _Made | None:
    """Return what ``make``, an HTTP library's own type, makes of the proxy's address; ``None`` without one.

    Raises ``ConfigError`` where it cannot: in words without the proxy's password.
    """
    address = proxy_for(scheme, host)
    if address is None:
        return None
    try:
        return make(address)
    except Exception:  # noqa: BLE001  its words could quote the password
        raise ConfigError(f"the proxy in {scheme.upper()}_PROXY or ALL_PROXY is not a usable address") from None


def proxy_for(scheme: str, host: str) -> str | None:
    """Return the proxy's address, ``None`` for a direct connection.

    ``HTTPS_PROXY``, ``HTTP_PROXY``, ``ALL_PROXY`` and ``NO_PROXY``, in either case; ``NO_PROXY`` takes names, suffixes,
    addresses and networks in CIDR notation.
    """
    if is_loopback(host):
        return None
    proxies = getproxies()
    proxy = proxies.get(scheme) or proxies.get("all")
    if not proxy or proxy_bypass(host) or _in_networks(host, proxies.get("no", "")):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _in_networks(host: str, no_proxy: str) -> bool:
    try:
        address = ip_address(host)
    except ValueError:
        return False
    for entry in no_proxy.split(","):
        try:
            if address in ip_network(entry.strip().strip("[]"), strict=False):
                return True
        except ValueError:
            continue  # a name, not a network
    return False
