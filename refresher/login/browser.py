"""Bringing a person to an address, and getting the redirect back: from a browser here, or pasted from one elsewhere."""

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
from refresher.login.authorization import Authorization, NotOurs
from refresher.login.loopback import Loopback

__all__ = ["redirected"]

_AT_ONCE: Final = 65536

_Fields = dict[str, str]


def redirected(authorization: Authorization, loopback: Loopback, *, wait: float, open_browser: bool) -> _Fields:
    """Bring a person to the authorization server; return the fields of the token request that follows.

    The redirect comes to ``loopback``, or is pasted at the terminal, whichever is first. Raises
    ``LoginNotGiven`` after ``wait`` seconds, or where the person says no, and ``LoginRefused``.
    """
    came: queue.Queue[_Fields | RefresherError] = queue.Queue()

    def take(redirect: str) -> str | None:
        """Hear a redirect; return what is wrong with it, ``None`` where it counts."""
        try:
            came.put(authorization.read(redirect))
        except NotOurs as error:
            return str(error)
        except RefresherError as error:
            came.put(error)
        return None

    loopback.take = lambda query: None if take(query) is None else pages.not_ours()
    if not _bring(authorization.url, open_browser=open_browser):
        say("If the page at the end cannot be reached, paste its address here:", err=True)
        threading.Thread(target=_listen, args=(take,), daemon=True, name="paste").start()
    try:
        result = came.get(timeout=wait)
    except queue.Empty:
        raise LoginNotGiven(
            f"nobody came to the end of the login within {span(wait)}; nothing was changed. Log in again, with a "
            "longer --wait if need be; where the page spoke of the client or its redirect address, with --new-client, "
            f"or enter {loopback.redirect_uri} in the client's settings there and give it as --redirect-uri"
        ) from None
    if isinstance(result, RefresherError):
        raise result
    return result


def _bring(url: str, *, open_browser: bool) -> bool:
    """Open the address, or show it; return whether a browser was found."""
    if open_browser and _has_browser() and webbrowser.open(url):
        say(f"Your browser opens to log in. If it does not, go to:\n\n  {url}\n", err=True)
        return True
    say(f"To log in, open this address in a browser:\n\n  {url}\n", err=True)
    return False


def _has_browser() -> bool:
    """Whether there is a browser with a window: one in this terminal would take it over."""
    if os.environ.get("BROWSER") or sys.platform in ("darwin", "win32"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _listen(take: Callable[[str], str | None]) -> None:
    """Hear what is pasted, until it counts or there is nobody."""
    for line in _lines():
        pasted = line.decode("ascii", "replace").strip()
        if pasted and (wrong := take(pasted)) is None:
            return
        if pasted:
            say(f"That address is not it: {wrong}. Paste the whole address, beginning with http://", err=True)


def _lines() -> Iterator[bytes]:
    """Yield the lines of standard input, if there is one.

    Not through ``sys.stdin``: Python aborts at its end where another thread still waits in there.
    """
    rest = b""
    with suppress(OSError, ValueError):
        while sys.stdin is not None and (part := os.read(sys.stdin.fileno(), _AT_ONCE)):
            *lines, rest = (rest + part).split(b"\n")
            yield from lines
    yield rest
