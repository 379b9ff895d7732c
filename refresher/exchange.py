"""The one HTTP call: a refresh token out, an outcome back (RFC 6749 section 6).

An event loop exists only in here, to hold one deadline over resolving, connecting, TLS, sending and reading alike:
the time-outs of an HTTP library are per operation, and one byte a second outlives them all.
"""

import ssl
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final
from urllib.parse import quote_plus, urlencode, urlsplit

import anyio
import httpx
import msgspec

from refresher import __version__, answer, clocks, policy
from refresher.clocks import Moment
from refresher.grant import Doubt, Grant
from refresher.outcome import Ambiguous, GrantDead, NotSent, Outcome, Rotated, TooEarly, Unintelligible
from refresher.secret import Secret, mask
from refresher.urls import is_loopback

__all__ = ["DEADLINE", "Exchanged", "exchange"]

DEADLINE: Final = 20.0
"""Seconds for all attempts together: shorter than the wait for a lock, and than a pod's grace period."""

_CONNECT: Final = 10.0
_LARGEST_BODY: Final = 1024 * 1024
_WORTH_A_REPLAY: Final = 1.0


class Exchanged(msgspec.Struct, frozen=True, kw_only=True):
    """An outcome, when its requests left (``None``: none did), and the raw answer of a success (latin-1)."""

    outcome: Outcome
    first_sent: Moment | None
    last_sent: Moment | None
    raw: Secret | None


def exchange(
    grant: Grant, *, ca_file: str | None, before_first_byte: Callable[[], None], deadline: float = DEADLINE
) -> Exchanged:
    """Spend the refresh token of ``grant`` once; twice where the first answer was lost and the server allows a replay.

    ``before_first_byte`` is called before anything that holds the refresh token leaves; where it raises, nothing does.
    Returns within ``deadline`` seconds; raises nothing but ``KeyboardInterrupt`` and the like.
    """
    ends = time.monotonic() + deadline
    replayable = policy.replay_open(grant, clocks.now())
    first = _attempt(grant, ca_file, before_first_byte, deadline / 2 if replayable else deadline)
    lost = isinstance(first.outcome, Ambiguous | Unintelligible)
    remaining = ends - time.monotonic()
    if not lost or first.first_sent is None or remaining < _WORTH_A_REPLAY:
        return first
    doubtful = msgspec.structs.replace(grant, doubt=grant.doubt or Doubt(since=first.first_sent))
    if not policy.replay_open(doubtful, clocks.now()):
        return first
    second = _attempt(doubtful, ca_file, before_first_byte, remaining)
    conclusive = isinstance(second.outcome, Rotated | GrantDead)
    if conclusive or (isinstance(second.outcome, Unintelligible) and isinstance(first.outcome, Ambiguous)):
        return msgspec.structs.replace(second, first_sent=first.first_sent)
    # The second answer settles nothing, so the first loss stands.
    return msgspec.structs.replace(first, last_sent=second.last_sent or first.last_sent)


class _Progress:
    """What is known of a request at any instant, also when a deadline cuts it."""

    def __init__(self) -> None:
        self.sent: Moment | None = None
        self.status: int | None = None
        self.headers: Mapping[str, str] = {}
        self.body = bytearray()
        self.whole = False


def _attempt(grant: Grant, ca_file: str | None, before_first_byte: Callable[[], None], limit: float) -> Exchanged:
    progress = _Progress()
    problem = ""
    try:
        anyio.run(_post, grant, ca_file, before_first_byte, limit, progress)
    except Exception as error:  # noqa: BLE001  whatever a transport raises, what was sent decides
        problem = _describe(error, grant)
    outcome = _judge(grant, progress, problem or f"it took longer than {limit:.0f} s")
    raw = Secret(progress.body.decode("latin-1")) if isinstance(outcome, Rotated) else None
    return Exchanged(outcome=outcome, first_sent=progress.sent, last_sent=progress.sent, raw=raw)


async def _post(
    grant: Grant,
    ca_file: str | None,
    before_first_byte: Callable[[], None],
    limit: float,
    progress: _Progress,
) -> None:
    async def trace(event: str, info: dict[str, Any]) -> None:
        # A proxy's CONNECT is traced too; it carries no token.
        if event.endswith("send_request_headers.started") and info["request"].method == b"POST":
            before_first_byte()
            progress.sent = clocks.now()

    parts = urlsplit(grant.token_endpoint)
    with anyio.move_on_after(limit):
        async with httpx.AsyncClient(
            verify=_tls(ca_file) if parts.scheme == "https" else False,
            trust_env=not is_loopback(parts.hostname or ""),
            follow_redirects=False,
            timeout=httpx.Timeout(limit, connect=min(_CONNECT, limit)),
        ) as client:
            body, headers = _request(grant)
            async with client.stream(
                "POST", grant.token_endpoint, content=body, headers=headers, extensions={"trace": trace}
            ) as response:
                progress.headers = {name.lower(): value for name, value in response.headers.items()}
                progress.status = response.status_code
                async for chunk in response.aiter_bytes():
                    progress.body += chunk[: _LARGEST_BODY - len(progress.body)]
                    if len(progress.body) >= _LARGEST_BODY:
                        return
                progress.whole = True


def _request(grant: Grant) -> tuple[bytes, dict[str, str]]:
    # client_id goes along with Basic too: the MCP SDK's servers look for it there, and no server minds.
    fields = {
        "grant_type": "refresh_token",
        "refresh_token": grant.refresh_token.reveal(),
        "client_id": grant.client_id,
    }
    headers = {
        "Accept": "application/json",
        "Accept-Encoding": "identity",
        "Content-Type": "application/x-www-form-urlencoded",
        "User-Agent": f"refresher/{__version__}",
    }
    if grant.resource is not None and grant.send_resource:
        fields["resource"] = grant.resource
    if grant.client_secret is not None:
        if grant.token_endpoint_auth_method == "client_secret_post":  # noqa: S105  a method, no password
            fields["client_secret"] = grant.client_secret.reveal()
        else:
            headers["Authorization"] = _basic(grant.client_id, grant.client_secret)
    return urlencode(fields).encode("ascii"), headers


def _basic(client_id: str, client_secret: Secret) -> str:
    # RFC 6749 section 2.3.1: both parts are form-encoded first.
    pair = f"{quote_plus(client_id)}:{quote_plus(client_secret.reveal())}".encode("ascii")
    return f"Basic {b64encode(pair).decode('ascii')}"


def _judge(grant: Grant, progress: _Progress, problem: str) -> Outcome:
    if progress.sent is None:
        return NotSent(description=f"nothing was sent: {problem}")
    if progress.status is None:
        return Ambiguous(description=f"the request was sent and its answer was lost: {problem}")
    outcome = answer.judge(
        progress.status,
        progress.headers,
        bytes(progress.body),
        whole=progress.whole,
        now=clocks.now().wall,
        known=(grant.refresh_token, grant.access_token, grant.client_secret),
    )
    early = grant.refuses_early and grant.doubt is None and clocks.now().wall < policy.end_of_life(grant)
    if isinstance(outcome, GrantDead) and early:
        return TooEarly(code=outcome.code, description=outcome.description)
    return outcome


def _describe(error: BaseException, grant: Grant) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    words = mask(str(error), (grant.refresh_token, grant.access_token, grant.client_secret))
    return f"{type(error).__name__}{f': {words}' if words else ''}"


@lru_cache(maxsize=8)
def _tls(ca_file: str | None) -> ssl.SSLContext:
    # One for the process: building it costs 34 ms. Without ca_file: SSL_CERT_FILE, SSL_CERT_DIR, else certifi's.
    return httpx.create_ssl_context() if ca_file is None else ssl.create_default_context(cafile=ca_file)
