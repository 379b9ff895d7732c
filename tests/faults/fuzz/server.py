"""The authorization server of a fuzz, and its clients: it ends a login whose refresh token is used twice."""

import random
from collections import Counter
from typing import Any, Final

from tests.support.token_server import TokenServer

__all__ = ["FREE", "LOSSY", "STRICT", "Server"]

FREE: Final = ("free-1", "free-2", "free-3")
"""Grants that agents demand as they like; no answer is lost."""
LOSSY: Final = ("lossy-1", "lossy-2")
"""The same; answers are lost, and a person logs in again after a refresh token was lost."""
STRICT: Final = ("strict-1", "strict-2")
"""Grants in doubt, which agents demand only before the token is published."""


class Server(TokenServer):
    """Ends a login when one of its refresh tokens is used twice, and loses answers."""

    def __init__(self) -> None:
        self.newest: dict[str, str] = {}
        """The access token that each client got last."""
        self.losing: dict[str, float] = {}
        """How often the answers to a client are lost: 0 to 1."""
        self.lost: set[str] = set()
        """The refresh tokens whose answer was lost."""
        self.random = random.Random()
        super().__init__(lambda client: 3600 if client in STRICT else 8, grace=0)

    def reuses(self, client: str) -> list[str]:
        """Return the refresh tokens that a client sent more than once."""
        return [token for token, count in Counter(self.presented[client]).items() if count > 1]

    def _answer(self, client: str, token: str) -> dict[str, Any]:
        answer = super()._answer(client, token)
        if "access_token" in answer:
            self.newest[client] = answer["access_token"]
            if self.random.random() < self.losing.get(client, 0):
                self.lost.add(token)
                raise ConnectionAbortedError  # closes the connection
        return answer
