"""``BearerAuth`` for httpx2: ``httpx2.Client(auth=BearerAuth("linear"))``, and the same with ``AsyncClient``."""

import httpx2

from shim._bearer import BearerFlow

__all__ = ["BearerAuth"]


class BearerAuth(BearerFlow, httpx2.Auth):
    """A ``BearerFlow``: sends the current token with each request to its origins, and recovers from a 401."""
