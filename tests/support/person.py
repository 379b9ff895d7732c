"""A person at a browser: opens a URL, logs in, consents, and follows the redirect.

    python -m tests.support.person [--deny|--close|--paste|--wrong-state|--wrong-issuer|--twice]
                                   [--code CODE] [--jar FILE] [--to FILE] URL

Prints the text of the last page, or writes it to the file of ``--to``. With the same ``--jar`` of cookies the person
stays logged in at the server.
"""

import argparse
import html
import re
from contextlib import suppress
from html.parser import HTMLParser
from http.cookiejar import LWPCookieJar
from pathlib import Path
from typing import Final
from urllib.parse import urljoin

import httpx

from tests.support import browser

__all__ = ["Form", "Page", "Person", "main"]

_LONGEST: Final = 90.0
_NO: Final = re.compile("deny|abort|cancel", re.IGNORECASE)
_PAGES: Final = 20


class Form:
    """A form of a page: its target, fields and buttons."""

    def __init__(self, attributes: dict[str, str]) -> None:
        self.id = attributes.get("id")
        self.action = attributes.get("action", "")
        self.method = attributes.get("method", "get").upper()
        self.fields: dict[str, str] = {}
        self.buttons: list[dict[str, str]] = []

    def filled(self, code: str | None) -> dict[str, str]:
        """Return the fields as a person fills them."""
        return {
            name: value or (code or "" if name == "user_code" else "a person") for name, value in self.fields.items()
        }

    def press(self, *, deny: bool) -> dict[str, str] | None:
        """Return the field of the first button, or of the one that declines; ``None`` if there is no such button."""
        buttons = [
            button for button in self.buttons if not deny or _NO.search(f"{button.get('name')} {button.get('value')}")
        ]
        if not buttons:
            return None if deny else {}
        return {buttons[0]["name"]: buttons[0].get("value", "")} if "name" in buttons[0] else {}


class Page(HTMLParser):
    """The forms of a page; a button may be outside its form."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.forms: list[Form] = []
        self._open: Form | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        if tag == "form":
            self._open = Form(attributes)
            self.forms.append(self._open)
        owner = self._open
        if "form" in attributes:
            owner = next((form for form in self.forms if form.id == attributes["form"]), None)
        if owner is None:
            return
        if tag == "button" or (tag == "input" and attributes.get("type") == "submit"):
            owner.buttons.append(attributes)
        elif tag == "input" and "name" in attributes:
            owner.fields[attributes["name"]] = attributes.get("value", "")

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._open = None


class Person:
    """Follows a URL to the last page; ``habit`` is an option of the command without dashes, ``code`` a user code."""

    def __init__(self, habit: str | None = None, code: str | None = None, jar: Path | None = None) -> None:
        self._habit = habit
        self._code = code
        self._cookies = LWPCookieJar(jar)
        if jar is not None and jar.exists():
            self._cookies.load(ignore_discard=True)
        self._http = httpx.Client(cookies=self._cookies, trust_env=False, timeout=_LONGEST)

    def open(self, url: str) -> str:
        """Return the text of the last page; with ``paste``, the redirect instead of following it."""
        if self._habit == "close":
            return ""
        with self._http:
            text = self._walk(url)
        if self._cookies.filename is not None:
            self._cookies.save(ignore_discard=True)
        return text

    def _walk(self, url: str) -> str:
        back = httpx.URL(url).params.get("redirect_uri")
        request = self._http.build_request("GET", url)
        denied = False
        for _ in range(_PAGES):
            if back is not None and str(request.url).startswith(f"{back}?"):
                return self._come_back(request.url)
            response = self._http.send(request)
            if response.next_request is not None:
                request = response.next_request
                continue
            form = None if denied else next(iter(Page(response.text).forms), None)
            if form is None or ("user_code" in form.fields and not (form.fields["user_code"] or self._code)):
                return _text(response)
            pressed = form.press(deny=True) if self._habit == "deny" else None
            denied = pressed is not None
            data = form.filled(self._code) | (form.press(deny=False) or {} if pressed is None else pressed)
            self._code = None
            request = self._http.build_request(form.method, urljoin(str(response.url), form.action), data=data)
        raise AssertionError(f"still no redirect after {_PAGES} pages: {response.url.path}")

    def _come_back(self, url: httpx.URL) -> str:
        if self._habit == "paste":
            return str(url)
        if self._habit == "wrong-state":
            self._http.get(url.copy_merge_params({"code": "stolen", "state": "wrong"}))
        if self._habit == "wrong-issuer":
            url = url.copy_merge_params({"iss": "https://attacker.example"})
        text = _text(self._http.get(url))
        if self._habit == "twice":
            with suppress(httpx.TransportError):  # the login has ended
                self._http.get(url)
        return text


def _text(response: httpx.Response) -> str:
    visible = re.sub(r"<(style|script|title).*?</\1>", " ", response.text, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub("<[^>]*>", " ", visible)).split())


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="person")
    habits = parser.add_mutually_exclusive_group()
    for habit in ("deny", "close", "paste", "wrong-state", "wrong-issuer", "twice"):
        habits.add_argument(f"--{habit}", dest="habit", action="store_const", const=habit)
    parser.add_argument("--code")
    parser.add_argument("--jar", type=Path)
    browser.run(parser, lambda given: Person(given.habit, given.code, given.jar).open(given.url))


if __name__ == "__main__":
    main()
