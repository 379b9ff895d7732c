"""One request of a login that brings no secret of an old one: bounded, by TLS or loopback, through no redirect."""

from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

import anyio
import httpx2

from refresher.common.errors import ConfigError, ServerAway
from refresher.oauth import connection_errors
from refresher.oauth.proxies import made_for
from refresher.oauth.tls import trusted

__all__ = ["Fetch"]

_DEADLINE: Final = 20.0
_LARGEST: Final = 1024 * 1024


class Fetch:
    """Sends requests as the options of the command line want it."""

    def __init__(self, ca_file: str | None) -> None:
        self._ca_file = ca_file

    async def __call__(self, request: httpx2.Request) -> httpx2.Response:
        """Return the whole answer, at most 1 MiB of it. Raises ``ServerAway`` where none comes within 20 s."""
        url = str(request.url)
        parts = urlsplit(url)
        proxy = made_for(parts.scheme, parts.hostname or "", httpx2.Proxy)
        problem = f"it took longer than {_DEADLINE:.0f} s"
        try:
            with anyio.move_on_after(_DEADLINE):
                async with httpx2.AsyncClient(
                    verify=trusted(self._ca_file) if parts.scheme == "https" else False,
                    trust_env=False,
                    proxy=proxy,
                    follow_redirects=False,
                    timeout=_DEADLINE,
                ) as client:
                    answer = await client.send(request, stream=True)
                    body = bytearray()
                    async for chunk in answer.aiter_bytes():
                        body += chunk[: _LARGEST - len(body)]
                        # An MCP server may answer with a stream of events that has no end.
                        if len(body) >= _LARGEST or _is_stream(answer.headers):
                            break
                    return _whole(answer, bytes(body), request)
        except ConfigError:
            raise
        except Exception as error:  # noqa: BLE001  a transport can fail in any way
            problem = connection_errors.reason((error,), ())
        raise ServerAway(f"cannot reach {parts.scheme}://{parts.netloc}: {problem}; nothing was changed")


def _is_stream(headers: Mapping[str, str]) -> bool:
    return headers.get("content-type", "").startswith("text/event-stream")


def _whole(answer: httpx2.Response, body: bytes, request: httpx2.Request) -> httpx2.Response:
    """Return the answer with its body read: what the SDK's functions take."""
    # As they came: what is no ASCII in them cannot be written anew.
    headers = [(name, value) for name, value in answer.headers.raw if name.lower() != b"content-encoding"]
    return httpx2.Response(answer.status_code, headers=headers, content=body, request=request)
