"""A client for the conformance suite: ``refresher login`` acts for the person, ``shim`` for the agent.

    python -m tests.support.conforming REFRESHER URL

REFRESHER is the command that logs in. The environment variable BROWSER names its browser. If the server requires more
scope, the client logs in again and requests both scopes, because a refresh cannot add scope. If the server rejects the
token, the client logs in again.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import anyio
import httpx2
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client

from shim import FileTokenSource
from shim.httpx2 import BearerAuth

__all__ = ["main"]

_METADATA: Final = "https://conformance-test.local/client-metadata.json"
_LOGINS: Final = 2


def main() -> None:
    """Log in, use the server, and log in again if the server requires it."""
    command, url = shlex.split(sys.argv[1]), sys.argv[2]
    context = json.loads(os.environ.get("MCP_CONFORMANCE_CONTEXT") or "{}")
    with tempfile.TemporaryDirectory(prefix="conforming-") as home:
        scope: str | None = None
        for _ in range(_LOGINS):
            login([*command, "login", "conformance", url], Path(home), context, scope)
            required = anyio.run(use, url, Path(home))
            if required is None:
                return
            if required:
                scope = " ".join(dict.fromkeys([*(scope or granted(Path(home)) or "").split(), *required.split()]))


def login(command: list[str], home: Path, context: dict[str, str], scope: str | None) -> None:
    """Log in as a person would."""
    options = ["--no-verify", "--client-metadata", _METADATA]
    environment = {"HOME": str(home), **{name: os.environ[name] for name in ("PATH", "BROWSER")}}
    if "valid_jwt" in context:
        workload = home / "workload"
        workload.write_text(context["valid_jwt"])
        options += ["--jwt-bearer", str(workload), "--client-id", context["client_id"]]
    elif "client_id" in context:
        kind = "private-key-file" if "private_key_pem" in context else "client-secret-file"
        secret = home / kind
        secret.write_text(context.get("private_key_pem") or context["client_secret"])
        options += ["--client-id", context["client_id"], f"--{kind}", str(secret)]
    if "idp_id_token" in context:
        # The login at the company. The suite gives only its id_token; the other tokens are never sent.
        company = {
            "token_endpoint": context["idp_token_endpoint"],
            "issuer": context["idp_issuer"],
            "client_id": context["idp_client_id"],
            "id_token": context["idp_id_token"],
            "refresh_token": "unused",
            "access_token": "unused",
            "expires_in": 3600,
            "server_url": context["idp_issuer"],
        }
        subprocess.run(
            [*command[: command.index("login")], "import", "company", "--if-absent", "--from", "-"],
            input=json.dumps(company).encode(),
            env=environment,
            check=True,
        )
        options += ["--enterprise", "company"]
    if "client-credentials" in os.environ["MCP_CONFORMANCE_SCENARIO"]:
        options += ["--client-credentials"]
    if scope is not None:
        options += ["--scope", scope]
    subprocess.run(
        [*command, *options],
        env=environment,
        check=True,
    )


def granted(home: Path) -> str | None:
    """Return the scope of the published token."""
    token = FileTokenSource("conformance", tokens_dir=home / ".local/state/refresher/tokens").current()
    return None if token is None else token.scope


async def use(url: str, home: Path) -> str | None:
    """List the tools and call each; return the further scope that the server requires, or "" if it requires a login."""
    source = FileTokenSource("conformance", tokens_dir=home / ".local/state/refresher/tokens")
    required: list[str] = []

    async def note(answer: httpx2.Response) -> None:
        challenge = answer.headers.get("www-authenticate", "")
        if answer.status_code == 401:
            required.append("")  # no refresher runs here, so only a new login helps
        if answer.status_code == 403 and "insufficient_scope" in challenge:
            required.extend(re.findall(r'scope="([^"]*)"', challenge))

    try:
        async with (
            httpx2.AsyncClient(
                auth=BearerAuth(source, wait=0.1), event_hooks={"response": [note]}, trust_env=False, timeout=60
            ) as http,
            Client(streamable_http_client(url, http_client=http)) as client,
        ):
            for tool in (await client.list_tools()).tools:
                await client.call_tool(tool.name, {})
    except (MCPError, BaseExceptionGroup):
        if not required:
            raise
    return required[0] if required else None


if __name__ == "__main__":
    main()
