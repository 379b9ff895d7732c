"""Reads the metadata of resources and authorization servers, and judges what is odd in it.

=====================================================  ==================================================
the answer                                             what it means
=====================================================  ==================================================
404, 405, 410, or 2xx without a metadata document      absent: another address may have it
another 4xx                                            withheld: another address may have it
5xx, 429, or no answer                                 down: another address may have it
301, 302, 307, 308 on the same origin                  the answer there counts, after at most 3 redirects
any other redirect; JSON that is cut off or invalid    odd: the login ends
a required member that is missing or wrong             odd: the login ends
an optional member that is wrong                       the member is ignored
=====================================================  ==================================================
"""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final
from urllib.parse import urljoin, urlsplit

import httpx2
from mcp.client.auth.utils import create_oauth_metadata_request

from refresher.common.errors import LoginRefused, ServerAway
from refresher.login.http_client import NAMED_BY, Fetch, check_available
from refresher.oauth import urls

__all__ = ["GIVE_ENDPOINTS", "GIVE_ISSUER", "Document", "Withheld", "find_document", "resolve", "texts"]

Document = Mapping[str, Any]

GIVE_ENDPOINTS: Final = "Give --authorization-endpoint and --token-endpoint"
GIVE_ISSUER: Final = "Give the authorization server with --issuer"

_ABSENT: Final = (404, 405, 410)
_REDIRECTS: Final = (301, 302, 307, 308)
_MAX_REDIRECTS: Final = 3


class Withheld(LoginRefused):
    """A server refuses to show whether it has metadata."""


async def find_document(
    addresses: Sequence[str], members: Collection[str], fetch: Fetch, *, namer: str | None, way_out: str
) -> tuple[str, Document] | None:
    """Return the first metadata document, one with any of ``members``, and its address; ``None``: all are absent.

    ``namer`` is a URL of the server that named the addresses; ``None``: a person did. ``way_out`` ends a refusal.
    Raises ``ServerAway``, ``Withheld``, and ``LoginRefused`` for an odd answer.
    """
    problem: ServerAway | Withheld | None = None
    for address in addresses:
        try:
            document = await _read(address, fetch, namer, way_out)
        except (ServerAway, Withheld) as error:
            # What is away may be there later; a refusal stays.
            problem = error if problem is None or isinstance(problem, Withheld) else problem
            continue
        if document is not None and any(member in document for member in members):
            return address, document
    if problem is not None:
        raise problem
    return None


def resolve(base: str, value: object) -> str | None:
    """Return the address ``value``, a relative one resolved at ``base``; ``None`` if it is empty or no text.

    Raises ``InvalidURL`` if a relative address is on another origin.
    """
    if not isinstance(value, str) or not value:
        return None
    try:
        if urlsplit(value).scheme:
            return value
        resolved = urljoin(base, value)
    except ValueError:
        raise urls.InvalidURL("is not a valid URL") from None
    if urls.parse_origin(resolved) != urls.parse_origin(base):
        raise urls.InvalidURL("must begin with https:// or http://")
    return resolved


def texts(document: Document, key: str) -> list[str] | None:
    """Return the texts of a list, without what else is in it; ``None`` if the member is no list."""
    value = document.get(key)
    return [text for text in value if isinstance(text, str) and text] if isinstance(value, list) else None


async def _read(address: str, fetch: Fetch, namer: str | None, way_out: str) -> Document | None:
    """Return the JSON object at ``address``; ``None``: there is none."""
    response = await _follow(address, fetch, namer, way_out)
    check_available(response)
    if response.status_code in _ABSENT:
        return None
    if not response.is_success:
        raise Withheld(f"{address} answered {response.status_code}; nothing was changed. {way_out}")
    try:
        document = json.loads(response.content)  # with or without a byte order mark
    except (ValueError, RecursionError):
        # A page is no metadata; a document that is cut off may name another server.
        text = response.content.decode(json.detect_encoding(response.content), "replace").strip()
        if text.startswith("{") or (text and "json" in response.headers.get("content-type", "")):
            raise LoginRefused(f"{address} is not valid JSON; nothing was changed. {way_out}") from None
        return None
    return document if isinstance(document, dict) else None


async def _follow(address: str, fetch: Fetch, namer: str | None, way_out: str) -> httpx2.Response:
    """Return the answer at ``address``, after redirects on its origin."""
    at = address
    for _ in range(1 + _MAX_REDIRECTS):
        request = create_oauth_metadata_request(at)
        if namer is not None:
            request.extensions[NAMED_BY] = namer
        response = await fetch(request)
        if not 300 <= response.status_code < 400:
            return response
        location = response.headers.get("location", "")
        try:
            target = urljoin(at, location)
            same = bool(location) and urls.parse_origin(target) == urls.parse_origin(at)
        except ValueError:
            same = False
        if not same or response.status_code not in _REDIRECTS:
            raise LoginRefused(
                f"{at} answered {response.status_code} and redirects to {location or 'an unknown address'}; refresher "
                f"follows a redirect of metadata only on the same server; nothing was changed. {way_out}"
            )
        at = target.partition("#")[0]
    raise LoginRefused(f"{address} redirects more than {_MAX_REDIRECTS} times; nothing was changed. {way_out}")
