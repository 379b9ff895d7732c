"""A login with a browser on another device (RFC 8628)."""

import io
import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from refresher.common import clocks
from refresher.common.errors import ClientUnknown, Interrupted, LoginNotGiven, LoginRefused, ServerAway
from refresher.common.secret import Secret
from refresher.common.terminal import say
from refresher.common.text import span
from refresher.grants.outcome import Ambiguous, ClientRejected, Outcome, TokensIssued, Transient, describe, error_code
from refresher.grants.record import Grant
from refresher.grants.tokens import is_token
from refresher.login.client import DEVICE_CODE
from refresher.login.error_advice import advice
from refresher.login.token_request import new_grant, outcome_of, send
from refresher.oauth import urls

__all__ = ["device_login"]

_WHAT: Final = "device_authorization_endpoint"

_INTERVAL: Final = 5.0
_SLOWER: Final = 5.0
_LONGEST_INTERVAL: Final = 60.0
_SHORTEST_INTERVAL: Final = 0.1
_LIFE: Final = 600.0
_LOOK: Final = 0.2
_SHORTEST_LIFE: Final = 1.0
_LONGEST_LIFE: Final = 86_400.0
_LONGEST_ADDRESS: Final = 2000


class _Code(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of the device authorization endpoint; times in seconds."""

    device_code: Secret
    user_code: str
    verification_uri: str
    complete: str | None
    life: float
    interval: float


def device_login(
    endpoint: str,
    client: Grant,
    *,
    scope: str | None,
    wait: float,
    ca_file: str | None,
    stopping: Callable[[], bool],
) -> Grant:
    """Show the person a code and an address, and return the grant once the code was entered there.

    A poll that has begun is finished: its answer may be the tokens. Raises ``Interrupted`` where ``stopping()`` becomes
    true between two polls, ``LoginNotGiven`` where the login is declined, expires or takes longer than ``wait``
    seconds, ``ClientUnknown``, ``LoginRefused`` and ``ServerAway``.
    """
    code = _code(endpoint, client, scope, ca_file)
    _show(code)
    return _polled(client, code, min(wait, code.life), ca_file, stopping)


def _code(endpoint: str, client: Grant, scope: str | None, ca_file: str | None) -> _Code:
    fields = {"scope": scope} if scope else {}
    posted = send(endpoint, client, fields, ca_file=ca_file, what=_WHAT)
    try:
        answer = json.loads(posted.decompressed_body())
        if posted.status == 200:
            return _read(answer)
    except (ArithmeticError, AttributeError, KeyError, RecursionError, TypeError, ValueError):
        answer = None
    # Any other answer is read like a refusal of the token endpoint: both follow RFC 6749 section 5.2.
    outcome = outcome_of(posted, client)
    words = describe(outcome, sender=endpoint).replace("no token response", "no device code")
    words = f"{words}; nothing was changed"
    if isinstance(outcome, ClientRejected):
        raise ClientUnknown(words)
    if isinstance(outcome, Ambiguous) or _is_temporary(outcome):
        raise ServerAway(words)
    raise LoginRefused(f"{words}. {advice(error_code(outcome))}")


def _read(answer: Mapping[str, Any]) -> _Code:
    """Return the code of an answer. Raises ``ValueError`` and similar errors."""
    device_code, user_code = answer["device_code"], answer["user_code"]
    if not (is_token(device_code) and is_token(user_code)):
        raise ValueError
    complete = answer.get("verification_uri_complete")
    return _Code(
        device_code=Secret(device_code),
        user_code=user_code,
        # Google uses the key of an early draft.
        verification_uri=_address(answer.get("verification_uri") or answer["verification_url"]),
        complete=None if complete is None else _address(complete),
        life=_seconds(answer.get("expires_in"), _LIFE, _SHORTEST_LIFE, _LONGEST_LIFE),
        interval=_seconds(answer.get("interval"), _INTERVAL, _SHORTEST_INTERVAL, _LONGEST_INTERVAL),
    )


def _address(value: object) -> str:
    """Return an address that is safe in a browser, a terminal and a QR code."""
    if not isinstance(value, str) or len(value) > _LONGEST_ADDRESS:
        raise ValueError
    urls.parse_origin(value)
    return value


def _seconds(value: object, default: float, least: float, most: float) -> float:
    if value is None:
        return default
    seconds = float(value) if isinstance(value, int | float | str) else default
    return min(max(seconds, least), most) if math.isfinite(seconds) and seconds > 0 else default


def _show(code: _Code) -> None:
    say(f"To log in, open this address on any device:\n\n  {code.verification_uri}\n", err=True)
    say(f"and enter the code:  {code.user_code}\n", err=True)
    if sys.stderr.isatty():
        import segno

        picture = io.StringIO()
        segno.make(code.complete or code.verification_uri, error="l", micro=False).terminal(picture, compact=True)
        say(f"Or scan this:\n\n{picture.getvalue()}", err=True)
    say(f"Waiting for you to log in. The code is valid for {span(code.life)}.", err=True)


def _polled(client: Grant, code: _Code, wait: float, ca_file: str | None, stopping: Callable[[], bool]) -> Grant:
    fields = {"grant_type": DEVICE_CODE, "device_code": code.device_code.reveal()}
    interval, ends = code.interval, time.monotonic() + wait
    while time.monotonic() + interval < ends:
        _rest(interval, stopping)
        posted = send(client.token_endpoint, client, fields, ca_file=ca_file, secrets=(code.device_code,))
        outcome = None if posted.status is None else outcome_of(posted, client)
        if outcome is None or isinstance(outcome, Ambiguous):
            # RFC 8628 section 3.5: poll more slowly while the server does not answer.
            interval = min(2 * interval, _LONGEST_INTERVAL)
            continue
        if isinstance(outcome, TokensIssued):
            return new_grant(client, outcome, posted.sent_at or clocks.now())
        if error_code(outcome) == "slow_down":
            interval += _SLOWER
        elif error_code(outcome) != "authorization_pending" and not _is_temporary(outcome):
            raise _refusal(outcome)
    raise LoginNotGiven(f"the code was not entered within {span(wait)}; nothing was changed. Log in again")


def _rest(seconds: float, stopping: Callable[[], bool]) -> None:
    ends = time.monotonic() + seconds
    while (left := ends - time.monotonic()) > 0:
        if stopping():
            raise Interrupted("interrupted; nothing was changed")
        time.sleep(min(left, _LOOK))


def _is_temporary(outcome: Outcome) -> bool:
    """Whether the server was only busy."""
    return isinstance(outcome, Transient) and not outcome.refusal


def _refusal(outcome: Outcome) -> LoginNotGiven | LoginRefused:
    words = describe(outcome)
    match error_code(outcome):
        case "access_denied":
            return LoginNotGiven(f"the login was declined on the other device ({words}); nothing was changed")
        case "expired_token":
            return LoginNotGiven("the code expired before it was entered; nothing was changed. Log in again")
        case _:
            kind = ClientUnknown if isinstance(outcome, ClientRejected) else LoginRefused
            return kind(f"{words}; nothing was changed. {advice(error_code(outcome))}")
