"""One login, from the URL to the stored grant. Nothing is stored before the new grant is complete.

``log_in`` discovers the authorization server, finds or registers a client, gets tokens in one of its ways (browser,
device, client credentials, assertion), tries the access token at the server, and stores the grant.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

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
    StorageError,
)
from refresher.common.signals import StopSignals
from refresher.common.terminal import say
from refresher.config import Settings
from refresher.grants import accounts
from refresher.grants.encoding import open_secrets, without_params_and_client_secret
from refresher.grants.record import NO_RECORD, Grant, Login, Moved, hidden
from refresher.grants.server_behavior import renewal_params
from refresher.login import client as clients
from refresher.login import discovery, pages
from refresher.login.assertion import assertion_of, request_with_assertion, require_audience
from refresher.login.authorization_request import check_authorization_endpoint, new_authorization_request
from refresher.login.browser import wait_for_redirect
from refresher.login.client import Client
from refresher.login.device import device_login
from refresher.login.discovery import Server
from refresher.login.http_client import Connections
from refresher.login.loopback import Loopback
from refresher.login.options import OFFLINE_ACCESS, LoginOptions, completed, shared_fields, validated
from refresher.login.token_request import request_tokens, scope_of
from refresher.login.userinfo import ask_account
from refresher.login.verification import verify
from refresher.oauth import urls
from refresher.oauth.revocation import revoke
from refresher.operations import import_request
from refresher.operations.events import Emit
from refresher.operations.import_grant import (
    Imported,
    is_for_other_server,
    other_server,
    sharing_login,
    store_grant,
)
from refresher.operations.names import moved
from refresher.storage.health_socket import is_served

__all__ = ["find_server", "log_in"]

_CLIENT_UNKNOWN_STATUSES: Final = (400, 401, 404)
_MANY_SCOPES: Final = 100
"""Above this, the address of the login may be too long for a server or a browser."""
_KNOWN_OF_SERVER: Final = ("replay", "max_age", "send_resource", "refuses_early", "resource_refused", "omits_client_id")
"""The settings of a person for a server, and what was observed of the server."""


_LoggedIn = tuple[Imported, str | None, int | None]


def log_in(settings: Settings, name: str, options: LoginOptions, emit: Emit) -> _LoggedIn:
    """Log in and store the grant under ``name``; it replaces an older grant for the same server.

    Returns what was stored, the answer of the server to the token (``None``: it was not tried), and an exit code if a
    signal arrived while the login was completed. Raises ``RefresherError`` if the login fails; the older grant is
    unchanged then.
    """
    stored = record = None
    try:
        record = settings.open_store().load(name).record
        stored = record if isinstance(record, Grant) else None
    except ExposedGrantFile:
        raise  # the record is complete, and a login must not overwrite it
    except GrantFileError:
        pass  # a new login replaces a damaged record
    new_client = options.new_client
    try:
        open_secrets(stored)
    except GrantFileError as error:
        # Its key is lost: a login needs none. What is in the clear still says which server and which generation.
        say(f"{name}: warning: {error}. The new login replaces it; its sealed record is kept beside it", err=True)
        lost = stored is not None and stored.client_secret is not None
        new_client = new_client or lost
        _require_new_secret(options, stored if lost else None)
        stored = None if stored is None else without_params_and_client_secret(stored)
    options = completed(validated(options), stored)
    if isinstance(record, Moved) and not options.replace:
        raise moved(record)
    if options.url is None:
        raise ConfigError(f"there is no saved login {name}; give its URL: 'refresher login {name} URL'")
    if stored is not None and not options.replace and is_for_other_server(stored, options.url):
        raise ConfigError(other_server(stored))
    settings.open_store().load_keys()  # a key that is missing must not be noticed after a person has logged in
    settings.directories.prepare()  # what is wrong with demands/ is reported when the grant is stored
    connections = Connections(settings.ca_file)
    server = connections.run(find_server, options, connections)
    if options.scope is None and (count := len((server.scope or "").split())) > _MANY_SCOPES:
        say(
            f"{name}: warning: the server names {count} scopes, and login requests all of them. If the server refuses "
            "that, or to permit less, log in again with --scope",
            err=True,
        )
    flow = _Flow(settings, name, options, options.url, connections, server, stored, emit)
    try:
        return flow.run(new_client=new_client)
    except ClientUnknown:
        if not flow.used_stored_registration:
            raise
    say("The server no longer knows this client. refresher registers a new one; please log in once more.", err=True)
    return flow.run(new_client=True)


def _require_new_secret(options: LoginOptions, lost: Grant | None) -> None:
    """Raise ``ConfigError`` if a login needs the client secret of ``lost``, which cannot be opened."""
    if lost is None or lost.login is None or options.client_id is not None:
        return
    if (options.way or lost.login.way) == "client_credentials":
        raise ConfigError(
            f"{lost.name} logs in with its client secret, which is sealed with a key that is not here: give the client "
            f"again, with --client-id {lost.client_id} and --client-secret-file FILE"
        )


@dataclass
class _Flow:
    """One login; ``stored`` is the grant that it replaces."""

    settings: Settings
    name: str
    options: LoginOptions
    url: str
    connections: Connections
    server: Server
    stored: Grant | None
    emit: Emit
    used_stored_registration: bool = False
    """Whether the client is from an earlier registration of refresher, which a new registration can replace."""

    def run(self, *, new_client: bool) -> _LoggedIn:
        """Log in with the client of the options or of the stored grant, or register a ``new_client``."""
        known = None if new_client else clients.stored_client(self.stored, self.server, clocks.now().wall)
        client = clients.given_client(self.options, self.server) or known
        self.used_stored_registration = client is known and client is not None and client.origin == "registered"
        if self.options.issuer is None and self.options.token_endpoint is None:
            of_client = None if client is None else client.client_assertion_file
            of_workload = self.options.assertion_file if self.options.way == "jwt_bearer" else None
            for path in {of_client, of_workload} - {None}:
                require_audience(str(path), self.server)
        match self.options.way:
            case "client_credentials":
                if client is None:
                    raise ConfigError(f"the stored client of {self.name} is for another server; give --client-id")
                draft = self._draft(client, None)
                fields = {"grant_type": "client_credentials"} | scope_of(draft)
                params = renewal_params(draft)
                return self._complete(lambda _: request_tokens(draft, fields, self.connections, params))
            case "jwt_bearer" | "enterprise":
                return self._with_assertion(client)
            case "device":
                endpoint = self.server.device_authorization_endpoint
                if endpoint is None:
                    raise LoginRefused(
                        "the server has no login by device (RFC 8628); nothing was changed. Omit --device"
                    )
                draft = self._draft(client or self._register(None), None)
                return self._complete(
                    partial(device_login, endpoint, draft, wait=self.options.wait, connections=self.connections)
                )
            case _:
                return self._with_browser(client)

    def _with_assertion(self, client: Client | None) -> _LoggedIn:
        if self.options.way == "jwt_bearer" and (client is None or client.origin == "registered"):
            client = Client(origin="given", client_id="")  # the server knows a workload by its assertion
        if client is None:
            raise ConfigError("--enterprise needs the --client-id that the identity provider names for this server")
        draft = self._draft(client, None)
        return self._complete(lambda _: request_with_assertion(draft, self.settings, self.connections, self.emit))

    def _with_browser(self, client: Client | None) -> _LoggedIn:
        # Before a client is registered there.
        check_authorization_endpoint(self.server, assume_pkce=self.options.assume_pkce)
        with self._listen(client) as loopback:
            # The redirect address is known only if refresher registered the client itself.
            if client is None or (client.origin == "registered" and client.redirect_uri != loopback.redirect_uri):
                client = self._register(loopback.redirect_uri)
            try:
                draft = self._draft(client, loopback.redirect_uri)
                code = self._authorize(draft, loopback)
                logged_in = self._complete(lambda _: request_tokens(draft, code, self.connections))
            except RefresherError as error:
                loopback.show(pages.failed(str(error), declined=isinstance(error, LoginNotGiven)))
                raise
            loopback.show(_page_of(logged_in[0].grant, served=is_served(self.settings.directories.health_socket)))
            return logged_in

    def _listen(self, client: Client | None) -> Loopback:
        """Listen at the redirect address of the client, otherwise at a free port of this machine."""
        redirect_uri = self.options.redirect_uri or (None if client is None else client.redirect_uri)
        try:
            return Loopback(redirect_uri)
        except ConfigError:
            if self.options.redirect_uri or client is None or client.origin != "registered":
                raise
            return Loopback()  # another port, which needs another registration

    def _register(self, redirect_uri: str | None) -> Client:
        self.used_stored_registration = False
        return self.connections.run(clients.register, self.server, redirect_uri, self.connections.fetch)

    def _authorize(self, draft: Grant, loopback: Loopback) -> dict[str, str]:
        """Let the person authorize the client, and return the fields of the token request."""
        request = new_authorization_request(
            self.server, draft, redirect_uri=loopback.redirect_uri, params=self.options.params
        )
        if self.used_stored_registration:
            # Otherwise only the browser would show that the server does not know the client any more.
            response = self.connections.run(self.connections.fetch, httpx2.Request("GET", request.url))
            if response.status_code in _CLIENT_UNKNOWN_STATUSES and b"client" in response.content.lower():
                raise ClientUnknown(f"{self.server.authorization_endpoint} answered {response.status_code}")
        return wait_for_redirect(request, loopback, wait=self.options.wait, open_browser=not self.options.no_browser)

    def _draft(self, client: Client, redirect_uri: str | None) -> Grant:
        """Return the grant without its tokens. Raises ``ImportRefused`` if a file of the client cannot be used."""
        options, server = self.options, self.server
        if client.origin != "registered":
            # Only an address that the person gave is stored: the next login may use another free port.
            redirect_uri = options.redirect_uri or client.redirect_uri
        nothing_yet = dict.fromkeys(("refresh_token", "access_token", "expires_at", "send_resource", "max_age"))
        draft = Grant(
            **(shared_fields(client, Grant) | shared_fields(server, Grant) | nothing_yet),
            name=self.name,
            assertion=assertion_of(options, server),
            grant_id="",
            generation=0,
            begun_from=NO_RECORD,
            asked_scope=server.scope,
            refresh_params=hidden(options.refresh_params),
            server_url=self.url,
            origins=(urls.parse_origin(self.url),),
            token_type="Bearer",  # noqa: S106  a token type, no password
            issued_at=0.0,
            authorized_at=0.0,
            login=Login(
                client=client.origin,
                client_expires_at=client.client_expires_at,
                authorization_endpoint=server.authorization_endpoint,
                device_authorization_endpoint=server.device_authorization_endpoint,
                redirect_uri=redirect_uri,
                endpoints_given=options.token_endpoint is not None,
                issuer_given=options.issuer is not None,
                scope=options.scope,
                resource=options.resource,
                way=options.way or "browser",
                params=hidden(options.params),
                assume_pkce=options.assume_pkce,
            ),
        )
        import_request.check_files(draft, clocks.now().wall, self.settings.ca_file)
        stored = self.stored
        if stored is None or is_for_other_server(stored, self.url):
            return draft
        kept: dict[str, Any] = {"origins": tuple(dict.fromkeys((*draft.origins, *stored.origins)))}
        # A grant without refresh token, or of another endpoint, shows nothing about this server.
        if stored.renewable and stored.token_endpoint == draft.token_endpoint:
            kept |= {key: getattr(stored, key) for key in _KNOWN_OF_SERVER}
        return msgspec.structs.replace(draft, **kept)

    def _complete(self, get_grant: Callable[[Callable[[], bool]], Grant]) -> _LoggedIn:
        """Get the tokens, try them, and store the grant. From here on a signal does not stop the login."""
        with StopSignals() as stopping:
            try:
                grant = get_grant(stopping)
            except ClientUnknown as error:
                if stopping():
                    # If a person stops the login, another login must not begin.
                    raise Interrupted(str(error)) from None
                raise
            if grant.account is None and not grant.without_person and grant.access_token is not None:
                account = ask_account(self.server, grant.access_token, self.connections)
                grant = msgspec.structs.replace(grant, account=account)
            verified = None
            try:
                if not (self.options.no_verify or self.options.token_endpoint or self.options.issuer or stopping()):
                    with self.connections.to(self.url):
                        verified = self.connections.run(verify, grant, self.settings.ca_file)
                imported = store_grant(
                    self.settings.open_store(),
                    grant,
                    replace=True,
                    if_absent=False,
                    stopping=lambda: False,
                    # Another process may have stored another grant while the person used the browser.
                    same_login=not self.options.replace,
                    just_issued=True,
                    emit=self.emit,
                )
            except RefresherError as error:
                if grant.refresh_token is not None:
                    error.args = (f"{error}. {self._discard(grant, error)}",)
                raise
        return imported, verified, stopping.exit_code

    def _discard(self, grant: Grant, error: RefresherError) -> str:
        """Revoke the tokens of a login that is not stored, if no other login can end with them; say what happened."""
        stays = "The tokens of this login stay valid at the server"
        if isinstance(error, StorageError):
            return f"{stays}: a part of it may be stored"
        if grant.login is None or grant.login.client != "registered":
            # Another machine may use this client for the same account.
            return f"{stays}: to revoke them could end other logins of this client"
        try:
            if (name := sharing_login(self.settings.open_store(), grant)) is not None:
                return f"{stays}: to revoke them could end the login {name}"
            with self.connections.to(grant.revocation_endpoint or self.url):
                return f"The new login is not stored; {revoke(grant, ca_file=self.settings.ca_file)}"
        except RefresherError:
            return f"{stays}: refresher could not revoke them"


def _page_of(grant: Grant, *, served: bool) -> str:
    account = None if grant.account is None else accounts.shown(grant.account)
    return pages.done(grant.name, renewable=grant.renewable, served=served, account=account)


async def find_server(options: LoginOptions, connections: Connections) -> Server:
    """Return the authorization server: as given by the person, or discovered and completed from the options."""
    url = options.url or ""
    if options.token_endpoint is not None:
        server = Server(**shared_fields(options, Server))
    elif options.issuer is not None:
        server = await discovery.discover_issuer(options.issuer, url, connections.fetch)
    else:
        server = await discovery.discover(url, connections.fetch, verified=not options.no_verify)
    if options.token_endpoint is None:
        for key in discovery.ENDPOINTS:
            if (endpoint := getattr(server, key)) is not None and getattr(options, key, None) is None:
                await connections.check(key, endpoint, server.issuer or url)
    given = ("scope", "resource", "device_authorization_endpoint", "revocation_endpoint")
    server = msgspec.structs.replace(server, **{key: value for key in given if (value := getattr(options, key))})
    scope, resource = server.scope, None if server.resource == "none" else server.resource
    adds = server.offers_offline_access and not options.scope_only
    if scope is not None and adds and OFFLINE_ACCESS not in scope.split():
        scope = f"{scope} {OFFLINE_ACCESS}"  # many servers issue no refresh token without it
    return msgspec.structs.replace(server, scope=scope, resource=resource)
