"""One login from the address to the stored grant: nothing is stored before the new grant is whole.

``log_in`` discovers the authorization server, finds or registers a client, gets tokens by one of three ways (browser,
device, client credentials), tries the access token at the server, and stores the grant.
"""

from collections.abc import Callable
from typing import Final

import anyio
import httpx2
import msgspec

from refresher.common import clocks
from refresher.common.errors import (
    ClientUnknown,
    ConfigError,
    ExposedGrantFile,
    GrantFileError,
    Interrupted,
    LoginNotGiven,
    LoginRefused,
    RefresherError,
)
from refresher.common.signals import StopSignals
from refresher.common.terminal import say
from refresher.config import Settings
from refresher.grants.record import NO_RECORD, Grant, Login
from refresher.login import client as clients
from refresher.login import discovery, pages
from refresher.login.authorization_request import new_authorization_request
from refresher.login.browser import wait_for_redirect
from refresher.login.client import Client
from refresher.login.device import device_login
from refresher.login.discovery import Server
from refresher.login.http_client import HTTPClient
from refresher.login.loopback import Loopback
from refresher.login.options import LoginOptions, completed, validated
from refresher.login.token_request import check_client, request_tokens
from refresher.login.verification import verify
from refresher.oauth import urls
from refresher.operations.import_grant import Imported, is_for_other_server, other_server, store_grant
from refresher.storage import records

__all__ = ["LoggedIn", "log_in"]

_CLIENT_UNKNOWN_STATUSES: Final = (400, 401, 404)


class LoggedIn(msgspec.Struct, frozen=True, kw_only=True):
    """A stored login; ``verified`` says what the server answered to the token, ``None`` where it was not asked."""

    imported: Imported
    verified: str | None
    exit_code: int | None
    """Set by a signal that came while the grant was stored."""


def log_in(settings: Settings, name: str, options: LoginOptions) -> LoggedIn:
    """Log in and store the grant under ``name``, also in place of an older grant of the same server.

    Raises ``RefresherError`` where the login fails; then the older grant is unchanged.
    """
    stored = _stored_grant(settings, name)
    options = completed(validated(options), stored)
    if options.url is None:
        raise ConfigError(f"there is no saved login {name}; give its URL: 'refresher login {name} URL'")
    if stored is not None and not options.replace and is_for_other_server(stored, options.url):
        raise ConfigError(other_server(stored))
    settings.directories.ensure()
    http = HTTPClient(settings.ca_file)
    flow = _Flow(settings, name, options, anyio.run(_server, options, http), http, stored)
    try:
        return flow.run(new_client=options.new_client)
    except ClientUnknown:
        if not flow.used_stored_registration:
            raise
    say("The server no longer knows this client. refresher registers a new one; please log in once more.", err=True)
    return flow.run(new_client=True)


class _Flow:
    """The state of one login; ``stored`` is the grant that it replaces."""

    def __init__(
        self,
        settings: Settings,
        name: str,
        options: LoginOptions,
        server: Server,
        http: HTTPClient,
        stored: Grant | None,
    ) -> None:
        self._settings = settings
        self._name = name
        self._options = options
        self._server = server
        self._http = http
        self._stored = stored
        self._scope = _scope(options, server)
        self.used_stored_registration = False
        """The client comes from an earlier registration of refresher, so a new registration can replace it."""

    def run(self, *, new_client: bool) -> LoggedIn:
        """Log in with the client of the options or the stored grant, or register a ``new_client``."""
        known = None if new_client else clients.stored_client(self._stored, self._server, clocks.now().wall)
        client = clients.given_client(self._options, self._server) or known
        self.used_stored_registration = client is known and client is not None and client.origin == "registered"
        match self._options.way:
            case "client_credentials":
                return self._with_client_credentials(client)
            case "device":
                return self._with_device(client)
            case _:
                return self._with_browser(client)

    def _with_client_credentials(self, client: Client | None) -> LoggedIn:
        if client is None:
            raise ConfigError(f"the stored client of {self._name} is of another server: give --client-id")
        draft = self._draft(client, None)
        return self._finish(lambda _: request_tokens(draft, None, ca_file=self._settings.ca_file))

    def _with_device(self, client: Client | None) -> LoggedIn:
        endpoint = self._server.device_authorization_endpoint
        if endpoint is None:
            raise LoginRefused("the server has no login by device (RFC 8628); nothing was changed. Omit --device")
        draft = self._draft(client or self._register(None), None)
        return self._finish(
            lambda stopping: device_login(
                endpoint,
                draft,
                scope=self._scope,
                wait=self._options.wait,
                ca_file=self._settings.ca_file,
                stopping=stopping,
            )
        )

    def _with_browser(self, client: Client | None) -> LoggedIn:
        with self._listen(client) as loopback:
            if client is None or not client.accepts(loopback.redirect_uri):
                client = self._register(loopback.redirect_uri)
            try:
                draft = self._draft(client, loopback.redirect_uri)
                code = self._authorize(draft, loopback)
                logged_in = self._finish(lambda _: request_tokens(draft, code, ca_file=self._settings.ca_file))
            except LoginNotGiven as error:
                loopback.show(pages.declined(str(error)))
                raise
            except RefresherError as error:
                loopback.show(pages.failed(str(error)))
                raise
            loopback.show(pages.done(self._name, renewable=logged_in.imported.grant.renewable))
            return logged_in

    def _listen(self, client: Client | None) -> Loopback:
        """Listen at the redirect address of the client, otherwise at a free port of this machine."""
        wanted = self._options.redirect_uri or (None if client is None else client.redirect_uri)
        try:
            return Loopback(wanted)
        except ConfigError:
            if self._options.redirect_uri or client is None or client.origin != "registered":
                raise
            return Loopback()  # another port needs another registration

    def _register(self, redirect_uri: str | None) -> Client:
        self.used_stored_registration = False
        return anyio.run(clients.register, self._server, redirect_uri, self._scope, self._http)

    def _authorize(self, draft: Grant, loopback: Loopback) -> dict[str, str]:
        """Let the person authorize the client; return the fields of the token request."""
        request = new_authorization_request(
            self._server, draft, redirect_uri=loopback.redirect_uri, scope=self._scope, params=self._options.params
        )
        if self.used_stored_registration:
            # Otherwise only the person would see in the browser that the server has forgotten the client.
            answer = anyio.run(self._http, httpx2.Request("GET", request.url))
            if answer.status_code in _CLIENT_UNKNOWN_STATUSES and b"client" in answer.content.lower():
                raise ClientUnknown(f"{self._server.authorization_endpoint} answered {answer.status_code}")
        return wait_for_redirect(request, loopback, wait=self._options.wait, open_browser=self._options.open_browser)

    def _draft(self, client: Client, redirect_uri: str | None) -> Grant:
        """Return the grant without its tokens. Raises ``ConfigError``."""
        options, server = self._options, self._server
        if client.origin != "registered":
            # The redirect address that the person gave. Without one, the next login may use another free port.
            redirect_uri = options.redirect_uri or client.redirect_uri
        resource = options.resource or server.resource
        draft = Grant(
            name=self._name,
            grant_id="",
            generation=0,
            begun_from=NO_RECORD,
            issuer=server.issuer,
            token_endpoint=server.token_endpoint,
            revocation_endpoint=server.revocation_endpoint,
            client_id=client.client_id,
            client_secret=client.client_secret,
            token_endpoint_auth_method=client.auth_method,
            refresh_token=None,
            private_key_file=client.private_key_file,
            private_key_id=client.private_key_id,
            token_endpoint_auth_signing_alg=client.signing_alg,
            client_cert=client.client_cert,
            client_key=client.client_key,
            scope=self._scope,
            asked_scope=self._scope,
            resource=None if resource == "none" else resource,
            send_resource=None,
            server_url=options.url,
            origins=(urls.parse_origin(options.url or ""),),
            max_age=None,
            access_token=None,
            token_type="Bearer",  # noqa: S106  a token type, no password
            issued_at=0.0,
            expires_at=None,
            authorized_at=0.0,
            login=Login(
                client=client.origin,
                client_expires_at=client.expires_at,
                authorization_endpoint=server.authorization_endpoint,
                device_authorization_endpoint=server.device_authorization_endpoint,
                redirect_uri=redirect_uri,
                endpoints_given=server.given,
                issuer_given=options.issuer is not None,
                scope=options.scope,
                resource=options.resource,
                way=options.way or "browser",
                params=options.params,
            ),
        )
        check_client(draft, ca_file=self._settings.ca_file)
        if self._stored is None or is_for_other_server(self._stored, options.url):
            return draft
        return _with_known_behavior(draft, self._stored)

    def _finish(self, get_grant: Callable[[Callable[[], bool]], Grant]) -> LoggedIn:
        """Get the tokens, try them, and store the grant; from here on a signal does not stop the login."""
        with StopSignals() as stopping:
            try:
                grant = get_grant(stopping)
            except ClientUnknown as error:
                if stopping():
                    # A person who stops the login is not asked to log in once more.
                    raise Interrupted(str(error)) from None
                raise
            verified = None if stopping() else self._verify(grant)
            imported = store_grant(
                self._settings.directories,
                grant,
                replace=True,
                if_absent=False,
                stopping=lambda: False,
                # Another process may have stored another grant while the person was at the browser.
                same_server=not self._options.replace,
                just_issued=True,
            )
        return LoggedIn(imported=imported, verified=verified, exit_code=stopping.exit_code)

    def _verify(self, grant: Grant) -> str | None:
        """Try the token at the MCP server. Raises ``LoginRefused`` where the server refuses it."""
        if not self._options.verify or self._server.given or self._options.issuer is not None:
            return None
        result = anyio.run(lambda: verify(grant, ca_file=self._settings.ca_file))
        if result.refused:
            raise LoginRefused(
                f"{result.text}; nothing was changed. {result.advice}, or store it anyway with --no-verify"
            )
        return result.text


def _with_known_behavior(draft: Grant, stored: Grant) -> Grant:
    """Return ``draft`` with what the person said of this server before, and what was seen of it."""
    draft = msgspec.structs.replace(draft, origins=tuple(dict.fromkeys((*draft.origins, *stored.origins))))
    if not stored.renewable or stored.token_endpoint != draft.token_endpoint:
        return draft  # a grant without a refresh token, or of another endpoint, shows nothing of this server
    return msgspec.structs.replace(
        draft,
        replay=stored.replay,
        max_age=stored.max_age,
        send_resource=stored.send_resource,
        refuses_early=stored.refuses_early,
        resource_refused=stored.resource_refused,
    )


def _stored_grant(settings: Settings, name: str) -> Grant | None:
    try:
        record = records.load(settings.directories, name).record
    except ExposedGrantFile:
        raise  # the record is whole, and a login must not overwrite it
    except GrantFileError:
        return None  # a new login replaces a damaged record
    return record if isinstance(record, Grant) else None


async def _server(options: LoginOptions, http: HTTPClient) -> Server:
    """Return the authorization server of the options, discovered unless the person gave its endpoints."""
    url = options.url or ""
    if options.token_endpoint is not None:
        return Server(
            issuer=options.issuer,
            authorization_endpoint=options.authorization_endpoint,
            token_endpoint=options.token_endpoint,
            device_authorization_endpoint=options.device_authorization_endpoint,
            revocation_endpoint=options.revocation_endpoint,
            given=True,
        )
    if options.issuer is not None:
        found = await discovery.discover_issuer(options.issuer, url, http)
    else:
        found = await discovery.discover(url, http)
    return msgspec.structs.replace(
        found,
        device_authorization_endpoint=options.device_authorization_endpoint or found.device_authorization_endpoint,
        revocation_endpoint=options.revocation_endpoint or found.revocation_endpoint,
    )


def _scope(options: LoginOptions, server: Server) -> str | None:
    """Return the scope to request; without ``offline_access`` many servers issue no refresh token."""
    scope = options.scope or server.scope
    if scope is None or not server.offers_offline_access or discovery.OFFLINE_ACCESS in scope.split():
        return scope
    return f"{scope} {discovery.OFFLINE_ACCESS}"
