"""The course of the demo: who is started when, what is done to them, and when it is over."""

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
from refresher.demo import verdict
from refresher.demo.children import Child
from refresher.demo.screen import Screen, screen
from refresher.demo.story import Party, Story
from shim import FileTokenSource

__all__ = ["perform"]

_NAME: Final = "demo"
_LONGEST_LIFE: Final = 10
_SHORTEST_LIFE: Final = 2

_TICK: Final = 0.1
_LONGEST_START: Final = 30.0
_LONGEST_DELAY: Final = 15.0
_LONGEST_REVOCATION: Final = 5.0

# Shares of the whole, from which on the token is revoked, and replaced from outside.
_REVOKE_FROM: Final = 0.5
_FORCE_FROM: Final = 0.7
# The part of a token's life in which the schedule is not about to replace it: one thing at a time is understood.
_QUIET: Final = (0.2, 0.65)


def perform(seconds: float, *, stopping: Callable[[], bool]) -> int:
    """Play for about ``seconds``; return 0 if all went as it should, else 1."""
    story = Story(seconds, max(_SHORTEST_LIFE, min(_LONGEST_LIFE, round(seconds / 3))))
    try:
        # What cannot be removed is no reason to hide what was seen.
        directory = TemporaryDirectory(prefix="refresher-demo-", ignore_cleanup_errors=True)
    except OSError as error:
        raise StorageError(f"the demo needs a temporary directory: {error.strerror}") from None
    with directory as root, screen() as shown:
        with _Course(story, Path(root), shown, stopping) as course:
            course.run()
        if not stopping():
            shown.show(story)
    stopped = stopping()
    say("\n" + verdict.summary(story, stopped=stopped))
    return 1 if verdict.problems(story, stopped=stopped) else 0


class _OverError(Exception):
    """The demo cannot or need not go on; the story knows why."""


class _Course:
    """The processes of one demo, and what is done to them; all have ended when the context closes."""

    def __init__(self, story: Story, root: Path, shown: Screen, stopping: Callable[[], bool]) -> None:
        self._story = story
        self._root = root
        self._shown = shown
        self._stopping = stopping
        self._token_file = root / f"state/tokens/{_NAME}.json"
        self._source = FileTokenSource(_NAME, tokens_dir=root / "state/tokens", demands_dir=root / "state/demands")
        self._lasting: list[Child] = []
        self._passing: Child | None = None
        self._servers: dict[str, str] = {}
        self._client: dict[str, str] = {}
        self._began: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._passing is not None:
            self._passing.finish()
        # The agent first and the servers last, so that nobody is left without what it needs.
        for child in reversed(self._lasting):
            trouble = child.death() or child.finish()
            if trouble is not None and trouble not in self._story.troubles:
                self._story.troubled(trouble)
        self._listen()

    def run(self) -> None:
        """Play it to its end."""
        with suppress(_OverError):
            self._start()
            while not self._is_over():
                self._act()
                self._tick()

    def _start(self) -> None:
        story = self._story
        login = self._root / "login.json"
        self._begin("the server", "refresher.demo.server", str(login), str(story.life))
        self._wait_for("the server", lambda: bool(self._servers))
        story.parties.append(Party("authorization server", self._servers["issuer"], "a refresh token works once"))
        story.parties.append(Party("MCP server", self._servers["mcp_url"], "checks every call's token"))
        self._client = json.loads(login.read_bytes())
        self._passing = arriving = self._child("refresher import", "refresher", "import", _NAME, "--from", str(login))
        self._wait_for("refresher import", lambda: arriving.exit_code is not None)
        login.unlink()
        if arriving.exit_code:
            self._give_up(f"refresher import failed{arriving.last_words()}")
        self._passing = None
        daemon = self._begin("refresher run", "refresher", "run")
        story.parties.append(Party("refresher run", f"process {daemon.pid}", "refreshes, publishes tokens"))
        agent = self._begin("the agent", "refresher.demo.agent", self._servers["mcp_url"], _NAME)
        story.parties.append(Party("agent", f"process {agent.pid}", "calls a tool all the time"))
        self._wait_for("the agent's first call", lambda: story.begun)
        self._began = time.monotonic()

    def _child(self, role: str, *arguments: str) -> Child:
        return Child(role, arguments, root=self._root)

    def _begin(self, role: str, *arguments: str) -> Child:
        self._lasting.append(self._child(role, *arguments))
        return self._lasting[-1]

    def _wait_for(self, what: str, condition: Callable[[], bool]) -> None:
        ends = time.monotonic() + _LONGEST_START
        while not condition():
            self._tick()
            if time.monotonic() > ends:
                self._give_up(f"nothing was seen of {what} for {_LONGEST_START:.0f} s")

    def _give_up(self, why: str) -> None:
        self._story.troubled(why)
        raise _OverError

    def _is_over(self) -> bool:
        story = self._story
        if story.now < story.seconds or self._passing is not None:
            return False
        # A slow machine may need longer until everything has been seen.
        return not story.missing() or story.failed > 0 or story.now > story.seconds + _LONGEST_DELAY

    def _act(self) -> None:
        story = self._story
        used = 1 - story.left / story.life
        if self._passing is not None:
            self._finish_forcing(self._passing)
        elif not _QUIET[0] < used < _QUIET[1] or story.revoked:
            return
        elif story.now >= _REVOKE_FROM * story.seconds and not story.rotations["revoked"]:
            self._revoke()
        elif story.now >= _FORCE_FROM * story.seconds and not story.rotations["forced"]:
            story.forcing = True
            self._passing = self._child("run-once", "refresher", "run-once", "--force", "--json", _NAME)

    def _revoke(self) -> None:
        token = self._source.current()
        if token is None or token.generation == self._story.revoking:
            return
        self._story.revoking = token.generation
        body = {key: self._client[key] for key in ("client_id", "client_secret")} | {"token": token.access_token or ""}
        try:
            with httpx.Client(trust_env=False, timeout=_LONGEST_REVOCATION) as http:
                http.post(self._servers["revocation_endpoint"], data=body).raise_for_status()
        except httpx.HTTPError as error:
            self._give_up(f"the authorization server did not revoke a token ({type(error).__name__})")

    def _finish_forcing(self, run_once: Child) -> None:
        if run_once.exit_code is None:
            return
        self._passing = None
        if run_once.exit_code:
            self._give_up(f"run-once --force failed{run_once.last_words()}")
        [result] = json.loads("".join(run_once.lines()))["results"]
        self._story.forced(result["generation"] if result["outcome"] == "rotated" else None)

    def _tick(self) -> None:
        """Let a moment pass: hear everybody, and show it."""
        time.sleep(_TICK)
        story = self._story
        if self._began is not None:
            story.now = time.monotonic() - self._began
        # The token before what is told of it: of a rotation it is known then why it came.
        token = self._source.current()
        self._listen()
        if token is not None and token.access_token is not None and token.expires_at is not None:
            story.left = token.expires_at - time.time()
            story.token_seen(token.generation, self._token_file.stat().st_mtime)
        for death in filter(None, (child.death() for child in self._lasting)):
            self._give_up(death)
        if self._stopping():
            raise _OverError
        self._shown.show(story)

    def _listen(self) -> None:
        for child in self._lasting:
            for line in child.lines():
                self._hear(child.role, json.loads(line))

    def _hear(self, role: str, said: dict[str, Any]) -> None:
        match role:
            case "the server" if said["event"] == "ready":
                self._servers = said
            case "the server":
                self._story.server_said(said["event"], said["at"])
            case "the agent":
                self._story.agent_said(said)
            case _:
                pass  # the daemon logs to stderr
