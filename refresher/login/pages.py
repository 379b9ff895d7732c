"""The page in the browser at the end of a login: self-contained, and without a secret."""

import html
from typing import Final

__all__ = ["HEADERS", "done", "failed", "foreign_redirect"]

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


def done(name: str, *, renewable: bool, served: bool, account: str | None = None) -> str:
    """Return the page of a login that is stored.

    ``served``: whether a ``refresher run`` is seen that keeps it fresh. ``account``: whose login it is, if known.
    """
    login = f"The login {name}" if account is None else f"The login {name} for {account}"
    return _page(
        "#2e8b57",
        "You are logged in",
        f"{login} is stored. 'refresher run' keeps it fresh."
        if renewable and served
        else f"{login} is stored. 'refresher run' is not running here: start it, or run 'refresher run-once' from cron."
        if renewable
        else f"{login} works until its access token expires, because the server issued no refresh token.",
        "You can close this page and go back to your terminal.",
    )


def failed(why: str, *, declined: bool = False) -> str:
    """Return the page of a login that failed, or that the person ``declined``."""
    begins_with_address = "://" in why.partition(" ")[0]
    return _page(
        "#b8860b" if declined else "#d64545",
        "You are not logged in" if declined else "The login failed",
        f"{why[:1] if begins_with_address else why[:1].upper()}{why[1:]}.",
        "If you were logged in before, that login still works.",
        "You can close this page. To try again, run the command in your terminal again."
        if declined
        else "Your terminal shows the same message. You can close this page.",
    )


def foreign_redirect() -> str:
    """Return the page for a redirect of another login."""
    return _page(
        "#b8860b",
        "This page belongs to another login",
        "It may be an old page. The login in your terminal is still waiting.",
        "Open the address that your terminal shows.",
    )


def _page(colour: str, title: str, *paragraphs: str) -> str:
    body = "\n  ".join(f"<p>{html.escape(text)}</p>" for text in paragraphs)
    return _PAGE.format(colour=colour, title=html.escape(title), body=body)
