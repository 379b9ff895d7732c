"""What each address answers: the health pages, the metrics, and the page with its stream and history."""

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from functools import partial
from importlib.resources import files
from pathlib import PurePath
from typing import Final, NamedTuple, cast

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from refresher.common.errors import StorageError
from refresher.config import Settings
from refresher.daemon.background import Background, Busy
from refresher.daemon.http_endpoint import History, Metrics
from refresher.daemon.live_grants import LiveGrants
from refresher.daemon.page_access import PageToken, Refusal, host_refusal, page_refusal
from refresher.daemon.readiness import Health
from shim._token import is_name

__all__ = ["Sources", "private_app", "public_app"]

log = logging.getLogger(__name__)

_DAY: Final = 86400.0
_MEDIA_TYPES: Final = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_NO_STREAM: Final = Refusal(503, "Service Unavailable: too many pages are open; close one")
_BUSY: Final = Refusal(503, "Service Unavailable: no answer in time; try again")
_NO_NAME: Final = Refusal(400, "Bad Request: use /history?name=NAME, with the name of a grant")

_Endpoint = Callable[[Request], Awaitable[Response]]


class Sources(NamedTuple):
    """Where the pages get what they show; any thread may call these."""

    settings: Callable[[], Settings | None]
    health: Callable[[], Health]
    metrics: Metrics | None = None
    history: History | None = None


def private_app(sources: Sources) -> ASGIApp:
    """Return the application of the private socket."""
    return _app(sources, _health_routes(sources), "/healthz or /readyz")


def public_app(sources: Sources, live: LiveGrants, token: PageToken, *, loopback: bool) -> ASGIApp:
    """Return the application of the address of --listen; ``loopback``: only this machine can reach it."""

    def refusal(request: Request, *, document: bool = False) -> Refusal | None:
        return page_refusal(request.headers, token, loopback=loopback, document=document)

    def guarded(endpoint: _Endpoint, *, document: bool = False) -> _Endpoint:
        async def guard(request: Request) -> Response:
            refused = refusal(request, document=document)
            return await endpoint(request) if refused is None else _refuse(refused)

        return guard

    async def stream(request: Request) -> Response:
        if request.method == "HEAD":
            return Response(media_type="text/event-stream")
        if not request.state.connection.become_stream():
            return _refuse(_NO_STREAM)
        return _Stream(live.stream(lambda: refusal(request) is None), media_type="text/event-stream")

    async def history(request: Request) -> Response:
        if not is_name(name := request.query_params.get("name", "")):
            return _refuse(_NO_NAME)
        if sources.history is None:
            return _json({"events": []})
        try:
            return _json({"events": await past.run(partial(sources.history, name, time.time() - _DAY))})
        except StorageError as error:
            return _refuse(Refusal(503, f"Service Unavailable: {error}"))

    async def metrics(_: Request) -> Response:
        if sources.metrics is None:
            raise HTTPException(404)
        body, media_type = await present.run(sources.metrics)
        return Response(body, headers={"Content-Type": media_type})

    past, present = Background(), Background()  # a history that hangs leaves the metrics
    routes = [
        *_health_routes(sources),
        Route("/metrics", metrics),
        Route("/stream", guarded(stream)),
        Route("/history", guarded(history)),
        *(Route(path, guarded(endpoint, document=path == "/")) for path, endpoint in _page()),
    ]
    return _app(sources, routes, "/, /healthz, /readyz or /metrics")


class _Stream(StreamingResponse):
    """A stream that releases what it holds when its client goes."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(cast("AsyncIterator[bytes]", self.body_iterator)):  # type: ignore[type-var]
            await super().__call__(scope, receive, send)


def _app(sources: Sources, routes: list[Route], known: str) -> ASGIApp:
    """Return an application that answers known hosts only; ``known``: the pages that a message names."""

    async def failed(_: Request, error: Exception) -> Response:
        if isinstance(error, Busy):
            return _refuse(_BUSY)
        if not isinstance(error, HTTPException):
            if (kind := type(error).__name__) not in warned:  # without a trace, which could quote a secret
                warned.add(kind)
                log.warning("page: internal error (%s); please report it", kind)
            return _refuse(Refusal(500, "Internal Server Error"))
        status = error.status_code
        texts = {404: f"Not Found: use {known}", 405: "Method Not Allowed: use GET"}
        return _refuse(Refusal(status, texts.get(status, error.detail)))

    warned: set[str] = set()
    app = Starlette(routes=routes, exception_handlers={HTTPException: failed, Busy: failed, Exception: failed})
    app.router.redirect_slashes = False

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        refused = host_refusal(hosts, sources.settings())
        await (app if refused is None else _refuse(refused))(scope, receive, send)

    return answer


def _health_routes(sources: Sources) -> list[Route]:
    async def live(_: Request) -> Response:
        return _health((found := sources.health()), healthy=found.live)

    async def ready(_: Request) -> Response:
        return _health((found := sources.health()), healthy=found.ready)

    return [Route("/healthz", live), Route("/readyz", ready)]


def _health(health: Health, *, healthy: bool) -> Response:
    return _json(health, 200 if healthy else 503)


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value) + b"\n", status, media_type="application/json")


def _refuse(refusal: Refusal) -> Response:
    # The realm makes a browser ask.
    headers = {"WWW-Authenticate": 'Basic realm="refresher", charset="UTF-8"'} if refusal.status == 401 else None
    return Response(f"{refusal.status} {refusal.text}\n", refusal.status, headers, media_type="text/plain")


def _page() -> Iterator[tuple[str, _Endpoint]]:
    """Yield the path of each file of the page, and what answers there."""
    for file in files("refresher.daemon").joinpath("page").iterdir():
        if (media_type := _MEDIA_TYPES.get(PurePath(file.name).suffix)) is not None:
            yield "/" if file.name == "index.html" else f"/{file.name}", _send(file.read_bytes(), media_type)


def _send(body: bytes, media_type: str) -> _Endpoint:
    async def send(_: Request) -> Response:
        return Response(body, media_type=media_type)

    return send
