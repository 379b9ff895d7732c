"""Runs the demo: starts its processes, revokes and forces a token, and ends when everything was seen."""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Final, Self

import httpx

from refresher.common.errors import StorageError
from refresher.common.terminal import say
from refresher.demo import summary
from refresher.demo.processes import Process
from refresher.demo.screen import Screen, screen
from refresher.demo.timeline import Participant, Timeline
from shim import FileTokenSource

__all__ = ["run_demo"]

_NAME: Final = "demo"
_LONGEST_LIFE: Final = 10
_SHORTEST_LIFE: Final = 2

_TICK: Final = 0.1
_LONGEST_START: Final = 30.0
_LONGEST_DELAY: Final = 15.0
_LONGEST_REVOCATION: Final = 5.0

# The shares of the whole after which the token is revoked, and replaced by another process.
_REVOKE_FROM: Final = 0.5
_FORCE_FROM: Final = 0.7
# The part of a token's life in which the schedule does not replace it, so that one thing happens at a time.
_QUIET: Final = (0.2, 0.65)


def run_demo(seconds: float, *, stopping: Callable[[], bool]) -> int:
    """Run for about ``seconds``; return 0 if no call failed and nothing else did, otherwise 1.

    Ends early, in order and with its summary, when ``stopping`` becomes true.
    """
    timeline = Timeline(seconds, max(_SHORTEST_LIFE, min(_LONGEST_LIFE, round(seconds / 3))))
    try:
        # A directory that cannot be removed must not hide the summary.
        directory = TemporaryDirectory(prefix="refresher-demo-", ignore_cleanup_errors=True)
    except OSError as error:
        raise StorageError(f"the demo needs a temporary directory: {error.strerror}") from None
    with directory as root, screen() as shown:
        with _Runner(timeline, Path(root), shown, stopping) as course:
            course.run()
        if not stopping():
            shown.show(timeline)
    stopped = stopping()
    say("\n" + summary.summarize(timeline, stopped=stopped))
    return 1 if summary.problems(timeline, stopped=stopped) else 0


class _OverError(Exception):
    """The demo cannot or need not go on; the timeline says why."""


class _Runner:
    """The processes of one demo; all have ended when the context closes."""

    def __init__(self, timeline: Timeline, root: Path, shown: Screen, stopping: Callable[[], bool]) -> None:
        self._timeline = timeline
        self._root = root
        self._shown = shown
        self._stopping = stopping
        self._token_file = root / f"state/tokens/{_NAME}.json"
        self._source = FileTokenSource(_NAME, tokens_dir=root / "state/tokens", demands_dir=root / "state/demands")
        self._processes: list[Process] = []
        self._command: Process | None = None
        self._servers: dict[str, str] = {}
        self._client: dict[str, str] = {}
        self._began: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._command is not None:
            self._command.finish()
        # The agent first and the servers last, because each process needs the ones before it.
        for process in reversed(self._processes):
            trouble = process.death() or process.finish()
            if trouble is not None and trouble not in self._timeline.failures:
                self._timeline.fail(trouble)
        self._read_events()

    def run(self) -> None:
        """Run the demo to its end."""
        with suppress(_OverError):
            self._start()
            while not self._is_over():
                self._act()
                self._tick()

    def _start(self) -> None:
        timeline = self._timeline
        login = self._root / "login.json"
        self._begin("the server", "refresher.demo.server", str(login), str(timeline.life))
        self._wait_for("the server", lambda: bool(self._servers))
        timeline.participants.append(
            Participant("authorization server", self._servers["issuer"], "a refresh token works once")
        )
        timeline.participants.append(
            Participant("MCP server", self._servers["mcp_url"], "checks the token of each call")
        )
        self._client = json.loads(login.read_bytes())
        self._command = arriving = self._process("refresher import", "refresher", "import", _NAME, "--from", str(login))
        self._wait_for("refresher import", lambda: arriving.exit_code is not None)
        login.unlink()
        if arriving.exit_code:
            self._give_up(f"refresher import failed{arriving.last_error_line()}")
        self._command = None
        daemon = self._begin("refresher run", "refresher", "run")
        timeline.participants.append(
            Participant("refresher run", f"process {daemon.pid}", "refreshes, publishes tokens")
        )
        agent = self._begin("the agent", "refresher.demo.agent", self._servers["mcp_url"], _NAME)
        timeline.participants.append(Participant("agent", f"process {agent.pid}", "calls a tool all the time"))
        self._wait_for("the agent's first call", lambda: timeline.begun)
        self._began = time.monotonic()

    def _process(self, role: str, *arguments: str) -> Process:
        return Process(role, arguments, root=self._root)

    def _begin(self, role: str, *arguments: str) -> Process:
        self._processes.append(self._process(role, *arguments))
        return self._processes[-1]

    def _wait_for(self, what: str, condition: Callable[[], bool]) -> None:
        ends = time.monotonic() + _LONGEST_START
        while not condition():
            self._tick()
            if time.monotonic() > ends:
                self._give_up(f"{what} did not start within {_LONGEST_START:.0f} s")

    def _give_up(self, why: str) -> None:
        self._timeline.fail(why)
        raise _OverError

    def _is_over(self) -> bool:
        timeline = self._timeline
        if timeline.now < timeline.seconds or self._command is not None:
            return False
        # A slow machine may need longer until everything has happened.
        return not timeline.missing() or timeline.failed > 0 or timeline.now > timeline.seconds + _LONGEST_DELAY

    def _act(self) -> None:
        timeline = self._timeline
        used = 1 - timeline.left / timeline.life
        if self._command is not None:
            self._finish_forcing(self._command)
        elif not _QUIET[0] < used < _QUIET[1] or timeline.revoked:
            return
        elif timeline.now >= _REVOKE_FROM * timeline.seconds and not timeline.rotations["revoked"]:
            self._revoke()
        elif timeline.now >= _FORCE_FROM * timeline.seconds and not timeline.rotations["forced"]:
            timeline.forcing = True
            self._command = self._process("run-once", "refresher", "run-once", "--force", "--json", _NAME)

    def _revoke(self) -> None:
        token = self._source.current()
        if token is None or token.generation == self._timeline.revoking:
            return
        self._timeline.revoking = token.generation
        body = {key: self._client[key] for key in ("client_id", "client_secret")} | {"token": token.access_token or ""}
        try:
            with httpx.Client(trust_env=False, timeout=_LONGEST_REVOCATION) as http:
                http.post(self._servers["revocation_endpoint"], data=body).raise_for_status()
        except httpx.HTTPError:
            self._give_up("the authorization server did not revoke a token")

    def _finish_forcing(self, run_once: Process) -> None:
        if run_once.exit_code is None:
            return
        self._command = None
        if run_once.exit_code:
            self._give_up(f"run-once --force failed{run_once.last_error_line()}")
        [result] = json.loads("".join(run_once.lines()))["results"]
        self._timeline.forced(result["generation"] if result["outcome"] == "rotated" else None)

    def _tick(self) -> None:
        """Wait a moment, take all reports, and show them."""
        time.sleep(_TICK)
        timeline = self._timeline
        if self._began is not None:
            timeline.now = time.monotonic() - self._began
        # The token before the events, so that the reason of a rotation is known when its event is added.
        token = self._source.current()
        self._read_events()
        if token is not None and token.access_token is not None and token.expires_at is not None:
            timeline.left = token.expires_at - time.time()
            timeline.on_token(token.generation, self._token_file.stat().st_mtime)
        for death in filter(None, (process.death() for process in self._processes)):
            self._give_up(death)
        if self._stopping():
            raise _OverError
        self._shown.show(timeline)

    def _read_events(self) -> None:
        for process in self._processes:
            for line in process.lines():
                self._on_event(process.role, json.loads(line))

    def _on_event(self, role: str, said: dict[str, Any]) -> None:
        match role:
            case "the server" if said["event"] == "ready":
                self._servers = said
            case "the server":
                self._timeline.on_server_event(said["event"], said["at"])
            case "the agent":
                self._timeline.on_agent_report(said)
            case _:
                pass  # the daemon logs on stderr
