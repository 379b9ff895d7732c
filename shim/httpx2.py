"""``BearerAuth`` for httpx2: ``httpx2.Client(auth=BearerAuth("linear"))``, and the same with ``AsyncClient``."""

import httpx2

from shim._bearer import BearerFlow

__all__ = ["BearerAuth"]


class BearerAuth(BearerFlow, httpx2.Auth):
    """Sends the current token of a name, or of a ``FileTokenSource``, and recovers from a 401: see ``BearerFlow``."""
