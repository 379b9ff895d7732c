"""``BearerAuth`` for httpx: ``httpx.Client(auth=BearerAuth("linear"))``, and the same with ``AsyncClient``."""

import httpx

from shim._bearer import BearerFlow

__all__ = ["BearerAuth"]


class BearerAuth(BearerFlow, httpx.Auth):
    """Sends the current token of a name, or of a ``FileTokenSource``, with each request to the token's origins.

    On a 401, ``BearerAuth`` sends the request again with a newer token. If there is none yet, it demands a rotation and
    waits; all requests of one rejected token share one demand and one wait of ``wait`` seconds. It does not resend a
    body that is a stream.

    If no newer token comes, the caller gets the server's own 401, and ``auth.source.problem()`` says why.
    ``raise_errors=True`` raises that problem instead; inside an MCP session this ends the session. On a redirect from
    ``http://host`` to ``https://host``, httpx keeps the header; on a redirect to any other origin, httpx drops it.
    """

    _byte_stream = httpx.ByteStream
