"""A table of the results of an agent's calls, with refresher and with the SDK's ``OAuthClientProvider``.

The test asserts only what refresher promises. The SDK's provider has the best conditions: a stored login and, except
after a restart, what it knows from a login in the same process: the authorization server and the lifetime of its token.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, NamedTuple

import httpx
import pytest

from tests.bench.agent import LONGEST, Agent
from tests.bench.agent_program import Plan, Report
from tests.bench.conftest import Compare, Note
from tests.bench.setups import RefresherSetup, SDKSetup, Setup
from tests.conftest import need
from tests.support import oidc as oidc_module
from tests.support.command import Command, wait_until
from tests.support.mcp_server import MCPServerProcess
from tests.support.oidc import OIDC
from tests.support.vault import Vault

HOUR = 3600
BOUND = 60.0


class Scenario(NamedTuple):
    """The calls of the agents, and the events during them."""

    load: Literal["at once", "beside", "steadily"]
    calls: int
    seconds: float = 0.0
    agents: int = 1
    life: tuple[int, int] = (HOUR, HOUR)
    """Seconds for which the first access token is valid: with refresher, which refreshes before the expiry; with the SDK."""
    connects_late: bool = False
    knows: bool = True
    """Whether the SDK's provider has logged in in the same process."""
    before: Callable[[Setup], object] = lambda _: None
    during: Callable[[Setup], object] = lambda _: None
    """A steady round ends after it."""
    requests: int = 1
    """The token requests that refresher may send."""
    rounds: int = 1
    """With refresher, where times are compared; rounds of the baseline run between them."""
    slowest: float | None = None
    """Without events: the most that refresher may take, in multiples of the baseline."""


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


SCENARIOS = {
    "50 calls at once": Scenario("at once", 50, 0.05, rounds=5, slowest=2.5),
    "a quick call beside one of 0.5 s": Scenario("beside", 1, 0.5, rounds=7, slowest=3.0),
    "a restart with an expired token": Scenario(
        "at once", 5, life=(1, 1), connects_late=True, knows=False, before=expire
    ),
    "refreshed and revoked elsewhere": Scenario("at once", 5, before=rotate_elsewhere),
    "3 processes as the token expires": Scenario(
        "steadily", 1, agents=3, life=(5, 3), connects_late=True, during=expire_during_calls
    ),
    "a refresh is answered with 503": Scenario("steadily", 3, life=(30, 2), during=refuse_a_refresh, requests=2),
    "a refresh is never answered": Scenario("steadily", 3, life=(30, 2), during=hang_in_a_refresh),
    "20 calls with one dead token": Scenario("at once", 20, before=lambda setup: setup.revoke()),
}


class Outcome(NamedTuple):
    """The results of one setup."""

    report: list[Report]
    requests: int
    rotations: int
    reused: int
    """The number of requests with a used refresh token."""

    def total(self, key: Literal["calls", "failed", "unended", "logins"]) -> int:
        return sum(each[key] for each in self.report)

    @property
    def slowest(self) -> float:
        return max(each["slowest"] for each in self.report)

    def __str__(self) -> str:
        calls = self.total("calls")
        words = [f"{calls - self.total('failed') - self.total('unended')} of {calls} calls"]
        words += [f"slowest {self.slowest:.1f} x"] if self.slowest else []
        counts = {
            "token requests": self.requests,
            "with a used refresh token": self.reused,
            "login requests": self.total("logins"),
            "did not end": self.total("unended"),
        }
        words += [f"{what}: {count}" for what, count in counts.items() if count]
        return ", ".join(words)


class Servers:
    """The servers, and the table of results."""

    def __init__(self, oidc: OIDC, mcp: MCPServerProcess, vault: Vault, root: Path) -> None:
        self._oidc = oidc
        self._mcp = mcp
        self._vault = vault
        self._root = root
        issuer = oidc.endpoints["issuer"]
        self._metadata = httpx.get(f"{issuer}/.well-known/oauth-authorization-server", trust_env=False).json()
        self._baseline_token = oidc.mint("public", mcp.url, live=True)["access_token"]
        self.table = [("", "refresher", "the SDK's OAuthClientProvider")]

    def run(self, scenario: Scenario, home: str) -> tuple[Outcome, Outcome]:
        """Run it with refresher, and with the SDK."""
        with ExitStack() as ends:
            refresher = Command(self._root / home, self._vault)
            setup: Setup = RefresherSetup(self._oidc, self._mcp, scenario.life[0], refresher, ends)
            ours = self._run(scenario, setup, ends, scenario.rounds)
        with ExitStack() as ends:
            setup = SDKSetup(self._oidc, self._mcp, scenario.life[1], self._root / f"{home} sdk")
            theirs = self._run(scenario, setup, ends, 1)
        return ours, theirs

    def _run(self, scenario: Scenario, setup: Setup, ends: ExitStack, rounds: int) -> Outcome:
        before = len(self._oidc.requests())
        if not scenario.connects_late:
            setup.store()
            setup.start_refreshing()
        plan: Plan = {
            "url": self._mcp.url,
            "way": setup.way,
            "tokens": str(setup.tokens),
            "demands": str(setup.demands),
            "metadata": self._metadata if scenario.knows else None,
            "life": setup.life,
            "header": f"Bearer {self._baseline_token}",
            "load": scenario.load,
            "calls": scenario.calls,
            "seconds": scenario.seconds,
            "rounds": rounds,
            "bound": LONGEST if scenario.load == "steadily" else BOUND,
            "connects_late": scenario.connects_late,
        }
        agents = [ends.enter_context(Agent(plan)) for _ in range(scenario.agents)]
        for agent in agents:
            agent.wait()
        if scenario.connects_late:
            setup.store()
        scenario.before(setup)
        if scenario.connects_late:
            setup.start_refreshing()
        setup.agents_begin()
        for agent in agents:
            agent.continue_()
        scenario.during(setup)
        if scenario.load == "steadily":
            for agent in agents:
                agent.continue_()
        report = [agent.report() for agent in agents]
        self._oidc.script(clear=True)
        requests = self._oidc.requests()[before:]
        # The server has not seen the requests that a script answered.
        seen = [request for request in requests if request["provider_status"] is not None]
        return Outcome(
            report=report,
            requests=len(requests),
            rotations=sum(request["provider_status"] == 200 for request in seen),
            reused=len(seen) - len({request["fingerprint"] for request in seen}),
        )


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory, note: Note) -> Iterator[Servers]:
    """The servers; the table is printed at the end."""
    need(oidc_module.missing())
    vault = Vault()
    root = tmp_path_factory.mktemp("sdk")
    with OIDC(vault) as oidc, MCPServerProcess(oidc) as mcp:
        made = Servers(oidc, mcp, vault, root)
        yield made
    widths = [max(map(len, column)) for column in zip(*made.table, strict=True)]
    rows = [" | ".join(map(str.ljust, row, widths)).rstrip() for row in made.table]
    note("slowest: the slowest successful call, in multiples of the same calls with a fixed header", *rows)
    assert not vault.leaks_below(root)


@pytest.mark.parametrize("what", SCENARIOS)
def test_no_call_fails_and_no_login_is_requested(servers: Servers, what: str, compare: Compare) -> None:
    """If it failed, agents would lose calls or logins that the provider of the SDK would keep."""
    scenario = SCENARIOS[what]
    ours, theirs = servers.run(scenario, f"scenario {len(servers.table)}")
    servers.table.append((what, str(ours), str(theirs)))
    assert ours.total("calls") > 0
    assert (ours.total("failed"), ours.total("unended"), ours.total("logins")) == (0, 0, 0), ours
    assert (ours.rotations <= 1, ours.requests <= scenario.requests, ours.reused) == (True, True, 0), ours
    if scenario.slowest is not None:
        compare(f"{what}: the slowest, against a fixed header", ours.slowest, at_most=scenario.slowest)
