"""The authorization servers: their answers, issuers, endpoints and clocks.

Each server is asked once for all of its grants, all at the same time, and no token is sent.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

import anyio
import httpx2

from refresher.common import text
from refresher.common.errors import ConfigError, LoginRefused, RefresherError, ServerAway
from refresher.doctor.finding import Code, Finding, found
from refresher.grants.record import Grant
from refresher.login.discovery import NotPublished, OtherIssuer, Server, discover_issuer
from refresher.login.http_client import NO_SERVER_STATUSES, Connections
from refresher.oauth import urls
from refresher.oauth.proxies import proxy_for
from refresher.oauth.token_response import clock_skew
from refresher.operations.inspection import server_of
from refresher.operations.result import repair_command

__all__ = ["DEADLINE", "check"]

DEADLINE: Final = 20.0
"""Seconds for all servers together."""

_AT_ONCE: Final = 32
_PROXY_STATUSES: Final = (407, 511)
_ENDPOINTS: Final = ("token_endpoint", "revocation_endpoint")
_WELL_KNOWN: Final = "/.well-known/oauth-authorization-server"


class _Conversation:
    """What one server answered, and by how many seconds its clock is ahead."""

    def __init__(self, grants: Sequence[Grant], ca_file: str | None) -> None:
        self.grants = grants
        self.place = server_of(grants[0])
        self.issuer = grants[0].issuer
        self.url = self.issuer or self.place
        self.server: Server | None = None
        self.error: RefresherError | None = ServerAway(f"{self.place}: no complete answer within {DEADLINE:.0f} s")
        self.skew = 0.0
        self.is_page = False
        """Whether an answer was a web page, or one that only a proxy gives."""
        self._connections = Connections(ca_file)

    async def hold(self) -> None:
        try:
            if self.issuer is None:
                await self._fetch(httpx2.Request("GET", f"{self.place}{_WELL_KNOWN}"))
            else:
                self.server = await discover_issuer(self.issuer, self.issuer, self._fetch)
            self.error = None
        except RefresherError as error:
            self.error = error
        except (ValueError, httpx2.InvalidURL):
            if _proxy_of(self.url) is None:
                self.error = LoginRefused(f"{self.url} is not a valid URL")
            else:
                self.error = ConfigError("the proxy in HTTPS_PROXY or ALL_PROXY is not a valid URL")

    async def _fetch(self, request: httpx2.Request) -> httpx2.Response:
        before = time.time()
        response = await self._connections.fetch(request)
        if "age" not in response.headers:  # the date of a cached answer is old
            skews = [clock_skew(response.headers.get("date", ""), at) for at in (before, time.time())]
            self.skew = min(skews, key=abs)
        is_html = response.headers.get("content-type", "").startswith("text/html")
        is_foreign = is_html and response.status_code not in NO_SERVER_STATUSES
        self.is_page = self.is_page or is_foreign or response.status_code in _PROXY_STATUSES
        return response


def check(grants: Sequence[Grant], ca_file: str | None, *, waiting: Callable[[list[str]], None]) -> list[Finding]:
    """Ask the servers of ``grants``. ``waiting`` is called with the addresses of those that have not answered yet."""
    # A grant that was imported without its issuer joins the others of its server.
    issuers = {_origin(grant.issuer): grant.issuer for grant in grants if grant.issuer}
    groups: dict[str, list[Grant]] = {}
    for grant in sorted(grants, key=lambda grant: grant.issuer is None):
        if place := server_of(grant):
            groups.setdefault(grant.issuer or issuers.get(place, place), []).append(grant)
    conversations = [_Conversation(group, ca_file) for group in groups.values()]
    if conversations:
        Connections(ca_file).run(_hold_all, conversations, waiting)
    findings = [finding for each in conversations for finding in _judge(each)]
    if wrong := [each for each in conversations if each.skew and each.error is None]:
        ahead = wrong[0].skew > 0
        shown = text.names([each.place for each in wrong])
        what = f"this clock is {text.span(wrong[0].skew)} {'behind' if ahead else 'ahead of'} that of {shown}"
        findings.append(found("clock_differs", what))
    return findings


async def _hold_all(conversations: Sequence[_Conversation], waiting: Callable[[list[str]], None]) -> None:
    limit, pending = anyio.CapacityLimiter(_AT_ONCE), {id(each): each.place for each in conversations}

    async def hold(conversation: _Conversation) -> None:
        async with limit:
            await conversation.hold()
        del pending[id(conversation)]
        waiting(sorted(pending.values()))

    waiting(sorted(pending.values()))
    with anyio.move_on_after(DEADLINE):
        async with anyio.create_task_group() as tasks:
            for conversation in conversations:
                tasks.start_soon(hold, conversation)


def _judge(conversation: _Conversation) -> list[Finding]:
    """Return what is wrong with one server."""
    error, server = conversation.error, conversation.server
    if error is None:
        return [] if server is None else [each for grant in conversation.grants for each in _moved(grant, server)]
    grants = conversation.grants
    name = grants[0].name if len(grants) == 1 else None
    # The rest of the message is about a login.
    problem = str(error).partition("; nothing was changed")[0]
    proxy = _proxy_of(conversation.url)
    code: Code = "server_away" if isinstance(error, ServerAway) else "metadata_unusable"
    if isinstance(error, OtherIssuer):
        code = "issuer_changed"
    elif (
        isinstance(error, NotPublished)
        and all(map(_needs_no_metadata, grants))
        and not (proxy and conversation.is_page)
    ):
        return []
    elif isinstance(error, ConfigError) and not (proxy and "the proxy" in problem):
        return []  # a file that cannot be read: reported with the grants that name it
    of_proxy = problem.startswith(("the proxy ", "proxy ")) or "is not trusted" in problem
    if proxy and (conversation.is_page or code == "issuer_changed" or of_proxy):
        code, problem = "proxy_answers", f"{problem}; the connection goes through the proxy {proxy}"
    return [found(code, f"{problem} (needed by {text.names([grant.name for grant in grants])})", name=name)]


def _moved(grant: Grant, server: Server) -> list[Finding]:
    """Return the endpoints that the metadata no longer names."""
    if grant.issuer is None or (grant.login is not None and grant.login.endpoints_given):
        return []
    findings = []
    for key in _ENDPOINTS:
        stored, named = getattr(grant, key), getattr(server, key)
        if stored and named and stored != named:
            what = f"the server now names {named} as its {key}, and the grant has {stored}"
            findings.append(found("endpoint_changed", what, repair_command(grant), name=grant.name))
    return findings


def _needs_no_metadata(grant: Grant) -> bool:
    """Whether the endpoints of ``grant`` are not from metadata: a person gave them, or imported the grant."""
    return grant.login is None or grant.login.endpoints_given


def _proxy_of(url: str) -> str | None:
    """Return host and port of the proxy, without the password that its address may contain."""
    parts = urlsplit(url)
    proxy = proxy_for(parts.scheme, parts.hostname or "")
    if proxy is None:
        return None
    with suppress(ValueError):
        address = urlsplit(proxy)
        return f"{address.hostname}:{address.port}" if address.port else str(address.hostname)
    return "of the environment"


def _origin(url: str) -> str:
    with suppress(urls.InvalidURL):
        return urls.parse_origin(url)
    return url
