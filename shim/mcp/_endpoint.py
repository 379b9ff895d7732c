"""What a reconnecting client connects to: a streamable HTTP server, or a child process (stdio)."""

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import urlsplit

import anyio
import httpx2
from mcp import StdioServerParameters, stdio_client
from mcp.client import Transport
from mcp.client.streamable_http import streamable_http_client

from shim._bearer import origin_of_request
from shim.httpx2 import BearerAuth
from shim.mcp._http_client import SessionHTTPClient

__all__ = ["Endpoint", "HTTPEndpoint", "ProcessEndpoint"]


@dataclass
class HTTPEndpoint:
    """A streamable HTTP server; each request carries the current token."""

    is_process: ClassVar[bool] = False

    url: str
    auth: BearerAuth
    headers: Mapping[str, str]
    verify: ssl.SSLContext | bool

    def __post_init__(self) -> None:
        if self.verify is True and self.url.startswith("https:"):
            self.verify = httpx2.create_ssl_context()  # once for all sessions, because it takes 34 ms
            # Python takes it from SSLKEYLOGFILE: a program that reads that file can read each token.
            self.verify.keylog_filename = None  # type: ignore[assignment]  # typeshed does not know it

    @property
    def name(self) -> str:
        """The URL without the parts that may be secret."""
        parts = urlsplit(self.url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()

    @property
    def origin(self) -> str:
        """The origin to which the token is sent."""
        return origin_of_request(httpx2.URL(self.url))

    @asynccontextmanager
    async def transport(self, access_token: str) -> AsyncIterator[Any]:  # noqa: ARG002  each request reads the token
        """Open a transport to the server."""
        async with anyio.create_task_group() as tasks:
            http_client = SessionHTTPClient(
                tasks,
                auth=self.auth,
                headers=dict(self.headers),
                verify=self.verify,
                # As in the SDK's own client: a response may take five minutes.
                timeout=httpx2.Timeout(30.0, read=300.0, pool=None),
                # No call waits for the connection of another call.
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=20),
            )
            async with http_client, streamable_http_client(self.url, http_client=http_client) as streams:
                yield streams
            tasks.cancel_scope.cancel()


@dataclass(frozen=True)
class ProcessEndpoint:
    """A stdio server. Its token is an environment variable, fixed when the process starts.

    A new token needs a new process, and two processes never run at the same time.
    """

    is_process: ClassVar[bool] = True
    origin: ClassVar[None] = None
    """Every token may be sent to the process, because its configuration says so."""

    parameters: StdioServerParameters
    token_variable: str

    @property
    def name(self) -> str:
        """The command."""
        return self.parameters.command

    def transport(self, access_token: str) -> Transport:
        """Return a transport to a new process."""
        environment = {**(self.parameters.env or {}), self.token_variable: access_token}
        changes: dict[str, Any] = {"env": environment}
        if self.parameters.encoding.lower() in ("utf-8", "utf8"):
            # By default one invalid byte would stop the reader, and no call would get an error.
            changes["encoding_error_handler"] = "replace"
        return stdio_client(self.parameters.model_copy(update=changes))


Endpoint = HTTPEndpoint | ProcessEndpoint
