"""``BearerAuth`` for httpx2: ``httpx2.Client(auth=BearerAuth("linear"))``, and the same with ``AsyncClient``."""

import httpx2

from shim._bearer import BearerFlow

__all__ = ["BearerAuth"]


class BearerAuth(BearerFlow, httpx2.Auth):
    """The current token of a name, or of a ``FileTokenSource``, on each request to the origins it is for.

    A rotation made by anybody is picked up with the next request. Where the server refuses the token (401), the
    request is sent again with a newer one: at once where there is one, else after one demand, within ``wait`` seconds
    for all requests of that token together. A body that is a stream is not sent again.

    Without help the caller gets the server's own answer, and ``auth.source.problem()`` says why; with
    ``raise_errors`` that problem is raised instead, which inside an MCP session ends the session. A redirect from
    ``http://host`` to ``https://host`` keeps the header, by httpx2's own rule; one to any other origin loses it.
    """

    _byte_stream = httpx2.ByteStream
