"""How many calls and logins does an agent lose, with refresher and with the SDK's ``OAuthClientProvider``?

The SDK's provider has the best conditions: a stored login and, except after a restart, what it knows from a login in the
same process: the authorization server and the lifetime of its token.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Literal, NamedTuple

import httpx

from tests.bench.agent import LONGEST, Agent
from tests.bench.agent_program import Plan, Report
from tests.bench.measuring import CannotRun, Run
from tests.bench.setups import RefresherSetup, SDKSetup, Setup
from tests.support import oidc as oidc_module
from tests.support.command import Command, wait_until
from tests.support.mcp_server import MCPServerProcess
from tests.support.oidc import OIDC
from tests.support.vault import Vault

__all__ = ["measure"]

_HOUR: Final = 3600
_BOUND: Final = 60.0
_AT_ONCE: Final = 3
"""Situations; most of their time is spent waiting."""


class Situation(NamedTuple):
    """The calls of the agents, and the events during them."""

    load: Literal["at once", "steadily"]
    calls: int
    agents: int = 1
    life: tuple[int, int] = (_HOUR, _HOUR)
    """Seconds for which the first access token is valid: with refresher, which refreshes before the expiry; with the SDK."""
    connects_late: bool = False
    knows: bool = True
    """Whether the SDK's provider has logged in in the same process."""
    before: Callable[[Setup], object] = lambda _: None
    during: Callable[[Setup], object] = lambda _: None
    """Steady calls end after it."""


def expire(setup: Setup) -> None:
    wait_until(lambda: time.time() > setup.ends_at + 0.2, "the token has expired")
    setup.revoke()


def rotate_elsewhere(setup: Setup) -> None:
    setup.refresh_elsewhere()
    setup.revoke()


def expire_during_calls(setup: Setup) -> None:
    expire(setup)
    wait_until(lambda: time.time() > setup.ends_at + 1.5, "the agents have made more calls")


def refuse_a_refresh(setup: Setup) -> None:
    setup.oidc.script(status=503, body="busy")
    setup.refresh_on_schedule()
    setup.wait_for_the_refresh()


def hang_in_a_refresh(setup: Setup) -> None:
    requests = len(setup.oidc.requests())
    setup.oidc.script(delayMs=60_000, drop=True)
    setup.refresh_on_schedule()
    if isinstance(setup, RefresherSetup):  # the SDK may send no request
        wait_until(lambda: len(setup.oidc.requests()) > requests, "the request hangs")
    ends = time.time() + 3
    wait_until(lambda: time.time() > ends, "the agents have made more calls")


SITUATIONS: Final = {
    "a restart with an expired token": Situation(
        "at once", 5, life=(1, 1), connects_late=True, knows=False, before=expire
    ),
    "refreshed and revoked elsewhere": Situation("at once", 5, before=rotate_elsewhere),
    "3 processes as the token expires": Situation(
        "steadily", 1, agents=3, life=(5, 3), connects_late=True, during=expire_during_calls
    ),
    "a refresh is answered with 503": Situation("steadily", 3, life=(30, 2), during=refuse_a_refresh),
    "a refresh is never answered": Situation("steadily", 3, life=(30, 2), during=hang_in_a_refresh),
    "20 calls with one dead token": Situation("at once", 20, before=lambda setup: setup.revoke()),
}


class Outcome(NamedTuple):
    """The results of one setup."""

    reports: list[Report]
    requests: int
    reused: int
    """The number of requests with a used refresh token."""

    def total(self, key: Literal["calls", "failed", "unended", "logins"]) -> int:
        return sum(each[key] for each in self.reports)

    @property
    def lost(self) -> int:
        return self.total("failed") + self.total("unended")

    def __str__(self) -> str:
        words = [f"{self.total('calls') - self.lost} of {self.total('calls')} calls"]
        counts = {
            "token requests": self.requests,
            "with a used refresh token": self.reused,
            "login requests": self.total("logins"),
            "did not end": self.total("unended"),
        }
        return ", ".join([*words, *(f"{what}: {count}" for what, count in counts.items() if count)])


def measure(run: Run) -> None:
    """Run each situation with refresher and with the SDK; keep a line for each."""
    if (reason := oidc_module.missing()) is not None:
        raise CannotRun(reason)
    run.say(f"{len(SITUATIONS)} situations with refresher and with the SDK's provider")
    vault = Vault()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        outcomes = list(pool.map(lambda what: _run(run.root / f"sdk {what}", SITUATIONS[what], vault), SITUATIONS))
    for what, (ours, theirs) in zip(SITUATIONS, outcomes, strict=True):
        run.results.notes.append(f"{what}: {ours} | the SDK: {theirs}")
    both = zip(*outcomes, strict=True)
    calls, logins = zip(
        *((sum(o.lost for o in side), sum(o.total("logins") for o in side)) for side in both), strict=True
    )
    run.note("sdk.failed", [calls])
    run.note("sdk.logins", [logins])


def _run(root: Path, situation: Situation, vault: Vault) -> tuple[Outcome, Outcome]:
    """Run a situation with refresher, and with the SDK, beside servers of its own."""
    root.mkdir()
    with OIDC(vault) as oidc, MCPServerProcess(oidc) as mcp:
        with ExitStack() as ends:
            refresher = Command(root / "home", vault)
            ours = _calls(situation, RefresherSetup(oidc, mcp, situation.life[0], refresher, ends), ends)
        with ExitStack() as ends:
            theirs = _calls(situation, SDKSetup(oidc, mcp, situation.life[1], root / "sdk"), ends)
    return ours, theirs


def _calls(situation: Situation, setup: Setup, ends: ExitStack) -> Outcome:
    issuer = setup.oidc.endpoints["issuer"]
    metadata = httpx.get(f"{issuer}/.well-known/oauth-authorization-server", trust_env=False, timeout=60).json()
    before = len(setup.oidc.requests())
    if not situation.connects_late:
        setup.store()
        setup.start_refreshing()
    plan: Plan = {
        "url": setup.url,
        "way": setup.way,
        "tokens": str(setup.tokens),
        "demands": str(setup.demands),
        "metadata": metadata if situation.knows else None,
        "life": setup.life,
        "load": situation.load,
        "calls": situation.calls,
        "bound": LONGEST if situation.load == "steadily" else _BOUND,
        "connects_late": situation.connects_late,
    }
    agents = [ends.enter_context(Agent(plan)) for _ in range(situation.agents)]
    for agent in agents:
        agent.wait()
    if situation.connects_late:
        setup.store()
    situation.before(setup)
    if situation.connects_late:
        setup.start_refreshing()
    setup.agents_begin()
    for agent in agents:
        agent.continue_()
    situation.during(setup)
    if situation.load == "steadily":
        for agent in agents:
            agent.continue_()
    reports = [agent.report() for agent in agents]
    setup.oidc.script(clear=True)
    requests = setup.oidc.requests()[before:]
    # The server has not seen the requests that a script answered.
    seen = [request for request in requests if request["provider_status"] is not None]
    return Outcome(reports, len(requests), len(seen) - len({request["fingerprint"] for request in seen}))
