"""Login with a browser on another device (RFC 8628)."""

import io
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

import msgspec

from refresher.common import clocks
from refresher.common.errors import Interrupted, LoginNotGiven, LoginRefused
from refresher.common.secret import Secret
from refresher.common.terminal import say
from refresher.common.text import span
from refresher.grants.outcome import Ambiguous, TokensIssued, Unreadable, describe, error_code
from refresher.grants.record import Grant, revealed
from refresher.grants.tokens import is_token
from refresher.login.client import DEVICE_CODE
from refresher.login.http_client import Connections
from refresher.login.token_request import advice, is_temporary, login_error, new_grant, outcome_of, scope_of, send
from refresher.oauth import urls

__all__ = ["device_login"]

_SLOW_DOWN: Final = 5.0
"""Seconds that ``slow_down`` adds to the interval."""
_STOP_CHECK_INTERVAL: Final = 0.2
_MAX_ADDRESS: Final = 2000
_OTHER_LINES: Final = 10
"""The lines of a terminal above and below the QR code, with room for an address of two lines."""

# Seconds: the default, the minimum and the maximum.
_INTERVAL: Final = (5.0, 0.1, 60.0)
_LIFETIME: Final = (600.0, 1.0, 86_400.0)


class _Code(msgspec.Struct, frozen=True, kw_only=True):
    """A device code and its user code; times are in seconds."""

    device_code: Secret
    user_code: str
    verification_uri: str
    verification_uri_complete: str | None
    lifetime: float
    interval: float


def device_login(
    endpoint: str, client: Grant, stopping: Callable[[], bool], *, wait: float, connections: Connections
) -> Grant:
    """Show the person a code and an address, and return the grant after the code was entered there.

    A poll that was sent is completed, because its answer may be the tokens. Raises ``Interrupted`` if ``stopping()``
    becomes true between two polls, ``LoginNotGiven`` if the person denies access or takes longer than ``wait`` seconds,
    and ``ClientUnknown``, ``LoginRefused`` and ``ServerAway``.
    """
    code = _request_code(endpoint, client, connections)
    _show(code)
    return _poll(client, code, min(wait, code.lifetime), connections, stopping)


def _request_code(endpoint: str, client: Grant, connections: Connections) -> _Code:
    params = () if client.login is None else revealed(client.login.params)
    posted = send("device_authorization_endpoint", endpoint, client, scope_of(client), connections, params)
    if posted.status == 200:
        with suppress(ArithmeticError, AttributeError, KeyError, RecursionError, TypeError, ValueError):
            return _parse(json.loads(posted.decompressed_body()))
    # An error answer is like one of the token endpoint: both follow RFC 6749 section 5.2.
    outcome = outcome_of(posted)
    if isinstance(outcome, Unreadable | TokensIssued):
        raise LoginRefused(f"{endpoint} sent no valid device code (RFC 8628); nothing was changed. {advice()}")
    raise login_error(outcome, sender=endpoint)


def _parse(answer: Mapping[str, Any]) -> _Code:
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
        verification_uri_complete=None if complete is None else _address(complete),
        lifetime=_seconds(answer.get("expires_in"), *_LIFETIME),
        interval=_seconds(answer.get("interval"), *_INTERVAL),
    )


def _address(value: object) -> str:
    """Return an address that is safe in a browser, a terminal and a QR code. Raises ``ValueError``."""
    if not isinstance(value, str) or len(value) > _MAX_ADDRESS:
        raise ValueError
    urls.parse_origin(value)
    return value


def _seconds(value: object, default: float, minimum: float, maximum: float) -> float:
    seconds = float(value) if isinstance(value, int | float | str) else default
    return min(max(seconds, minimum), maximum) if math.isfinite(seconds) and seconds > 0 else default


def _show(code: _Code) -> None:
    say(f"To log in, open this address on any device:\n\n  {code.verification_uri}\n", err=True)
    say(f"and enter the code:  {code.user_code}\n", err=True)
    if sys.stderr.isatty():
        import segno

        picture = io.StringIO()
        address = code.verification_uri_complete or code.verification_uri
        segno.make(address, error="l", micro=False).terminal(picture, compact=True)
        # The address and the code must stay on the screen; 0: its height is unknown.
        if not 0 < os.get_terminal_size(sys.stderr.fileno()).lines < picture.getvalue().count("\n") + _OTHER_LINES:
            say(f"Or scan this:\n\n{picture.getvalue()}", err=True)
    say(f"Waiting for you to log in. The code is valid for {span(code.lifetime)}.", err=True)


def _poll(client: Grant, code: _Code, wait: float, connections: Connections, stopping: Callable[[], bool]) -> Grant:
    fields = {"grant_type": DEVICE_CODE, "device_code": code.device_code.reveal()}
    interval, deadline = code.interval, time.monotonic() + wait
    while time.monotonic() + interval < deadline:
        _sleep(interval, stopping)
        posted = send("token_endpoint", client.token_endpoint, client, fields, connections)
        outcome = None if posted.status is None else outcome_of(posted)
        if outcome is None or isinstance(outcome, Ambiguous):
            # RFC 8628 section 3.5: poll more slowly while the server does not answer.
            interval = min(2 * interval, _INTERVAL[-1])
            continue
        if isinstance(outcome, TokensIssued):
            return new_grant(client, outcome, posted.sent_at or clocks.now())
        match error_code(outcome):
            case "slow_down":
                interval += _SLOW_DOWN
            case pending if pending == "authorization_pending" or is_temporary(outcome):
                pass
            case "access_denied":
                said = describe(outcome)
                raise LoginNotGiven(f"the login was declined on the other device ({said}); nothing was changed")
            case "expired_token":
                raise LoginNotGiven("the code expired before it was entered; nothing was changed. Log in again")
            case _:
                raise login_error(outcome)
    raise LoginNotGiven(f"the code was not entered within {span(wait)}; nothing was changed. Log in again")


def _sleep(seconds: float, stopping: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if stopping():
            raise Interrupted("interrupted; nothing was changed")
        time.sleep(min(left, _STOP_CHECK_INTERVAL))
