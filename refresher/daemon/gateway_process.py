"""Start the gateway as a process of its own, and start it again when it ends."""

import logging
import os
import subprocess
import sys
import threading
import time
from typing import Final

from refresher.common import text
from refresher.config import Settings

__all__ = ["GatewayProcess"]

log = logging.getLogger(__name__)

_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 60.0
_STABLE: Final = 60.0
_TIME_TO_STOP: Final = 10.0
"""Seconds that the gateway has from the request to stop; requests that it has already accepted need them."""


class GatewayProcess:
    """The gateway of ``run``. It ends with this process, however that ends: then its standard input ends."""

    def __init__(self) -> None:
        self._command: list[str] | None = None
        self._child: _Child | None = None

    def use(self, settings: Settings) -> None:
        """Run the gateway of ``settings``, or none. Does not wait for it."""
        command = None if settings.gateway is None else _command(settings, settings.gateway)
        if command == self._command:
            return
        self.stop()
        before, self._child, self._command = self._child, None, command
        if command is None:
            return
        child = _Child(command, before)
        try:
            child.start()
        except RuntimeError:
            self._command = None
            log.warning("cannot start the gateway: the system has no thread left; send SIGHUP to try again")
        else:
            self._child = child

    def stop(self) -> None:
        """Have the gateway stop. Does not wait for it."""
        if self._child is not None:
            self._child.stop()

    def wait(self, seconds: float) -> None:
        """Wait until the gateway has stopped; kill it after ``seconds``, or 10 s after it had to stop."""
        if self._child is not None:
            self._child.end(seconds)


class _Child(threading.Thread):
    """Starts one command again and again, until it is stopped."""

    def __init__(self, command: list[str], before: "_Child | None") -> None:
        super().__init__(daemon=True, name="gateway")
        self._arguments = command
        self._before = before
        self._stopping = threading.Event()
        self._stop_by = 0.0
        self._process: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        if self._before is not None:
            self._before.end(_TIME_TO_STOP)  # it may have the same address
            self._before = None
        pause = _FIRST_PAUSE
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                # It can take as long as the disk does, so no other thread waits for it.
                process = self._process = self._begin()
            except OSError as error:
                log.warning("cannot start the gateway: %s; trying again in %s", error.strerror, text.span(pause))
            else:
                if self._stopping.is_set():
                    process.terminate()
                with process:
                    code = process.wait()
                if self._stopping.is_set():
                    return
                if time.monotonic() - began > _STABLE:
                    pause = _FIRST_PAUSE
                log.warning("the gateway ended with code %d; it starts again in %s", code, text.span(pause))
            self._stopping.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _begin(self) -> "subprocess.Popen[bytes]":
        # Ctrl-C in a terminal is for this process, which stops the gateway.
        return subprocess.Popen(  # noqa: S603
            self._arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            process_group=0,
            env=os.environ | {"REFRESHER_GATEWAY_CHILD": "1"},
        )

    def stop(self) -> None:
        """Have the process stop. Does not wait for it."""
        if not self._stopping.is_set():
            self._stop_by = time.monotonic() + _TIME_TO_STOP
        self._stopping.set()
        if self._process is not None:
            self._process.terminate()

    def end(self, seconds: float) -> None:
        """Wait until the process has stopped; kill it after ``seconds``, or when its time to stop is over."""
        self.join(max(min(seconds, self._stop_by - time.monotonic()), 0.0))
        if self.is_alive() and self._process is not None:
            self._process.kill()


def _command(settings: Settings, address: str) -> list[str]:
    """Return the command line. It has all settings, so that the gateway reads no configuration file."""
    directories = settings.directories
    command = [sys.executable, "-P", "-m", "refresher", "--config", "/dev/null"]
    for option, value in (
        ("--state-dir", directories.state),
        ("--tokens-dir", directories.tokens),
        ("--demands-dir", directories.demands),
        ("--ca-file", settings.ca_file),
        ("--log-format", settings.log_format),
    ):
        if value is not None:
            command.append(f"{option}={value}")
    command += ["-v"] * settings.verbose
    command += ["gateway", f"--listen={address}", f"--keys-file={settings.gateway_keys_file}"]
    return command + [f"--listen-host={name}" for name in settings.listen_hosts]
