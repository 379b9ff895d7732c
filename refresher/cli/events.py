"""The command events: what happened to the grants."""

import json
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import click
import msgspec

from refresher.cli.options import Options, command, complete_name, duration_option
from refresher.cli.tables import check_state
from refresher.common import text
from refresher.common.errors import ConfigError
from refresher.common.terminal import say, show
from refresher.observers import history
from refresher.operations.events import Event

__all__ = ["events"]

_POLL: Final = 0.5
_COLOURS: Final = {"active": "green", "failing": "yellow", "reauthorization_required": "red"}
_STATES: Final = {
    "active": "works again",
    "failing": "is failing",
    "reauthorization_required": "needs a person: log in again",
}


@command(
    short_help="Show what happened: rotations, failures, logins.",
    exit_codes={
        0: "shown",
        2: "wrong usage or configuration, or the history is off",
        4: "the history cannot be read",
    },
)
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=complete_name)
@duration_option("--since", "1d", help="How far to look back.")
@click.option("--all", "each", is_flag=True, help="Show each event, instead of one line for those that are alike.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; times are epoch seconds.")
@click.option("--follow", is_flag=True, help="Then print what happens, until Ctrl-C; with --json one object a line.")
@click.pass_obj
def events(
    options: Options, names: tuple[str, ...], since: float, each: bool, as_json: bool, follow: bool
) -> int | None:
    """Show what happened to all grants, or to those named: rotations, failures, logins, removals.

    Rotations of a grant that follow each other are one line, and so are failures of one kind. All processes of
    refresher write the history; after a kill, the last events can be missing. Missing generations are shown.

    \b
    Examples:
      refresher events                   the last day
      refresher events linear --since 7d
      refresher events --follow          live, from all processes
    """
    settings = options.settings()
    check_state(settings)
    if not (settings.history_days and settings.history_mb):
        raise ConfigError("the history is off: set history_days and history_mb to more than 0")
    found = history.read(settings.directories, names, since=time.time() - since)
    happened = [event for _, event in found]
    if as_json and not follow:
        show(json.dumps({"events": [msgspec.structs.asdict(event) for event in happened]}))
        return None
    lines = _Lines(each=each, as_json=as_json)
    shown = list(lines.of(happened))
    if shown:
        show("\n".join(shown))
    elif not as_json:
        of = f" of {text.names(names)}" if names else ""
        say(f"nothing happened{of} in the last {text.span(since)}", err=True)
    if follow:
        last = found[-1][0] if found else 0
        lines.each = True
        try:
            while True:
                time.sleep(_POLL)
                for number, event in history.read(settings.directories, names, since=time.time() - since, after=last):
                    last = number
                    for line in lines.of([event]):
                        show(line)
        except KeyboardInterrupt:
            return None
    return None


class _Group(msgspec.Struct):
    """Events of one grant that follow each other and are alike."""

    first: Event
    last: Event
    count: int = 1
    demanded: int = 0


class _Lines:
    """The lines of events, from the oldest to the newest."""

    def __init__(self, *, each: bool, as_json: bool) -> None:
        self.each = each
        """Each event has a line of its own."""
        self._as_json = as_json
        self._terminal = sys.stdout.isatty()
        self._width = shutil.get_terminal_size().columns if self._terminal else None
        self._day = ""
        # The last known generation of each name.
        self._generations: dict[str, int] = {}

    def of(self, happened: Sequence[Event]) -> Iterator[str]:
        """Yield the lines of some events."""
        if self._as_json:
            for event in happened:
                yield json.dumps(msgspec.structs.asdict(event))
            return
        widest = max((len(event.name) for event in happened), default=0)
        for group in _single(happened) if self.each else _grouped(happened):
            if (gap := self._gap(group)) is not None:
                yield from self._line(group.first, widest, gap, None)
            colour = _colour(group.first)
            yield from self._line(group.first, widest, _sentence(group), colour)

    def _gap(self, group: _Group) -> str | None:
        """Return which generations before ``group`` left no event."""
        known, first, last = self._generations.get(group.first.name), group.first.generation, group.last.generation
        if group.first.kind not in ("rotated", "logged_in", "imported") or first is None or last is None:
            return None
        self._generations[group.first.name] = last
        if known is None or first <= known + 1:
            return None
        missing = str(known + 1) if first == known + 2 else f"{known + 1} to {first - 1}"
        return f"no event of generation {missing}: the process was killed, or the history was not written"

    def _line(self, event: Event, widest: int, sentence: str, colour: str | None) -> Iterator[str]:
        shown = text.clock_time(event.at)
        if not self._terminal:
            yield f"{shown}  {event.name:{widest}}  {sentence}"
            return
        if (day := shown[:10]) != self._day:
            self._day = day
            yield click.style(day, bold=True)
        line = f"  {shown[11:16]}  {event.name:{widest}}  {sentence}"
        if self._width is not None and len(line) > self._width:
            line = f"{line[: self._width - 3]}..."
        yield line if colour is None else click.style(line, fg=colour)


def _single(happened: Iterable[Event]) -> Iterator[_Group]:
    return (_Group(event, event, demanded=event.demanded) for event in happened)


def _grouped(happened: Iterable[Event]) -> list[_Group]:
    """Return the groups in the order of their first events."""
    groups: list[_Group] = []
    open_groups: dict[str, _Group] = {}
    for event in happened:
        if event.kind == "demanded":
            continue  # its rotation says it
        group = open_groups.get(event.name)
        if group is not None and _is_alike(group, event):
            group.last, group.count = event, group.count + 1
        else:
            open_groups[event.name] = group = _Group(event, event)
            groups.append(group)
        group.demanded += event.demanded
    return groups


def _is_alike(group: _Group, event: Event) -> bool:
    last = group.last
    if (event.kind, event.outcome) != (last.kind, last.outcome) or event.kind in ("state_changed", "login_ending"):
        return False
    if event.kind != "rotated" or event.generation is None or last.generation is None:
        return event.kind in ("failed", "published")
    return event.generation == last.generation + 1


def _colour(event: Event) -> str | None:
    if event.kind == "state_changed":
        return _COLOURS.get(event.state or "")
    return "yellow" if event.kind in ("failed", "login_ending", "recovered") else None


def _sentence(group: _Group) -> str:
    """Return what happened, for a person."""
    event = group.last
    times = f" {group.count} times" if group.count > 1 else ""
    until = f", until {text.clock_time(event.at)[11:16]}" if group.count > 1 else ""
    detail = text.printable(event.detail)
    outcome = "" if event.outcome in (None, "transient") else f"{event.outcome}: "
    match event.kind:
        case "rotated":
            generations = (
                f"generation {event.generation}"
                if group.count == 1
                else f"generations {group.first.generation} to {event.generation}"
            )
            demanded = f"; {group.demanded} demanded by agents" if group.demanded and group.count > 1 else ""
            demanded = "; an agent demanded it" if group.demanded and group.count == 1 else demanded
            trouble = "" if event.outcome == "rotated" else f"; {event.outcome}: {detail}"
            return f"rotated{times}, {generations}{until}{demanded}{trouble}"
        case "failed":
            return f"failed{times}{until}: {outcome}{detail}"
        case "state_changed":
            changed = _STATES.get(event.state or "", event.state or "")
            return f"{changed} (was {event.state_before})" + (f": {detail}" if detail else "")
        case "demanded":
            return f"an agent demanded another token than that of generation {event.generation}"
        case "published":
            return f"published again{times}, generation {event.generation}{until}"
        case "logged_in":
            return f"logged in {detail} (generation {event.generation})"
        case "imported":
            return f"imported {detail} (generation {event.generation})"
        case "removed":
            return f"removed; {detail}"
        case "recovered":
            return f"recovered: {detail}"
        case "login_ending":
            return detail
