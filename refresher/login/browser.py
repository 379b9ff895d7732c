"""Opens the authorization URL for the person, and gets the redirect: from the browser or pasted."""

import os
import queue
import sys
import threading
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final

from refresher.common.errors import LoginNotGiven, RefresherError
from refresher.common.terminal import say
from refresher.common.text import span
from refresher.login import pages
from refresher.login.authorization_request import AuthorizationRequest, ForeignRedirect, pasted_query
from refresher.login.loopback import Loopback

__all__ = ["wait_for_redirect"]

_MAX_READ: Final = 65536

_Fields = dict[str, str]


def wait_for_redirect(request: AuthorizationRequest, loopback: Loopback, *, wait: float, open_browser: bool) -> _Fields:
    """Send the person to the authorization server, and return the fields of the token request that follows.

    The first redirect counts, at ``loopback`` or pasted into the terminal; a pasted one must have a code. Raises
    ``LoginNotGiven`` if the person denies access or takes longer than ``wait`` seconds, ``LoginRefused`` and
    ``ServerAway``.
    """
    results: queue.Queue[_Fields | RefresherError] = queue.Queue()

    def accept(query: str) -> str | None:
        try:
            results.put(request.token_request(query))
        except ForeignRedirect:
            return pages.foreign_redirect()
        except RefresherError as error:
            results.put(error)
        return None

    def accept_pasted(text: str) -> str | None:
        """Take a pasted redirect; return why it does not count, or ``None`` if it does."""
        try:
            results.put(request.token_request(pasted_query(text)))
        except ForeignRedirect as error:
            return f"This address cannot be used: {error}. Paste the whole address, including http://"
        except RefresherError as error:
            # It may have been damaged on its way.
            return f"{error}. The login still waits: open the address above again, or press Ctrl-C"
        return None

    loopback.accept = accept
    if not _show(request.url, open_browser=open_browser):
        say("If your browser cannot reach the last page, paste its address here:", err=True)
        threading.Thread(target=_read_pasted, args=(accept_pasted,), daemon=True, name="paste").start()
    try:
        result = results.get(timeout=wait)
    except queue.Empty:
        raise LoginNotGiven(
            f"the login was not completed within {span(wait)}; nothing was changed. Log in again, or raise --wait. If "
            "the page reports an error about the client or its redirect address, try --new-client, or enter "
            f"{loopback.redirect_uri} in the settings of the client and give it as --redirect-uri"
        ) from None
    if isinstance(result, RefresherError):
        raise result
    return result


def _show(url: str, *, open_browser: bool) -> bool:
    """Open ``url`` in a browser, or print it; return whether a browser opens."""
    # Only a browser with a window: a text browser would use this terminal.
    has_window = sys.platform in ("darwin", "win32") or any(
        map(os.environ.get, ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY"))
    )
    if open_browser and has_window and webbrowser.open(url):
        say(f"Your browser opens to log in. If it does not, open this address:\n\n  {url}\n", err=True)
        return True
    say(f"To log in, open this address in a browser:\n\n  {url}\n", err=True)
    return False


def _read_pasted(accept: Callable[[str], str | None]) -> None:
    """Read redirects from standard input until one counts."""
    for line in _lines():
        pasted = line.decode("ascii", "replace").strip()
        if not pasted:
            continue
        if (problem := accept(pasted)) is None:
            return
        say(problem, err=True)


def _lines() -> Iterator[bytes]:
    """Yield the lines of standard input, if there is one.

    Not through ``sys.stdin``, because Python aborts at exit if another thread still reads from it.
    """
    rest = b""
    with suppress(OSError, ValueError):
        while sys.stdin is not None and (part := os.read(sys.stdin.fileno(), _MAX_READ)):
            *lines, rest = (rest + part).split(b"\n")
            yield from lines
    yield rest
