"""What a person sees of the demo: on a terminal one block that is redrawn in place, elsewhere plain lines."""

import os
import re
import shutil
import sys
from contextlib import suppress
from types import TracebackType
from typing import Final, Protocol, Self

import click

from refresher.common.terminal import say
from refresher.demo.story import WIDEST, Happening, Party, Story, Tone

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
    """Shows a story as it goes on."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal as it was."""

    def show(self, story: Story) -> None:
        """Show how it is now."""


def screen() -> Screen:
    """Return what fits to where stdout goes."""
    return Live() if sys.stdout.isatty() and os.environ.get("TERM") != "dumb" else Lines()


class Lines:
    """A line for each happening, and one each few seconds."""

    def __init__(self) -> None:
        self._introduced = self._told = 0
        self._next_status = _STATUS_EACH

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def show(self, story: Story) -> None:
        """Print what is new."""
        for party in story.parties[self._introduced :]:
            say(_party(party))
        for happening in story.happenings[self._told :]:
            say(_happening(happening))
        self._introduced, self._told = len(story.parties), len(story.happenings)
        if story.now >= self._next_status:
            self._next_status += _STATUS_EACH
            say(
                f"  {_clock(story.now)}  calls made {story.calls:,}, failed {story.failed:,}; sessions opened "
                f"{story.sessions}; access token {story.generation}, {max(story.left, 0.0):.1f} s left"
            )


class Live:
    """One block, redrawn in place; the cursor is hidden as long as it lives."""

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

    def show(self, story: Story) -> None:
        """Draw over what was drawn before."""
        size = shutil.get_terminal_size()
        lines = frame(story, size.columns, size.lines - 1)
        # A terminal of another width has wrapped the old lines anew: where they begin is not known any more.
        up = _CLEAR if self._height and size != self._size else f"\x1b[{self._height}A" if self._height else ""
        self._write("\r" + up + "".join(f"{line}{_TO_LINE_END}\n" for line in lines))
        self._height, self._size = len(lines), size

    def _write(self, text: str) -> None:
        # That nobody can see it any more does not change what is shown.
        with suppress(OSError, ValueError):
            sys.stdout.write(text)
            sys.stdout.flush()


def frame(story: Story, width: int, height: int) -> list[str]:
    """Return the block as styled lines that fit into ``width`` columns and ``height`` lines."""
    width = min(width, WIDEST)
    lines = [
        *_title(story, width),
        "",
        *map(_party, story.parties),
        "",
        _life(story, width),
        "",
        *_table(story),
        "",
    ]
    lines += [_happening(happening) for happening in story.happenings[-max(height - len(lines), 1) :]]
    return [_fit(line, width) for line in lines[:height]]


def _title(story: Story, width: int) -> list[str]:
    name = "refresher demo"
    clock = f"{_clock(story.now)} of {_clock(story.seconds)}" if story.begun else "starting"
    return [
        click.style(name, bold=True) + clock.rjust(width - len(name)),
        click.style(f"Access tokens live {story.life} s here. One process refreshes, the agent only reads.", dim=True),
    ]


def _party(party: Party) -> str:
    return f"  {party.name:<22}{click.style(f'{party.where:<28}{party.does}', dim=True)}"


def _life(story: Story, width: int) -> str:
    label = f"  access token {story.generation or '-'}".ljust(24)
    if story.revoked:
        told, share, colour = "revoked", 0.0, "red"
    elif story.generation == 0:
        told, share, colour = "none yet", 0.0, "yellow"
    else:
        share = min(max(story.left / story.life, 0.0), 1.0)
        told = f"{max(story.left, 0.0):.1f} s left"
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


def _table(story: Story) -> list[str]:
    cells: list[tuple[str, str, Tone]] = [
        ("calls made", f"{story.calls:,}", "plain"),
        ("calls failed", f"{story.failed:,}", "bad" if story.failed else "good"),
        ("sessions opened", f"{story.sessions:,}", "bad" if story.sessions > 1 else "good"),
        ("generation", f"{story.generation:,}", "plain"),
        ("rotations", f"{story.rotations.total():,}", "plain"),
        ("slowest call", f"{story.slowest:.2f} s", "plain"),
    ]
    heads = "  ".join(click.style(name, dim=True) for name, _, _ in cells)
    values = "  ".join(click.style(value.rjust(len(name)), fg=_COLOURS[tone], bold=True) for name, value, tone in cells)
    return [f"  {heads}", f"  {values}"]


def _happening(happening: Happening) -> str:
    text = click.style(happening.text, fg=_COLOURS[happening.tone])
    return f"  {click.style(_clock(happening.at), dim=True)}  {text}"


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def _fit(line: str, width: int) -> str:
    """Cut a styled line to ``width`` characters; its styles still end."""
    if os.environ.get("NO_COLOR"):
        line = click.unstyle(line)
    parts = _STYLE.split(line)
    for index in range(0, len(parts), 2):  # every other part is a style
        parts[index] = parts[index][:width]
        width -= len(parts[index])
    return "".join(parts)
