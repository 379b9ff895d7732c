"""Which authorization server a login goes to, from an address (RFC 9728, RFC 8414, and MCP's way of 2025-03).

Where metadata is looked for, and what of it counts, is the MCP SDK's business; what is kept of it is ours.
"""

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import httpx2
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
from refresher.common.errors import LoginRefused, ServerAway
from refresher.login.server import Server
from refresher.oauth import urls

__all__ = ["OFFLINE", "by_issuer", "by_server"]

OFFLINE: Final = "offline_access"

_ENDPOINTS: Final = (
    "authorization_endpoint",
    "token_endpoint",
    "registration_endpoint",
    "device_authorization_endpoint",
    "revocation_endpoint",
)
_SCOPE: Final = re.compile(r"[!#-\[\]-~]+")
_HELLO: Final = {
    "protocolVersion": LATEST_HANDSHAKE_VERSION,
    "capabilities": {},
    "clientInfo": {"name": "refresher", "version": __version__},
}
_GRANT_TYPES: Final = ["authorization_code", "refresh_token"]
_BY_HAND: Final = "give --authorization-endpoint and --token-endpoint"

Fetching = Callable[[httpx2.Request], Awaitable[httpx2.Response]]


async def by_server(url: str, fetch: Fetching) -> Server:
    """Find the authorization server of the MCP server at ``url``.

    Raises ``LoginRefused`` where there is none that is safe to use, ``ServerAway``.
    """
    found = await _found(url, fetch)
    if not urls.is_loopback(urlsplit(url).hostname or ""):
        for key in ("issuer", *_ENDPOINTS):
            # What stands elsewhere has no business on this machine: it may mean another server than a person thinks.
            if urls.is_loopback(urlsplit(getattr(found, key) or "").hostname or ""):
                raise LoginRefused(f"{url} sends a login to this machine ({key}): it is not safe to use")
    return found


async def _found(url: str, fetch: Fetching) -> Server:
    asked = await fetch(_saying(url, "initialize", _HELLO))
    if asked.is_success:
        # Some let everybody say hello, and ask who it is for whatever comes next.
        asked = await fetch(_saying(url, "tools/list", {}, asked.headers.get(MCP_SESSION_ID)))
    if 300 <= asked.status_code < 400:
        where = asked.headers.get("location", "")
        raise LoginRefused(f"{url} redirects to {where or 'nowhere'}: log in at the address that takes requests")
    described = await _described(url, asked, fetch)
    scope = extract_scope_from_www_auth(asked)
    if described is None:
        return await _without_description(url, asked, scope, fetch)
    resource, metadata = described
    last: LoginRefused | None = None
    for issuer in (str(address) for address in metadata.authorization_servers):
        try:
            found, document = await _metadata(issuer, url, fetch)
        except LoginRefused as error:
            last = last or error
            continue
        return _server(found, document, resource=resource, scope=_scope(scope, metadata, found))
    raise last or LoginRefused(f"{url} names no authorization server")


async def by_issuer(issuer: str, url: str, fetch: Fetching) -> Server:
    """Find out about the authorization server ``issuer``, for an API at ``url`` that does not name it."""
    found, document = await _metadata(issuer, url, fetch)
    return _server(found, document, resource=None, scope=None)


def _saying(url: str, method: str, params: Mapping[str, Any], session: str | None = None) -> httpx2.Request:
    """Return what an MCP client would say: the refusal tells where to log in."""
    headers = {"Accept": "application/json, text/event-stream"}
    if method != "initialize":
        headers[MCP_PROTOCOL_VERSION_HEADER] = LATEST_HANDSHAKE_VERSION
    if session is not None:
        headers[MCP_SESSION_ID] = session
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    return httpx2.Request("POST", url, json=body, headers=headers)


async def _described(url: str, asked: httpx2.Response, fetch: Fetching) -> tuple[str, ProtectedResourceMetadata] | None:
    """Return the protected resource metadata, and the resource as it is spelt there (RFC 9728)."""
    named = extract_resource_metadata_from_www_auth(asked) if asked.status_code in (401, 403) else None
    if named is not None and not _is_fit(named, url):
        named = None
    for address in build_protected_resource_metadata_discovery_urls(named, url):
        answer = await fetch(create_oauth_metadata_request(address))
        if answer.status_code >= 500 or answer.status_code == 429:
            # It says nothing about whether there is any: the older way would lead to another server.
            raise ServerAway(f"{address} answered {answer.status_code}; try again later, nothing was changed")
        metadata = await handle_protected_resource_response(answer)
        if metadata is None:
            continue
        resource = str(json.loads(answer.content)["resource"])
        wanted = resource_url_from_server_url(url)
        if not check_resource_allowed(requested_resource=wanted, configured_resource=resource):
            raise LoginRefused(f"{address} is about {resource}, and not about {wanted}: log in at that address")
        return resource, metadata
    return None


def _is_fit(named: str, url: str) -> bool:
    """Whether metadata may be looked for at ``named``: over TLS, or at the very server that names it."""
    try:
        return urls.origin(named) == urls.origin(url) or urlsplit(urls.endpoint(named)).scheme == "https"
    except urls.BadURL:
        return False


async def _without_description(url: str, asked: httpx2.Response, scope: str | None, fetch: Fetching) -> Server:
    """Find the server as MCP did before it had protected resource metadata: at the origin of the MCP server itself."""
    found = await _at(build_oauth_authorization_server_metadata_discovery_urls(None, url), fetch)
    parts = urlsplit(url)
    origin = f"{parts.scheme}://{parts.netloc}"
    if found is not None:
        _check_issuer(found[0], origin)
        return _server(*found, resource=None, scope=_scope(scope, None, found[0]))
    if asked.status_code != 401:
        raise LoginRefused(
            f"{url} answered {asked.status_code} and does not say where to log in: check the address (an MCP "
            f"server's often ends in /mcp); for an API that is no MCP server, give --issuer, or {_BY_HAND}"
        )
    # The defaults of MCP 2025-03-26.
    return Server(
        authorization_endpoint=f"{origin}/authorize",
        token_endpoint=_endpoint("token_endpoint", f"{origin}/token"),
        registration_endpoint=f"{origin}/register",
        scope=_scope(scope, None, None),
    )


async def _metadata(issuer: str, url: str, fetch: Fetching) -> tuple[OAuthMetadata, Mapping[str, Any]]:
    _endpoint("issuer", issuer)
    found = await _at(build_oauth_authorization_server_metadata_discovery_urls(issuer, url), fetch)
    if found is None:
        raise LoginRefused(
            f"the authorization server {issuer} publishes no metadata that can be read (RFC 8414): {_BY_HAND}"
        )
    _check_issuer(found[0], issuer)
    return found


async def _at(addresses: list[str], fetch: Fetching) -> tuple[OAuthMetadata, Mapping[str, Any]] | None:
    for address in addresses:
        answer = await fetch(create_oauth_metadata_request(address))
        go_on, metadata = await handle_auth_metadata_response(answer)
        if metadata is not None:
            return metadata, json.loads(answer.content)
        if not go_on:
            raise ServerAway(f"{address} answered {answer.status_code}; try again later, nothing was changed")
    return None


def _check_issuer(metadata: OAuthMetadata, issuer: str) -> None:
    # RFC 8414 section 3.3: else one server could speak for another.
    if not issuers_match(str(metadata.issuer), issuer):
        raise LoginRefused(f"the metadata of {issuer} is of another issuer ({metadata.issuer}): it is not safe to use")


def _scope(
    challenged: str | None, resource: ProtectedResourceMetadata | None, metadata: OAuthMetadata | None
) -> str | None:
    scope = get_client_metadata_scopes(challenged, resource, metadata, _GRANT_TYPES)
    # RFC 6749 section 3.3: what is no scope could be anything, in a terminal too.
    words = [word for word in (scope or "").split() if _SCOPE.fullmatch(word)]
    return " ".join(words) or None


def _server(metadata: OAuthMetadata, document: Mapping[str, Any], *, resource: str | None, scope: str | None) -> Server:
    """Return what is kept, from the document itself: an address that was taken apart is spelt in another way."""

    def address(key: str) -> str | None:
        value = document.get(key)
        return _endpoint(key, value) if isinstance(value, str) and value else None

    methods = metadata.token_endpoint_auth_methods_supported
    challenges = metadata.code_challenge_methods_supported
    return Server(
        issuer=str(document["issuer"]),
        authorization_endpoint=address("authorization_endpoint"),
        token_endpoint=address("token_endpoint") or "",
        registration_endpoint=address("registration_endpoint"),
        device_authorization_endpoint=address("device_authorization_endpoint"),
        revocation_endpoint=address("revocation_endpoint"),
        auth_methods=None if methods is None else tuple(methods),
        challenge_methods=None if challenges is None else tuple(challenges),
        names_itself=metadata.authorization_response_iss_parameter_supported is True,
        takes_metadata_documents=metadata.client_id_metadata_document_supported is True,
        offers_offline_access=OFFLINE in (metadata.scopes_supported or ()),
        resource=resource,
        scope=scope,
    )


def _endpoint(key: str, value: str) -> str:
    try:
        return urls.endpoint(value)
    except urls.BadURL as error:
        raise LoginRefused(f"the authorization server's {key} ({value}) {error}") from None
