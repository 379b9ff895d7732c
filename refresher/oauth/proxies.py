"""Choose the proxy for a server from the environment; none for loopback (I8)."""

from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address, ip_network
from typing import TypeVar
from urllib.request import getproxies, proxy_bypass

from refresher.common.errors import ConfigError
from refresher.oauth.urls import is_loopback

__all__ = ["build_proxy", "proxy_for"]

_Proxy = TypeVar("_Proxy")


def build_proxy(scheme: str, host: str, make: Callable[[str], _Proxy]) -> _Proxy | None:
    """Return the proxy as ``make``, the proxy type of an HTTP library, builds it; ``None`` for a direct connection.

    Raises ``ConfigError`` if the proxy's URL is not valid; the message does not contain its password.
    """
    address = proxy_for(scheme, host)
    if address is None:
        return None
    try:
        return make(address)
    except Exception:  # noqa: BLE001  its message could quote the password
        raise ConfigError(f"the proxy in {scheme.upper()}_PROXY or ALL_PROXY is not a valid URL") from None


def proxy_for(scheme: str, host: str) -> str | None:
    """Return the proxy's URL; ``None`` for a direct connection.

    Reads ``HTTPS_PROXY``, ``HTTP_PROXY``, ``ALL_PROXY`` and ``NO_PROXY``, in upper or lower case. ``NO_PROXY`` accepts
    names, suffixes, addresses and networks in CIDR notation.
    """
    if is_loopback(host):
        return None
    proxies = getproxies()
    proxy = proxies.get(scheme) or proxies.get("all")
    if not proxy or proxy_bypass(host) or _in_networks(host, proxies.get("no", "")):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _in_networks(host: str, no_proxy: str) -> bool:
    for entry in no_proxy.split(","):
        with suppress(ValueError):  # a name, not an address or a network
            if ip_address(host) in ip_network(entry.strip().strip("[]"), strict=False):
                return True
    return False
