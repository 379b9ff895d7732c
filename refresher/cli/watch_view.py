"""What ``status --watch`` shows: lines of text for a width and a height."""

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from refresher.common.text import printable
from refresher.grants.forecast import EndKind
from refresher.operations.grant_report import advice, is_soon
from refresher.operations.live_rows import Concern, Row, concern_of

__all__ = ["View", "lines", "view_of"]

_WORDS: Final = {
    Concern.NEEDS_PERSON: "needs a person",
    Concern.FAILING: "failing",
    Concern.OVERDUE: "overdue",
    Concern.WAITING: "waiting",
    Concern.ENDING: "ends soon",
    Concern.FRESH: "fresh",
}
_COLOURS: Final = {
    Concern.NEEDS_PERSON: "red",
    Concern.FAILING: "yellow",
    Concern.OVERDUE: "yellow",
    Concern.WAITING: "yellow",
    Concern.ENDING: "magenta",
    Concern.FRESH: "green",
}
_ENDS: Final[dict[EndKind, tuple[str, str]]] = {
    "login": ("the login ends", "the login ended"),
    "client_secret": ("the client expires", "the client expired"),
    "certificate": ("the client certificate expires", "the client certificate expired"),
}
_NOBODY: Final = "nobody refreshes: is 'refresher run' or cron running?"
_NONE: Final = "no grants yet; begin with 'refresher login NAME URL'"
_LEAVE: Final = "Ctrl-C ends it"
_BAR: Final = 10
_WIDE: Final = 60
_GAP: Final = 2
_INDENT: Final = 2
_LEAST: Final = 12
"""Cells of a column that is worth to be shown, if it needs more."""
_NEARLY_EXPIRED: Final = 0.25
_LONGEST_ERROR: Final = 3
_LONGEST_COMMAND: Final = 4
"""Lines. A command is never cut: a name has at most 64 characters."""
_LONGEST_TEXT: Final = 2000


class View(NamedTuple):
    """The grants at one moment."""

    now: float
    rows: Sequence[tuple[Concern, Row]]
    """The most serious first, then by name; only as many as a screen can have."""
    counts: Counter[Concern]
    """Of all grants."""
    next_expiry: tuple[float, str] | None
    next_rotation: tuple[float, str] | None


def view_of(rows: Iterable[Row], late: bool | None, now: float, most: int) -> View:
    """Return the view of ``rows``, of which ``most`` can be shown."""
    all_rows = [(concern_of(row, late, now), row) for row in rows]
    return View(
        now=now,
        rows=heapq.nsmallest(most, all_rows, key=lambda each: (each[0], each[1].name)),
        counts=Counter(concern for concern, _ in all_rows),
        next_expiry=min(
            ((row.expires_at, row.name) for _, row in all_rows if row.expires_at is not None and row.expires_at > now),
            default=None,
        ),
        next_rotation=min(
            ((row.next_at, row.name) for _, row in all_rows if row.next_at is not None and row.next_at > now),
            default=None,
        ),
    )


def lines(view: View, width: int, height: int, *, ascii_only: bool) -> list[Text]:
    """Return at most ``height`` lines of at most ``width`` cells; rows that do not fit are counted."""
    if view.counts.total() == 0:
        return [*_wrapped(_NONE, width, 3), Text(), _line(_LEAVE, width, "dim")][:height]
    above = _summary(view, width)
    table = _Table(view, width, ascii_only=ascii_only)
    above = [*above, Text(), table.head]
    blocks = [table.block(concern, row) for concern, row in view.rows]
    # Without the last line, if all fits; otherwise with it.
    shown = _fitting(blocks, height - len(above))
    if shown < view.counts.total():
        shown = _fitting(blocks, height - len(above) - 1)
    body = [line for block in blocks[:shown] for line in block]
    last = _rest(view, shown)
    if shown < view.counts.total():
        body.append(_line(last, width, "dim" if shown else ""))
    return [*above, *body][:height]


def _summary(view: View, width: int) -> list[Text]:
    """Return the counts, the most serious first, what comes next, and that nobody refreshes."""
    counts = Text()
    for concern in Concern:
        if (count := view.counts[concern]) or concern == Concern.FRESH:
            counts.append(", " if counts else "").append(_counted(count, concern), f"bold {_COLOURS[concern]}")
    if view.counts[Concern.OVERDUE]:
        return [*_split(counts, width), *_wrapped(_NOBODY, width, 2, "bold yellow")]
    soon = [
        f"{what}: {name} in {_short(at - view.now)}"
        for what, each in (("next expiry", view.next_expiry), ("next rotation", view.next_rotation))
        if each is not None
        for at, name in [each]
    ]
    while len(soon) > 1 and len("; ".join(soon)) > width:
        soon.pop()
    line = "; ".join(soon)
    room = width - len(line) - _GAP
    return [*_split(counts, width), _line(f"{line}{'':{_GAP}}{_LEAVE:>{room}}" if room >= len(_LEAVE) else line, width)]


class _Column(NamedTuple):
    title: str
    least: int
    most: int
    cell: Callable[[Concern, Row], tuple[str, str]]
    """The text of a row, and its style."""


class _Table:
    """The columns that have room; those at the end go first."""

    def __init__(self, view: View, width: int, *, ascii_only: bool) -> None:
        self._now = view.now
        self._width = width
        self._full, self._empty = ("#", "-") if ascii_only else ("█", "░")
        wide = width >= _WIDE
        self._gap = _GAP if wide else 1
        # Sizes of times are fixed, so that columns do not move while they count down.
        columns = [
            _Column("NAME", 0, max(9, width // 5), lambda _, row: (row.name, "bold")),
            _Column("STATE", 14, 14, lambda concern, _: (_WORDS[concern], _COLOURS[concern])),
            _Column("TOKEN", 18, 18, self._bar) if wide else _Column("TOKEN", 7, 7, self._left),
            _Column("ROTATION", 8, 8, self._next) if wide else _Column("NEXT", 7, 7, self._next),
        ]
        if any(row.end is not None for _, row in view.rows):
            columns.append(_Column("LOGIN ENDS", 10, 10, self._end))
        if any(row.account for _, row in view.rows):
            columns.append(_Column("ACCOUNT", 0, max(16, width // 5), lambda _, row: (row.account or "-", "")))
        columns.append(_Column("SERVER", 0, max(14, width // 4), lambda _, row: (row.server or "-", "")))
        self._columns: list[tuple[_Column, int]] = []
        room = width
        for column in columns:
            needed = max((cell_len(_clean(column.cell(*each)[0])) for each in view.rows), default=0)
            size = max(column.least, len(column.title), min(needed, column.most))
            if self._columns and room < min(size, _LEAST):
                break
            self._columns.append((column, min(size, room)))
            room -= size + self._gap
        self.head: Final = self._row((column.title, "bold") for column, _ in self._columns)

    def block(self, concern: Concern, row: Row) -> list[Text]:
        """Return the lines of one grant: its cells, and below them what is wrong and what to do."""
        found = [self._row(column.cell(concern, row) for column, _ in self._columns)]
        room = self._width - _INDENT
        if concern in (Concern.NEEDS_PERSON, Concern.FAILING):
            found += [_indented(line) for line in _wrapped(row.error, room, _LONGEST_ERROR)]
        if concern != Concern.NEEDS_PERSON and row.end is not None and is_soon(row.end):
            left = row.end.at - self._now
            ends, ended = _ENDS[row.end.kind]
            text = f"{ends} in {_short(left)}" if left > 0 else f"{ended} {_short(left)} ago"
            found += [_indented(line) for line in _wrapped(text, room, _LONGEST_ERROR)]
        if row.grant is not None and concern != Concern.FRESH and (command := advice(row.grant)) is not None:
            found += [_indented(line) for line in _wrapped(f"run: {command}", room, _LONGEST_COMMAND, "bold")]
        return found

    def _row(self, cells: Iterable[tuple[str, str]]) -> Text:
        line = Text(no_wrap=True, overflow="crop")
        for (text, style), (_, size) in zip(cells, self._columns, strict=True):
            line.append(" " * self._gap if line else "").append(_fitted(_clean(text), size), style)
        line.rstrip()
        return line

    def _left(self, _: Concern, row: Row) -> tuple[str, str]:
        if row.issued_at is None or row.grant is None:
            return "-", ""
        if row.expires_at is None:
            return "unknown", ""
        left = row.expires_at - self._now
        return (_short(left), "") if left > 0 else ("expired", "red")

    def _bar(self, concern: Concern, row: Row) -> tuple[str, str]:
        text, style = self._left(concern, row)
        if row.issued_at is None or row.expires_at is None or row.expires_at <= row.issued_at:
            return text, style
        part = min(max((row.expires_at - self._now) / (row.expires_at - row.issued_at), 0.0), 1.0)
        full = round(part * _BAR)
        colour = "red" if part == 0 else "yellow" if part < _NEARLY_EXPIRED else "green"
        return f"{self._full * full}{self._empty * (_BAR - full)} {text}", colour

    def _next(self, concern: Concern, row: Row) -> tuple[str, str]:
        if row.next_at is None:
            return "-", ""
        if concern == Concern.OVERDUE:
            return "overdue", "yellow"
        left = row.next_at - self._now
        return (_short(left) if left >= 1 else "now"), ""

    def _end(self, concern: Concern, row: Row) -> tuple[str, str]:
        if row.end is None:
            return "-", ""
        left = row.end.at - self._now
        return _short(left) if left > 0 else "ended", _COLOURS[concern] if concern == Concern.ENDING else ""


def _fitting(blocks: Sequence[Sequence[Text]], height: int) -> int:
    """Return how many blocks fit."""
    for number, block in enumerate(blocks):
        height -= len(block)
        if height < 0:
            return number
    return len(blocks)


def _rest(view: View, shown: int) -> str:
    """Return how many grants are not shown, and how they are."""
    counts = view.counts - Counter(concern for concern, _ in view.rows[:shown])
    total = counts.total()
    if len(counts) == 1:
        (concern,) = counts
        return f"{total:,} more, {'all ' if total > 1 else ''}{_words(total, concern)}"
    return f"{total:,} more: {', '.join(_counted(counts[concern], concern) for concern in Concern if counts[concern])}"


def _counted(count: int, concern: Concern) -> str:
    return f"{count:,} {_words(count, concern)}"


def _words(count: int, concern: Concern) -> str:
    words = _WORDS[concern]
    return words if count == 1 else words.replace("needs", "need").replace("ends", "end")


def _short(seconds: float) -> str:
    """Return a duration in at most 7 cells, for example ``2h 05m``."""
    whole = max(round(abs(seconds)), 0)
    if whole < 120:
        return f"{whole}s"
    if whole < 7200:
        return f"{whole // 60}m"
    if whole < 172_800:
        return f"{whole // 3600}h {whole % 3600 // 60:02}m"
    days = whole // 86400
    return f"{days}d {whole % 86400 // 3600}h" if days < 100 else f"{min(days, 99999)}d"


def _clean(text: str) -> str:
    """Return a text of a server without control characters: they could change what the terminal shows."""
    return printable(text[:_LONGEST_TEXT])


def _fitted(text: str, size: int) -> str:
    """Return ``text`` in exactly ``size`` cells."""
    return set_cell_size(text if cell_len(text) <= size else set_cell_size(text, size - 3) + "...", size)


def _line(text: str, width: int, style: str = "") -> Text:
    return Text(_fitted(text, width).rstrip(), style, no_wrap=True, overflow="crop")


def _wrapped(text: str, width: int, most: int, style: str = "") -> list[Text]:
    """Return a text in at most ``most`` lines, broken between words where that is possible."""
    rest = " ".join(_clean(text).split())
    found: list[Text] = []
    while rest and len(found) < most:
        if cell_len(rest) <= width or len(found) == most - 1:
            found.append(_line(rest, width, style))
            break
        piece = set_cell_size(rest, width).rstrip()
        end = piece.rfind(" ") if not rest[len(piece) :].startswith(" ") else len(piece)
        end = end if end > 0 else len(piece)
        found.append(_line(rest[:end], width, style))
        rest = rest[end:].lstrip()
    return found


def _split(text: Text, width: int) -> list[Text]:
    """Return a styled line of words in as many lines as it takes."""
    if cell_len(text.plain) <= width:
        return [text]
    end = max(text.plain.rfind(" ", 0, width + 1), 1)
    first, rest = text.divide([end])
    rest = rest[1:] if rest.plain.startswith(" ") else rest
    return [first, *_split(rest, width)]


def _indented(line: Text) -> Text:
    return Text(" " * _INDENT, no_wrap=True, overflow="crop").append_text(line)
