"""Who may read the pages: known host names, no other website, and a token where others can reach the address."""

import base64
import binascii
import hmac
import logging
from collections.abc import Mapping
from typing import Final, NamedTuple

from refresher.common.browsers import is_foreign, is_served
from refresher.common.reading import is_exposed, read_named
from refresher.config import Settings

__all__ = ["PageToken", "Refusal", "host_refusal", "page_refusal", "read_token"]

log = logging.getLogger(__name__)

_LARGEST: Final = 4096
_SHORTEST: Final = 16


class Refusal(NamedTuple):
    """Why a request gets no answer."""

    status: int
    text: str


_FOREIGN_HOST: Final = Refusal(421, "Misdirected Request: use an IP address, or a name of --listen-host")
_CROSS_SITE: Final = Refusal(403, "Forbidden: another website sent this request; open the page by its address")
_NO_TOKEN: Final = Refusal(
    403,
    "Forbidden: others can reach this address, so the page needs a token: set page_token_file (--page-token-file of "
    "'refresher run', REFRESHER_PAGE_TOKEN_FILE), or use --listen 127.0.0.1:PORT",
)
_UNUSABLE_TOKEN: Final = Refusal(403, "Forbidden: the page token cannot be used; the log of refresher says why")
_UNAUTHORIZED: Final = Refusal(401, "Unauthorized: give the page token as the password, with any user name")


class PageToken:
    """The token in ``page_token_file``. One thread reads the file; any thread may look at the token."""

    def __init__(self) -> None:
        self.wanted = False
        """Whether there is such a file in the configuration."""
        self._token: bytes | None = None
        self._problem: str | None = None

    def refresh(self, path: str | None) -> None:
        """Read the file again; warn once of each problem with it. Never raises."""
        if path is None:
            self.wanted, self._token = False, None
            return
        try:
            self._token, self._problem = read_token(path), None
        except (OSError, ValueError) as error:
            self._token = None
            problem = str(getattr(error, "strerror", None) or error)
            if problem != self._problem:
                self._problem = problem
                log.warning("cannot use the page token in %s: %s; until then the page shows nothing", path, problem)
        self.wanted = True

    @property
    def usable(self) -> bool:
        """Whether there is a token."""
        return self._token is not None

    def accepts(self, authorization: str) -> bool:
        """Whether an ``Authorization`` header has the token: as a bearer, or as the password of any user."""
        kind, _, value = authorization.strip().partition(" ")
        given = value.strip().encode()
        if kind.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        elif kind.lower() != "bearer":
            return False
        token = self._token
        return token is not None and hmac.compare_digest(given, token)


def host_refusal(hosts: list[str], settings: Settings | None) -> Refusal | None:
    """Return why a request with these ``Host`` headers is refused.

    Else a web page could read the answer, with a name of its own that leads to this address.
    """
    names = _names(settings)
    return None if all(is_served(host, names) for host in hosts) else _FOREIGN_HOST


def page_refusal(
    headers: Mapping[str, str], token: PageToken, *, loopback: bool, document: bool = False
) -> Refusal | None:
    """Return why a request for the page, its stream or a history is refused: they show account labels.

    ``loopback``: only this machine can reach the address. ``document``: a link of another website may lead there.
    """
    if is_foreign(headers) and not (document and headers.get("sec-fetch-mode") == "navigate"):
        return _CROSS_SITE
    if not token.wanted:
        return None if loopback else _NO_TOKEN
    if not token.usable:
        return _UNUSABLE_TOKEN
    return None if token.accepts(headers.get("authorization", "")) else _UNAUTHORIZED


def read_token(path: str) -> bytes:
    """Return the token in a file. Raises ``OSError`` and ``ValueError``."""
    data, status = read_named(path, _LARGEST)
    if is_exposed(status):
        raise ValueError("other users can read it; run 'chmod 600' on it")
    token = data.strip()
    if len(token.decode("utf-8", "replace")) < _SHORTEST:
        raise ValueError(f"it is shorter than {_SHORTEST} characters; make one with 'openssl rand -hex 32'")
    return token


def _names(settings: Settings | None) -> frozenset[str]:
    """Return the names that a request may give as its host."""
    if settings is None:
        return frozenset({"localhost"})
    listen = () if settings.listen is None else (settings.listen[0].lower(),)
    return frozenset({"localhost", *listen, *settings.listen_hosts})
