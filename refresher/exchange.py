"""The one HTTP call: a refresh token out, an outcome back (RFC 6749 section 6).

An event loop exists only in here, to hold one deadline over resolving, connecting, TLS, sending and reading alike:
the time-outs of an HTTP library are per operation, and one byte a second outlives them all.
"""

import ssl
import time
import zlib
from collections.abc import Mapping
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import anyio
import httpx
import msgspec

from refresher import answer, clocks, conduct, connection, policy, urls
from refresher.clocks import Moment
from refresher.errors import ConfigError
from refresher.eventloop import ExchangeLoop
from refresher.grant import Doubt, Grant
from refresher.outcome import (
    Ambiguous,
    ClientRejected,
    GrantDead,
    NotSent,
    Outcome,
    ResourceRefused,
    Rotated,
    TooEarly,
    Unintelligible,
)
from refresher.proxies import proxy_for
from refresher.request import request
from refresher.secret import Secret
from refresher.tls import trusted

__all__ = ["DEADLINE", "Exchanged", "Hooks", "exchange"]

DEADLINE: Final = 20.0
"""Seconds for all attempts together: shorter than the wait for a lock, and than a pod's grace period."""

_CONNECT: Final = 10.0
_LARGEST_BODY: Final = 1024 * 1024
_WORTH_A_REPLAY: Final = 1.0


class Exchanged(msgspec.Struct, frozen=True, kw_only=True):
    """An outcome, when its requests left (``None``: none did), and what is still in doubt of them."""

    outcome: Outcome
    first_sent: Moment | None
    last_sent: Moment | None
    doubt: Doubt | None
    """Set where an answer was lost on the way to this outcome, in this exchange or before."""
    raw: Secret | None
    """The body of a success, one character for each byte (latin-1)."""
    resource_refused: bool = False
    """The server was seen to refuse ``resource`` on the way to this outcome."""


class Hooks(Protocol):
    """What the caller does at the two points that matter."""

    def before_first_byte(self) -> None:
        """Is called before anything that holds the refresh token leaves; where it raises, nothing does."""

    def keep_answer(self, answer: bytes, at: float) -> str:
        """Keep a success that cannot be read, received at ``at``; say where. It may hold the only copy of a token."""


def exchange(
    grant: Grant, *, ca_file: str | None, hooks: Hooks, demanded: bool = False, deadline: float = DEADLINE
) -> Exchanged:
    """Spend the refresh token of ``grant`` once; twice where the first answer was lost and the server allows a replay.

    ``demanded``: an agent says that the access token is refused, so there is none to protect or to wait for. Returns
    within ``deadline`` seconds, those aside in which the process was stopped; raises nothing but ``KeyboardInterrupt``
    and the like.
    """
    ends = time.monotonic() + deadline
    replayable = policy.replay_open(grant, clocks.now())
    first = _attempt(grant, ca_file, hooks, demanded, deadline / 2 if replayable else deadline)
    sent = first.first_sent
    if not isinstance(first.outcome, Ambiguous | Unintelligible | ResourceRefused) or sent is None:
        return first
    refused = isinstance(first.outcome, ResourceRefused) and conduct.sends_resource(grant)
    first = msgspec.structs.replace(first, resource_refused=refused)
    doubt = None if grant.refresh_token is None else (grant.doubt or Doubt(since=sent)).knowing(_kept(first.outcome))
    doubtful = msgspec.structs.replace(
        grant,
        doubt=doubt,
        resource_refused=grant.resource_refused or refused,
    )
    remaining = ends - time.monotonic()
    if remaining < _WORTH_A_REPLAY or not _may_repeat(doubtful, refused=refused, demanded=demanded):
        return first
    second = _attempt(doubtful, ca_file, hooks, demanded, remaining)
    # Where the second answer settles nothing, the first loss stands; but an answer that is kept is told.
    tells_more = isinstance(second.outcome, Rotated | GrantDead | Unintelligible)
    return msgspec.structs.replace(
        second if tells_more else first,
        first_sent=first.first_sent,
        last_sent=second.last_sent or first.last_sent,
        doubt=doubt.knowing(_kept(second.outcome)) if doubt else None,
        resource_refused=refused,
    )


def _may_repeat(doubtful: Grant, *, refused: bool, demanded: bool) -> bool:
    """Whether the same refresh token may go once more: where the server allows a replay.

    A refusal of ``resource`` also where there is no live access token to lose: most servers look at it before they
    spend the refresh token, but not all.
    """
    now = clocks.now()
    return policy.may_send(doubtful, now, demanded=demanded) if refused else policy.replay_open(doubtful, now)


def _kept(outcome: Outcome) -> str | None:
    return outcome.kept if isinstance(outcome, Unintelligible) else None


class _Progress:
    """What is known of a request at any instant, also when a deadline cuts it."""

    def __init__(self) -> None:
        self.sent: Moment | None = None
        self.status: int | None = None
        self.headers: Mapping[str, str] = {}
        self.body = bytearray()
        self.whole = False
        self.errors: list[BaseException] = []
        """What went wrong on the way, the last first: the library goes on reading where writing fails, and forgets."""
        self.certificate_refused = False


def _attempt(grant: Grant, ca_file: str | None, hooks: Hooks, demanded: bool, limit: float) -> Exchanged:
    progress = _Progress()
    if (moved := _forbidden(grant)) is not None:
        return Exchanged(
            outcome=NotSent(description=moved), first_sent=None, last_sent=None, doubt=grant.doubt, raw=None
        )
    problem = f"it took longer than {limit:.0f} s"
    try:
        anyio.run(
            _post,
            grant,
            ca_file,
            hooks,
            demanded,
            limit,
            progress,
            backend_options={"loop_factory": ExchangeLoop},
        )
    except ConfigError as error:
        problem = str(error)  # our own words hold no secret, but paths that a mask would hide
    except Exception as error:  # noqa: BLE001  whatever a transport raises, what was sent decides
        problem = connection.reason((error, *progress.errors), _secrets(grant))
        progress.certificate_refused = connection.refuses_certificate((error, *progress.errors))
    body = bytes(progress.body)
    try:
        outcome = _judge(grant, progress, problem, demanded=demanded)
    except Exception as error:  # noqa: BLE001  a fault of ours must not cost the only copy of a token
        outcome = Unintelligible(
            description=f"the answer could not be judged ({type(error).__name__})",
            answer=Secret(body.decode("latin-1")),
        )
    if isinstance(outcome, Unintelligible) and grant.refresh_token is not None:
        kept = hooks.keep_answer(outcome.answer.reveal().encode("latin-1"), clocks.now().wall)
        outcome = msgspec.structs.replace(outcome, description=f"{outcome.description}; {kept}", kept=kept)
    return Exchanged(
        outcome=outcome,
        first_sent=progress.sent,
        last_sent=progress.sent,
        doubt=grant.doubt,
        raw=Secret(body.decode("latin-1")) if isinstance(outcome, Rotated) else None,
    )


async def _post(
    grant: Grant, ca_file: str | None, hooks: Hooks, demanded: bool, limit: float, progress: _Progress
) -> None:
    async def trace(event: str, info: dict[str, Any]) -> None:
        if event.endswith(".failed"):
            progress.errors.insert(0, info["exception"])
        # A proxy's CONNECT is traced too; it carries no token.
        if event.endswith("send_request_headers.started") and info["request"].method == b"POST":
            # Resolving and connecting take their time: a grace that was open then may be over now.
            if not policy.may_send(grant, clocks.now(), demanded=demanded):
                raise TimeoutError("the server's grace for a replay has passed on the way")
            hooks.before_first_byte()
            progress.sent = clocks.now()

    parts = urlsplit(grant.token_endpoint)
    body, headers = request(grant, clocks.now().wall)
    with anyio.move_on_after(limit):
        async with (
            httpx.AsyncClient(
                verify=_context(grant, ca_file) if parts.scheme == "https" else False,
                # httpx's own reading of NO_PROXY fails on IPv6 networks and quotes proxy passwords in its errors.
                trust_env=False,
                proxy=_proxy(parts.scheme, parts.hostname or ""),
                follow_redirects=False,
                timeout=httpx.Timeout(limit, connect=min(_CONNECT, limit)),
            ) as client,
            client.stream(
                "POST", grant.token_endpoint, content=body, headers=headers, extensions={"trace": trace}
            ) as response,
        ):
            progress.headers = {name.lower(): value for name, value in response.headers.items()}
            progress.status = response.status_code
            # Raw: where a server mislabels its encoding, a decoder would throw the only copy away.
            async for chunk in response.aiter_raw():
                progress.body += chunk[: _LARGEST_BODY - len(progress.body)]
                if len(progress.body) >= _LARGEST_BODY:
                    return
            # Without a length nobody can tell an end from a connection that broke off; only JSON shows its own.
            progress.whole = not progress.headers.keys().isdisjoint(("content-length", "transfer-encoding"))


def _forbidden(grant: Grant) -> str | None:
    """Return why nothing may be sent to a record's endpoint (I8): somebody may have changed it since its import."""
    try:
        urls.endpoint(grant.token_endpoint)
    except urls.BadURL as error:
        return f"nothing was sent: the token_endpoint {error}"
    return None


def _context(grant: Grant, ca_file: str | None) -> ssl.SSLContext:
    return trusted(ca_file, client_cert=grant.client_cert, client_key=grant.client_key)


def _decoded(body: bytes) -> bytes:
    """Unpack what a server has packed unasked, bounded; what does not unpack is taken as it is."""
    if not body.startswith(b"\x1f\x8b"):
        return body
    try:
        return zlib.decompressobj(wbits=31).decompress(body, _LARGEST_BODY) or body
    except zlib.error:
        return body


def _proxy(scheme: str, host: str) -> httpx.Proxy | None:
    address = proxy_for(scheme, host)
    if address is None:
        return None
    try:
        return httpx.Proxy(address)
    except Exception:  # noqa: BLE001  its words could quote the proxy's password
        raise ConfigError(f"the proxy in {scheme.upper()}_PROXY or ALL_PROXY is not a usable address") from None


def _judge(grant: Grant, progress: _Progress, problem: str, *, demanded: bool) -> Outcome:
    if progress.certificate_refused and progress.status is None:
        # TLS 1.3 tells it after the request has left; but whoever refuses the handshake never reads what follows.
        return ClientRejected(
            code="invalid_client", description=f"{problem}; the server does not accept client_cert, or wants one"
        )
    if progress.sent is None:
        return NotSent(description=f"nothing was sent: {problem}")
    if progress.status is None:
        return Ambiguous(description=f"the request was sent and its answer was lost: {problem}")
    outcome = answer.judge(
        progress.status,
        progress.headers,
        _decoded(bytes(progress.body)),
        whole=progress.whole,
        now=clocks.now().wall,
        known=_secrets(grant),
    )
    # What counts is when it was asked: a machine that slept before it read the answer would take "too early" for a
    # verdict.
    if isinstance(outcome, GrantDead) and policy.is_early(grant, progress.sent):
        # A demand may be false, and would end a good grant: only one that stands for long calls for a person.
        return TooEarly(code=outcome.code, description=outcome.description, refusal=demanded)
    return outcome


def _secrets(grant: Grant) -> tuple[Secret | None, ...]:
    return grant.refresh_token, grant.access_token, grant.client_secret
