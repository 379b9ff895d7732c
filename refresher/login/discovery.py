"""Discovers the authorization server of a URL (RFC 9728, RFC 8414, and MCP of 2025-03-26).

The MCP SDK knows where metadata is published, and checks it. This module returns what a login needs.
"""

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
    extract_resource_metadata_from_www_auth,
    extract_scope_from_www_auth,
    issuers_match,
)
from mcp.client.streamable_http import MCP_SESSION_ID
from mcp.shared.auth_utils import check_resource_allowed, resource_url_from_server_url
from mcp.shared.inbound import MCP_PROTOCOL_VERSION_HEADER
from mcp_types.version import LATEST_HANDSHAKE_VERSION

from refresher import __version__
from refresher.common.errors import LoginRefused, ServerAway
from refresher.login.http_client import EVENT_STREAM, NO_SERVER_STATUSES, Fetch, is_stream, no_mcp_server
from refresher.login.metadata import GIVE_ENDPOINTS, GIVE_ISSUER, Document, Withheld, find_document, resolve, texts
from refresher.login.options import OFFLINE_ACCESS
from refresher.oauth import urls

__all__ = ["ENDPOINTS", "NotPublished", "OtherIssuer", "Server", "discover", "discover_issuer"]

_SCOPE: Final = re.compile(r"[!#-\[\]-~]+")
_INITIALIZE: Final = {
    "protocolVersion": LATEST_HANDSHAKE_VERSION,
    "capabilities": {},
    "clientInfo": {"name": "refresher", "version": __version__},
}
_MAX_ISSUERS: Final = 3
"""A server could name thousands, and each is asked at several addresses."""

_REQUIRED: Final = ("authorization_endpoint", "token_endpoint")
_RESOURCE_MEMBERS: Final = ("resource", "authorization_servers")


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """An authorization server, and what the MCP server or API behind it requires. Its URLs are verbatim."""

    token_endpoint: str
    authorization_endpoint: str | None = None
    issuer: str | None = None
    has_metadata: bool = False
    """Whether it publishes metadata; otherwise a person gave its endpoints, or they are the defaults of MCP."""
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
_PROTECTED_STATUSES: Final = (401, 403)
_SERVER_MEMBERS: Final = ("issuer", *ENDPOINTS)


class NotPublished(LoginRefused):
    """An authorization server has no metadata."""


class OtherIssuer(LoginRefused):
    """The metadata of an authorization server names another one."""


async def discover(url: str, fetch: Fetch, *, verified: bool = True) -> Server:
    """Return the authorization server of the MCP server at ``url``.

    ``verified``: refuse a path where no MCP server is, before a person logs in in vain.

    Raises ``LoginRefused`` if there is none that is safe to use, and ``ServerAway``.
    """
    response = await fetch(_mcp_request(url, "initialize", _INITIALIZE))
    status = response.status_code
    if response.is_success:
        # Some servers accept initialize without a token, and require one from the next request on.
        response = await fetch(_mcp_request(url, "tools/list", {}, response.headers.get(MCP_SESSION_ID)))
    if 300 <= response.status_code < 400:
        target = response.headers.get("location", "")
        raise LoginRefused(
            f"{url} redirects to {target or 'an unknown address'}; nothing was changed. Log in at that URL"
        )
    if verified and status in NO_SERVER_STATUSES:
        # An MCP server of before March 2025 answers a GET with a stream of events.
        with suppress(ServerAway):
            response = await fetch(httpx2.Request("GET", url, headers={"Accept": EVENT_STREAM}))
        if not is_stream(response) and response.status_code not in _PROTECTED_STATUSES:
            raise no_mcp_server(url, status, "--issuer or --no-verify")
    scope = extract_scope_from_www_auth(response)
    withheld: Withheld | None = None
    try:
        found = await _resource_metadata(url, response, fetch)
    except Withheld as error:
        found, withheld = None, error
    if found is None:
        return await _without_resource_metadata(url, response, scope, withheld, fetch)
    address, resource = found
    missing: LoginRefused | None = None
    away: ServerAway | None = None
    for issuer in _authorization_servers(address, resource):
        try:
            document = await _metadata(issuer, url, fetch, namer=address)
            return _server(document, resource=resource["resource"], scope=_scope(scope, resource, document))
        except NotPublished as error:  # but metadata that is odd ends the login
            missing = missing or error
        except ServerAway as error:
            away = away or error
    raise missing or away or _odd(address, "authorization_servers", resource, GIVE_ISSUER)


async def discover_issuer(issuer: str, url: str, fetch: Fetch) -> Server:
    """Return the authorization server ``issuer`` of an API at ``url`` that publishes no metadata itself."""
    return _server(await _metadata(issuer, url, fetch, namer=None), resource=None, scope=None)


def _mcp_request(url: str, method: str, params: Mapping[str, Any], session: str | None = None) -> httpx2.Request:
    """Return the request of an MCP client; the refusal names the authorization server."""
    headers = {"Accept": "application/json, text/event-stream"}
    if method != "initialize":
        headers[MCP_PROTOCOL_VERSION_HEADER] = LATEST_HANDSHAKE_VERSION
    if session is not None:
        headers[MCP_SESSION_ID] = session
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    return httpx2.Request("POST", url, json=body, headers=headers)


async def _resource_metadata(url: str, refusal: httpx2.Response, fetch: Fetch) -> tuple[str, Document] | None:
    """Return the address of the protected resource metadata (RFC 9728), and the metadata; ``None``: there is none.

    Its ``resource`` is checked.
    """
    named = extract_resource_metadata_from_www_auth(refusal) if refusal.status_code in _PROTECTED_STATUSES else None
    safe = None if named is None else _safe_address(named, url)
    addresses = build_protected_resource_metadata_discovery_urls(safe, url)
    try:
        found = await find_document(addresses, _RESOURCE_MEMBERS, fetch, namer=url, way_out=GIVE_ISSUER)
    except Withheld as error:
        if named is None:
            raise
        raise LoginRefused(str(error)) from None  # the server has metadata
    if found is None:
        if named is None:
            return None
        # The server has metadata: the older discovery could find another server.
        raise LoginRefused(
            f"{url} names its metadata at {named}, and there is none that can be used; nothing was changed. "
            f"{GIVE_ISSUER}"
        )
    address, metadata = found
    resource, wanted = metadata.get("resource"), resource_url_from_server_url(url)
    try:
        urls.parse_origin(resource if isinstance(resource, str) else "")
    except urls.InvalidURL:
        raise _odd(address, "resource", metadata, GIVE_ISSUER) from None
    if not check_resource_allowed(requested_resource=wanted, configured_resource=str(resource)):
        raise LoginRefused(
            f"{address} describes {resource}, not {wanted}; nothing was changed. Log in at that URL, or give the "
            "authorization server with --issuer if you know that it is right"
        )
    return found


def _authorization_servers(address: str, metadata: Document) -> Sequence[str]:
    servers = texts(metadata, "authorization_servers")
    if not servers:
        raise _odd(address, "authorization_servers", metadata, GIVE_ISSUER)
    try:
        return [resolve(address, server) or "" for server in servers[:_MAX_ISSUERS]]
    except urls.InvalidURL:
        raise _odd(address, "authorization_servers", metadata, GIVE_ISSUER) from None


def _odd(address: str, key: str, document: Document, way_out: str) -> LoginRefused:
    problem = "wrong" if document.get(key) else "missing or empty"
    return LoginRefused(f"{address}: {key} is {problem}; nothing was changed. {way_out}")


def _safe_address(named: str, url: str) -> str | None:
    """Return the address if metadata may be fetched there: over TLS, or from the server that names it."""
    try:
        address = resolve(url, named)
        if address is None:
            return None
        is_same = urls.parse_origin(address) == urls.parse_origin(url)
        return address if is_same or urlsplit(urls.check_endpoint(address)).scheme == "https" else None
    except urls.InvalidURL:
        return None


async def _without_resource_metadata(
    url: str, refusal: httpx2.Response, scope: str | None, withheld: Withheld | None, fetch: Fetch
) -> Server:
    """Return the server at the origin of the MCP server, where MCP 2025-03-26 publishes it."""
    parts = urlsplit(url)
    origin = f"{parts.scheme}://{parts.netloc}"
    addresses = build_oauth_authorization_server_metadata_discovery_urls(None, url)
    document = await _first_metadata(origin, addresses, fetch, namer=url)
    if document is not None:
        return _server(document, resource=None, scope=_scope(scope, None, document))
    if withheld is not None:
        raise withheld
    if refusal.status_code != 401:
        raise LoginRefused(
            f"{url} answered {refusal.status_code} and names no authorization server; nothing was changed. Check the "
            "URL: that of an MCP server often ends in /mcp. For an API that is not an MCP server, give --issuer"
        )
    # The defaults of MCP 2025-03-26 for a server without metadata; it requires PKCE of every client, and the server
    # has no place to publish that it supports it.
    return Server(
        authorization_endpoint=f"{origin}/authorize",
        token_endpoint=_endpoint("token_endpoint", f"{origin}/token"),
        registration_endpoint=f"{origin}/register",
        scope=_scope(scope, None, {}),
    )


async def _metadata(issuer: str, url: str, fetch: Fetch, *, namer: str | None) -> Document:
    _endpoint("issuer", issuer)
    addresses = build_oauth_authorization_server_metadata_discovery_urls(issuer, url)
    document = await _first_metadata(issuer, addresses, fetch, namer=namer)
    if document is None:
        raise NotPublished(
            f"{issuer} publishes no readable server metadata (RFC 8414); nothing was changed. {GIVE_ENDPOINTS}"
        )
    return document


async def _first_metadata(issuer: str, addresses: Sequence[str], fetch: Fetch, *, namer: str | None) -> Document | None:
    """Return the metadata of ``issuer``, with the required members and complete addresses; ``None``: there is none."""
    found = await find_document(addresses, _SERVER_MEMBERS, fetch, namer=namer, way_out=GIVE_ENDPOINTS)
    if found is None:
        return None
    address, document = found
    named = document.get("issuer")
    if not isinstance(named, str) or not named:
        raise _odd(address, "issuer", document, GIVE_ENDPOINTS)
    # RFC 8414 section 3.3: otherwise one server could impersonate another.
    if not issuers_match(_endpoint("issuer", named), issuer):
        raise OtherIssuer(
            f"the metadata of {issuer} names another issuer ({named}), which is not safe; nothing was changed"
        )
    return {**document, **_endpoints(address, document)}


def _endpoints(address: str, document: Document) -> dict[str, str | None]:
    """Return the endpoints; an optional one that cannot be used is ``None``."""
    endpoints: dict[str, str | None] = {}
    for key in ENDPOINTS:
        value = document.get(key)
        endpoints[key] = None
        try:
            if (endpoint := resolve(address, value)) is not None:
                endpoints[key] = urls.check_endpoint(endpoint)
        except urls.InvalidURL:
            if key in _REQUIRED:
                _endpoint(key, str(value))
                raise _odd(address, key, document, GIVE_ENDPOINTS) from None
    if endpoints["token_endpoint"] is None:
        raise _odd(address, "token_endpoint", document, GIVE_ENDPOINTS)
    # Only a login with a browser needs it; a wrong one is not the same as none.
    if endpoints["authorization_endpoint"] is None and document.get("authorization_endpoint"):
        raise _odd(address, "authorization_endpoint", document, GIVE_ENDPOINTS)
    return endpoints


def _scope(challenged: str | None, resource: Document | None, metadata: Document) -> str | None:
    """Return the scope to request, in the order of MCP: the challenge, the resource, the authorization server."""
    if challenged is not None:
        found = challenged.split()
    else:
        of_resource = None if resource is None else texts(resource, "scopes_supported")
        named = texts(metadata, "scopes_supported") if of_resource is None else of_resource
        found = " ".join(named or ()).split()
    # RFC 6749 section 3.3: other characters could be control sequences of a terminal.
    return " ".join(word for word in found if _SCOPE.fullmatch(word)) or None


def _server(document: Document, *, resource: str | None, scope: str | None) -> Server:
    return Server(
        **{key: document[key] for key in ENDPOINTS},
        issuer=document["issuer"],
        has_metadata=True,
        auth_methods=texts(document, "token_endpoint_auth_methods_supported"),
        challenge_methods=texts(document, "code_challenge_methods_supported"),
        userinfo_url=_userinfo_url(document.get("userinfo_endpoint")),
        sends_iss=document.get("authorization_response_iss_parameter_supported") is True,
        takes_metadata_documents=document.get("client_id_metadata_document_supported") is True,
        offers_offline_access=OFFLINE_ACCESS in (texts(document, "scopes_supported") or ()),
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
