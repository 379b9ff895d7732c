"""Log lines on stderr, as text or as one JSON object a line, of refresher's own loggers only."""

import json
import logging
import os
import queue
import sys
import threading
from contextlib import suppress
from typing import Final, Literal

from refresher.common import text

__all__ = ["LogFormat", "setup", "timestamp"]

LogFormat = Literal["text", "json"]

_LINES_KEPT: Final = 1000
_FLUSH_SECONDS: Final = 1.0


def setup(log_format: LogFormat, verbose: int, *, nonblocking: bool = False) -> None:
    """Send the records of ``refresher`` to stderr: warnings; from ``verbose`` 1 on info, from 2 on everything.

    ``nonblocking``: no caller waits for a stderr that accepts nothing, such as a pipe whose reader has stopped. The
    HTTP library stays silent at any level, because its debug lines hold headers.
    """
    logger = logging.getLogger("refresher")
    # One thread writes for the whole life of a process, also if its configuration is read again.
    handler: logging.Handler | None = next(
        (known for known in logger.handlers if nonblocking and isinstance(known, _Nonblocking)), None
    )
    if handler is None:
        handler = _Nonblocking() if nonblocking else logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JSON() if log_format == "json" else _Text())
    logger.handlers[:] = [handler]
    logger.propagate = False
    # Without a handler, Python prints the warnings of other libraries, which can hold tokens.
    if not logging.getLogger().handlers:
        logging.getLogger().addHandler(logging.NullHandler())
    logger.setLevel((logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)])
    # A full or closed stderr is no reason to print a traceback.
    logging.raiseExceptions = False


def timestamp(at: float) -> str:
    """Return the time ``at`` and a space, or "" if stderr is a terminal or the journal, which adds its own time."""
    with suppress(OSError):
        status = os.fstat(2)
        if os.isatty(2) or os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}":
            return ""
    return f"{text.clock_time(at, separator='T')} "


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"{timestamp(record.created)}refresher: {record.getMessage()}"


class _JSON(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps({"at": record.created, "level": record.levelname.lower(), "message": record.getMessage()})


class _Nonblocking(logging.Handler):
    """Writes in a thread of its own; counts the lines that do not fit in the queue, and logs their number later."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: queue.Queue[str] = queue.Queue(_LINES_KEPT)
        self._lost = 0
        # A daemon thread: at exit it may still hang in a write. It holds no lock of a stream then.
        threading.Thread(target=self._write, daemon=True, name="log").start()

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        if self._lost:
            line = f"{line} ({self._lost} earlier lines were lost: nobody read them)"
        try:
            self._lines.put_nowait(line)
            self._lost = 0
        except queue.Full:
            self._lost += 1

    def flush(self) -> None:
        with self._lines.all_tasks_done:
            self._lines.all_tasks_done.wait_for(lambda: not self._lines.unfinished_tasks, _FLUSH_SECONDS)

    def _write(self) -> None:
        while True:
            # By its descriptor: a lock of sys.stderr would be held during a write that hangs.
            rest = f"{self._lines.get()}\n".encode(sys.stderr.encoding, "replace")
            with suppress(OSError):
                while rest:
                    rest = rest[os.write(2, rest) :]
            self._lines.task_done()
