"""What a reconnecting client connects to: a streamable HTTP server, or a child process that is given the token."""

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

import httpx2
from mcp import StdioServerParameters, stdio_client
from mcp.client import Transport
from mcp.client.streamable_http import streamable_http_client

from shim._origins import origin_of
from shim._token import TokenFile
from shim.httpx2 import BearerAuth
from shim.mcp._http_client import Line

__all__ = ["Child", "HTTPServer", "Target"]


class Target(Protocol):
    """Where MCP sessions lead to."""

    @property
    def name(self) -> str:
        """How a person calls it."""

    @property
    def identity(self) -> str:
        """What no other server has in common with it; not to be shown."""

    @property
    def is_child(self) -> bool:
        """Whether a session holds its token from its beginning, and there must not be two of them."""

    def takes(self, token: TokenFile) -> bool:
        """Whether it may be given ``token``."""

    def transport(self, access_token: str) -> Transport:
        """Return a new transport."""


class HTTPServer(NamedTuple):
    """A streamable HTTP server; each request carries the token of its moment."""

    url: str
    auth: BearerAuth
    headers: Mapping[str, str]
    verify: ssl.SSLContext | bool
    timeout: httpx2.Timeout

    @property
    def name(self) -> str:
        """The address without what may be secret in it."""
        parts = urlsplit(self.url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()

    @property
    def identity(self) -> str:
        """The whole address."""
        return self.url

    @property
    def is_child(self) -> bool:
        """It is none."""
        return False

    def takes(self, token: TokenFile) -> bool:
        """Whether the token is for this origin."""
        url = httpx2.URL(self.url)
        return origin_of(url.scheme, url.raw_host.decode("ascii"), url.port) in token.origins

    def transport(self, access_token: str) -> Transport:  # noqa: ARG002  each request looks for itself
        """Return a new line to the server."""
        return self._connect()

    @asynccontextmanager
    async def _connect(self) -> AsyncIterator[Any]:
        line = Line(
            auth=self.auth,
            headers=dict(self.headers),
            verify=self.verify,
            timeout=self.timeout,
            # However many calls there are: none waits for another's answer.
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=20),
        )
        async with line, streamable_http_client(self.url, http_client=line) as streams:
            yield streams


class Child(NamedTuple):
    """A stdio server, whose token is an environment variable that is fixed when it is spawned."""

    parameters: StdioServerParameters
    token_variable: str

    @property
    def name(self) -> str:
        """The command."""
        return self.parameters.command

    @property
    def identity(self) -> str:
        """The command with its arguments and all."""
        return self.parameters.model_dump_json()

    @property
    def is_child(self) -> bool:
        """It is one."""
        return True

    def takes(self, token: TokenFile) -> bool:  # noqa: ARG002  see below
        """Whether it may be given the token: whoever configured it has said so."""
        return True

    def transport(self, access_token: str) -> AbstractAsyncContextManager[Any]:
        """Return a new process."""
        environment = {**(self.parameters.env or {}), self.token_variable: access_token}
        changes: dict[str, Any] = {"env": environment}
        if self.parameters.encoding.lower() in ("utf-8", "utf8"):
            # Strictly read, one byte of garbage would end the reading, and nobody would be told.
            changes["encoding_error_handler"] = "replace"
        return stdio_client(self.parameters.model_copy(update=changes))
