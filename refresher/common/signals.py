"""Signals only set a flag: what has begun is finished, what has not is not started."""

import os
import select
import signal
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Final, Self

from refresher.common.errors import Interrupted

__all__ = ["Listening", "Stopping"]

_NOTED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_WORDS: Final = b"refresher: stopping; what is under way is finished first, so that no token is lost\n"


class Stopping:
    """A flag that SIGINT, SIGTERM and SIGHUP set while the context is open; call it to ask."""

    def __init__(self, *, quietly: bool = False) -> None:
        self._quietly = quietly
        self._signal: int | None = None
        self._before: list[tuple[signal.Signals, object]] = []

    def __call__(self) -> bool:
        """Whether a signal came."""
        return self._signal is not None

    @property
    def exit_code(self) -> int | None:
        """128 plus the signal's number, as a shell reports it; ``None`` where none came."""
        return None if self._signal is None else 128 + self._signal

    def __enter__(self) -> Self:
        for number in _NOTED:
            # nohup and cron may have a signal ignored: it stays so.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before.append((number, signal.signal(number, self._note)))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Interrupted) and self.exit_code is not None:
            error.exit_code = self.exit_code
        for number, before in self._before:
            signal.signal(number, before)  # type: ignore[arg-type]  # what signal() returned, it takes

    def _note(self, number: int, _: FrameType | None) -> None:
        self._signal = number
        # Not through logging: a handler may run while a log lock is held. A closed terminal is no reason to fail, nor
        # a stalled one to wait for.
        if not self._quietly:
            with suppress(OSError, ValueError):
                if select.select([], [2], [], 0)[1]:
                    os.write(2, _WORDS)


class Listening(Stopping):
    """What a daemon hears: SIGINT and SIGTERM stop it, more of them ask again, SIGHUP has it reread its configuration.

    From the first moment, for imports take their time; ``wake``, once it is set, is called in the signal handler. When
    the context closes nothing is heard any more: all is saved, and a second Ctrl-C shall not look like a failure.
    """

    def __init__(self) -> None:
        super().__init__()
        self.wake: Callable[[], None] = lambda: None
        self._asked_again = False
        self._reread = False

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        for number, _ in self._before:
            signal.signal(number, signal.SIG_IGN)

    def asked_again(self) -> bool:
        """Whether a signal to stop came after the first one, since this was last called."""
        again, self._asked_again = self._asked_again, False
        return again

    def asked_to_reread(self) -> bool:
        """Whether SIGHUP came since this was last called."""
        reread, self._reread = self._reread, False
        return reread

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self._reread = True
        elif self._signal is None:
            self._signal = number
        else:
            self._asked_again = True
        self.wake()
