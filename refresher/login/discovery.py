"""Discovers the authorization server of a URL (RFC 9728, RFC 8414, and MCP of 2025-03-26).

The MCP SDK knows where metadata is published, and checks it. This module returns what a login needs.
"""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final
from urllib.parse import urlsplit

import httpx2
import msgspec
from mcp.client.auth.utils import (
    build_oauth_authorization_server_metadata_discovery_urls,
    build_protected_resource_metadata_discovery_urls,
    create_oauth_metadata_request,
    extract_resource_metadata_from_www_auth,
    extract_scope_from_www_auth,
    get_client_metadata_scopes,
    handle_auth_metadata_response,
    handle_protected_resource_response,
    issuers_match,
)
from mcp.client.streamable_http import MCP_SESSION_ID
from mcp.shared.auth import OAuthMetadata, ProtectedResourceMetadata
from mcp.shared.auth_utils import check_resource_allowed, resource_url_from_server_url
from mcp.shared.inbound import MCP_PROTOCOL_VERSION_HEADER
from mcp_types.version import LATEST_HANDSHAKE_VERSION

from refresher import __version__
from refresher.common.errors import LoginRefused
from refresher.login.http_client import NAMED_BY, Fetch, check_available, unavailable
from refresher.oauth import urls

__all__ = ["ENDPOINTS", "OFFLINE_ACCESS", "Server", "discover", "discover_issuer"]

OFFLINE_ACCESS: Final = "offline_access"

_Metadata = tuple[OAuthMetadata, Mapping[str, Any]]
"""Server metadata as the SDK parses it, and the document itself: the SDK spells its URLs differently."""

_SCOPE: Final = re.compile(r"[!#-\[\]-~]+")
_INITIALIZE: Final = {
    "protocolVersion": LATEST_HANDSHAKE_VERSION,
    "capabilities": {},
    "clientInfo": {"name": "refresher", "version": __version__},
}
_GRANT_TYPES: Final = ["authorization_code", "refresh_token"]
_MAX_ISSUERS: Final = 3
"""A server could name thousands, and each is asked at several addresses."""

_GIVE_ENDPOINTS: Final = "Give --authorization-endpoint and --token-endpoint"


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """An authorization server, and what the MCP server or API behind it requires. Its URLs are verbatim."""

    token_endpoint: str
    authorization_endpoint: str | None = None
    issuer: str | None = None
    registration_endpoint: str | None = None
    device_authorization_endpoint: str | None = None
    revocation_endpoint: str | None = None
    auth_methods: Sequence[str] | None = None
    """The client authentication methods of the token endpoint; ``None``: not published."""
    challenge_methods: Sequence[str] | None = None
    userinfo_url: str | None = None
    """Where a login can ask whose it is (OpenID Connect Core section 5.3); ``None``: none that can be used."""
    sends_iss: bool = False
    """Whether each redirect contains ``iss`` (RFC 9207)."""
    takes_metadata_documents: bool = False
    offers_offline_access: bool = False
    resource: str | None = None
    """RFC 8707, as the protected resource metadata spells it."""
    scope: str | None = None
    """The scope to request."""


ENDPOINTS: Final = tuple(key for key in Server.__struct_fields__ if key.endswith("_endpoint"))


async def discover(url: str, fetch: Fetch) -> Server:
    """Return the authorization server of the MCP server at ``url``.

    Raises ``LoginRefused`` if there is none that is safe to use, and ``ServerAway``.
    """
    response = await fetch(_mcp_request(url, "initialize", _INITIALIZE))
    if response.is_success:
        # Some servers accept initialize without a token, and require one from the next request on.
        response = await fetch(_mcp_request(url, "tools/list", {}, response.headers.get(MCP_SESSION_ID)))
    if 300 <= response.status_code < 400:
        target = response.headers.get("location", "")
        raise LoginRefused(
            f"{url} redirects to {target or 'an unknown address'}; nothing was changed. Log in at that URL"
        )
    scope = extract_scope_from_www_auth(response)
    found = await _resource_metadata(url, response, fetch)
    if found is None:
        return await _without_resource_metadata(url, response, scope, fetch)
    address, resource, metadata = found
    first_error: LoginRefused | None = None
    for issuer in map(str, metadata.authorization_servers[:_MAX_ISSUERS]):
        try:
            server = await _metadata(issuer, url, fetch, namer=address)
        except LoginRefused as error:
            first_error = first_error or error
            continue
        return _server(*server, resource=resource, scope=_scope(scope, metadata, server[0]))
    raise first_error or LoginRefused(f"{url} names no authorization server; nothing was changed. {_GIVE_ENDPOINTS}")


async def discover_issuer(issuer: str, url: str, fetch: Fetch) -> Server:
    """Return the authorization server ``issuer`` of an API at ``url`` that publishes no metadata itself."""
    return _server(*await _metadata(issuer, url, fetch, namer=None), resource=None, scope=None)


def _mcp_request(url: str, method: str, params: Mapping[str, Any], session: str | None = None) -> httpx2.Request:
    """Return the request of an MCP client; the refusal names the authorization server."""
    headers = {"Accept": "application/json, text/event-stream"}
    if method != "initialize":
        headers[MCP_PROTOCOL_VERSION_HEADER] = LATEST_HANDSHAKE_VERSION
    if session is not None:
        headers[MCP_SESSION_ID] = session
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    return httpx2.Request("POST", url, json=body, headers=headers)


async def _resource_metadata(
    url: str, refusal: httpx2.Response, fetch: Fetch
) -> tuple[str, str, ProtectedResourceMetadata] | None:
    """Return the address of the protected resource metadata (RFC 9728), its verbatim ``resource``, and the metadata.

    Returns ``None`` if there is none.
    """
    named = extract_resource_metadata_from_www_auth(refusal) if refusal.status_code in (401, 403) else None
    if named is not None and not _is_safe(named, url):
        named = None
    for address in build_protected_resource_metadata_discovery_urls(named, url):
        response = await fetch(_metadata_request(address, url))
        # There may be metadata, and the older discovery could find another server.
        check_available(response)
        metadata = await handle_protected_resource_response(response)
        if metadata is None:
            continue
        resource = str(json.loads(response.content)["resource"])
        wanted = resource_url_from_server_url(url)
        if not check_resource_allowed(requested_resource=wanted, configured_resource=resource):
            raise LoginRefused(f"{address} describes {resource}, not {wanted}; nothing was changed. Log in at that URL")
        return address, resource, metadata
    return None


def _is_safe(named: str, url: str) -> bool:
    """Whether metadata may be fetched from ``named``: over TLS, or from the server that names it."""
    try:
        is_same = urls.parse_origin(named) == urls.parse_origin(url)
        return is_same or urlsplit(urls.check_endpoint(named)).scheme == "https"
    except urls.InvalidURL:
        return False


async def _without_resource_metadata(url: str, refusal: httpx2.Response, scope: str | None, fetch: Fetch) -> Server:
    """Return the server at the origin of the MCP server, where MCP 2025-03-26 publishes it."""
    parts = urlsplit(url)
    origin = f"{parts.scheme}://{parts.netloc}"
    addresses = build_oauth_authorization_server_metadata_discovery_urls(None, url)
    found = await _first_metadata(origin, addresses, fetch, namer=url)
    if found is not None:
        return _server(*found, resource=None, scope=_scope(scope, None, found[0]))
    if refusal.status_code != 401:
        raise LoginRefused(
            f"{url} answered {refusal.status_code} and names no authorization server; nothing was changed. Check the "
            "URL: that of an MCP server often ends in /mcp. For an API that is not an MCP server, give --issuer"
        )
    # The defaults of MCP 2025-03-26.
    return Server(
        authorization_endpoint=f"{origin}/authorize",
        token_endpoint=_endpoint("token_endpoint", f"{origin}/token"),
        registration_endpoint=f"{origin}/register",
        scope=_scope(scope, None, None),
    )


async def _metadata(issuer: str, url: str, fetch: Fetch, *, namer: str | None) -> _Metadata:
    _endpoint("issuer", issuer)
    addresses = build_oauth_authorization_server_metadata_discovery_urls(issuer, url)
    found = await _first_metadata(issuer, addresses, fetch, namer=namer)
    if found is None:
        raise LoginRefused(
            f"{issuer} publishes no readable server metadata (RFC 8414); nothing was changed. {_GIVE_ENDPOINTS}"
        )
    return found


def _metadata_request(address: str, namer: str | None) -> httpx2.Request:
    """Return the request for metadata at an address that the server at ``namer`` named; ``None``: a person did."""
    request = create_oauth_metadata_request(address)
    if namer is not None:
        request.extensions[NAMED_BY] = namer
    return request


async def _first_metadata(issuer: str, addresses: list[str], fetch: Fetch, *, namer: str | None) -> _Metadata | None:
    for address in addresses:
        response = await fetch(_metadata_request(address, namer))
        try_next, metadata = await handle_auth_metadata_response(response)
        if metadata is None:
            if try_next:
                continue
            raise unavailable(response)
        # RFC 8414 section 3.3: otherwise one server could impersonate another.
        if not issuers_match(named := str(metadata.issuer), issuer):
            raise LoginRefused(
                f"the metadata of {issuer} names another issuer ({named}), which is not safe; nothing was changed"
            )
        return metadata, json.loads(response.content)
    return None


def _scope(
    challenged: str | None, resource: ProtectedResourceMetadata | None, metadata: OAuthMetadata | None
) -> str | None:
    scope = get_client_metadata_scopes(challenged, resource, metadata, _GRANT_TYPES)
    # RFC 6749 section 3.3: other characters could be control sequences of a terminal.
    words = [word for word in (scope or "").split() if _SCOPE.fullmatch(word)]
    return " ".join(words) or None


def _server(metadata: OAuthMetadata, document: Mapping[str, Any], *, resource: str | None, scope: str | None) -> Server:
    endpoints: dict[str, Any] = {
        key: _endpoint(key, value) for key in ENDPOINTS if isinstance(value := document.get(key), str) and value
    }
    return Server(
        **endpoints,
        issuer=_endpoint("issuer", str(document["issuer"])),
        auth_methods=metadata.token_endpoint_auth_methods_supported,
        challenge_methods=metadata.code_challenge_methods_supported,
        userinfo_url=_userinfo_url(document.get("userinfo_endpoint")),
        sends_iss=metadata.authorization_response_iss_parameter_supported is True,
        takes_metadata_documents=metadata.client_id_metadata_document_supported is True,
        offers_offline_access=OFFLINE_ACCESS in (metadata.scopes_supported or ()),
        resource=resource,
        scope=scope,
    )


def _userinfo_url(value: object) -> str | None:
    """Return the address if it is a valid one: a login does not depend on it."""
    with suppress(urls.InvalidURL):
        return urls.check_endpoint(value) if isinstance(value, str) and value else None
    return None


def _endpoint(key: str, value: str) -> str:
    try:
        return urls.check_endpoint(value)
    except urls.InvalidURL as error:
        raise LoginRefused(f"the authorization server's {key} ({value}) {error}; nothing was changed") from None
