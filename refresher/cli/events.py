"""The command events."""

import json
import shutil
import sys
import textwrap
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import Final

import click
import msgspec

from refresher.cli.options import STOPPED, Options, command, complete_name, duration_option
from refresher.common import text
from refresher.common.terminal import say, show
from refresher.config import Settings
from refresher.observers import history
from refresher.observers.timeline import Line, lines, one_line
from refresher.operations.events import Event
from refresher.operations.names import unknown

__all__ = ["events"]

_POLL: Final = 0.5
_FEW: Final = 10
"""So many names have lines of their own, also if they were only rotated."""
_NARROWEST: Final = 20
_COLOURS: Final = {"active": "green", "failing": "yellow", "reauthorization_required": "red"}


@command(
    short_help="Show what happened: rotations, failures, logins.",
    exit_codes={
        0: "shown, also if nothing happened",
        2: "wrong usage or configuration, or a name without grant and events",
        4: "the history cannot be read",
        **STOPPED,
    },
)
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=complete_name)
@duration_option("--since", "1d", help="How far to look back.")
@click.option("--all", "each", is_flag=True, help="Show each event with its whole text.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON with each event; times are epoch seconds.")
@click.option("--follow", is_flag=True, help="Also show what happens from now on, until Ctrl-C.")
@click.pass_obj
def events(options: Options, names: tuple[str, ...], since: float, each: bool, as_json: bool, follow: bool) -> None:
    """Show what happened to each grant, or to those named, also to grants that were removed.

    Equal events in a row are one line: rotations with their generations, failures with their number and their times. A
    line that begins with '!' says that a state is not active any more, that a login ends, or that events were lost.

    \b
    Examples:
      refresher events                     what happened since yesterday
      refresher events linear --since 7d   one grant, a week
      refresher events --follow            as it happens

    refresher keeps the events of 30 days (history_days) in events.sqlite3 in the state directory, and 100 MB at most
    (history_mb). The history is a log: a kill or a full disk can lose events.
    """
    settings = options.settings()
    listed = (store := settings.open_store()).listing(names).names if names else ()
    for name in names:
        if name not in listed and not history.is_known(settings.directories, name):
            raise unknown(store, name)
    _warn(settings)
    with closing(history.Follower(settings.directories, names)) as follower:
        begin = time.time() - since
        found = sorted(follower.read(begin), key=lambda event: event.at)
        output = _Output()
        if as_json and not follow:
            show(json.dumps({"events": [*map(msgspec.structs.asdict, found)]}))
        elif found and as_json:
            show("\n".join(map(_json, found)))
        elif found:
            output.show(map(one_line, found) if each else _folded(lines(found), names))
        elif not as_json:
            say(f"nothing happened in the last {text.span(since)}", err=True)
        while follow:
            time.sleep(_POLL)
            if new := follower.read(begin):
                if as_json:
                    show("\n".join(map(_json, new)))
                else:
                    output.show(map(one_line, new))


def _warn(settings: Settings) -> None:
    """Say why there may be no new events."""
    if not settings.history_days or not settings.history_mb:
        say("refresher: the history is off (history_days or history_mb is 0): no new events are kept", err=True)
    elif settings.directories.state.exists() and (problem := history.little_space(settings.directories)) is not None:
        say(f"refresher: no new events are kept: {problem}", err=True)


def _folded(found: Sequence[Line], names: Sequence[str]) -> list[Line]:
    """Return the lines; many grants that were only rotated share one."""
    eventful = {line.name for line in found if line.key != ("rotated", "rotated")}
    quiet = [line for line in found if line.name not in eventful]
    if names or len({line.name for line in quiet}) <= _FEW:
        return [*found]
    rotations, count = sum(line.count for line in quiet), len({line.name for line in quiet})
    line = quiet[0]
    line.text = f"{count} grants were rotated {rotations} times, and nothing else happened to them"
    line.name, line.until = "", max(each.until for each in quiet)
    return [line, *(each for each in found if each.name in eventful)]


def _json(event: Event) -> str:
    return json.dumps(msgspec.structs.asdict(event))


class _Output:
    """Prints lines: on a terminal with a date where it changes, else each with its whole time."""

    def __init__(self) -> None:
        self._terminal: Final = sys.stdout.isatty()
        self._date = ""

    def show(self, found: Iterable[Line]) -> None:
        """Print ``found`` in the order of their times. Raises ``OSError``."""
        found = sorted(found, key=lambda line: line.at)
        width = max((len(line.name) for line in found), default=0)
        printed = [part for line in found for part in self._lines(line, width)]
        if printed:
            show("\n".join(printed))

    def _lines(self, line: Line, width: int) -> list[str]:
        mark = "!" if line.alarming else " "
        said = text.one_line(line.text)
        if not self._terminal:
            until = f" (until {text.clock_time(line.until)})" if line.count > 1 else ""
            return [f"{mark} {text.clock_time(line.at)}  {line.name:{width}}  {said}{until}".rstrip()]
        date, _, clock = text.clock_time(line.at).partition(" ")
        last_date, _, last = text.clock_time(line.until).partition(" ")
        if line.count > 1:
            last = last[:8] if date == last_date else f"{last_date} {last[:8]}"
            head, colon, rest = said.partition(": ")
            said = f"{head}, until {last}{colon}{rest}"
        begin = f"{mark} {clock[:8]}  {line.name:{width}}  "
        columns = shutil.get_terminal_size().columns
        wrapped = textwrap.wrap(said, max(columns - len(begin), _NARROWEST)) or [""]
        colour = _COLOURS.get(line.state or "", "yellow" if line.alarming else None)
        styled = [click.style(part, fg=colour, bold=True) if colour else part for part in wrapped]
        printed = [f"{begin}{styled[0]}", *(" " * len(begin) + part for part in styled[1:])]
        if date != self._date:
            self._date = date
            printed.insert(0, click.style(date, bold=True))
        return printed
