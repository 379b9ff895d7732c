"""Logs on stderr, as text or as one JSON object a line; only refresher's own loggers speak."""

import json
import logging
import os
import queue
import sys
import threading
from contextlib import suppress
from typing import Final

from refresher.config import LogFormat

__all__ = ["setup"]

_LINES_KEPT: Final = 1000
_LAST_WORDS: Final = 1.0


def setup(log_format: LogFormat, verbose: int, *, unhindered: bool = False) -> None:
    """Send the records of ``refresher`` to stderr: warnings, with ``verbose`` 1 also what it does, with 2 everything.

    ``unhindered``: nobody waits for a stderr that takes nothing, such as a pipe whose reader has stopped. The HTTP
    library stays silent at any level: its debug lines hold headers.
    """
    logger = logging.getLogger("refresher")
    # One thread writes for the whole life of a process, however often its configuration is read.
    handler: logging.Handler | None = next(
        (known for known in logger.handlers if unhindered and isinstance(known, _Unhindered)), None
    )
    if handler is None:
        handler = _Unhindered() if unhindered else logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JSON() if log_format == "json" else logging.Formatter("refresher: %(message)s"))
    logger.handlers[:] = [handler]
    logger.propagate = False
    # Else Python prints what other libraries warn of, with tokens in it.
    if not logging.getLogger().handlers:
        logging.getLogger().addHandler(logging.NullHandler())
    logger.setLevel((logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)])
    # A full or closed stderr is no reason to print a trace over it.
    logging.raiseExceptions = False


class _JSON(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps({"at": record.created, "level": record.levelname.lower(), "message": record.getMessage()})


class _Unhindered(logging.Handler):
    """Writes in a thread of its own; what does not fit in the queue is counted, and told when there is room again."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: queue.Queue[str] = queue.Queue(_LINES_KEPT)
        self._lost = 0
        # A daemon: at the end it may hang in a write that nobody reads. It holds no lock of a stream then.
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
            self._lines.all_tasks_done.wait_for(lambda: not self._lines.unfinished_tasks, _LAST_WORDS)

    def close(self) -> None:
        self.flush()
        super().close()

    def _write(self) -> None:
        while True:
            rest = f"{self._lines.get()}\n".encode(errors="backslashreplace")
            with suppress(OSError):
                while rest:
                    rest = rest[os.write(2, rest) :]
            self._lines.task_done()
