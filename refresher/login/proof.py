"""Whether a new token works: one MCP session that is initialized and lists the tools."""

from typing import Final
from urllib.parse import urlsplit

import anyio
import httpx2
import msgspec
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from refresher import connection
from refresher.grant import Grant
from refresher.proxies import proxy_for
from refresher.tls import trusted

__all__ = ["Proof", "prove"]

_PATIENCE: Final = 20.0
_REFUSALS: Final = (401, 403)


class Proof(msgspec.Struct, frozen=True):
    """What the server said to the token: ``refused`` is its verdict, else it works, or nobody could tell."""

    refused: bool
    works: bool
    words: str


async def prove(grant: Grant, *, ca_file: str | None) -> Proof:
    """Use the access token of ``grant`` at its MCP server, for 20 s at most; raises nothing."""
    url, token = grant.server_url or "", grant.access_token
    parts = urlsplit(url)
    statuses: list[int] = []

    async def note(answer: httpx2.Response) -> None:
        statuses.append(answer.status_code)

    authorization = f"{grant.token_type} {token.reveal()}" if token is not None else ""
    problem = f"it took longer than {_PATIENCE:.0f} s"
    try:
        with anyio.move_on_after(_PATIENCE):
            async with (
                httpx2.AsyncClient(
                    headers={"Authorization": authorization},
                    verify=trusted(ca_file) if parts.scheme == "https" else False,
                    trust_env=False,
                    proxy=proxy_for(parts.scheme, parts.hostname or ""),
                    timeout=_PATIENCE,
                    event_hooks={"response": [note]},
                ) as http,
                Client(streamable_http_client(url, http_client=http)) as client,
            ):
                tools = (await client.list_tools()).tools
                return Proof(
                    False, True, f"{url} takes the new token: {len(tools)} tool{'' if len(tools) == 1 else 's'}"
                )
    except Exception as error:  # noqa: BLE001  a server can fail in any way
        problem = connection.reason((error,), (token,))
    if any(status in _REFUSALS for status in statuses):
        status = next(status for status in reversed(statuses) if status in _REFUSALS)
        return Proof(True, False, f"{url} refuses the new token ({status})")
    return Proof(False, False, f"could not try the new token at {url}: {problem}")
