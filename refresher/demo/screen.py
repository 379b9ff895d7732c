"""The output of the demo: on a terminal one block that is redrawn in place, otherwise plain lines."""

import os
import re
import shutil
import sys
from contextlib import suppress
from types import TracebackType
from typing import Final, Protocol, Self

import click

from refresher.common.terminal import say
from refresher.demo.timeline import WIDEST, Event, Participant, Timeline, Tone

__all__ = ["Lines", "Live", "Screen", "frame", "screen"]

_NARROWEST_BAR: Final = 10
_NEARLY_OVER: Final = 0.25
_STATUS_EACH: Final = 5.0

_HIDE_CURSOR: Final = "\x1b[?25l"
_SHOW_CURSOR: Final = "\x1b[?25h"
_CLEAR: Final = "\x1b[2J\x1b[H"
_TO_LINE_END: Final = "\x1b[K"
_STYLE: Final = re.compile(r"(\x1b\[[0-9;]*m)")

_COLOURS: Final[dict[Tone, str | None]] = {"plain": None, "good": "green", "notice": "yellow", "bad": "red"}


class Screen(Protocol):
    """Shows a timeline while it grows."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal as it was."""

    def show(self, timeline: Timeline) -> None:
        """Show the timeline as it is now."""


def screen() -> Screen:
    """Return the screen that fits stdout."""
    return Live() if sys.stdout.isatty() and os.environ.get("TERM") != "dumb" else Lines()


class Lines:
    """A line for each event, and a status line every few seconds."""

    def __init__(self) -> None:
        self._introduced = self._told = 0
        self._next_status = _STATUS_EACH

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def show(self, timeline: Timeline) -> None:
        """Print what is new."""
        for participant in timeline.participants[self._introduced :]:
            say(_participant(participant))
        for happening in timeline.events[self._told :]:
            say(_event_line(happening))
        self._introduced, self._told = len(timeline.participants), len(timeline.events)
        if timeline.now >= self._next_status:
            self._next_status += _STATUS_EACH
            say(
                f"  {_clock(timeline.now)}  calls made {timeline.calls:,}, failed {timeline.failed:,}; sessions opened "
                f"{timeline.sessions}; access token {timeline.generation}, {max(timeline.left, 0.0):.1f} s left"
            )


class Live:
    """One block, redrawn in place, with a hidden cursor."""

    def __init__(self) -> None:
        self._height = 0
        self._size = os.terminal_size((0, 0))

    def __enter__(self) -> Self:
        self._write(_HIDE_CURSOR)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write(_SHOW_CURSOR)

    def show(self, timeline: Timeline) -> None:
        """Draw the block over the previous one."""
        size = shutil.get_terminal_size()
        lines = frame(timeline, size.columns, size.lines - 1)
        # A terminal that was resized has wrapped the old lines anew, so their first line is not known.
        up = _CLEAR if self._height and size != self._size else f"\x1b[{self._height}A" if self._height else ""
        self._write("\r" + up + "".join(f"{line}{_TO_LINE_END}\n" for line in lines))
        self._height, self._size = len(lines), size

    def _write(self, text: str) -> None:
        # The demo goes on where its terminal is gone.
        with suppress(OSError, ValueError):
            sys.stdout.write(text)
            sys.stdout.flush()


def frame(timeline: Timeline, width: int, height: int) -> list[str]:
    """Return the block as styled lines that fit into ``width`` columns and ``height`` lines."""
    width = min(width, WIDEST)
    lines = [
        *_title(timeline, width),
        "",
        *map(_participant, timeline.participants),
        "",
        _life(timeline, width),
        "",
        *_table(timeline),
        "",
    ]
    lines += [_event_line(happening) for happening in timeline.events[-max(height - len(lines), 1) :]]
    return [_fit(line, width) for line in lines[:height]]


def _title(timeline: Timeline, width: int) -> list[str]:
    name = "refresher demo"
    clock = f"{_clock(timeline.now)} of {_clock(timeline.seconds)}" if timeline.begun else "starting"
    return [
        click.style(name, bold=True) + clock.rjust(width - len(name)),
        click.style(
            f"Access tokens live {timeline.life} s here. One process refreshes, the agent only reads.", dim=True
        ),
    ]


def _participant(participant: Participant) -> str:
    return f"  {participant.name:<22}{click.style(f'{participant.where:<28}{participant.does}', dim=True)}"


def _life(timeline: Timeline, width: int) -> str:
    label = f"  access token {timeline.generation or '-'}".ljust(24)
    if timeline.revoked:
        told, share, colour = "revoked", 0.0, "red"
    elif timeline.generation == 0:
        told, share, colour = "none yet", 0.0, "yellow"
    else:
        share = min(max(timeline.left / timeline.life, 0.0), 1.0)
        told = f"{max(timeline.left, 0.0):.1f} s left"
        colour = "green" if share > _NEARLY_OVER else "yellow"
    cells = max(width - len(label) - 14, _NARROWEST_BAR)
    filled = round(share * cells)
    full, empty = _bar_characters()
    bar = click.style(full * filled, fg=colour) + click.style(empty * (cells - filled), dim=True)
    return f"{label}{bar}  {click.style(told, fg=colour)}"


def _bar_characters() -> tuple[str, str]:
    try:
        "█░".encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        return "#", "."
    return "█", "░"


def _table(timeline: Timeline) -> list[str]:
    cells: list[tuple[str, str, Tone]] = [
        ("calls made", f"{timeline.calls:,}", "plain"),
        ("calls failed", f"{timeline.failed:,}", "bad" if timeline.failed else "good"),
        ("sessions opened", f"{timeline.sessions:,}", "bad" if timeline.sessions > 1 else "good"),
        ("generation", f"{timeline.generation:,}", "plain"),
        ("rotations", f"{timeline.rotations.total():,}", "plain"),
        ("slowest call", f"{timeline.slowest:.2f} s", "plain"),
    ]
    heads = "  ".join(click.style(name, dim=True) for name, _, _ in cells)
    values = "  ".join(click.style(value.rjust(len(name)), fg=_COLOURS[tone], bold=True) for name, value, tone in cells)
    return [f"  {heads}", f"  {values}"]


def _event_line(happening: Event) -> str:
    text = click.style(happening.text, fg=_COLOURS[happening.tone])
    return f"  {click.style(_clock(happening.at), dim=True)}  {text}"


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def _fit(line: str, width: int) -> str:
    """Cut a styled line to ``width`` characters; its styles still end."""
    if os.environ.get("NO_COLOR"):
        line = click.unstyle(line)
    parts = _STYLE.split(line)
    for index in range(0, len(parts), 2):  # every second part is a style
        parts[index] = parts[index][:width]
        width -= len(parts[index])
    return "".join(parts)
