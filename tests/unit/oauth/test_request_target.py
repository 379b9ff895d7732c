"""The address to which a request goes, as it is written in the record."""

import pytest

from refresher.oauth.http_client import _target


@pytest.mark.parametrize(
    ("url", "host", "target"),
    [
        ("https://as.example/token", b"as.example", b"/token"),
        ("https://as.example", b"as.example", b"/"),
        ("https://as.example:8443/a;v=2?x=1&y={z}|", b"as.example", b"/a;v=2?x=1&y={z}|"),
        ("https://as.example/;x", b"as.example", b"/;x"),
        ("https://[::1]:8443/t?", b"::1", b"/t?"),
        ("https://as.example?tenant=1", b"as.example", b"/?tenant=1"),
        ("https://as.example/a b/ü%20c", b"as.example", b"/a%20b/%C3%BC%20c"),
    ],
)
def test_path_and_query_are_sent_as_they_are_written(url: str, host: bytes, target: bytes) -> None:
    """If it failed, a login would work, and its refresh would go to another address (I8)."""
    sent = _target(url)
    assert (sent.scheme, sent.host, sent.target) == (b"https", host, target)
