"""Hooks: commands of the configuration that run when something happens to a grant.

A hook gets the event as JSON on its standard input. Each hook has a thread, which runs one command at a time.
"""

import atexit
import json
import logging
import os
import re
import selectors
import shutil
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from refresher.common import reading, secret, text
from refresher.common.errors import ConfigError, GrantFileError
from refresher.common.throttle import Throttle
from refresher.config import HOOKS, HookSettings
from refresher.grants.record import Grant
from refresher.observers.hub import EventsLost
from refresher.operations.events import Event
from refresher.storage import records, write_access
from refresher.storage.directories import Directories

if TYPE_CHECKING:
    import subprocess

__all__ = ["Hooks", "check", "failures", "hook_of"]

log = logging.getLogger(__name__)

failures: Final[dict[str, int]] = {}
"""How many runs of each hook have failed in this process."""

_VERSION: Final = 1
_MOST_WAITING: Final = 1000
_TIME_TO_END: Final = 2.0
"""Seconds between SIGTERM and SIGKILL."""
_LOOK: Final = 0.05
"""Seconds between two looks at a process."""
_PIECE: Final = 64 * 1024
_TAIL: Final = 4000
"""Bytes of the output that are kept."""
_SHOWN: Final = 300
"""Characters."""
_ADDRESS: Final = re.compile(r"\b([a-z][a-z0-9+.-]*://)(?:[^\s/]*@)?([^\s/?#]*)[^\s]*", re.IGNORECASE)
_VARIABLES: Final = ("HOME", "LANG", "USER", "TZ", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS")
_REPAIRED: Final = ("failing", "reauthorization_required", "invalid_grant_file")

_turns: Final = {hook: threading.Lock() for hook in HOOKS}
"""Held while a command runs, also by the observer of an earlier configuration."""


def hook_of(event: Event) -> str | None:
    """Return the key of the hook that runs after ``event``; ``None`` if none does."""
    match event.kind:
        case "rotated":
            return "on_rotated"
        case "login_ending":
            return "on_login_ending"
        case "state_changed" if event.state in _REPAIRED:
            return "on_reauthorization_required" if event.state == "reauthorization_required" else "on_failing"
        case "state_changed" if event.state == "active" and event.state_before in _REPAIRED:
            return "on_restored"
        case _:
            return None


def check(settings: HookSettings) -> None:
    """Raise ``ConfigError`` if a hook cannot run, or another user could change what it does."""
    for hook, command in settings.commands.items():
        _find_program(settings.file, hook, command[0])


class Hooks:
    """Runs the hooks of a configuration."""

    name = "hooks"

    def __init__(self, settings: HookSettings, directories: Directories) -> None:
        self.patience = settings.timeout + _TIME_TO_END + 1.0
        self._hooks: Final = {hook: _Hook(hook, settings, directories) for hook in settings.commands}
        self._checked = False

    def observe(self, events: Sequence[Event]) -> None:
        """Hand each event to its hook; never waits for a command. Raises ``EventsLost``."""
        if not self._checked:
            # A hook that cannot run is reported now, and not when it is needed.
            self._checked = True
            for hook in self._hooks.values():
                hook.check()
        lost = 0
        for event in events:
            key = hook_of(event)
            if key in self._hooks and not self._hooks[key].put(event):
                lost += 1
        if lost:
            raise EventsLost(lost, f"a hook is too slow: events of {_MOST_WAITING} grants wait for it")

    def close(self) -> None:
        """Wait until the hooks have run for all events."""
        for hook in self._hooks.values():
            hook.close()


class _Hook:
    """Runs one command for one event at a time. Meanwhile the last event of each grant waits."""

    def __init__(self, hook: str, settings: HookSettings, directories: Directories) -> None:
        self._hook: Final = hook
        self._command: Final = settings.commands[hook]
        self._file: Final = settings.file
        self._timeout: Final = settings.timeout
        self._directories: Final = directories
        self._changed: Final = threading.Condition()
        self._waiting: dict[str, tuple[Event, int]] = {}
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._running = ""
        self._closing = False
        self._ended = False
        self._throttle: Final = Throttle()

    def check(self) -> None:
        """Warn if the command cannot run."""
        try:
            _find_program(self._file, self._hook, self._command[0])
        except ConfigError as error:
            self._warn(f"warning: {error}")

    def put(self, event: Event) -> bool:
        """Run the command for ``event`` soon; return whether there is room for it."""
        with self._changed:
            if self._closing:
                return False
            if self._thread is None:
                thread = threading.Thread(target=self._work, name=self._hook, daemon=True)
                thread.start()
                self._thread = thread
                atexit.register(self._end)
            _, earlier = self._waiting.get(event.name, (event, -1))
            if earlier < 0 and len(self._waiting) >= _MOST_WAITING:
                return False
            self._waiting[event.name] = event, earlier + 1
            self._changed.notify()
            return True

    def close(self) -> None:
        """Wait until the command has run for all events."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
            atexit.unregister(self._end)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._closing):
                    self._changed.wait()
            with _turns[self._hook]:
                # Only now: until its turn comes, a later event of the same grant can take its place.
                with self._changed:
                    if not self._waiting:
                        return
                    name = next(iter(self._waiting))
                    event, earlier = self._waiting.pop(name)
                    self._running = name
                try:
                    problem = self._run(event, earlier)
                except Exception as error:  # noqa: BLE001  whatever fails, the next event has its run
                    problem = f"internal error ({type(error).__name__}); please report it"
            if problem is not None and not self._ended:
                failures[self._hook] = failures.get(self._hook, 0) + 1
                self._warn(f"{name}: the hook {self._hook} failed: {problem}")

    def _run(self, event: Event, earlier: int) -> str | None:
        """Run the command; return what went wrong and what to do, or ``None``."""
        try:
            program = _find_program(self._file, self._hook, self._command[0])
        except ConfigError as error:
            return str(error)
        import subprocess  # a run without events has no use for it

        data = self._input(event, earlier)
        with self._changed:
            if self._ended:
                return None
            try:
                process = self._process = subprocess.Popen(  # noqa: S603  the command of the configuration
                    [program, *self._command[1:]],
                    bufsize=0,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    cwd="/",
                    env=_environment(self._hook, event.name),
                    # In a session of its own: a signal to its group reaches what it has started, and nothing else.
                    start_new_session=True,
                )
            except (OSError, ValueError) as error:
                why = getattr(error, "strerror", None) or "it has an argument that is not text"
                return f"cannot start {program}: {why.lower()}; check its first line, such as '#!/bin/sh', and its mode"
        with process:
            output, late = _supervise(process, data, self._timeout)
            with self._changed:
                self._process = None
        code = process.returncode
        if late:
            what = f"it did not end within {text.span(self._timeout)}, and was ended"
            advice = f"make it faster, or raise timeout in [hooks] of {self._file}"
        elif code:
            what = f"exit code {code}" if code > 0 else f"signal {-code} ended it"
            advice = f"check the command in {self._file}"
        else:
            return None
        printed = _without_secrets(output)
        return f"{what}; {advice}; {f'its last output: {printed}' if printed else 'it printed nothing'}"

    def _input(self, event: Event, earlier: int) -> bytes:
        """Return what the command reads. Its keys are in the reference."""
        fields = {
            "version": _VERSION,
            "hook": self._hook,
            "name": event.name,
            "at": event.at,
            "generation": event.generation,
            "state": event.state,
            "state_before": event.state_before,
            "outcome": event.outcome,
            "detail": event.detail,
            "advice": self._advice(event.name),
            "coalesced": earlier,
        }
        return json.dumps(fields).encode("ascii") + b"\n"

    def _advice(self, name: str) -> str | None:
        """Return the command with which a person repairs the grant, or keeps its login."""
        if self._hook in ("on_rotated", "on_restored"):
            return None
        from refresher.operations import grant_report

        try:
            record = records.load(self._directories, name).record
        except (GrantFileError, OSError):
            return None
        if not isinstance(record, Grant):
            return None
        return grant_report.advice(record)

    def _warn(self, message: str) -> None:
        if self._throttle.is_new(self._hook):
            log.warning("%s", message)

    def _end(self) -> None:
        """End a command that still runs when this process ends; say what is lost."""
        # The lock may be held: by a thread that starts a program from a disk that does not answer.
        held = self._changed.acquire(timeout=_LOOK)
        self._closing = self._ended = True
        process, name, waiting, self._waiting = self._process, self._running, [*self._waiting], {}
        if held:
            self._changed.release()
        if process is not None:
            log.warning("%s: the hook %s still runs, and is ended: refresher ends", name, self._hook)
            _signal(process, signal.SIGTERM)
            ends = time.monotonic() + _TIME_TO_END / 4
            while not _has_ended(process) and time.monotonic() < ends:
                time.sleep(_LOOK)
            _signal(process, signal.SIGKILL)
        if waiting:
            log.warning("%s: the hook %s did not run: refresher ends", text.names(waiting), self._hook)


def _without_secrets(output: str) -> str:
    """Return the end of what a command printed, without what looks like a token, and without the path of an address.

    The address of a webhook is a secret.
    """
    return secret.mask(_ADDRESS.sub(r"\1\2/...", output)[-_SHOWN:])


def _find_program(file: Path, hook: str, program: str) -> str:
    """Return the path of a program that may run. Raises ``ConfigError``."""
    path = program if "/" in program else shutil.which(program, path=_search_path())
    begin = f"{hook} in [hooks] of {file}"
    if path is None:
        raise ConfigError(f"{begin}: there is no program {program} on PATH: install it, or give its path")
    try:
        risk = reading.inspect_named(path, lambda: _problem(Path(path)) or write_access.risk(file))
    except OSError as error:
        raise ConfigError(f"{begin}: cannot use {path}: {(error.strerror or '').lower()}") from None
    if risk is not None:
        raise ConfigError(f"{begin}: {risk}")
    return path


def _problem(program: Path) -> str | None:
    """Return why ``program`` must not run, or ``None``."""
    if not program.exists():
        return f"there is no program {program}: create it, or correct its path"
    if not program.is_file():
        return f"{program} is not a file: give the path of a program"
    if not os.access(program, os.X_OK):
        return f"{program} is not executable: run 'chmod +x {program}'"
    return write_access.risk(program)


def _search_path() -> str:
    """Return PATH without relative directories: they would depend on where refresher was started."""
    return os.pathsep.join(filter(os.path.isabs, os.environ.get("PATH", os.defpath).split(os.pathsep)))


def _environment(hook: str, name: str) -> dict[str, str]:
    # No setting of refresher, no proxy with its password: a hook gets only what programs need to work.
    kept = {key: os.environ[key] for key in _VARIABLES if key in os.environ}
    return kept | {"PATH": _search_path(), "REFRESHER_HOOK": hook, "REFRESHER_GRANT": name}


def _supervise(process: "subprocess.Popen[bytes]", data: bytes, timeout: float) -> tuple[str, bool]:
    """Run ``process`` to its end; return the end of its output, and whether its time was over.

    It then ends what the process has left in its group.
    """
    stdin, stdout = process.stdin, process.stdout
    if stdin is None or stdout is None:
        raise ValueError("it needs two pipes")
    begun, tail = time.monotonic(), b""
    signals = [(begun + timeout, signal.SIGTERM), (begun + timeout + _TIME_TO_END, signal.SIGKILL)]
    late = False
    for stream in (stdin, stdout):
        os.set_blocking(stream.fileno(), False)
    with selectors.DefaultSelector() as ready:
        ready.register(stdin, selectors.EVENT_WRITE)
        ready.register(stdout, selectors.EVENT_READ)
        while not _has_ended(process):
            if signals and time.monotonic() >= signals[0][0]:
                late = True
                _signal(process, signals.pop(0)[1])
            for key, _ in ready.select(_LOOK):
                if key.fileobj is stdin:
                    data = _write(key.fd, data)
                    if not data:
                        ready.unregister(stdin)
                        stdin.close()
                elif (piece := _read(key.fd)) is None:
                    ready.unregister(stdout)
                else:
                    tail = (tail + piece)[-_TAIL:]
                    time.sleep(0.001)  # a program that prints without end must not use up the processor of this one
    # A process that has ended keeps its number, and so its group, until it is reaped.
    _signal(process, signal.SIGKILL)
    for _ in range(16):  # a process that has left the group may still print
        if not (piece := _read(stdout.fileno()) or b""):
            break
        tail = (tail + piece)[-_TAIL:]
    return tail.decode("utf-8", "replace"), late


def _write(descriptor: int, data: bytes) -> bytes:
    """Write what fits; return the rest, nothing if nobody reads it."""
    try:
        return data[os.write(descriptor, data) :]
    except BlockingIOError:
        return data
    except OSError:
        return b""


def _read(descriptor: int) -> bytes | None:
    """Read what is there; return ``None`` at the end."""
    try:
        return os.read(descriptor, _PIECE) or None
    except BlockingIOError:
        return b""


def _has_ended(process: "subprocess.Popen[bytes]") -> bool:
    """Whether ``process`` has ended; it is not reaped."""
    try:
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True  # this process was started with SIGCHLD ignored: the system reaps


def _signal(process: "subprocess.Popen[bytes]", number: int) -> None:
    """Send a signal to the group of ``process``, which is not reaped yet."""
    with suppress(OSError):
        os.killpg(process.pid, number)
