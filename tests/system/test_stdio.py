"""``refresher stdio``: clients of the SDK and plain processes, the real command, and real servers."""

import json
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import anyio
import pytest
from mcp import Client, StdioServerParameters, stdio_client
from mcp.client import ClientRequestContext
from mcp_types import (
    CreateMessageRequestParams,
    CreateMessageResult,
    ElicitRequestParams,
    ElicitResult,
    TextContent,
    ToolListChangedNotification,
)

from tests.conftest import need
from tests.support import conformance
from tests.support.command import Command, wait_until
from tests.support.counterpart import Counterpart, missing
from tests.support.documents import block
from tests.support.published import DEAD, Published
from tests.support.stage import Stage, publish, until
from tests.support.warm import stub

REFRESHER: Final = stub("refresher")
_REAL: Final = (sys.executable, "-m", "refresher")
_MIB: Final = 1024 * 1024


@asynccontextmanager
async def connected(root: Path, **options: Any) -> Any:
    """Connect the client of the SDK through the command."""
    arguments = [*REFRESHER[1:], "--state-dir", str(root), "stdio", "linear", "--wait", "80s"]
    parameters = StdioServerParameters(command=REFRESHER[0], args=arguments, env=dict(os.environ))
    async with Client(stdio_client(parameters), **options) as client:
        yield client


async def _add(client: Client) -> None:
    result = await client.call_tool("add", {"a": 1, "b": 2})
    assert result.structured_content == {"result": 3}, result


@pytest.mark.asyncio
@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_no_call_is_lost_in_rotations_a_revocation_and_a_restart(tmp_path: Path, mode: Any) -> None:
    """If it failed, a client on stdin and stdout would lose calls whenever its token or its server changes."""
    with Stage() as server:
        server.play(tokens=["access-token-1"])
        published = publish(tmp_path, server, server_url=server.url)
        async with connected(tmp_path, mode=mode) as client, anyio.create_task_group() as tasks:
            await client.list_tools()
            await _add(client)
            for generation in (2, 3, 4):
                server.play(tokens=[f"access-token-{generation - 1}", f"access-token-{generation}"])
                published.put(generation, server_url=server.url)
                await _add(client)
            server.play(tokens=["none"])
            for _ in range(5):
                tasks.start_soon(_add, client)
            await until(lambda: "linear.4" in published.demanded(), "the bridge demands a token")
            server.play(tokens=["access-token-5"])
            published.put(5, server_url=server.url)
            await _add(client)
            await anyio.to_thread.run_sync(server.stop)
            tasks.start_soon(_add, client)
            await anyio.to_thread.run_sync(server.start, "access-token-5")
            await _add(client)


@pytest.mark.asyncio
async def test_the_configuration_of_the_reference_works(tmp_path: Path, stage: Stage) -> None:
    """If it failed, a person who pastes the example into a client would get no server."""
    publish(tmp_path, stage, server_url=stage.url)
    entry = json.loads(block("refresher/README.md", "json", "mcpServers"))["mcpServers"]["linear"]
    assert entry["command"].endswith("/bin/refresher")
    environment = {"REFRESHER_STATE_DIR": str(tmp_path)}
    parameters = StdioServerParameters(command=_REAL[0], args=[*_REAL[1:], *entry["args"]], env=environment)
    async with Client(stdio_client(parameters)) as client:
        await _add(client)


@pytest.mark.asyncio
async def test_the_server_can_ask_report_and_log(tmp_path: Path) -> None:
    """If it failed, tools that ask the person or the model would not work through stdio."""
    steps: list[float] = []

    async def elicit(context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
        return ElicitResult(action="accept", content={"said": "yes"})

    async def sample(context: ClientRequestContext, params: CreateMessageRequestParams) -> CreateMessageResult:
        return CreateMessageResult(role="assistant", content=TextContent(type="text", text="because"), model="none")

    async def progress(done: float, *_: object) -> None:
        steps.append(done)

    with Stage() as server:
        server.play(tokens=["access-token-1"])
        publish(tmp_path, server, server_url=server.url)
        callbacks = {"elicitation_callback": elicit, "sampling_callback": sample}
        async with connected(tmp_path, mode="legacy", **callbacks) as client:
            for _ in range(2):
                with anyio.fail_after(60):
                    asked = await client.call_tool("asks_aside")
                    assert asked.structured_content == {"result": "yes"}
                    sampled = await client.call_tool("samples", progress_callback=progress)
                    assert sampled.structured_content == {"result": "because"}
                await anyio.to_thread.run_sync(server.stop)
                await anyio.to_thread.run_sync(server.start, "access-token-1")
                await client.list_tools()
                await until(lambda: server.log()["listening"] == 1, "the new session listens")
    assert steps == [1, 2, 1, 2]


@pytest.mark.asyncio
@pytest.mark.parametrize("library", ["python", "fastmcp", "typescript"])
async def test_notifications_go_on_after_a_restart(tmp_path: Path, library: str) -> None:
    """If it failed, a client would not notice changes after its server has restarted, although its calls succeed."""
    need(missing(library))
    heard = anyio.Event()

    async def note(message: object) -> None:
        if isinstance(message, ToolListChangedNotification):
            heard.set()

    server = Counterpart(library, tmp_path / "server", json_response=False)
    server.start()
    try:
        origin = f"http://127.0.0.1:{server.port}"
        Published(tmp_path / "state", origin).put(1, server_url=f"{origin}/mcp")
        server.accept("access-token-1")
        async with connected(tmp_path / "state", mode="legacy", message_handler=note) as client:
            await _add(client)
            await anyio.to_thread.run_sync(server.stop)
            await anyio.to_thread.run_sync(server.start)
            with anyio.fail_after(90):
                while not heard.is_set():  # a notification before the stream is open is lost
                    await anyio.to_thread.run_sync(server.notify)
                    await anyio.sleep(0.05)
            await _add(client)
    finally:
        server.stop()


class Bridge:
    """The command, and a client that writes lines."""

    def __init__(self, root: Path) -> None:
        self.process = subprocess.Popen(
            [*_REAL, "--state-dir", str(root), "stdio", "linear"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.stdin, self.stdout, self.stderr = self.process.stdin, self.process.stdout, self.process.stderr

    def says(self, message: object) -> None:
        """Write a message."""
        self.stdin.write(json.dumps(message).encode() + b"\n")
        self.stdin.flush()

    def begins(self) -> Any:
        """Begin a session; return the answer of the server."""
        parameters = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}
        self.says({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": parameters})
        answer = json.loads(self.stdout.readline())
        self.says({"jsonrpc": "2.0", "method": "notifications/initialized"})
        return answer


@contextmanager
def bridge(root: Path) -> Iterator[Bridge]:
    """Start the command; no process is left at the end."""
    made = Bridge(root)
    try:
        yield made
    finally:
        made.process.kill()
        for stream in (made.stdin, made.stdout, made.stderr):
            with suppress(OSError):  # what could not be written
                stream.close()
        made.process.wait()


@pytest.mark.parametrize("how", ["end of stdin", "SIGTERM", "SIGINT"])
def test_the_end_of_the_client_ends_the_session_at_the_server(tmp_path: Path, how: str) -> None:
    """If it failed, a process or a session at the server would remain for each client."""
    with Stage() as server:
        server.play(tokens=["access-token-1"])
        publish(tmp_path, server, server_url=server.url)
        with bridge(tmp_path) as client:
            client.begins()
            wait_until(lambda: server.log()["listening"] == 1, "the bridge listens")
            if how == "end of stdin":
                client.stdin.close()
            else:
                client.process.send_signal(getattr(signal, how))
            assert client.process.wait(60) == 0
            assert client.stdout.read() == b""
            assert client.stderr.read() == b""
        assert server.log()["requests"]["DELETE"] == 1


def test_a_killed_client_leaves_no_process(tmp_path: Path) -> None:
    """If it failed, each crash of a client would leave a process."""
    Published(tmp_path, "http://127.0.0.1:9").put(1, server_url="http://127.0.0.1:9/mcp")
    command = [*_REAL, "--state-dir", str(tmp_path), "stdio", "linear"]
    code = (
        f"import subprocess, time; child = subprocess.Popen({command!r}, stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "print(child.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        child = Path(f"/proc/{int(client.stdout.readline())}")
        assert child.exists()
        client.kill()

    def is_gone() -> bool:
        try:
            return child.joinpath("stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except (FileNotFoundError, ProcessLookupError):
            return True

    wait_until(is_gone, "the process has ended")


def test_the_command_in_an_error_has_the_state_directory(tmp_path: Path) -> None:
    """If it failed, a person who pastes the command would log in to another state directory, and nothing would change."""
    published = Published(tmp_path / "a b")
    published.put(1, state="reauthorization_required", error=DEAD, access_token=None, server_url="https://mcp.example/")
    with bridge(tmp_path / "a b") as client:
        text = client.begins()["error"]["message"]
    assert text.endswith(f"run: refresher --state-dir '{tmp_path}/a b' login linear")


class Flood:
    """A server whose first answer is a stream of 96 messages of 1 MiB, and then the result."""

    def __init__(self) -> None:
        self.blocked = threading.Event()
        """Set when nobody takes more."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.origin = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with self._listener:
            connection, _ = self._listener.accept()
        with connection:
            request = b""
            while b"_meta" not in request:  # what is not read resets the connection
                request += connection.recv(65536)
            note = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"data": "x" * _MIB}}
            result = {"jsonrpc": "2.0", "id": 1, "result": {}}
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
            for message in [*[note] * 96, result]:
                rest = b"data: " + json.dumps(message).encode() + b"\n\n"
                while rest:
                    if not select.select([], [connection], [], 1)[1]:
                        self.blocked.set()
                        select.select([], [connection], [])
                    rest = rest[connection.send(rest[:_MIB]) :]
            self.blocked.set()


def test_a_client_that_does_not_read_costs_no_memory(tmp_path: Path) -> None:
    """If it failed, a client that stops reading would make the process grow until the machine has no memory."""
    server = Flood()
    Published(tmp_path, server.origin).put(1, server_url=f"{server.origin}/mcp")
    with bridge(tmp_path) as client:
        meta = {"io.modelcontextprotocol/protocolVersion": "2026-07-28"}
        client.says({"jsonrpc": "2.0", "id": 1, "method": "x", "params": {"_meta": meta}})
        assert server.blocked.wait(90)
        lines = [client.stdout.readline() for _ in range(97)]
        status = Path(f"/proc/{client.process.pid}/status").read_text()
        client.stdin.close()
        assert client.process.wait(60) == 0
    assert all(line.endswith(b"}\n") for line in lines)
    assert json.loads(lines[-1])["result"] == {}
    peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
    assert peak < 96 * _MIB, "less than the messages themselves"


@pytest.mark.parametrize(
    ("token", "options", "words"),
    [
        ({}, (), "does not name its server: give --url"),
        ({"server_url": "https://mcp.example/mcp"}, ("--url", "https://other.example/?key=secret"), "change --url"),
        ({}, ("--url", "https://user@mcp.example/"), "--url must be an address"),
    ],
)
def test_a_wrong_address_is_an_error_at_the_start(
    refresher: Command, tmp_path: Path, token: dict[str, Any], options: tuple[str, ...], words: str
) -> None:
    """If it failed, a person who tries the command would wait for requests that cannot succeed."""
    Published(tmp_path / "state").put(1, **token)
    done = refresher("--state-dir", str(tmp_path / "state"), "stdio", "linear", *options)
    assert (done.code, done.stdout) == (2, "")
    assert words in done.stderr
    assert "secret" not in done.stderr


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    """If it failed, the command would end with a traceback where the extra is not installed."""
    Published(tmp_path).put(1, server_url="https://mcp.example/mcp")
    # A fake: httpx2 cannot be imported, as where it is not installed.
    code = "import sys; sys.modules['httpx2'] = None; from refresher.__main__ import main; main()"
    command = [sys.executable, "-c", code, "--state-dir", str(tmp_path), "stdio", "linear"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "needs the extra 'mcp'" in done.stderr


SCENARIOS = (
    *("initialize", "tools_call", "elicitation-sep1034-client-defaults", "sse-retry", "request-metadata"),
    *("sep-2322-client-request-state", "http-standard-headers", "http-custom-headers", "http-invalid-tool-headers"),
    *("json-schema-ref-no-deref", "json-schema-2020-12-preservation"),
)
"""All scenarios of the conformance suite without a login, but those about skills, which a client alone meets."""


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_conformance_suite_passes_through_stdio(scenario: str) -> None:
    """If it failed, a client that follows the specification would not do so behind stdio."""
    need(conformance.missing())
    verdict = conformance.run(scenario, stub("tests.support.conforming_stdio", shlex.join(REFRESHER)))
    assert verdict.failed == {}, verdict.said
    assert verdict.passed, verdict.said
