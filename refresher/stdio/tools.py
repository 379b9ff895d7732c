"""What a bridge learns of the tools of a server: which only read, and which parameters are also headers."""

from typing import Any, Final

from refresher.stdio.messages import Message, dump

__all__ = ["Tools"]

_MOST: Final = 10_000


class Tools:
    """The tools of the lists that the server has sent."""

    def __init__(self) -> None:
        self._reading: dict[str, bool] = {}
        self._headers: dict[str, dict[tuple[str, ...], str]] = {}

    def forget(self) -> None:
        """Forget the tools: those of another session can be others with the same names."""
        self._reading.clear()
        self._headers.clear()

    def learn(self, method: str, answer: Message) -> None:
        """Read the answer to a request of ``method``."""
        if method == "initialize":
            self.forget()
        result = answer.get("result")
        tools = result.get("tools") if method == "tools/list" and isinstance(result, dict) else None
        for tool in tools if isinstance(tools, list) else ():
            if not isinstance(tool, dict) or not isinstance(name := tool.get("name"), str):
                continue
            if len(self._reading) >= _MOST and name not in self._reading:
                continue
            annotations = tool.get("annotations")
            self._reading[name] = isinstance(annotations, dict) and annotations.get("readOnlyHint") is True
            self._headers.pop(name, None)
            if b"x-mcp-header" in dump(schema := tool.get("inputSchema")):
                # Few servers have such headers, and this import takes longer than the rest of the start.
                from mcp.shared.inbound import find_invalid_x_mcp_header, x_mcp_header_map

                if find_invalid_x_mcp_header(schema) is None:
                    self._headers[name] = x_mcp_header_map(schema)

    def only_reads(self, message: Message) -> bool:
        """Whether ``message`` calls a tool that only reads, as the server says."""
        name, _ = _call(message)
        return self._reading.get(name, False)

    def headers(self, message: Message) -> dict[str, str]:
        """Return the headers of a tool call that repeat its parameters (protocol version 2026-07-28)."""
        name, arguments = _call(message)
        if (known := self._headers.get(name)) is None:
            return {}
        from mcp.shared.inbound import mcp_param_headers

        return mcp_param_headers(known, arguments)


def _call(message: Message) -> tuple[str, dict[str, Any]]:
    params = message.get("params")
    if message.get("method") != "tools/call" or not isinstance(params, dict) or not isinstance(params.get("name"), str):
        return "", {}
    arguments = params.get("arguments")
    return params["name"], arguments if isinstance(arguments, dict) else {}
