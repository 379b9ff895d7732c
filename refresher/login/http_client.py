"""The HTTP client for metadata and registration: bounded, without redirects, and without a secret."""

from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

import anyio
import httpx2

from refresher.common.errors import ConfigError, ServerAway
from refresher.oauth import connection_errors
from refresher.oauth.proxies import build_proxy
from refresher.oauth.tls import ssl_context

__all__ = ["HTTPClient"]

_DEADLINE: Final = 20.0
_LARGEST: Final = 1024 * 1024


class HTTPClient:
    """Sends one request, and trusts ``ca_file``."""

    def __init__(self, ca_file: str | None) -> None:
        self._ca_file = ca_file

    async def __call__(self, request: httpx2.Request) -> httpx2.Response:
        """Return the response with at most 1 MiB of its body. Raises ``ServerAway`` where none comes within 20 s."""
        url = str(request.url)
        parts = urlsplit(url)
        proxy = build_proxy(parts.scheme, parts.hostname or "", httpx2.Proxy)
        problem = connection_errors.too_slow(url, _DEADLINE)
        try:
            with anyio.move_on_after(_DEADLINE):
                async with httpx2.AsyncClient(
                    verify=ssl_context(self._ca_file) if parts.scheme == "https" else False,
                    trust_env=False,
                    proxy=proxy,
                    follow_redirects=False,
                    timeout=_DEADLINE,
                ) as client:
                    answer = await client.send(request, stream=True)
                    body = bytearray()
                    async for chunk in answer.aiter_bytes():
                        body += chunk[: _LARGEST - len(body)]
                        # An MCP server may answer with an endless stream of events.
                        if len(body) >= _LARGEST or _is_stream(answer.headers):
                            break
                    return _whole(answer, bytes(body), request)
        except ConfigError:
            raise
        except Exception as error:  # noqa: BLE001  a transport can fail in any way
            problem = connection_errors.reason((error,), (), url)
        raise ServerAway(f"{problem}; nothing was changed")


def _is_stream(headers: Mapping[str, str]) -> bool:
    return headers.get("content-type", "").startswith("text/event-stream")


def _whole(answer: httpx2.Response, body: bytes, request: httpx2.Request) -> httpx2.Response:
    """Return the response with its body: the functions of the SDK need it whole."""
    # The raw headers: values that are not ASCII cannot be encoded again.
    headers = [(name, value) for name, value in answer.headers.raw if name.lower() != b"content-encoding"]
    return httpx2.Response(answer.status_code, headers=headers, content=body, request=request)
