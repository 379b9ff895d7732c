"""The agents of a soak test, as a program: calls through the shim; a line of JSON for each call and each demand.

    python -m tests.faults.soak.agent sync|async NAME=URL...

It ends when its stdin is closed.
"""

import json
import random
import sys
import threading
import time

import anyio
import httpx
import httpx2

from shim import FileTokenSource, TokenFile
from shim.httpx import BearerAuth
from shim.httpx2 import BearerAuth as BearerAuth2

__all__ = ["main"]

_ENDED = threading.Event()


class _ReportingSource(FileTokenSource):
    """A token source that reports each demand."""

    __slots__ = ()

    def demand(self, token: TokenFile, *, expiring: bool = False) -> bool:
        _report(name=self.name, demand=token.generation)
        return super().demand(token, expiring=expiring)


def _report(**fields: object) -> None:
    # One write, so that lines of several threads do not mix.
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def _pause() -> float:
    return random.uniform(0.2, 1.2)  # seconds between two calls


def _calls(name: str, url: str) -> None:
    with httpx.Client(auth=BearerAuth(_ReportingSource(name)), timeout=60, trust_env=False) as http:
        while not _ENDED.is_set():
            try:
                _report(name=name, status=http.get(url).status_code)
            except httpx.HTTPError as error:
                _report(name=name, status=type(error).__name__)
            time.sleep(_pause())


async def _acalls(name: str, url: str) -> None:
    async with httpx2.AsyncClient(auth=BearerAuth2(_ReportingSource(name)), timeout=60, trust_env=False) as http:
        while not _ENDED.is_set():
            try:
                _report(name=name, status=(await http.get(url)).status_code)
            except httpx2.HTTPError as error:
                _report(name=name, status=type(error).__name__)
            await anyio.sleep(_pause())


async def _all(grants: list[list[str]]) -> None:
    async with anyio.create_task_group() as group:
        for name, url in grants:
            group.start_soon(_acalls, name, url)
        await anyio.to_thread.run_sync(_ENDED.wait)
        group.cancel_scope.cancel()


def _listen() -> None:
    sys.stdin.read()
    _ENDED.set()


def main(style: str, *given: str) -> None:
    """Call each URL with the token of its name until stdin is closed."""
    threading.Thread(target=_listen, daemon=True).start()
    grants = [each.split("=", 1) for each in given]
    if style == "async":
        anyio.run(_all, grants)
        return
    threads = [threading.Thread(target=_calls, args=(name, url), daemon=True) for name, url in grants]
    for thread in threads:
        thread.start()
    _ENDED.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
