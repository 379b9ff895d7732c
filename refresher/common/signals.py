"""Signals that only set a flag: work in progress completes, and no new work starts."""

import os
import select
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Final, Self

from refresher.common import logs
from refresher.common.errors import Interrupted

__all__ = ["DaemonSignals", "StopSignals"]

_HANDLED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignals:
    """A flag that SIGINT, SIGTERM and SIGHUP set while the context is open; call it to read it."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._signal: int | None = None
        self._handlers_before: list[tuple[signal.Signals, object]] = []

    def __call__(self) -> bool:
        """Whether a signal came."""
        return self._signal is not None

    @property
    def exit_code(self) -> int | None:
        """128 plus the number of the signal, as a shell reports it; ``None`` if none came."""
        return None if self._signal is None else 128 + self._signal

    def __enter__(self) -> Self:
        for number in _HANDLED:
            # nohup and cron can start a process with a signal ignored: it stays ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._handlers_before.append((number, signal.signal(number, self._handle)))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Interrupted) and self.exit_code is not None:
            error.exit_code = self.exit_code
        for number, handler in self._handlers_before:
            signal.signal(number, handler)  # type: ignore[arg-type]  # signal() accepts what it returned

    def _handle(self, number: int, _: FrameType | None) -> None:
        self._signal = number
        if self._quiet:
            return
        line = f"{logs.timestamp(time.time())}refresher: stopping; work in progress completes first\n"
        # Not through logging: this handler can interrupt code that holds a log lock. A terminal that is closed raises,
        # and one that is stalled would block.
        with suppress(OSError, ValueError):
            if select.select([], [2], [], 0)[1]:
                os.write(2, line.encode("ascii"))


class DaemonSignals(StopSignals):
    """The signals of a daemon: SIGINT and SIGTERM stop it, SIGHUP reloads its configuration.

    It is open before the daemon is imported, because that takes time. The handler calls ``wake``, once it is set. When
    the context closes, signals are ignored: all is saved, and a second Ctrl-C must not look like a failure.
    """

    def __init__(self) -> None:
        super().__init__()
        self.wake: Callable[[], None] = lambda: None
        self._repeated = False
        self._reload = False

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        for number, _ in self._handlers_before:
            signal.signal(number, signal.SIG_IGN)

    def stop_repeated(self) -> bool:
        """Whether another signal to stop came since the last call."""
        repeated, self._repeated = self._repeated, False
        return repeated

    def reload_requested(self) -> bool:
        """Whether SIGHUP came since the last call."""
        requested, self._reload = self._reload, False
        return requested

    def _handle(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self._reload = True
        elif self._signal is None:
            self._signal = number
        else:
            self._repeated = True
        self.wake()
