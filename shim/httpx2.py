"""``BearerAuth`` for httpx2: ``httpx2.Client(auth=BearerAuth("linear"))``, and the same with ``AsyncClient``."""

import httpx2

from shim._bearer import BearerFlow

__all__ = ["BearerAuth"]


class BearerAuth(BearerFlow, httpx2.Auth):  # noqa: D101  the next line
    __doc__ = BearerFlow.__doc__
    _byte_stream = httpx2.ByteStream
