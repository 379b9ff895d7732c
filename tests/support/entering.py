"""A login under way: the command has asked, and a person follows when the test wants it."""

import subprocess
import threading
from contextlib import suppress
from typing import Any

import httpx

from tests.support.command import Command, Done
from tests.support.daemon import heard
from tests.support.person import Person

__all__ = ["Entering"]


class Entering:
    """``refresher login linear``, as far as the address that it shows."""

    def __init__(self, refresher: Command, *arguments: str, **more: Any) -> None:
        self._refresher = refresher
        self.process: subprocess.Popen[str] = refresher.start("login", "linear", *arguments, "--no-browser", **more)
        self.address = heard(self.process, "  http")[-1].strip()
        self.page = ""
        """Where the person ended, once he has been there and back."""
        self._person: threading.Thread | None = None

    def follow(self, habit: str | None = None) -> None:
        """Go to the address and all the way back; the browser of one that is killed shows nothing."""
        with suppress(httpx.TransportError):
            self.page = Person(habit).open(self.address)

    def send_person(self) -> None:
        """Have a person follow while the test does something else."""
        self._person = threading.Thread(target=self.follow, daemon=True)
        self._person.start()

    def finish(self) -> Done:
        """Wait for the command, and for the person."""
        done = self._refresher.finish(self.process)
        if self._person is not None:
            self._person.join(30)
        return done
