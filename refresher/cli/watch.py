"""``status --watch``: the grants, live in a terminal."""

import os
import select
import signal
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

from rich.console import Console, Group
from rich.live import Live

from refresher.cli import watch_view
from refresher.cli.watch_view import View
from refresher.common.errors import ConfigError
from refresher.common.signals import StopSignals
from refresher.common.terminal import show
from refresher.config import Settings
from refresher.operations.live_rows import LiveRows
from refresher.storage import last_run

__all__ = ["watch"]

_INTERVAL: Final = 1.0
_SHARE: Final = 0.03
_MOST: Final = 500
_NO_TERMINAL: Final = (
    "--watch needs a terminal, and the output is none: in a program, repeat 'refresher status --json', or read "
    "'refresher events --follow'"
)


def watch(settings: Settings, names: Sequence[str]) -> int:
    """Show the grants until a signal comes; return the exit code: 0 after Ctrl-C. Raises ``ConfigError``."""
    if not sys.stdout.isatty():
        raise ConfigError(_NO_TERMINAL)
    with StopSignals(quiet=True) as stopping, _Wakes() as wakes:
        _Watch(settings, names, stopping, wakes).run()
        code = stopping.exit_code
    return 0 if code is None or code == 128 + signal.SIGINT else code


class _Wakes:
    """Waits until a time, or until a signal comes: one to stop, to suspend, or that the size has changed."""

    def __init__(self) -> None:
        self.suspend = False
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._before = -1

    def __enter__(self) -> "_Wakes":
        self._before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGWINCH, lambda *_: None)
        signal.signal(signal.SIGTSTP, self._suspend)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._before)
        signal.signal(signal.SIGWINCH, signal.SIG_DFL)
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.close(self._reader)
        os.close(self._writer)

    def wait(self, seconds: float) -> None:
        """Wait ``seconds``, or less."""
        if select.select([self._reader], [], [], seconds)[0]:
            with suppress(BlockingIOError):
                os.read(self._reader, 4096)

    def _suspend(self, *_: object) -> None:
        self.suspend = True


class _Watch:
    """Reads what has changed, and draws it."""

    def __init__(self, settings: Settings, names: Sequence[str], stopping: StopSignals, wakes: _Wakes) -> None:
        self._directories: Final = settings.directories
        self._rows: Final = LiveRows(settings.open_store(), names)
        self._stopping: Final = stopping
        self._wakes: Final = wakes
        self._changed = False

    def run(self) -> None:
        """Draw, or print where a terminal cannot move its cursor, until a signal comes."""
        if os.environ.get("TERM", "dumb") in ("dumb", "unknown", ""):
            self._print_changes()
            return
        while not self._stopping():
            with _silent_keys():
                self._draw()
            if self._wakes.suspend:  # Ctrl-Z: the terminal is as it was, until the shell continues this process
                self._wakes.suspend = False
                os.kill(os.getpid(), signal.SIGSTOP)

    def _draw(self) -> None:
        """Draw each second, until a signal stops or suspends the process."""
        console = Console(force_terminal=True, markup=False, emoji=False, highlight=False)
        ascii_only = not console.encoding.startswith("utf")
        size = os.terminal_size((80, 24))
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while not (self._stopping() or self._wakes.suspend):
                began = time.thread_time()
                with suppress(OSError):
                    # Not from COLUMNS, which a shell may have set once.
                    size = os.get_terminal_size(sys.stdout.fileno())
                width, height = size.columns or 80, size.lines or 24
                console.size = (width, height)
                view = self._view(height)
                live.update(Group(*watch_view.lines(view, width, height, ascii_only=ascii_only)), refresh=True)
                self._wakes.wait(max(_INTERVAL, (time.thread_time() - began) / _SHARE))

    def _print_changes(self) -> None:
        """Print all grants, and again when something has changed."""
        counts = None
        while not self._stopping():
            began = time.thread_time()
            view = self._view(_MOST)
            if self._changed or view.counts != counts:
                counts = view.counts
                found = watch_view.lines(view, 80, _MOST, ascii_only=True)
                show("\n".join((*(line.plain for line in found), "")))
            self._wakes.wait(max(_INTERVAL, (time.thread_time() - began) / _SHARE))

    def _view(self, most: int) -> View:
        now = time.time()
        self._changed = self._rows.refresh()
        return watch_view.view_of(self._rows.by_name.values(), last_run.is_overdue(self._directories, now), now, most)


@contextmanager
def _silent_keys() -> Iterator[None]:
    """Do not show what is typed: it would spoil the picture."""
    try:
        before = termios.tcgetattr(0)
    except termios.error:
        yield
        return
    silent = [*before]
    silent[3] &= ~(termios.ECHO | termios.ICANON)
    with suppress(termios.error):
        termios.tcsetattr(0, termios.TCSANOW, silent)
    try:
        yield
    finally:
        with suppress(termios.error):  # the terminal was closed
            # What was typed meanwhile is dropped: the shell would run it.
            termios.tcsetattr(0, termios.TCSAFLUSH, before)
