"""The HTTP side of a bridge: one request to the server, and all that comes back for it."""

import functools
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import anyio
import httpx2

from refresher.stdio.messages import INTERNAL_ERROR, LONGEST, Message, dump, error, is_answer, parse, responses_in
from shim import FileTokenSource, ReauthorizationRequired, Removed, ShimError, TokenRejected, TokenUnavailable
from shim._backoff import retry_pause
from shim._bearer import origin_of_request
from shim._failure import Failure, describe, has_type, is_event_stream, send_once
from shim._origins import origin_of_url
from shim._server_stream import MAX_REDIRECTS, endless_response, redirect_within_origin
from shim.httpx2 import BearerAuth

__all__ = ["Upstream"]

_JSON: Final = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
_DEFAULT_RETRY: Final = 1.0
_LONGEST_RETRY: Final = 30.0
_LONGEST_ERROR: Final = 64 * 1024

Deliver = Callable[[Message], Awaitable[None]]


class Upstream:
    """The server of a grant. ``url``: its address, ``None`` for that of the token file.

    ``command`` runs refresher with the directories of this process; it stands in messages.
    """

    def __init__(
        self, source: FileTokenSource, url: str | None, ca_file: str | None, patience: float, command: str = "refresher"
    ) -> None:
        context = ssl.create_default_context(cafile=ca_file) if ca_file else httpx2.create_ssl_context()
        # Python takes it from SSLKEYLOGFILE: a program that reads that file can read each token.
        context.keylog_filename = None  # type: ignore[assignment]  # typeshed does not know it
        self._source = source
        self._given = url
        self._patience = patience
        self._command = command
        self.http = httpx2.AsyncClient(
            auth=BearerAuth(source),
            verify=context,
            # As in the clients of shim: a response may take five minutes.
            timeout=httpx2.Timeout(30.0, read=300.0, pool=None),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=20),
        )

    def url(self) -> str:
        """Return the address of the server. Raises a ``ShimError`` if no token may be sent there now."""
        name, token = self._source.name, self._source.current()
        if token is None or token.access_token is None:
            raise self._source.problem() or TokenUnavailable(f"there is no token of {name} yet")
        url = self._given or token.server_url
        if url is None:
            raise TokenUnavailable(f"the token of {name} does not name its server: start 'refresher stdio' with --url")
        if (origin := origin_of_url(url)) not in token.origins:
            raise TokenUnavailable(
                f"the token of {name} is for {', '.join(token.origins)}, and not for {origin or 'the given address'}"
            )
        return url

    def name(self) -> str:
        """Return the origin of the server, for messages: its address can hold a key."""
        token = self._source.current()
        url = self._given or (None if token is None else token.server_url)
        return (url and origin_of_url(url)) or "the server"

    def refusal(self, failure: Failure) -> ShimError:
        """Return why the server refuses the token, with what a person must do."""
        server = self.name()
        if failure.kind == "insufficient_scope":
            return failure.refusal.as_error(self._source.name, server)
        return self._source.problem() or TokenRejected(f"{server} rejects the token of {self._source.name}")

    def text(self, problem: ShimError) -> str:
        """Return the message of ``problem``, with a command for the directories of this process."""
        text, command = str(problem), problem.login_command
        return text if command is None else text.replace(command, self._command + command.removeprefix("refresher"))

    def needs_person(self) -> bool:
        """Whether there is no token, and only a person can change that."""
        token = self._source.current()
        return (token is None or token.access_token is None) and isinstance(
            self._source.problem(), ReauthorizationRequired | Removed
        )

    async def exchange(
        self,
        message: Message,
        url: str,
        headers: Mapping[str, str],
        deliver: Deliver,
        opened: Callable[[httpx2.Headers], None] = lambda _: None,
    ) -> Message | Failure:
        """Send a request; return its answer, or why there is none. What else comes for it goes to ``deliver``."""
        response = await self._post(message, url, headers)
        if isinstance(response, Failure):
            return response
        try:
            request_id = message["id"]
            if is_event_stream(response):
                opened(response.headers)
                return await self._events(response, request_id, url, headers, deliver)
            answer: Message | None = None
            try:
                for each in responses_in(parse(response.content)) if has_type(response, "application/json") else ():
                    if is_answer(each):
                        answer = each | {"id": request_id}
                    else:
                        await deliver(each)
            except ValueError:
                pass
            if answer is not None:
                opened(response.headers)
                return answer
            if 300 <= response.status_code < 500:
                text = self._redirect(response) or f"the server refuses the request ({response.status_code})"
                return error(request_id, INTERNAL_ERROR, text)
            return Failure("broken", f"the server's response is not a JSON-RPC response ({response.status_code})")
        finally:
            await response.aclose()

    async def notify(self, message: Message, url: str, headers: Mapping[str, str]) -> Failure | None:
        """Send a message that has no answer; return why the server does not have it."""
        response = await self._post(message, url, headers)
        if isinstance(response, Failure):
            return response
        await response.aclose()
        return None if response.is_success else Failure("broken", f"the server answered {response.status_code}")

    async def _post(self, message: Message, url: str, headers: Mapping[str, str]) -> httpx2.Response | Failure:
        request = self.http.build_request("POST", url, headers={**_JSON, **headers}, content=dump(message))
        return await self._send(request)

    async def _send(self, request: httpx2.Request) -> httpx2.Response | Failure:
        send = functools.partial(self.http.send, stream=True)
        for _ in range(MAX_REDIRECTS):
            response = await send_once(send, request, _read)
            if isinstance(response, Failure) or (target := redirect_within_origin(response)) is None:
                return response
            await response.aclose()
            await target.aread()
            request = target
        return response

    def _redirect(self, response: httpx2.Response) -> str | None:
        """Return what to do about a redirect that was not followed. Its address can hold a key; its origin is shown."""
        if (target := response.next_request) is None:
            return None
        server, other = origin_of_request(response.request.url), origin_of_request(target.url)
        return (
            f"{server} redirects the request ({response.status_code}) to "
            f"{'another of its addresses' if other == server else f'{other}, and the token is not sent there'}; if the "
            "server has moved, a person imports a grant for its new address, or runs: "
            f"{self._command} login {self._source.name} URL"
        )

    async def _events(
        self, response: httpx2.Response, request_id: object, url: str, headers: Mapping[str, str], deliver: Deliver
    ) -> Message | Failure:
        """Return the answer in a stream. A stream that breaks is opened again, if its events have ids."""
        last_id, pause, reason = "", _DEFAULT_RETRY, "the server ended the stream without an answer"
        patience, failures = self._patience, 0
        while True:
            try:
                async for event in httpx2.EventSource(response, max_event_size=LONGEST):
                    last_id = event.id or last_id
                    if event.retry is not None:
                        pause = min(event.retry / 1000, _LONGEST_RETRY)
                    for each in responses_in(parse(event.data)) if event.data else ():
                        patience, failures = self._patience, 0
                        if is_answer(each):
                            return each | {"id": request_id}
                        await deliver(each)
            except Exception as failure:  # noqa: BLE001  a connection can break in any way
                reason = "the server sent what is not JSON" if isinstance(failure, ValueError) else describe(failure)
            finally:
                await response.aclose()
            while True:
                if not last_id or patience <= 0:
                    return Failure("lost", reason)
                wait = min(pause if failures == 0 else max(pause, retry_pause(failures)), patience)
                await anyio.sleep(wait)
                patience, failures = patience - wait, failures + 1
                request = self.http.build_request(
                    "GET", url, headers={**headers, "accept": "text/event-stream", "last-event-id": last_id}
                )
                again = await self._send(request)
                if isinstance(again, httpx2.Response):
                    if not is_event_stream(again):
                        await again.aclose()
                        return Failure("lost", reason)
                    response = again
                    break
                if again.kind in ("rejected", "insufficient_scope", "unknown_session"):
                    return Failure("lost", again.reason)

    async def listen(
        self, url: str, headers: Mapping[str, str], deliver: Deliver, report: Callable[[Failure | None, float], None]
    ) -> None:
        """Deliver what the server sends outside of requests, until cancelled; ``report`` is that of the stream."""
        request = self.http.build_request("GET", url, headers={**headers, "accept": "text/event-stream"})
        response = await endless_response(request, functools.partial(self.http.send, stream=True), report)
        try:
            async for event in httpx2.EventSource(response, max_event_size=LONGEST):
                try:
                    messages = responses_in(parse(event.data))
                except ValueError:
                    continue
                for each in messages:
                    if not is_answer(each):
                        await deliver(each)
        finally:
            await response.aclose()

    async def end(self, url: str, headers: Mapping[str, str]) -> None:
        """End a session at the server. This needs no newer token: it is neither demanded nor awaited."""
        origin = origin_of_url(url)
        authorization = self._source.authorization(self._source.current(), origin or "")
        if authorization is not None:
            sent: dict[str, Any] = {"headers": {**headers, "authorization": authorization}, "auth": httpx2.Auth()}
            await self.http.delete(url, **sent)


async def _read(response: httpx2.Response) -> None:
    """Read the body of ``response``, up to the longest message."""
    longest = _LONGEST_ERROR if response.is_error else LONGEST
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > longest:
            if response.is_error:
                break
            await response.aclose()
            raise ValueError(f"the response is longer than {LONGEST // 2**20} MiB")
    await response.aclose()
    response._content = bytes(body)  # noqa: SLF001  what aread() sets, which has no limit
