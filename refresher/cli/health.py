"""The command that asks a daemon how it is, for probes and for people: health."""

import http.client
import json
from typing import Final

import click
import msgspec

from refresher.addresses import DEFAULT, Address, shown
from refresher.cli.options import LISTEN, Asked
from refresher.common.terminal import say
from refresher.daemon.health import Health

__all__ = ["health"]

_PATIENCE: Final = 5.0
_LARGEST: Final = 1024 * 1024
_ANYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  addresses to ask, none to listen on

_EXIT_CODES: Final = """\b
Exit codes:
  0  yes
  1  no, or nobody answers
  2  usage, configuration"""


@click.command(epilog=_EXIT_CODES, short_help="Ask the daemon how it is.")
@LISTEN
@click.option("--live", is_flag=True, help="Ask only whether its loops turn: to restart it where they do not.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def health(asked: Asked, listen: str | None, live: bool, as_json: bool) -> int:
    """Ask a 'refresher run --listen HOST:PORT' whether each grant that can be fresh is fresh.

    \b
    ready   its loops turn, and each grant has a live access token that is
            published. What needs a person is named, and does not count: no
            restart would help.

    Without --listen it asks where the configuration says, or at 127.0.0.1:9464.
    """
    asked.add(listen=listen)
    address = asked.settings().listen or DEFAULT
    answer = _ask((_ANYWHERE.get(address[0], address[0]), address[1]))
    if isinstance(answer, str):
        say(json.dumps({"live": False, "ready": False, "problem": answer}) if as_json else answer)
        return 1
    say(msgspec.json.encode(answer).decode() if as_json else _in_words(answer, live=live))
    return 0 if (answer.live if live else answer.ready) else 1


def _ask(address: Address) -> Health | str:
    """Return what a daemon says of itself, or why nobody says anything."""
    there = http.client.HTTPConnection(*address, timeout=_PATIENCE)
    try:
        # The same is told at /healthz: what it means is read off the words, not off the status.
        there.request("GET", "/readyz")
        return msgspec.json.decode(there.getresponse().read(_LARGEST), type=Health)
    except OSError as error:
        why = error.strerror or "no answer in time"
        return f"nobody answers at {shown(address)} ({why}): does 'refresher run --listen {shown(address)}' run?"
    except (http.client.HTTPException, ValueError):
        return f"what answers at {shown(address)} is no refresher: give another address to --listen"
    finally:
        there.close()


def _in_words(health: Health, *, live: bool) -> str:
    if not health.live:
        return "its loops stand still: restart it"
    needs_more = "" if health.fresh == health.grants else " ('refresher status' says why)"
    word = "live" if live else "ready" if health.ready else "not ready"
    return f"{word}: {health.in_words()}{needs_more}"
