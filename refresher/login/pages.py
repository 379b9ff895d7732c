"""What a person sees in the browser at the end of a login: plain, self-contained, without a secret."""

import html
from typing import Final

__all__ = ["HEADERS", "declined", "done", "failed", "not_ours"]

HEADERS: Final = {
    "Content-Type": "text/html; charset=utf-8",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

_PAGE: Final = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
  :root {{ color-scheme: light dark }}
  body {{ margin: 0; min-height: 100vh; display: grid; place-items: center; background: Canvas; color: CanvasText;
          font: 1.05rem/1.5 system-ui, sans-serif }}
  main {{ max-width: 32rem; padding: 2rem; box-sizing: border-box; overflow-wrap: anywhere }}
  h1 {{ font-size: 1.4rem; margin: 0 0 .5rem }}
  h1::before {{ content: ""; display: inline-block; width: .7em; height: .7em; margin-right: .5em;
                border-radius: 50%; background: {colour} }}
  p {{ margin: .5rem 0 }}
</style>
<main>
  <h1>{title}</h1>
  {body}
</main>
</html>
"""


def done(name: str, *, renewable: bool) -> str:
    """Return the page of a login that is stored."""
    return _page(
        "#2e8b57",
        "You are logged in",
        f"refresher keeps the login {name} fresh from now on."
        if renewable
        else f"The login {name} works for a while; the server gave nothing to renew it with.",
        "You can close this page and go back to your terminal.",
    )


def declined(why: str) -> str:
    """Return the page of a login that the person has declined."""
    return _page(
        "#b8860b",
        "You have not logged in",
        f"{_sentence(why)} If there was a working login before, it goes on working.",
        "You can close this page. To try again, repeat the command in your terminal.",
    )


def failed(why: str) -> str:
    """Return the page of a login that came to nothing."""
    return _page(
        "#d64545",
        "The login did not work",
        f"{_sentence(why)} If there was a working login before, it goes on working.",
        "Your terminal says the same; you can close this page.",
    )


def not_ours() -> str:
    """Return the page for whoever comes with something that is not this login's."""
    return _page(
        "#b8860b",
        "This is not the login that is waiting",
        "It may be an old page. The login in your terminal is still waiting for its own.",
        "Use the address that your terminal shows.",
    )


def _sentence(text: str) -> str:
    begins_with_address = "://" in text.partition(" ")[0]
    return f"{text[:1] if begins_with_address else text[:1].upper()}{text[1:]}."


def _page(colour: str, title: str, *paragraphs: str) -> str:
    body = "\n  ".join(f"<p>{html.escape(text)}</p>" for text in paragraphs)
    return _PAGE.format(colour=colour, title=html.escape(title), body=body)
