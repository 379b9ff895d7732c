"""A model of an authorization server: its answer to each request, at any time, without a network.

It knows what a client can only guess: which tokens are spent or live, and why a login was lost. The real server is in
``tests/support/oidc.py``, but it does not have all these behaviors, and it has no simulated clock.
"""

import json
from base64 import urlsafe_b64encode
from typing import Literal, NamedTuple

from tests.support.samples import NOON

__all__ = ["Answer", "Early", "ModelServer", "Resource", "Ways"]

Early = Literal["allowed", "refused", "mistaken for dead", "ends the login"]
Resource = Literal["ignored", "refused", "refused once spent", "required"]


class Ways(NamedTuple):
    """How a server behaves."""

    rotates: bool
    """A refresh returns a new refresh token and spends the old one."""
    grace: float | None
    """Seconds for which it still accepts a spent refresh token; ``None``: until the next one is used."""
    life: float
    """The lifetime of an access token in seconds."""
    tells_life: bool
    ends_access: bool
    """A refresh ends the previous access token."""
    early: Early
    """The result of a refresh while the access token is live; the third is ``invalid_grant``."""
    resource: Resource
    """The effect of the parameter ``resource`` of RFC 8707."""
    refresh_life: float | None = None
    """The seconds after which a refresh token ends that is not used; they are announced, and start anew when it is."""


class Answer(NamedTuple):
    """An answer of the server, before a fault of the network."""

    status: int
    body: bytes
    retry_after: float | None = None

    @classmethod
    def error(cls, status: int, code: str, words: str = "") -> "Answer":
        """Return a refusal (RFC 6749 section 5.2)."""
        return cls(status, json.dumps({"error": code, "error_description": words}).encode())

    @property
    def code(self) -> str:
        """The error code; empty if there is none, or no JSON."""
        try:
            return str(json.loads(self.body).get("error", ""))
        except ValueError:
            return ""


class _Refresh:
    """A refresh token in the server."""

    def __init__(self, access: str, usable_from: float, ends: float) -> None:
        self.access = access
        self.usable_from = usable_from
        self.ends = ends
        self.spent_at: float | None = None
        self.successors: list[str] = []


class ModelServer:
    """One login at the server; times are true times in seconds since noon."""

    def __init__(self, ways: Ways) -> None:
        self.ways = ways
        self.ended_by: Literal["person", "reuse", "early use", "expiry"] | None = None
        self.newest = ""
        """The last issued access token, whether or not it arrived."""
        self._refresh: dict[str, _Refresh] = {}
        self._access: dict[str, float] = {}
        self._issued = 0

    def log_in(self, t: float) -> tuple[str, str]:
        """Return the first refresh and access token."""
        return self._issue(t)

    def lives(self, access: str, t: float) -> bool:
        """Whether an access token is valid."""
        return self.ended_by is None and t < self._access[access]

    def is_spent(self, refresh: str) -> bool:
        """Whether a refresh token is spent."""
        return self._refresh[refresh].spent_at is not None

    def usable_from(self, refresh: str) -> float:
        """Return the time from which a refresh token may be used."""
        return self._refresh[refresh].usable_from

    def refresh_ends(self, refresh: str) -> float:
        """Return the time at which a refresh token ends if it is not used."""
        return self._refresh[refresh].ends

    def end(self, access: str, t: float) -> None:
        """End an access token before it expires, as some servers do."""
        self._access[access] = min(self._access[access], t)

    def revoke(self) -> None:
        """End the login, as a person does in the server's settings."""
        self.ended_by = self.ended_by or "person"

    def answer(self, fields: dict[str, str], t: float) -> Answer:
        """Return the answer to a refresh request."""
        resource, sent = self.ways.resource, "resource" in fields
        if (resource == "refused" and sent) or (resource == "required" and not sent):
            return Answer.error(400, "invalid_target")
        name = fields["refresh_token"]
        token = self._refresh[name]
        if self.ended_by is not None:
            return Answer.error(400, "invalid_grant")
        if t > token.ends:
            self.ended_by = "expiry"
            return Answer.error(400, "invalid_grant", "the refresh token has expired")
        if token.spent_at is not None and not self._takes_again(token, t):
            # RFC 9700 section 4.14: a client that sends it again may have stolen it.
            self.ended_by = "reuse"
            return Answer.error(400, "invalid_grant")
        if token.spent_at is None and (refused := self._too_early(token, t)) is not None:
            return refused
        if self.ways.rotates and token.spent_at is None:
            token.spent_at = t
        if resource == "refused once spent" and sent:
            return Answer.error(400, "invalid_target")
        return self._rotate(name, token, t)

    def _rotate(self, name: str, token: _Refresh, t: float) -> Answer:
        if self.ways.ends_access:
            self.end(token.access, t)
        refresh, access = self._issue(t, name)
        fields: dict[str, object] = {"access_token": access, "token_type": "Bearer"}
        if self.ways.tells_life:
            fields["expires_in"] = self.ways.life
        if self.ways.refresh_life is not None:
            fields["refresh_expires_in"] = self.ways.refresh_life
        if self.ways.rotates:
            fields["refresh_token"] = refresh
            token.successors.append(refresh)
        return Answer(200, json.dumps(fields).encode())

    def _takes_again(self, token: _Refresh, t: float) -> bool:
        if self.ways.grace is None:
            return not any(self.is_spent(successor) for successor in token.successors)
        return token.spent_at is not None and self.ways.grace > 0 and t - token.spent_at <= self.ways.grace

    def _too_early(self, token: _Refresh, t: float) -> Answer | None:
        match self.ways.early:
            case "ends the login" if t < token.usable_from:
                self.ended_by = "early use"
                return Answer.error(400, "invalid_grant")
            case "refused" if self.lives(self.newest, t):
                return Answer.error(400, "invalid_request", "access token not expired")
            case "mistaken for dead" if self.lives(self.newest, t):
                return Answer.error(400, "invalid_grant")
            case _:
                return None

    def _issue(self, t: float, refresh: str | None = None) -> tuple[str, str]:
        self._issued += 1
        access = f"access-{self._issued}"
        self._access[access] = t + self.ways.life
        self.newest = access
        ends = float("inf") if self.ways.refresh_life is None else t + self.ways.refresh_life
        if refresh is not None and not self.ways.rotates:
            self._refresh[refresh].access, self._refresh[refresh].ends = access, ends
            return refresh, access
        refresh, usable_from = f"refresh-{self._issued}", float("-inf")
        if self.ways.early == "ends the login":
            # rauthy writes it into the token (RFC 7519 section 4.1.5): a minute before the access token ends.
            usable_from = t + max(self.ways.life - 60.0, 0.0)
            claims = json.dumps({"iat": NOON + t, "nbf": NOON + usable_from, "jti": refresh}).encode()
            refresh = f"e30.{urlsafe_b64encode(claims).decode().rstrip('=')}.signature"
        self._refresh[refresh] = _Refresh(access, usable_from, ends)
        return refresh, access
