"""The choice of the proxy for a token endpoint."""

import pytest

from refresher.oauth.proxies import proxy_for

PROXY = "http://proxy.example:3128"


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def test_the_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, refresher would not work behind a company proxy."""
    assert proxy_for("https", "as.example") is None
    monkeypatch.setenv("ALL_PROXY", "proxy.example:1080")
    assert proxy_for("https", "as.example") == "http://proxy.example:1080"
    monkeypatch.setenv("https_proxy", PROXY)
    assert proxy_for("https", "as.example") == PROXY


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_loopback_uses_no_proxy(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    """If it failed, a refresh token for this machine would go to a proxy in clear text (I8)."""
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, PROXY)
    assert proxy_for("http", host) is None


@pytest.mark.parametrize(
    ("host", "no_proxy", "direct"),
    [
        ("as.example", "as.example", True),
        ("as.corp.example", ".corp.example", True),
        ("as.example", "*", True),
        ("10.1.2.3", "fd00::/8,10.0.0.0/8", True),
        ("fd00::1", "[::1], fd00::/8", True),
        ("11.1.2.3", "fd00::/8,10.0.0.0/8", False),
        ("as.example", "other.example,::1", False),
    ],
)
def test_no_proxy_accepts_hosts_suffixes_and_networks(
    monkeypatch: pytest.MonkeyPatch, host: str, no_proxy: str, direct: bool
) -> None:
    """If it failed, the NO_PROXY of an ordinary cluster would stop every rotation."""
    monkeypatch.setenv("HTTPS_PROXY", PROXY)
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert (proxy_for("https", host) is None) is direct
