"""``BearerAuth`` for httpx: ``httpx.Client(auth=BearerAuth("linear"))``, and the same with ``AsyncClient``."""

import httpx

from shim._bearer import BearerFlow

__all__ = ["BearerAuth"]


class BearerAuth(BearerFlow, httpx.Auth):  # noqa: D101  the next line
    __doc__ = BearerFlow.__doc__
    _byte_stream = httpx.ByteStream
