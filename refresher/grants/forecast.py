"""When that ends which a grant depends on: its refresh token, its login, its client and its certificate. Pure."""

from collections.abc import Iterable
from typing import Final, Literal

import msgspec

from refresher.grants import server_behavior
from refresher.grants.record import Grant

__all__ = ["ENDS_SOON", "End", "EndKind", "ends_of", "first_hard_end"]

EndKind = Literal["refresh_token", "login", "client_secret", "certificate"]

ENDS_SOON: Final = 7 * 86400.0
"""Seconds before a hard end from which a person should act."""

_ROUNDING: Final = 1.0


class End(msgspec.Struct, frozen=True):
    """One end; ``at`` is epoch seconds. ``client_secret`` is also the end of a registration without a secret."""

    kind: EndKind
    at: float
    source: Literal["server", "profile", "certificate"]
    """Who says so: an answer of the server, what is known of it (``providers.py``), or the certificate itself."""

    @property
    def hard(self) -> bool:
        """Whether only a person can move it: each rotation moves the end of a refresh token."""
        return self.kind != "refresh_token"


def ends_of(grant: Grant, certificate: float | None = None) -> list[End]:
    """Return what is known to end, the first one first. ``certificate``: when that in ``client_cert`` ends."""
    ends: list[End] = []
    if grant.refresh_token is not None and (at := grant.refresh_token_expires_at) is not None:
        life = at - max(grant.issued_at, grant.authorized_at)
        ends.append(End("refresh_token", at, _source(life, server_behavior.refresh_token_lifetime(grant))))
    if grant.login_ends_at is not None:
        known = None if grant.login is None else server_behavior.login_lifetime(grant)
        ends.append(End("login", grant.login_ends_at, _source(grant.login_ends_at - grant.authorized_at, known)))
    if grant.login is not None and grant.login.client_expires_at is not None:
        ends.append(End("client_secret", grant.login.client_expires_at, "server"))
    if certificate is not None:
        ends.append(End("certificate", certificate, "certificate"))
    return sorted(ends, key=lambda end: end.at)


def first_hard_end(ends: Iterable[End]) -> End | None:
    """Return the first of sorted ``ends`` that only a person can move; ``None`` if there is none."""
    return next((end for end in ends if end.hard), None)


def _source(seconds: float, known: float | None) -> Literal["server", "profile"]:
    return "profile" if known is not None and abs(seconds - known) < _ROUNDING else "server"
