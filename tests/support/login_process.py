"""A running login, and the person who completes it."""

import subprocess
import threading
from contextlib import suppress
from typing import Any

import httpx

from tests.support.command import Command, Done
from tests.support.daemon import heard
from tests.support.person import Person

__all__ = ["LoginProcess"]


class LoginProcess:
    """``refresher login linear``, started and waiting for the person."""

    def __init__(self, refresher: Command, *arguments: str, **more: Any) -> None:
        self._refresher = refresher
        self.process: subprocess.Popen[str] = refresher.start("login", "linear", *arguments, "--no-browser", **more)
        self.address = heard(self.process, "  http")[-1].strip()
        self.page = ""
        """The text of the last page, after the person has followed the redirect."""
        self._person: threading.Thread | None = None

    def follow(self, habit: str | None = None) -> None:
        """Open the address and follow the redirect; if the login is killed, there is no page."""
        with suppress(httpx.TransportError):
            self.page = Person(habit).open(self.address)

    def send_person(self) -> None:
        """Follow in another thread."""
        self._person = threading.Thread(target=self.follow, daemon=True)
        self._person.start()

    def finish(self) -> Done:
        """Wait for the command and the person."""
        done = self._refresher.finish(self.process)
        if self._person is not None:
            self._person.join(90)
        return done
