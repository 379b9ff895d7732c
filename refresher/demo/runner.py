"""Runs the demo: starts its processes, revokes a token, forces a rotation, and ends when everything has happened."""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import httpx
import msgspec

from refresher.common.errors import StorageError
from refresher.demo.processes import Process
from refresher.demo.screen import Show, print_lines, screen
from refresher.demo.timeline import AgentReport, Timeline
from shim import FileTokenSource

__all__ = ["run_demo"]

_NAME: Final = "demo"
_MAX_LIFETIME: Final = 10
_MIN_LIFETIME: Final = 2

_POLL_INTERVAL: Final = 0.1
_STEP_TIMEOUT: Final = 30.0
_MAX_DELAY: Final = 15.0
_REVOCATION_TIMEOUT: Final = 5.0

# The shares of the demo after which the token is revoked, and replaced by another process.
_REVOKE_AFTER: Final = 0.5
_FORCE_AFTER: Final = 0.7
# The part of a token's lifetime in which the schedule does not replace it, so that one thing happens at a time.
_QUIET: Final = (0.2, 0.65)


def run_demo(seconds: float, *, stopping: Callable[[], bool]) -> int:
    """Run for about ``seconds``; return 0 if nothing failed, otherwise 1.

    Ends early, normally and with its summary, when ``stopping`` becomes true.
    """
    timeline = Timeline(seconds, max(_MIN_LIFETIME, min(_MAX_LIFETIME, round(seconds / 3))))
    try:
        # A directory that cannot be removed must not hide the summary.
        directory = TemporaryDirectory(prefix="refresher-demo-", ignore_cleanup_errors=True)
    except OSError as error:
        raise StorageError(f"the demo needs a temporary directory: {error.strerror}") from None
    with directory as root, screen() as show:
        _Runner(timeline, Path(root), show, stopping).run()
        if not stopping():
            show(timeline)
    stopped = stopping()
    print_lines(["", *timeline.summary(stopped=stopped)])
    return 1 if timeline.problems(stopped=stopped) else 0


class _OverError(Exception):
    """The demo cannot or need not go on; the timeline says why."""


class _Runner:
    """The processes of one demo."""

    def __init__(self, timeline: Timeline, root: Path, show: Show, stopping: Callable[[], bool]) -> None:
        self._timeline = timeline
        self._root = root
        self._show = show
        self._stopping = stopping
        self._source = FileTokenSource(_NAME, tokens_dir=root / "state/tokens", demands_dir=root / "state/demands")
        self._processes: list[Process] = []
        self._login: dict[str, str] = {}
        self._began: float | None = None

    def run(self) -> None:
        """Run the demo, and end all its processes."""
        timeline = self._timeline
        try:
            with suppress(_OverError):
                self._start_processes()
                # A slow machine may need longer until everything has happened.
                while timeline.now < timeline.seconds or (
                    timeline.missing() and not timeline.agent.failed and timeline.now < timeline.seconds + _MAX_DELAY
                ):
                    self._revoke_or_force()
                    self._tick()
        finally:
            # The agent first and the servers last, because each process needs the ones before it.
            for process in reversed(self._processes):
                problem = process.unexpected_end() or process.finish()
                if problem is not None and problem not in timeline.failures:
                    timeline.fail(problem)
            self._read_reports()

    def _start_processes(self) -> None:
        timeline = self._timeline
        path = self._root / "login.json"
        self._start("the server", "refresher.demo.server", str(path), str(timeline.lifetime))
        self._wait_for("the start of the server", path.exists)
        self._login = json.loads(path.read_bytes())
        timeline.addresses |= {"authorization server": self._login["issuer"], "MCP server": self._login["server_url"]}
        self._run_command("import", _NAME, "--from", str(path))
        path.unlink()
        daemon = self._start("refresher run", "refresher", "run")
        timeline.addresses["refresher run"] = f"process {daemon.pid}"
        agent = self._start("the agent", "refresher.demo.agent", self._login["server_url"], _NAME)
        timeline.addresses["agent"] = f"process {agent.pid}"
        self._wait_for("the agent's first call", lambda: timeline.agent.calls > 0)
        self._began = time.monotonic()

    def _start(self, role: str, *arguments: str) -> Process:
        self._processes.append(Process(role, arguments, root=self._root))
        return self._processes[-1]

    def _run_command(self, *arguments: str) -> str:
        """Run a command of refresher, and return its output."""
        command = Process(f"refresher {arguments[0]}", ("refresher", *arguments), root=self._root)
        try:
            self._wait_for(f"the end of {command.role}", lambda: command.poll() is not None)
        finally:
            command.finish()
        if command.returncode:
            self._give_up(f"{command.role} failed{command.last_error_line()}")
        return "".join(command.lines())

    def _wait_for(self, what: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _STEP_TIMEOUT
        while not condition():
            self._tick()
            if time.monotonic() > deadline:
                self._give_up(f"{what} did not come within {_STEP_TIMEOUT:.0f} s")

    def _give_up(self, why: str) -> None:
        self._timeline.fail(why)
        raise _OverError

    def _revoke_or_force(self) -> None:
        timeline = self._timeline
        used = 1 - timeline.left / timeline.lifetime
        if not _QUIET[0] < used < _QUIET[1] or timeline.revoked:
            return
        if timeline.now >= _REVOKE_AFTER * timeline.seconds and not timeline.rotations["revoked"]:
            self._revoke()
        elif timeline.now >= _FORCE_AFTER * timeline.seconds and not timeline.rotations["forced"]:
            timeline.forcing = True
            [result] = json.loads(self._run_command("run-once", "--force", "--json", _NAME))["results"]
            timeline.on_forced(result["generation"] if result["outcome"] == "rotated" else None)

    def _revoke(self) -> None:
        token = self._source.current()
        if token is None or token.generation == self._timeline.revoking:
            return
        self._timeline.revoking = token.generation
        body = {key: self._login[key] for key in ("client_id", "client_secret")} | {"token": token.access_token or ""}
        try:
            with httpx.Client(trust_env=False, timeout=_REVOCATION_TIMEOUT) as http:
                http.post(self._login["revocation_endpoint"], data=body).raise_for_status()
        except httpx.HTTPError:
            self._give_up("the authorization server did not revoke the access token")

    def _tick(self) -> None:
        """Wait a moment, read what is new, and show it."""
        time.sleep(_POLL_INTERVAL)
        timeline = self._timeline
        if self._began is not None:
            timeline.now = time.monotonic() - self._began
        # The token before the reports, so that the reason of a rotation is known when its event is added.
        token = self._source.current()
        self._read_reports()
        if token is not None and token.access_token is not None and token.expires_at is not None:
            timeline.left = token.expires_at - time.time()
            timeline.on_token(token.generation, (self._root / f"state/tokens/{_NAME}.json").stat().st_mtime)
        for problem in filter(None, (process.unexpected_end() for process in self._processes)):
            self._give_up(problem)
        if self._stopping():
            raise _OverError
        self._show(timeline)

    def _read_reports(self) -> None:
        for process in self._processes:
            for line in process.lines():
                if process.role == "the agent":
                    self._timeline.on_agent_report(msgspec.json.decode(line, type=AgentReport))
                elif process.role == "the server":
                    event = json.loads(line)
                    self._timeline.on_server_event(event["event"], event["at"])
