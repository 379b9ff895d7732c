"""A client for the conformance suite: the SDK's, which reaches the server through ``refresher stdio``.

    python -m tests.support.conforming_stdio REFRESHER URL

REFRESHER is the command. It lists what the server has, calls each tool, and answers its questions with the defaults.
"""

import json
import os
import shlex
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import anyio
from mcp import Client, MCPError, StdioServerParameters, stdio_client
from mcp.client import ClientRequestContext
from mcp_types import ElicitRequestFormParams, ElicitRequestParams, ElicitResult, Tool

from shim._origins import origin_of_url
from tests.support.published import Published

__all__ = ["main"]

_EXAMPLES: Final = {"integer": 2, "number": 2, "string": "text", "boolean": True, "object": {}, "array": []}
_MODERN: Final = ("sep-2322-client-request-state", "json-schema-ref-no-deref")


async def _accept(context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
    """Answer with the default of each field, as a form that a person only confirms."""
    assert isinstance(params, ElicitRequestFormParams)
    properties = params.requested_schema.get("properties", {})
    content = {name: field.get("default", _EXAMPLES.get(field.get("type"))) for name, field in properties.items()}
    return ElicitResult(action="accept", content=content)


def _arguments(tool: Tool) -> dict[str, Any]:
    schema = tool.input_schema
    return {
        name: field.get("default", _EXAMPLES.get(field.get("type"), "text"))
        for name, field in schema.get("properties", {}).items()
    }


async def main() -> None:
    """Use the server."""
    command, url = shlex.split(sys.argv[1]), sys.argv[2]
    scenario, context = os.environ["MCP_CONFORMANCE_SCENARIO"], os.environ.get("MCP_CONFORMANCE_CONTEXT")
    with tempfile.TemporaryDirectory(prefix="conforming-") as home:
        Published(Path(home), origin_of_url(url) or "").put(1, server_url=url)
        parameters = StdioServerParameters(
            command=command[0], args=[*command[1:], "--state-dir", home, "stdio", "linear"], env=dict(os.environ)
        )
        modern = scenario in _MODERN or scenario.startswith("http-")
        mode = "2026-07-28" if modern else "auto" if scenario == "request-metadata" else "legacy"
        async with Client(
            stdio_client(parameters),
            mode=mode,
            elicitation_callback=_accept,
        ) as client:
            tools = (await client.list_tools()).tools
            if scenario == "json-schema-2020-12-preservation":
                focal, echo = sorted(tools, key=lambda tool: tool.name == "json_schema_echo")
                await client.call_tool(echo.name, {"schema": focal.input_schema})
                return
            calls = json.loads(context or "{}").get("toolCalls")
            for name, arguments in (
                [(call["name"], call.get("arguments", {})) for call in calls]
                if calls
                else [(tool.name, _arguments(tool)) for tool in tools]
            ):
                with suppress(MCPError, ValueError):
                    await client.call_tool(name, arguments)
            if scenario == "http-standard-headers":
                for resource in (await client.list_resources()).resources:
                    await client.read_resource(resource.uri)
                for prompt in (await client.list_prompts()).prompts:
                    await client.get_prompt(prompt.name)


if __name__ == "__main__":
    anyio.run(main)
