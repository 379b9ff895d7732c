"""A language model on loopback that calls tools as a test says. Programs with a model as their driver run against it.

It answers four APIs: Anthropic Messages, OpenAI Responses and Chat Completions, and Gemini ``generateContent``, each as
a stream of events and as one JSON document.
"""

import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from tests.support.listener import Listening

__all__ = ["Call", "ScriptedModel"]

_Events = Iterator[tuple[str, dict[str, Any]]]


class Call(NamedTuple):
    """A call of the tool ``add``, and what the program returned for it."""

    a: int
    b: int
    result: str | None = None

    @property
    def succeeded(self) -> bool:
        """Whether the result is the sum, which only the server of the test can have computed."""
        return self.result is not None and re.search(rf"(?<!\d){self.a + self.b}(?!\d)", self.result) is not None


class ScriptedModel:
    """The model calls the tool ``add`` with each list of calls of ``turns`` at once, and then says "done".

    ``turns`` is advanced when the program asks for the next step, with the results of the last one.
    """

    def __init__(self, turns: Iterator[list[Call]]) -> None:
        self._turns = turns
        self._lock = threading.Lock()
        self._sent: dict[str, Call] = {}
        self.problems: list[str] = []
        """What went wrong in the model itself."""
        self.tools: list[str] = []
        """The names of the tools in the last request that had tools."""
        self._server = Listening(_handler(self))
        self.url: Final = self._server.url

    def __enter__(self) -> Self:
        self._server.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.__exit__(kind, error, trace)

    @property
    def calls(self) -> list[Call]:
        """All calls in their order."""
        return list(self._sent.values())

    def step(self, tools: list[str], results: dict[str, str]) -> dict[str, tuple[str, Call]]:
        """Take the results of calls by their id, and return the next calls: the name of the tool, and its arguments."""
        with self._lock:
            for key, text in results.items():
                if key in self._sent and self._sent[key].result is None:
                    self._sent[key] = self._sent[key]._replace(result=text)
            if not tools:
                return {}
            self.tools = tools
            adds = [tool for tool in tools if re.search(r"(^|\W|_)add$", tool)]
            if not adds:
                self.problems.append(f"the program offers no tool 'add', but {tools}")
                return {}
            asked = {}
            for call in next(self._turns, []):
                key = f"call_{len(self._sent)}"
                self._sent[key] = call
                asked[key] = (adds[0], call)
            return asked


def _handler(model: ScriptedModel) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Write no log."""

        def do_GET(self) -> None:
            self._send(200, "application/json", b'{"data": [], "models": [], "object": "list"}')

        def do_HEAD(self) -> None:
            self._send(200, "application/json", b"")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = self.path.partition("?")[0]
            answer = next((answer for pattern, answer in _APIS if re.search(pattern, path)), None)
            if answer is None:
                self._send(404, "application/json", b"{}")
                return
            try:
                request = json.loads(body)
                stream, whole, events = answer(model, request, path)
            except Exception as error:  # noqa: BLE001  the test reports it; the program gets an error
                model.problems.append(repr(error))
                self._send(400, "application/json", b"{}")
                return
            if not stream:
                self._send(200, "application/json", json.dumps(whole).encode())
                return
            text = "".join(
                f"{f'event: {name}' + chr(10) if name else ''}data: {json.dumps(data)}\n\n" for name, data in events
            )
            if path.endswith("/chat/completions"):
                text += "data: [DONE]\n\n"
            self._send(200, "text/event-stream", text.encode())

        def _send(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


def _text(content: object) -> str:
    return content if isinstance(content, str) else json.dumps(content)


def _anthropic(model: ScriptedModel, request: dict[str, Any], path: str) -> tuple[bool, Any, _Events]:
    results = {
        block["tool_use_id"]: _text(block.get("content"))
        for message in request["messages"]
        if isinstance(message["content"], list)
        for block in message["content"]
        if block["type"] == "tool_result"
    }
    asked = model.step([tool["name"] for tool in request.get("tools", [])], results)
    blocks: list[dict[str, Any]] = [
        {"type": "tool_use", "id": key, "name": name, "input": {"a": call.a, "b": call.b}}
        for key, (name, call) in asked.items()
    ] or [{"type": "text", "text": "done"}]
    reason = "tool_use" if asked else "end_turn"
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": request["model"],
        "content": blocks,
        "stop_reason": reason,
        "stop_sequence": None,
        "usage": {"input_tokens": 1, "output_tokens": 1},
    }

    def events() -> _Events:
        yield "message_start", {"type": "message_start", "message": message | {"content": [], "stop_reason": None}}
        for index, block in enumerate(blocks):
            if block["type"] == "text":
                first: dict[str, Any] = {"type": "text", "text": ""}
                delta = {"type": "text_delta", "text": block["text"]}
            else:
                first = block | {"input": {}}
                delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
            yield "content_block_start", {"type": "content_block_start", "index": index, "content_block": first}
            yield "content_block_delta", {"type": "content_block_delta", "index": index, "delta": delta}
            yield "content_block_stop", {"type": "content_block_stop", "index": index}
        ends = {"stop_reason": reason, "stop_sequence": None}
        yield "message_delta", {"type": "message_delta", "delta": ends, "usage": {"output_tokens": 1}}
        yield "message_stop", {"type": "message_stop"}

    return bool(request.get("stream")), message, events()


def _responses(model: ScriptedModel, request: dict[str, Any], path: str) -> tuple[bool, Any, _Events]:
    given = request["input"] if isinstance(request["input"], list) else []
    results = {item["call_id"]: _text(item["output"]) for item in given if item.get("type") == "function_call_output"}
    tools, spaces = [], {}
    for tool in request.get("tools", []):
        if tool["type"] == "namespace":
            for each in tool["tools"]:
                tools.append(each["name"])
                spaces[each["name"]] = tool["name"]
        elif tool["type"] == "function":
            tools.append(tool["name"])
    asked = model.step(tools, results)
    items: list[dict[str, Any]] = [
        {"type": "function_call", "id": f"fc_{key}", "call_id": key, "name": name, "status": "completed"}
        | {"arguments": json.dumps({"a": call.a, "b": call.b})}
        | ({"namespace": spaces[name]} if name in spaces else {})
        for key, (name, call) in asked.items()
    ] or [
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed"}
        | {"content": [{"type": "output_text", "text": "done", "annotations": []}]}
    ]
    usage = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
    response = {"id": "resp_1", "object": "response", "status": "completed", "output": items, "usage": usage}

    def events() -> _Events:
        yield "response.created", {"type": "response.created", "response": response | {"output": []}}
        for index, item in enumerate(items):
            added = {"output_index": index, "item": item}
            yield "response.output_item.added", {"type": "response.output_item.added", **added}
            yield "response.output_item.done", {"type": "response.output_item.done", **added}
        yield "response.completed", {"type": "response.completed", "response": response}

    return bool(request.get("stream")), response, events()


def _chat(model: ScriptedModel, request: dict[str, Any], path: str) -> tuple[bool, Any, _Events]:
    results = {
        message["tool_call_id"]: _text(message["content"])
        for message in request["messages"]
        if message["role"] == "tool"
    }
    asked = model.step([tool["function"]["name"] for tool in request.get("tools", [])], results)
    calls = [
        {"index": index, "id": key, "type": "function"}
        | {"function": {"name": name, "arguments": json.dumps({"a": call.a, "b": call.b})}}
        for index, (key, (name, call)) in enumerate(asked.items())
    ]
    said: dict[str, Any] = {"role": "assistant", "content": None if calls else "done"}
    if calls:
        said["tool_calls"] = calls
    reason = "tool_calls" if calls else "stop"
    head = {"id": "chat_1", "created": 1, "model": request["model"]}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}

    def events() -> _Events:
        chunk = head | {"object": "chat.completion.chunk"}
        yield "", chunk | {"choices": [{"index": 0, "delta": said, "finish_reason": None}]}
        yield "", chunk | {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}], "usage": usage}

    whole = head | {"object": "chat.completion", "usage": usage}
    whole["choices"] = [{"index": 0, "message": said, "finish_reason": reason}]
    return bool(request.get("stream")), whole, events()


def _gemini(model: ScriptedModel, request: dict[str, Any], path: str) -> tuple[bool, Any, _Events]:
    parts = [part for content in request["contents"] for part in content.get("parts", [])]
    results: dict[str, str] = {}
    for part in parts:
        if "functionResponse" in part:
            answer = part["functionResponse"]
            # Without an id, answers come in the order of the calls.
            results[answer.get("id") or f"call_{len(results)}"] = _text(answer["response"])
    declared = [each for tool in request.get("tools", []) for each in tool.get("functionDeclarations", [])]
    asked = model.step([each["name"] for each in declared], results)
    said: list[dict[str, Any]] = [
        {"functionCall": {"id": key, "name": name, "args": {"a": call.a, "b": call.b}}}
        for key, (name, call) in asked.items()
    ] or [{"text": "done"}]
    whole = {
        "candidates": [{"content": {"role": "model", "parts": said}, "finishReason": "STOP", "index": 0}],
        "usageMetadata": {"promptTokenCount": 1, "candidatesTokenCount": 1, "totalTokenCount": 2},
    }
    return path.endswith(":streamGenerateContent"), whole, iter([("", whole)])


_APIS: Final[tuple[tuple[str, Callable[..., tuple[bool, Any, _Events]]], ...]] = (
    (r"/v1/messages$", _anthropic),
    (r"/responses$", _responses),
    (r"/chat/completions$", _chat),
    (r":(streamG|g)enerateContent$", _gemini),
)
