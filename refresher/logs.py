"""Logs on stderr, as text or as one JSON object a line; only refresher's own loggers speak."""

import json
import logging
import sys

from refresher.config import LogFormat

__all__ = ["setup"]


def setup(log_format: LogFormat, verbose: int) -> None:
    """Send the records of ``refresher`` to stderr: warnings, with ``verbose`` 1 also what it does, with 2 everything.

    The HTTP library stays silent at any level: its debug lines hold headers.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JSON() if log_format == "json" else logging.Formatter("refresher: %(message)s"))
    logger = logging.getLogger("refresher")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel((logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)])
    # A full or closed stderr is no reason to print a trace over it.
    logging.raiseExceptions = False


class _JSON(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps({"at": record.created, "level": record.levelname.lower(), "message": record.getMessage()})
