"""``BearerAuth`` for httpx: ``httpx.Client(auth=BearerAuth("linear"))``, and the same with ``AsyncClient``."""

import httpx

from shim._bearer import BearerFlow

__all__ = ["BearerAuth"]


class BearerAuth(BearerFlow, httpx.Auth):
    """A ``BearerFlow``: sends the current token with each request to its origins, and recovers from a 401."""
