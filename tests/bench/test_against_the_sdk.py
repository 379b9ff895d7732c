"""What becomes of an agent's calls with our client, and with the SDK's ``OAuthClientProvider``, as a table.

Asserted is what we promise of ours alone. The SDK's provider begins as well as it can: with a stored login and, but after
a restart, with what it knows where it has logged in in the same process, the authorization server and its token's end.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, NamedTuple

import httpx
import pytest

from tests.bench.agent import LONGEST, Agent
from tests.bench.conftest import Compare, Note
from tests.bench.contender import Orders, Told
from tests.bench.sides import Ours, Side, Theirs
from tests.conftest import need
from tests.support import oidc as oidc_module
from tests.support.command import Command, wait_until
from tests.support.mcp_server import MCPServerProcess
from tests.support.oidc import OIDC
from tests.support.vault import Vault

HOUR = 3600
BOUND = 15.0


class Scenario(NamedTuple):
    """What agents do, and what befalls them."""

    load: Literal["at once", "beside", "steadily"]
    calls: int
    seconds: float = 0.0
    agents: int = 1
    life: tuple[int, int] = (HOUR, HOUR)
    """Seconds for which the first access token is good, ours and theirs; a refresh comes before the end, or at it."""
    connects_late: bool = False
    knows: bool = True
    """Whether the SDK's provider has logged in in the same process."""
    before: Callable[[Side], object] = lambda _: None
    during: Callable[[Side], object] = lambda _: None
    """A steady round ends with it."""
    requests: int = 1
    """The token requests that ours may make."""
    rounds: int = 1
    """In turn with the peer's; of ours, where the times are compared."""
    slowest: float | None = None
    """The most that ours may take, in multiples of a fixed header's time, where nothing befalls anybody."""


def expire(side: Side) -> None:
    wait_until(lambda: time.time() > side.ends_at + 0.2, "the token has expired")
    side.end()


def rotate_elsewhere(side: Side) -> None:
    side.rotate()
    side.end()


def expire_while_they_call(side: Side) -> None:
    expire(side)
    wait_until(lambda: time.time() > side.ends_at + 1.5, "they have gone on")


def refuse_a_refresh(side: Side) -> None:
    side.oidc.script(status=503, body="busy")
    side.come_due()
    side.see_it_refreshed()


def hang_in_a_refresh(side: Side) -> None:
    requests = len(side.oidc.requests())
    side.oidc.script(delayMs=60_000, drop=True)
    side.come_due()
    if isinstance(side, Ours):  # of theirs nothing is expected
        wait_until(lambda: len(side.oidc.requests()) > requests, "it hangs")
    ends = time.time() + 3
    wait_until(lambda: time.time() > ends, "they have gone on")


SCENARIOS = {
    "50 calls at once": Scenario("at once", 50, 0.05, rounds=5, slowest=2.5),
    "a quick call beside one of 0.5 s": Scenario("beside", 1, 0.5, rounds=7, slowest=3.0),
    "a restart with an expired token": Scenario(
        "at once", 5, life=(1, 1), connects_late=True, knows=False, before=expire
    ),
    "refreshed and revoked elsewhere": Scenario("at once", 5, before=rotate_elsewhere),
    "3 processes as the token expires": Scenario(
        "steadily", 1, agents=3, life=(5, 3), connects_late=True, during=expire_while_they_call
    ),
    "a refresh is answered with 503": Scenario("steadily", 3, life=(30, 2), during=refuse_a_refresh, requests=2),
    "a refresh is never answered": Scenario("steadily", 3, life=(30, 2), during=hang_in_a_refresh),
    "20 calls with one dead token": Scenario("at once", 20, before=lambda side: side.end()),
}


class Seen(NamedTuple):
    """What became of it."""

    told: list[Told]
    requests: int
    rotations: int
    reused: int
    """Refresh tokens that were presented again after they were spent, so many times."""

    def total(self, key: Literal["calls", "failed", "unended", "logins"]) -> int:
        return sum(each[key] for each in self.told)

    @property
    def slowest(self) -> float:
        return max(each["slowest"] for each in self.told)

    def __str__(self) -> str:
        calls = self.total("calls")
        words = [f"{calls - self.total('failed') - self.total('unended')} of {calls} calls"]
        words += [f"slowest {self.slowest:.1f} x"] if self.slowest else []
        counts = {
            "token requests": self.requests,
            "with a spent refresh token": self.reused,
            "logins asked for": self.total("logins"),
            "did not end": self.total("unended"),
        }
        words += [f"{what}: {count}" for what, count in counts.items() if count]
        return ", ".join(words)


class World:
    """The servers, and what was seen."""

    def __init__(self, oidc: OIDC, mcp: MCPServerProcess, vault: Vault, root: Path) -> None:
        self._oidc = oidc
        self._mcp = mcp
        self._vault = vault
        self._root = root
        issuer = oidc.endpoints["issuer"]
        self._metadata = httpx.get(f"{issuer}/.well-known/oauth-authorization-server", trust_env=False).json()
        self._peer = oidc.mint("public", mcp.url, live=True)["access_token"]
        self.table = [("", "ours", "the SDK's OAuthClientProvider")]

    def play(self, scenario: Scenario, home: str) -> tuple[Seen, Seen]:
        """Play it with ours, and with theirs."""
        with ExitStack() as ends:
            refresher = Command(self._root / home, self._vault)
            side: Side = Ours(self._oidc, self._mcp, scenario.life[0], refresher, ends)
            ours = self._run(scenario, side, ends, scenario.rounds)
        with ExitStack() as ends:
            side = Theirs(self._oidc, self._mcp, scenario.life[1], self._root / f"{home} sdk")
            theirs = self._run(scenario, side, ends, 1)
        return ours, theirs

    def _run(self, scenario: Scenario, side: Side, ends: ExitStack, rounds: int) -> Seen:
        before = len(self._oidc.requests())
        if not scenario.connects_late:
            side.store()
            side.attend()
        orders: Orders = {
            "url": self._mcp.url,
            "way": side.way,
            "tokens": str(side.tokens),
            "demands": str(side.demands),
            "metadata": self._metadata if scenario.knows else None,
            "life": side.life,
            "header": f"Bearer {self._peer}",
            "load": scenario.load,
            "calls": scenario.calls,
            "seconds": scenario.seconds,
            "rounds": rounds,
            "bound": LONGEST if scenario.load == "steadily" else BOUND,
            "connects_late": scenario.connects_late,
        }
        agents = [ends.enter_context(Agent(orders)) for _ in range(scenario.agents)]
        for agent in agents:
            agent.wait()
        if scenario.connects_late:
            side.store()
        scenario.before(side)
        if scenario.connects_late:
            side.attend()
        side.begin()
        for agent in agents:
            agent.go_on()
        scenario.during(side)
        if scenario.load == "steadily":
            for agent in agents:
                agent.go_on()
        told = [agent.told() for agent in agents]
        self._oidc.script(clear=True)
        requests = self._oidc.requests()[before:]
        # What a script has answered in its place the server has not seen.
        seen = [request for request in requests if request["provider_status"] is not None]
        return Seen(
            told=told,
            requests=len(requests),
            rotations=sum(request["provider_status"] == 200 for request in seen),
            reused=len(seen) - len({request["fingerprint"] for request in seen}),
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, note: Note) -> Iterator[World]:
    """The servers; at the end the table is shown."""
    need(oidc_module.missing())
    vault = Vault()
    root = tmp_path_factory.mktemp("sdk")
    with OIDC(vault) as oidc, MCPServerProcess(oidc) as mcp:
        made = World(oidc, mcp, vault, root)
        yield made
    widths = [max(map(len, column)) for column in zip(*made.table, strict=True)]
    rows = [" | ".join(map(str.ljust, row, widths)).rstrip() for row in made.table]
    note("slowest: of the calls that succeeded, in multiples of the same calls with a fixed header", *rows)
    assert not vault.leaks_below(root)


@pytest.mark.parametrize("what", SCENARIOS)
def test_no_call_is_lost_and_no_login_asked_for(world: World, what: str, compare: Compare) -> None:
    """If it failed, agents would be better off with the provider that the SDK brings along."""
    scenario = SCENARIOS[what]
    ours, theirs = world.play(scenario, f"scene {len(world.table)}")
    world.table.append((what, str(ours), str(theirs)))
    assert ours.total("calls") > 0
    assert (ours.total("failed"), ours.total("unended"), ours.total("logins")) == (0, 0, 0), ours
    assert (ours.rotations <= 1, ours.requests <= scenario.requests, ours.reused) == (True, True, 0), ours
    if scenario.slowest is not None:
        compare(f"{what}: the slowest, against a fixed header", ours.slowest, at_most=scenario.slowest)
