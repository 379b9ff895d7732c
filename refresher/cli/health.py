"""The command health: asks the running service for its health, for probes and for people."""

import http.client
import json
import socket
import threading
import time
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Final

import click
import msgspec

from refresher.cli.options import LISTEN, Options, command
from refresher.common.addresses import DEFAULT_ADDRESS, Address, shown_address
from refresher.common.terminal import say
from refresher.daemon.readiness import Health
from refresher.storage import health_socket

__all__ = ["health"]

_DEADLINE: Final = 5.0
_CONNECT_TIMEOUT: Final = 1.5
_MAX_ATTEMPTS: Final = 20
_PAUSE: Final = 0.05
_LARGEST: Final = 1024 * 1024
_MISDIRECTED: Final = 421
_ANY_ADDRESS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  the address to ask


@command(
    short_help="Ask the running service whether it is healthy.",
    exit_codes={
        0: "ready (with --live: live)",
        1: "not ready (with --live: not live), or no answer",
        2: "wrong usage or configuration",
    },
)
@LISTEN
@click.option("--live", is_flag=True, help="Ask only whether it is responsive: if it is not, restart it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def health(context: click.Context, listen: str | None, live: bool, as_json: bool) -> int:
    """Ask the service, 'refresher run', whether it is ready or live.

    \b
    live    the service is responsive
    ready   it is live, and every grant that does not need a person has a valid
            published token. A grant that needs a person is named, and does not
            count: no restart would help.

    health asks at the service's private socket in the state directory, which no other user can reach. Only if none is
    there, it asks the address of the configuration. If the socket belongs to another user, it asks that address, or
    127.0.0.1:9464. With --listen on the command line, it asks that address only.
    """
    options: Options = context.obj
    options.add(listen=listen)
    settings = options.settings()
    named = context.get_parameter_source("listen") == click.core.ParameterSource.COMMANDLINE
    answer = _ask(None if named else settings.directories.health_socket, settings.listen)
    if isinstance(answer, str):
        say(json.dumps({"live": False, "ready": False, "problem": answer}) if as_json else answer)
        return 1
    if as_json:
        say(msgspec.json.encode(answer).decode())
    elif not answer.live:
        say("not live: the service is not responsive; restart it")
    else:
        hint = "" if answer.fresh == answer.grants else " ('refresher status' says why)"
        say(f"{'live' if live else 'ready' if answer.ready else 'not ready'}: {answer.summary()}{hint}")
    return 0 if (answer.live if live else answer.ready) else 1


def _ask(path: Path | None, address: Address | None) -> Health | str:
    """Return the health of the service, or why there is no answer."""
    answers: SimpleQueue[Health | str] = SimpleQueue()
    # One deadline over everything, also over a resolver, and over a server that sends a byte a second.
    threading.Thread(target=lambda: answers.put(_answer(path, address)), daemon=True).start()
    try:
        return answers.get(timeout=_DEADLINE)
    except Empty:
        asked = shown_address(address or DEFAULT_ADDRESS) if path is None else path
        way_out = "restart 'refresher run'" if path is not None else "give --listen the address of 'refresher run'"
        return f"no complete answer within {_DEADLINE:.0f} s (asked at {asked}): {way_out}"


def _answer(path: Path | None, address: Address | None) -> Health | str:
    if path is not None:
        start = "start 'refresher run' with this state directory"
        try:
            return _read(health_socket.connect(path, _DEADLINE), "localhost")
        except PermissionError:
            pass  # it belongs to another user
        except FileNotFoundError:
            if address is None:
                return f"nothing answers at {path} (there is no such socket): {start}"
        except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
            # It was killed, or hangs. Any program could answer at an address in its place.
            return f"nothing answers at {path} ({getattr(error, 'strerror', None) or 'no answer'}): {start}"
    host, port = address or DEFAULT_ADDRESS
    shown, address = shown_address((host, port)), (_ANY_ADDRESS.get(host, host), port)
    for attempt in range(_MAX_ATTEMPTS):
        try:
            connection = socket.create_connection(address, _CONNECT_TIMEOUT)
            connection.settimeout(_DEADLINE)
            return _read(connection, shown)
        except (TimeoutError, ConnectionResetError, BrokenPipeError) as error:
            # Somebody uses up all connections. With patience, there is a free one.
            why = "no answer in time" if isinstance(error, TimeoutError) else "it closes the connection"
            time.sleep(_PAUSE * (attempt > 0))
        except OSError as error:
            why = (error.strerror or "no answer in time").lower()
            break
        except (http.client.HTTPException, ValueError, RecursionError):
            return f"the server at {shown} is not refresher: give --listen the address of 'refresher run'"
    return f"nothing answers at {shown} ({why}): is 'refresher run --listen {shown}' running?"


def _read(connection: socket.socket, host: str) -> Health | str:
    """Return the answer, or why there is none, and close the connection.

    Raises an exception if the server is not refresher. No text of the server is printed before it is checked.
    """
    with connection:
        # Both pages have the same text: the status of the answer is not needed.
        connection.sendall(f"GET /readyz HTTP/1.0\r\nHost: {host}\r\n\r\n".encode("ascii"))
        with http.client.HTTPResponse(connection) as response:
            response.begin()
            if response.status == _MISDIRECTED:
                return f"{host} refuses this name: give its IP address, or add the name to 'run --listen-host'"
            return msgspec.json.decode(response.read(_LARGEST), type=Health)
