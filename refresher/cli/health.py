"""The command health: asks the running service for its health, for probes and for people."""

import http.client
import json
from typing import Final

import click
import msgspec

from refresher.cli.options import LISTEN, Options, command
from refresher.common.terminal import say
from refresher.config import DEFAULT_ADDRESS, Address, shown_address
from refresher.daemon.readiness import Health

__all__ = ["health"]

_TIMEOUT: Final = 5.0
_LARGEST: Final = 1024 * 1024
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
@click.pass_obj
def health(options: Options, listen: str | None, live: bool, as_json: bool) -> int:
    """Ask the service, 'refresher run --listen HOST:PORT', whether it is ready or live.

    \b
    live    the service is responsive
    ready   it is live, and every grant that does not need a person has a valid
            published token. A grant that needs a person is named, and does not
            count: no restart would help.

    Without --listen, health asks the address of the configuration, or 127.0.0.1:9464.
    """
    options.add(listen=listen)
    host, port = options.settings().listen or DEFAULT_ADDRESS
    answer = _ask((_ANY_ADDRESS.get(host, host), port))
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


def _ask(address: Address) -> Health | str:
    """Return the health of the service, or why there is no answer."""
    connection = http.client.HTTPConnection(*address, timeout=_TIMEOUT)
    shown = shown_address(address)
    try:
        # Both pages have the same text: the status of the answer is not needed.
        connection.request("GET", "/readyz")
        return msgspec.json.decode(connection.getresponse().read(_LARGEST), type=Health)
    except OSError as error:
        why = (error.strerror or "no answer in time").lower()
        return f"nothing answers at {shown} ({why}): is 'refresher run --listen {shown}' running?"
    except (http.client.HTTPException, ValueError):
        return f"the server at {shown} is not refresher: give --listen the address of 'refresher run'"
    finally:
        connection.close()
