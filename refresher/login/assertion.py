"""A login without a person: the access token comes from a token of somebody else (RFC 7523)."""

import msgspec

from refresher.common import clocks
from refresher.common.errors import ConfigError, LoginRefused, NeedsPerson, RefresherError, ServerAway
from refresher.common.reading import read_ahead
from refresher.config import Settings
from refresher.grants.assertion import ID_JAG, ID_TOKEN, JWT, Assertion, TokenSource, foreign_audience
from refresher.grants.outcome import Ambiguous, GrantRejected, NotSent, Outcome, TokensIssued, describe
from refresher.grants.record import Grant
from refresher.login.discovery import Server
from refresher.login.http_client import Connections
from refresher.login.options import LoginOptions
from refresher.login.token_request import is_temporary, new_grant
from refresher.oauth.assertions import mint
from refresher.oauth.client_authentication import TokenExpired, TokenMissing, token_in
from refresher.oauth.http_client import DEADLINE
from refresher.oauth.token_request import request_tokens
from refresher.operations import sources
from refresher.operations.events import Emit
from refresher.operations.rotate import Order, Terms, rotate_sources

__all__ = ["assertion_of", "request_with_assertion", "require_audience"]


def assertion_of(options: LoginOptions, server: Server) -> Assertion | None:
    """Return whose token a login presents; ``None`` for a login of another way. Raises ``ConfigError``."""
    match options.way:
        case "jwt_bearer" if options.assertion_file is not None:
            subject = TokenSource(file=options.assertion_file, token_type=JWT)
            return Assertion(grant_type="jwt_bearer", subject=subject)
        case "enterprise" if options.idp is not None:
            if server.issuer is None:
                raise ConfigError("the server names no issuer, for which the identity assertion must be: give --issuer")
            subject = TokenSource(grant=options.idp, token_type=ID_TOKEN)
            return Assertion(
                grant_type="jwt_bearer", subject=subject, audience=server.issuer, requested_token_type=ID_JAG
            )
    return None


def require_audience(path: str, server: Server) -> None:
    """Refuse to present the token in ``path`` to a server that is not its audience, and that no person has named.

    An MCP server names its authorization server, and could name one that collects tokens. Raises ``LoginRefused``.
    """
    try:
        with read_ahead([path]):
            token = token_in(path, "assertion", clocks.now().wall, is_jwt=True)
    except (TokenExpired, TokenMissing) as error:
        raise LoginRefused(f"{error}; nothing was changed") from None
    if (audience := foreign_audience(token, (server.issuer, server.token_endpoint))) is None:
        return
    whose = f"for {audience}" if audience else "for no server by name (aud)"
    place = server.issuer or server.token_endpoint
    raise LoginRefused(
        f"the token in {path} is {whose}, and the authorization server is {place}: nothing was sent to it. If it "
        f"accepts this token, name it yourself: --issuer {place}"
    )


def request_with_assertion(draft: Grant, settings: Settings, connections: Connections, emit: Emit) -> Grant:
    """Return ``draft`` with an access token; its sources are rotated first, if they are due.

    Raises ``NeedsPerson``, ``LoginRefused`` and ``ServerAway``.
    """
    store = settings.open_store()
    terms = Terms(ca_file=settings.ca_file, stopping=lambda: False, emit=emit)
    rotate_sources(store, draft, Order(name=draft.name, seen=draft.generation), terms)
    with sources.files_read(store, draft, settings.ca_file):
        supply = sources.supply_of(store, draft, clocks.now())
        presented = supply.presented
        if presented.problem is not None:
            raise _error(presented.problem)
        provider = presented.provider
        minted = mint(draft, presented, ca_file=settings.ca_file, timeout=DEADLINE)
        if minted.outcome is not None:
            raise _error(minted.outcome)
        presented = presented._replace(subject=minted.assertion, provider=None)
        with connections.to(draft.token_endpoint):
            result = request_tokens(draft, ca_file=settings.ca_file, hooks=_NothingSpent(), presented=presented)
    if not isinstance(result.outcome, TokensIssued):
        raise _error(result.outcome)
    accepted = msgspec.structs.replace(
        draft,
        resource_refused=draft.resource_refused or result.resource_refused,
        omits_client_id=draft.omits_client_id or result.client_id_refused,
        account=None if provider is None else provider.account,
    )
    grant = new_grant(accepted, result.outcome, result.sent or clocks.now())
    return sources.noted(grant, supply, renewed=True)


class _NothingSpent:
    """What a login does at the critical points of a request: nothing, as it sends no refresh token."""

    def before_first_byte(self) -> None:
        """Send it."""

    def keep_answer(self, answer: bytes, at: float) -> str:
        """Keep nothing: the next login gets another token."""
        del answer, at
        return "it is not kept"


def _error(outcome: Outcome) -> RefresherError:
    """Return the error of a login; what it says names what helps."""
    # What was not sent, or is rejected before the server sees it, says itself who answered.
    said = outcome.description if isinstance(outcome, NotSent | GrantRejected) else describe(outcome)
    text = f"{said}; nothing was changed"
    if isinstance(outcome, GrantRejected) or (isinstance(outcome, NotSent) and outcome.code == "source_missing"):
        return NeedsPerson(text)
    if isinstance(outcome, NotSent) and outcome.code not in (NotSent(description="").code, "source_failing"):
        return LoginRefused(text)
    if isinstance(outcome, NotSent | Ambiguous) or is_temporary(outcome):
        return ServerAway(f"{text}. Log in again later")
    return LoginRefused(f"{text}. Check the assertion, --client-id and --scope with those who run the server")
