"""A client with the MCP SDK that logs in, and keeps the SDK's models in a file or in two.

    python -m tests.servers.sdk_client URL DIRECTORY one|two

It opens no browser: it follows the redirects itself.
"""

import json
import sys
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import anyio
import httpx2
from mcp import ClientSession
from mcp.client.auth import OAuthClientProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import AuthorizationCodeResult, OAuthClientInformationFull, OAuthClientMetadata, OAuthToken
from pydantic import AnyUrl, BaseModel


class Files:
    """A TokenStorage that writes the models as JSON."""

    def __init__(self, directory: Path, *, one: bool) -> None:
        self._directory, self._one = directory, one
        self._known: dict[str, Any] = {}

    def _keep(self, key: str, model: BaseModel) -> None:
        self._known[key] = model.model_dump(mode="json", exclude_none=True)
        name, content = ("oauth", self._known) if self._one else (key, self._known[key])
        (self._directory / f"{name}.json").write_text(json.dumps(content))

    async def get_tokens(self) -> OAuthToken | None:
        return None

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self._keep("tokens", tokens)

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return None

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self._keep("client_info", client_info)


async def main(url: str, directory: Path, shape: str) -> None:
    """Log in, and list the tools."""
    answered: list[str] = []

    async def follow(address: str) -> None:
        async with httpx2.AsyncClient(trust_env=False, timeout=60) as http:
            answered.append((await http.get(address)).headers["location"])

    async def answer() -> AuthorizationCodeResult:
        query = parse_qs(urlsplit(answered[-1]).query)
        return AuthorizationCodeResult(code=query["code"][0], state=query["state"][0])

    auth = OAuthClientProvider(
        url,
        OAuthClientMetadata(client_name="sdk", redirect_uris=[AnyUrl("http://127.0.0.1:9/callback")]),
        Files(directory, one=shape == "one"),
        follow,
        answer,
    )
    async with (
        httpx2.AsyncClient(auth=auth, trust_env=False, timeout=60) as http,
        streamable_http_client(url, http_client=http) as streams,
        ClientSession(*streams[:2]) as session,
    ):
        await session.initialize()
        await session.list_tools()


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], Path(sys.argv[2]), sys.argv[3])
