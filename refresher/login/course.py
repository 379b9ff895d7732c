"""One login from beginning to end: nothing is stored before the new grant is whole, and then in one piece."""

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
from refresher.common.signals import Stopping
from refresher.common.terminal import say
from refresher.config import Settings
from refresher.grants.record import NOTHING, Grant, Login
from refresher.login import client as clients
from refresher.login import discovery, pages
from refresher.login.asked import Asked, checked, continued
from refresher.login.authorization import authorization
from refresher.login.browser import redirected
from refresher.login.client import Client
from refresher.login.device import by_device
from refresher.login.fetch import Fetch
from refresher.login.loopback import Loopback
from refresher.login.proof import prove
from refresher.login.server import Server
from refresher.login.tokens import check, redeemed
from refresher.oauth import urls
from refresher.operations.import_grant import Admitted, admit, elsewhere, is_elsewhere
from refresher.storage import records

__all__ = ["Done", "Manner", "log_in"]


_UNKNOWN: Final = (400, 401, 404)


class Manner(msgspec.Struct, frozen=True, kw_only=True):
    """How a login goes about it: ``wait`` seconds for the person."""

    wait: float
    open_browser: bool = True
    verify: bool = True
    replace: bool = False


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """A login that is stored; ``proof`` says what the server made of the token, ``None`` where it was not asked."""

    admitted: Admitted
    proof: str | None
    exit_code: int | None
    """Of a signal that came while it was stored."""


def log_in(settings: Settings, name: str, asked: Asked, manner: Manner) -> Done:
    """Log in and store the grant under ``name``, in the place of an older one of the same server.

    Raises ``RefresherError`` where it comes to nothing; what was there before is as it was then.
    """
    stored = _stored(settings, name)
    asked = continued(checked(asked), stored)
    if asked.url is None:
        raise ConfigError(f"nothing here says where {name} logs in: 'refresher login {name} URL'")
    if stored is not None and not manner.replace and is_elsewhere(stored, asked.url):
        raise ConfigError(elsewhere(stored))
    settings.directories.ensure()
    fetch = Fetch(settings.ca_file)
    server = anyio.run(_server, asked, fetch)
    run = _Run(settings, name, asked, manner, server, fetch, stored)
    try:
        return run.to_the_end(stored)
    except ClientUnknown:
        if not run.may_register_anew:
            raise
    say("The server has forgotten refresher's registration; it is made anew, and you are asked once more.", err=True)
    return run.to_the_end(None)


class _Run:
    """What one login works with."""

    def __init__(
        self,
        settings: Settings,
        name: str,
        asked: Asked,
        manner: Manner,
        server: Server,
        fetch: Fetch,
        stored: Grant | None,
    ) -> None:
        self._settings = settings
        self._name = name
        self._asked = asked
        self._manner = manner
        self._server = server
        self._fetch = fetch
        self._scope = _scope(asked, server)
        self._stored = None if stored is None or is_elsewhere(stored, asked.url) else stored
        self._used: Client | None = None
        self._was_stored = False

    @property
    def may_register_anew(self) -> bool:
        """Whether the client that was used came from an earlier registration of ours."""
        return self._was_stored and self._used is not None and self._used.origin == "registered"

    def to_the_end(self, stored: Grant | None) -> Done:
        """Log in with the client of ``stored``, where that is the one to use, or with a new one."""
        known = None if self._asked.new_client else clients.stored_with(stored, self._server, clocks.now().wall)
        client = clients.given(self._asked, self._server) or known
        self._was_stored = client is known
        if self._asked.way == "client_credentials":
            if client is None:
                raise ConfigError(f"the client of {self._name} does not fit this server: give --client-id anew")
            draft = self._draft(client, None)
            return self._finish(lambda _: redeemed(draft, None, ca_file=self._settings.ca_file))
        if self._asked.way == "device":
            if (endpoint := self._server.device_authorization_endpoint) is None:
                raise LoginRefused("the server does not log in by device (RFC 8628); leave out --device")
            draft = self._draft(client or self._register(None), None)
            return self._finish(
                lambda stopping: by_device(
                    endpoint,
                    draft,
                    scope=self._scope,
                    wait=self._manner.wait,
                    ca_file=self._settings.ca_file,
                    stopping=stopping,
                )
            )
        with self._listen(client) as loopback:
            if client is None or not client.comes_back_to(loopback.redirect_uri):
                client = self._register(loopback.redirect_uri)
            try:
                draft = self._draft(client, loopback.redirect_uri)
                fields = self._authorized(draft, loopback)
                done = self._finish(lambda _: redeemed(draft, fields, ca_file=self._settings.ca_file))
            except LoginNotGiven as error:
                loopback.show(pages.declined(str(error)))
                raise
            except RefresherError as error:
                loopback.show(pages.failed(str(error)))
                raise
            loopback.show(pages.done(self._name, renewable=done.admitted.grant.renewable))
            return done

    def _listen(self, client: Client | None) -> Loopback:
        """Listen where the client was registered for, else at any port of this machine."""
        wanted = self._asked.redirect_uri or (None if client is None else client.redirect_uri)
        try:
            return Loopback(wanted)
        except ConfigError:
            if self._asked.redirect_uri or client is None or client.origin != "registered":
                raise
            return Loopback()  # another port needs another registration

    def _register(self, redirect_uri: str | None) -> Client:
        self._was_stored = False
        return anyio.run(clients.register, self._server, redirect_uri, self._scope, self._fetch)

    def _authorized(self, draft: Grant, loopback: Loopback) -> dict[str, str]:
        """Return what a person's consent brings: the fields of the token request."""
        asking = authorization(
            self._server, draft, redirect_uri=loopback.redirect_uri, scope=self._scope, params=self._asked.params
        )
        if self.may_register_anew:
            # Only a person's browser would see that the server does not know the client any more.
            seen = anyio.run(self._fetch, httpx2.Request("GET", asking.url))
            if seen.status_code in _UNKNOWN and b"client" in seen.content.lower():
                raise ClientUnknown(f"{self._server.authorization_endpoint} answered {seen.status_code}")
        return redirected(asking, loopback, wait=self._manner.wait, open_browser=self._manner.open_browser)

    def _draft(self, client: Client, redirect_uri: str | None) -> Grant:
        """Return the grant as far as it is known before there are tokens. Raises ``ConfigError``."""
        self._used = client
        asked, server = self._asked, self._server
        if client.origin != "registered":
            # It is bound to what was given for it; without that, another port may be free the next time.
            redirect_uri = asked.redirect_uri or client.redirect_uri
        resource = asked.resource or server.resource
        draft = Grant(
            name=self._name,
            grant_id="",
            generation=0,
            begun_from=NOTHING,
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
            server_url=asked.url,
            origins=(urls.origin(asked.url or ""),),
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
                issuer_given=asked.issuer is not None,
                scope=asked.scope,
                resource=asked.resource,
                way=asked.way or "browser",
                params=asked.params,
            ),
        )
        check(draft, ca_file=self._settings.ca_file)
        return draft if self._stored is None else _as_before(draft, self._stored)

    def _finish(self, tokens: Callable[[Callable[[], bool]], Grant]) -> Done:
        """Get the tokens, try them, and store the grant: from here on a signal stops nothing half-way."""
        with Stopping() as stopping:
            try:
                grant = tokens(stopping)
            except ClientUnknown as error:
                if stopping():
                    # Nobody who wants to stop is asked once more.
                    raise Interrupted(str(error)) from None
                raise
            proof = None if stopping() else self._proof(grant)
            admitted = admit(
                self._settings.directories,
                grant,
                replace=True,
                if_absent=False,
                stopping=lambda: False,
                # Somebody may have put another grant there while the person was at the browser.
                same_server=not self._manner.replace,
                just_given=True,
            )
        return Done(admitted=admitted, proof=proof, exit_code=stopping.exit_code)

    def _proof(self, grant: Grant) -> str | None:
        """Return what the MCP server makes of the token. Raises ``LoginRefused`` where it refuses it."""
        if not self._manner.verify or self._server.given or self._asked.issuer is not None:
            return None
        tried = anyio.run(lambda: prove(grant, ca_file=self._settings.ca_file))
        if tried.refused:
            raise LoginRefused(
                f"{tried.words}; nothing was changed. {tried.advice}, or store it all the same with --no-verify"
            )
        return tried.words


def _as_before(draft: Grant, stored: Grant) -> Grant:
    """Return ``draft`` with what a person has said of this server before, and what was seen of it."""
    draft = msgspec.structs.replace(draft, origins=tuple(dict.fromkeys((*draft.origins, *stored.origins))))
    if not stored.renewable or stored.token_endpoint != draft.token_endpoint:
        return draft  # how such a grant is used says nothing of the server; nor does another server
    return msgspec.structs.replace(
        draft,
        replay=stored.replay,
        max_age=stored.max_age,
        send_resource=stored.send_resource,
        refuses_early=stored.refuses_early,
        resource_refused=stored.resource_refused,
    )


def _stored(settings: Settings, name: str) -> Grant | None:
    try:
        record = records.load(settings.directories, name).record
    except ExposedGrantFile:
        raise  # what it remembers is not lost, and no login may write over it
    except GrantFileError:
        return None  # a new login is what mends it
    return record if isinstance(record, Grant) else None


async def _server(asked: Asked, fetch: Fetch) -> Server:
    """Find out where to log in."""
    url = asked.url or ""
    if asked.token_endpoint is not None:
        return Server(
            issuer=asked.issuer,
            authorization_endpoint=asked.authorization_endpoint,
            token_endpoint=asked.token_endpoint,
            device_authorization_endpoint=asked.device_authorization_endpoint,
            revocation_endpoint=asked.revocation_endpoint,
            given=True,
        )
    if asked.issuer is not None:
        found = await discovery.by_issuer(asked.issuer, url, fetch)
    else:
        found = await discovery.by_server(url, fetch)
    return msgspec.structs.replace(
        found,
        device_authorization_endpoint=asked.device_authorization_endpoint or found.device_authorization_endpoint,
        revocation_endpoint=asked.revocation_endpoint or found.revocation_endpoint,
    )


def _scope(asked: Asked, server: Server) -> str | None:
    """Return what to ask for: without ``offline_access``, many servers give no refresh token."""
    scope = asked.scope or server.scope
    if scope is None or not server.offers_offline_access or discovery.OFFLINE in scope.split():
        return scope
    return f"{scope} {discovery.OFFLINE}"
