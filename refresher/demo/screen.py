"""The output of the demo: on a terminal one block that is redrawn in place, otherwise plain lines."""

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from textwrap import fill
from typing import Final

import click

from refresher.common.terminal import say
from refresher.demo.timeline import MAX_WIDTH, PARTICIPANTS, Event, Timeline, Tone

__all__ = ["Show", "frame", "print_lines", "screen"]

_MIN_SIZE: Final = os.terminal_size((80, 20))
"""The smallest terminal for the block; a smaller one gets plain lines."""
_MIN_BAR: Final = 10
_NEARLY_EXPIRED: Final = 0.25
_STATUS_INTERVAL: Final = 5.0

_HIDE_CURSOR: Final = "\x1b[?25l"
_SHOW_CURSOR: Final = "\x1b[?25h"
_CLEAR: Final = "\x1b[2J\x1b[H"
_CLEAR_TO_LINE_END: Final = "\x1b[K"
_STYLE: Final = re.compile(r"(\x1b\[[0-9;]*m)")

_COLOURS: Final[dict[Tone, str | None]] = {"plain": None, "good": "green", "notice": "yellow", "bad": "red"}

Show = Callable[[Timeline], None]


@contextmanager
def screen() -> Iterator[Show]:
    """Yield the function that shows the timeline as it is now."""
    size = shutil.get_terminal_size()
    fits = size.columns >= _MIN_SIZE.columns and size.lines >= _MIN_SIZE.lines
    if not (sys.stdout.isatty() and fits) or os.environ.get("TERM") == "dumb":
        yield _Lines().show
        return
    _write(_HIDE_CURSOR)
    try:
        yield _Block().show
    finally:
        _write(_SHOW_CURSOR)


class _Lines:
    """A line for each participant and event, and a status line every few seconds."""

    def __init__(self) -> None:
        self._participants = self._events = 0
        self._next_status = _STATUS_INTERVAL

    def show(self, timeline: Timeline) -> None:
        """Print what is new."""
        participants = _participants(timeline)
        print_lines([*participants[self._participants :], *map(_event, timeline.events[self._events :])])
        self._participants, self._events = len(participants), len(timeline.events)
        if timeline.now >= self._next_status:
            self._next_status += _STATUS_INTERVAL
            agent = timeline.agent
            sessions = f"sessions opened {agent.sessions}; access token {timeline.generation}, {_left(timeline)}"
            counts = f"calls made {agent.calls:,}, failed {agent.failed:,}; {sessions}"
            print_lines([f"  {_clock(timeline.now)}  {counts}"])


class _Block:
    """One block, redrawn in place."""

    def __init__(self) -> None:
        self._height = 0
        self._size = os.terminal_size((0, 0))

    def show(self, timeline: Timeline) -> None:
        """Draw the block over the previous one."""
        size = shutil.get_terminal_size()
        lines = frame(timeline, size.columns, size.lines - 1)
        # A terminal that was resized has wrapped the old lines again, so the position of the first one is not known.
        up = _CLEAR if self._height and size != self._size else f"\x1b[{self._height}A" if self._height else ""
        _write("\r" + up + "".join(f"{line}{_CLEAR_TO_LINE_END}\n" for line in lines))
        self._height, self._size = len(lines), size


def print_lines(lines: Iterable[str]) -> None:
    """Print styled lines; one that is too long is wrapped, and loses its style."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else MAX_WIDTH
    for line in lines:
        text = click.unstyle(line)
        say(line if len(text) <= width else fill(text, width, subsequent_indent=" " * 8))


def _write(text: str) -> None:
    # The demo continues if its terminal is gone.
    with suppress(OSError, ValueError):
        sys.stdout.write(text)
        sys.stdout.flush()


def frame(timeline: Timeline, width: int, height: int) -> list[str]:
    """Return the block as styled lines that fit into ``width`` columns and ``height`` lines."""
    width = min(width, MAX_WIDTH)
    clock = f"{_clock(timeline.now)} of {_clock(timeline.seconds)}" if timeline.agent.calls else "starting"
    name = "refresher demo"
    about = f"Access tokens are valid for {timeline.lifetime} s here. One process refreshes, the agent only reads."
    lines = [
        click.style(name, bold=True) + clock.rjust(width - len(name)),
        click.style(about, dim=True),
        *("", *_participants(timeline)),
        *("", _lifetime_bar(timeline, width)),
        *("", *_table(timeline)),
        "",
    ]
    lines += map(_event, timeline.events[-max(height - len(lines), 1) :])
    return [_fit(line, width) for line in lines[:height]]


def _participants(timeline: Timeline) -> list[str]:
    return [
        f"  {name:<22}{click.style(f'{address:<28}{PARTICIPANTS[name]}', dim=True)}"
        for name, address in timeline.addresses.items()
    ]


def _lifetime_bar(timeline: Timeline, width: int) -> str:
    label = f"  access token {timeline.generation or '-'}".ljust(24)
    share = min(max(timeline.left / timeline.lifetime, 0.0), 1.0)
    if timeline.revoked:
        state, share, colour = "revoked", 0.0, "red"
    elif timeline.generation == 0:
        state, share, colour = "none yet", 0.0, "yellow"
    else:
        state, colour = _left(timeline), "green" if share > _NEARLY_EXPIRED else "yellow"
    cells = max(width - len(label) - 14, _MIN_BAR)
    filled = round(share * cells)
    try:
        full, empty = "█░"
        "█░".encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        full, empty = "#."
    bar = click.style(full * filled, fg=colour) + click.style(empty * (cells - filled), dim=True)
    return f"{label}{bar}  {click.style(state, fg=colour)}"


def _table(timeline: Timeline) -> list[str]:
    agent = timeline.agent
    cells: list[tuple[str, str, Tone]] = [
        ("calls made", f"{agent.calls:,}", "plain"),
        ("calls failed", f"{agent.failed:,}", "bad" if agent.failed else "good"),
        ("sessions opened", f"{agent.sessions:,}", "bad" if agent.sessions > 1 else "good"),
        ("generation", f"{timeline.generation:,}", "plain"),
        ("rotations", f"{timeline.rotations.total():,}", "plain"),
        ("slowest call", f"{agent.slowest:.2f} s", "plain"),
    ]
    heads = "  ".join(click.style(name, dim=True) for name, _, _ in cells)
    values = "  ".join(click.style(value.rjust(len(name)), fg=_COLOURS[tone], bold=True) for name, value, tone in cells)
    return [f"  {heads}", f"  {values}"]


def _event(event: Event) -> str:
    text = click.style(event.text, fg=_COLOURS[event.tone])
    return f"  {click.style(_clock(event.at), dim=True)}  {text}"


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def _left(timeline: Timeline) -> str:
    return f"{max(timeline.left, 0.0):.1f} s left"


def _fit(line: str, width: int) -> str:
    """Cut a styled line to ``width`` characters, and keep its styles."""
    if os.environ.get("NO_COLOR"):
        line = click.unstyle(line)
    parts = _STYLE.split(line)
    for index in range(0, len(parts), 2):  # every second part is a style
        parts[index] = parts[index][:width]
        width -= len(parts[index])
    return "".join(parts)
