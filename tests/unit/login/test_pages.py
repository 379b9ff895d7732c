"""The pages in the browser at the end of a login."""

import pytest

from refresher.grants.record import Account
from refresher.login import pages
from refresher.login.flow import _page_of
from tests.support.samples import grant


@pytest.mark.parametrize(
    ("page", "words"),
    [
        (pages.failed("https://mcp.example/mcp refused it"), "<p>https://mcp.example/mcp refused it.</p>"),
        (
            pages.failed("the login <b>was</b> interrupted"),
            "<p>The login &lt;b&gt;was&lt;/b&gt; interrupted.</p>",
        ),
        (pages.failed("the login was declined", declined=True), "<p>The login was declined.</p>"),
        (
            pages.done("linear", renewable=True, served=True),
            "<p>The login linear is stored. &#x27;refresher run&#x27; keeps it fresh.</p>",
        ),
        (
            pages.done("linear", renewable=True, served=True, account="ann@x.example"),
            "<p>The login linear for ann@x.example is",
        ),
        (
            pages.done("linear", renewable=True, served=True, account="<i>ann</i>"),
            "for &lt;i&gt;ann&lt;/i&gt; is stored.",
        ),
        (pages.done("linear", renewable=True, served=False), "&#x27;refresher run&#x27; is not running here: start it"),
        (
            _page_of(grant(account=Account(issuer=None, subject="ann-1", label="ann@x.example")), served=True),
            "<p>The login linear for ann@x.example is",
        ),
        (pages.done("linear", renewable=False, served=False), "because the server issued no refresh token.</p>"),
    ],
)
def test_a_page_says_how_the_login_ended(page: str, words: str) -> None:
    """If it failed, a page would show a changed URL, the markup of a server, or a false promise."""
    assert words in page
