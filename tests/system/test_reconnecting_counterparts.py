"""``ReconnectingClient`` with the servers of three libraries: the Python SDK, the TypeScript SDK, and FastMCP."""

from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import anyio
import mcp_types
import pytest

from shim import InsufficientScope
from shim.mcp import OutcomeUnknown, ReconnectingClient
from tests.conftest import need
from tests.support.balancer import Balancer, Decision, Request
from tests.support.counterpart import Counterpart, missing
from tests.support.mirror import Mirror
from tests.support.published import Published
from tests.support.stage import until

pytestmark = pytest.mark.asyncio

Mode = Literal["legacy", "auto"]


class Kind(NamedTuple):
    """A library, and how a client uses its server."""

    library: str
    mode: Mode
    json: bool

    @property
    def has_stream(self) -> bool:
        """Whether the client hears notifications by the GET stream of the older protocol."""
        return self.mode == "legacy" or self.library == "typescript"

    @property
    def asks(self) -> bool:
        """Whether the server can ask a question during a call. In JSON, only the TypeScript SDK can."""
        return self.has_stream and (self.library == "typescript" or not self.json)

    def __str__(self) -> str:
        protocol = "2025" if self.has_stream else "2026"
        return f"{self.library} {protocol} {'json' if self.json else 'sse'}"


# The TypeScript SDK has the older protocol only: a client in the mode "auto" finds that out.
MODES: dict[str, tuple[Mode, ...]] = {
    "python": ("legacy", "auto"),
    "fastmcp": ("legacy", "auto"),
    "typescript": ("auto",),
}
# FastMCP starts slowly, and passes the transport on to the Python SDK: one of each pair.
ALL = [
    Kind(library, mode, json)
    for library, modes in MODES.items()
    for mode in modes
    for json in (True, False)
    if library != "fastmcp" or json == (mode == "auto")
]


def kinds(which: Callable[[Kind], bool] = lambda _: True) -> pytest.MarkDecorator:
    """Run a test with the servers of these kinds."""
    return pytest.mark.parametrize("server", [kind for kind in ALL if which(kind)], ids=str, indirect=True)


class Site:
    """A running server behind a load balancer, and the token of its clients."""

    def __init__(self, kind: Kind, server: Counterpart, root: Path) -> None:
        self.kind = kind
        self.server = server
        self.balancer = Balancer(server.port)
        self.mirror = Mirror(listens=not kind.has_stream)
        self._root = root

    @asynccontextmanager
    async def client(self, **options: Any) -> Any:
        """Connect a client with the first token."""
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.balancer)
            self.published = Published(self._root / "published", self.balancer.origin)
            self.published.put(1)
            self.server.accept("access-token-1")
            options = {"mode": self.kind.mode, "message_handler": self.mirror.on_message, **options}
            client = ReconnectingClient(self.balancer.url, self.published.source(), **options)
            yield await stack.enter_async_context(client)

    async def restart(self) -> None:
        """Kill the server while no connection is possible, and start it again."""
        self.balancer.down()
        await anyio.to_thread.run_sync(self.server.stop)
        await anyio.to_thread.run_sync(self.server.start)
        await self.balancer.up()

    async def opens(self, number: int = 1) -> None:
        """Wait until the client has opened so many streams."""
        await until(lambda: self.balancer.streams >= number, "the stream is open")

    async def is_heard(self) -> None:
        """Wait until the copy of the agent is current."""
        await until(lambda: self.mirror.version == self.server.version, "the agent has heard of the change")


@pytest.fixture(scope="module")
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Kind, Counterpart]]:
    kind: Kind = request.param
    need(missing(kind.library))
    made = Counterpart(kind.library, tmp_path_factory.mktemp("counterpart") / "server", json_response=kind.json)
    made.start()
    yield kind, made
    made.stop()


@pytest.fixture
def site(server: tuple[Kind, Counterpart], tmp_path: Path) -> Site:
    return Site(*server, tmp_path)


async def add(client: ReconnectingClient) -> None:
    result = await client.call_tool("add", {"a": 1, "b": 2})
    assert result.structured_content == {"result": 3}


@kinds()
async def test_calls_survive_a_rotation_and_a_refused_token(site: Site, request: pytest.FixtureRequest) -> None:
    """If it failed, agents would see errors of such a server when a token rotates or is revoked."""
    what = request.node.name
    async with site.client() as client:
        session = client.session
        site.server.accept("access-token-2")
        site.published.put(2)
        await add(client)
        assert site.published.demanded() == []
        site.server.accept("access-token-3")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.call_tool, "write", {"what": what})
            tasks.start_soon(add, client)
            await until(lambda: site.published.demanded() == ["linear.2"], "the agent demands a token")
            site.published.put(3)
        assert client.session is session, "the client reconnected because of a token"
        assert client.state == "connected"
    assert site.server.executed()[what] == 1


@kinds()
async def test_a_missing_scope_is_named(site: Site) -> None:
    """If it failed, nobody would read which scope such a server requires."""
    async with site.client() as client:
        await add(client)
        site.server.accept("access-token-1", scopes=())
        with anyio.fail_after(60), pytest.raises(InsufficientScope) as caught:
            await add(client)
        assert caught.value.scopes == ("use",)
        assert caught.value.login_command == "refresher login linear --scope use"
        site.server.accept("access-token-2")
        site.published.put(2)
        with anyio.fail_after(60):
            await add(client)


@kinds()
async def test_calls_survive_a_restart(site: Site, request: pytest.FixtureRequest) -> None:
    """If it failed, an agent would need a restart whenever such a server restarts, or would write twice."""
    what = request.node.name
    async with site.client() as client:
        await client.list_tools()
        for number in range(2):
            site.balancer.down()
            with anyio.fail_after(90):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(client.call_tool, "write", {"what": f"{what} {number}"})
                    tasks.start_soon(add, client)
                    await site.restart()
    executed = site.server.executed()
    assert [executed[f"{what} {number}"] for number in range(2)] == [1, 1]


@kinds(lambda kind: kind.has_stream or kind.library == "python")
async def test_notifications_are_heard_after_cuts(site: Site) -> None:
    """If it failed, an agent behind a load balancer would not hear such a server after its second cut."""
    async with site.client() as client, anyio.create_task_group() as tasks:
        tasks.start_soon(site.mirror.run, client)
        await site.opens()
        for number in range(2, 5):
            await anyio.to_thread.run_sync(site.server.notify)
            await site.is_heard()
            assert site.balancer.cut_streams() == 1
            await site.opens(number)
        await until(lambda: client.state == "connected", "the state says so")
        heard = site.mirror.heard
        await anyio.to_thread.run_sync(site.server.notify)
        await until(lambda: site.mirror.heard > heard, "the agent hears the server itself")
        tasks.cancel_scope.cancel()


@kinds(lambda kind: kind.has_stream and kind.library != "python")
async def test_what_was_missed_is_sent_again(site: Site) -> None:
    """If it failed, a server that stores notifications would store them in vain."""
    async with site.client() as client:
        await site.opens()
        await anyio.to_thread.run_sync(site.server.notify)
        await until(lambda: site.mirror.heard == 1, "the first is heard")
        site.balancer.down()
        for _ in range(3):
            await anyio.to_thread.run_sync(site.server.notify)
        await site.balancer.up()
        await until(lambda: site.mirror.heard >= 4, "those in the gap are heard")
        assert client.session is not None


@kinds(lambda kind: kind.has_stream)
@pytest.mark.filterwarnings("ignore:resources/subscribe is removed")
async def test_a_subscription_outlives_a_restart(site: Site) -> None:
    """If it failed, an agent would hear nothing of a resource after a restart of such a server."""
    updated: list[str] = []

    async def on_message(message: object) -> None:
        if isinstance(message, mcp_types.ResourceUpdatedNotification):
            updated.append(str(message.params.uri))

    async with site.client(message_handler=on_message) as client:
        await client.subscribe_resource("stage://news")
        await site.opens()
        await site.restart()
        await until(lambda: site.balancer.requests["POST resources/subscribe"] >= 2, "the client subscribes again")
        await site.opens(2)
        await anyio.to_thread.run_sync(site.server.notify)
        await until(lambda: updated == ["stage://news"], "the update is heard")


def answers(decision: Decision, times: int) -> Callable[[Request], Decision]:
    """Cause a fault for the first answers to a question of the server."""
    seen = iter(range(times))
    return lambda request: decision if request.name == "POST answer" and next(seen, None) is not None else "pass"


async def says_blue(_: Any, __: Any) -> mcp_types.ElicitResult:
    return mcp_types.ElicitResult(action="accept", content={"said": "blue"})


@kinds(lambda kind: kind.asks)
@pytest.mark.parametrize("decision", ["busy", "drop", "lose"])
async def test_an_answer_survives_a_fault(site: Site, decision: Decision) -> None:
    """If it failed, one lost answer to a question of such a server would block a call forever."""
    heard = site.server.executed()["heard blue"]
    site.balancer.decide = answers(decision, 1)
    async with site.client(elicitation_callback=says_blue) as client:
        await site.opens()
        with anyio.fail_after(90):
            result = await client.call_tool("ask", {})
        assert result.structured_content == {"result": "blue"}
    assert site.server.executed()["heard blue"] == heard + 1


@kinds(lambda kind: kind.asks)
async def test_an_answer_that_cannot_be_sent_ends_the_call(site: Site) -> None:
    """If it failed, a call would never end at such a server if its answer cannot be sent."""
    site.balancer.decide = answers("busy", 10**6)
    async with site.client(elicitation_callback=says_blue, patience=2) as client:
        await site.opens()
        with anyio.fail_after(90), pytest.raises(OutcomeUnknown):
            await client.call_tool("ask", {})
