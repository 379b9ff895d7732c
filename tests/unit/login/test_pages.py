"""What a person sees in the browser at the end of a login (``refresher.login.pages``)."""

import pytest

from refresher.login import pages


@pytest.mark.parametrize(
    ("page", "words"),
    [
        (pages.failed("https://mcp.example/mcp refuses it"), "<p>https://mcp.example/mcp refuses it. An earlier login"),
        (
            pages.failed("the login <b>was</b> given up"),
            "<p>The login &lt;b&gt;was&lt;/b&gt; given up. An earlier login",
        ),
        (pages.declined("the login was declined"), "<p>The login was declined. An earlier login"),
        (pages.done("linear", renewable=True), "<p>refresher renews the login linear from now on.</p>"),
        (pages.done("linear", renewable=False), "the server issued no refresh token.</p>"),
    ],
)
def test_a_page_says_what_has_become_of_the_login(page: str, words: str) -> None:
    """If it failed, a person would read a garbled address, a server's markup, or a promise that nobody keeps."""
    assert words in page
