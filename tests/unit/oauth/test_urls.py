"""The URLs to which tokens may be sent (I8)."""

import pytest

from refresher.oauth.urls import InvalidURL, check_endpoint, is_loopback, parse_origin


@pytest.mark.parametrize(
    "url",
    ["https://as.example/token", "https://as.example/token?tenant=1", "http://127.0.0.1:8080/t", "http://[::1]/t", "http://localhost/t"],
)  # fmt: skip
def test_an_endpoint_with_tls_or_on_loopback_is_unchanged(url: str) -> None:
    """If it failed, correct servers could not be used, or their URL would be changed."""
    assert check_endpoint(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "http://as.example/token",
        "http://127.0.0.1.example/token",
        "http://localhost.example/token",
        "ftp://as.example/token",
        "https:///token",
        "https://as.example/token#fragment",
        "https://user:word@as.example/token",
        "https://as.example:0/token",
        "https://as.example:99999/token",
        "https://as.example/to\nken",
        "https://as.exämple/token",
        "as.example/token",
        "http://evil.example[::1]/token",
        "http://[::1]evil.example/token",
        "http://[::1/token",
        "http://[v1.x]/token",
        "https://as\\.evil.example/token",
        "https://*.example/token",
        "https://a,b/token",
        "https://as.example:/token",
        "",
    ],
)
def test_any_other_url_is_refused(url: str) -> None:
    """If it failed, a refresh token could be sent in clear text, or to an unintended host."""
    with pytest.raises(InvalidURL):
        check_endpoint(url)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://MCP.Example/mcp?x=1", "https://mcp.example"),
        ("https://mcp.example:443/", "https://mcp.example"),
        ("http://mcp.internal:80", "http://mcp.internal"),
        ("https://mcp.example:8443/mcp", "https://mcp.example:8443"),
        ("http://[::1]:9000/mcp", "http://[::1]:9000"),
        ("https://mcp.example./mcp", "https://mcp.example."),
    ],
)
def test_an_origin_has_one_spelling(url: str, expected: str) -> None:
    """If it failed, an agent would not recognise the server of its token."""
    assert parse_origin(url) == expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("LOCALHOST", True), ("10.0.0.1", False), ("as.example", False)],
)  # fmt: skip
def test_loopback_is_only_this_machine(host: str, expected: bool) -> None:
    """If it failed, plain http to another machine would be allowed."""
    assert is_loopback(host) is expected
