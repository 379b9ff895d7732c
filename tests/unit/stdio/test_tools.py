"""What ``refresher stdio`` learns of tools, and for how long it counts."""

from pathlib import Path
from typing import Any

import httpx2
import pytest

from refresher.stdio.tools import Tools
from tests.unit.stdio.scripted import INITIALIZE, READY, Server, bridged, call, stream


def _listed(**reads: bool) -> dict[str, Any]:
    tools = [{"name": name, "annotations": {"readOnlyHint": hint}} for name, hint in reads.items()]
    return {"result": {"tools": tools}}


def test_what_is_known_of_a_tool_changes_also_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, a tool that has begun to write would be called twice after a broken connection."""
    monkeypatch.setattr("refresher.stdio.tools._MOST", 1)
    tools = Tools()
    tools.learn("tools/list", _listed(one=True))
    tools.learn("tools/list", _listed(two=True, one=False))
    assert not tools.only_reads(call(1, "one"))
    tools.learn("tools/list", _listed(two=True, one=True))
    assert tools.only_reads(call(1, "one"))
    assert not tools.only_reads(call(1, "two"))


@pytest.mark.asyncio
@pytest.mark.parametrize("by", ["server", "client"])
async def test_tools_of_another_session_are_not_known(tmp_path: Path, by: str) -> None:
    """If it failed, a tool that reads before an update of the server and writes after it could be called twice."""
    server = Server()
    server.acts["tools/list"] = lambda message: httpx2.Response(
        200, json={"jsonrpc": "2.0", "id": message["id"]} | _listed(x=True)
    )
    async with bridged(tmp_path, server) as (client, _):
        await client.begins()
        await client.asks(call(1, method="tools/list"))
        if by == "server":
            server.restart()
            assert "result" in await client.asks(call(2, "x"))
        else:
            await client.asks(INITIALIZE | {"id": "second"})
            await client.says(READY)
        server.acts["tools/call"] = lambda _: stream()
        assert "may have been executed" in (await client.asks(call(3, "x")))["error"]["message"]
