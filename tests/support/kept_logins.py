"""Logins as other programs keep them: their files, with tokens of a server of the tests, and how refresher imports them."""

import hashlib
import json
import secrets
import time
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs, urlsplit

import httpx

from tests.support.command import Command, Done
from tests.support.mcp_login import MCPLogin

__all__ = ["FIXTURES", "PLACES", "Issued", "Programs", "issue", "rotates"]

FIXTURES: Final = Path(__file__).parent.parent / "fixtures/migration"
"""Files that the programs wrote at a server of the tests; words stand for what differs from login to login."""

PLACES: Final = {
    "claude-code": ".claude/.credentials.json",
    "codex": ".codex/.credentials.json",
    "opencode": ".local/share/opencode/mcp-auth.json",
    "gemini-cli": ".gemini/mcp-oauth-tokens.json",
    "mcp-remote": ".mcp-auth/mcp-remote-v1",
    "hermes": ".hermes/mcp-tokens",
    "fastmcp": "store",
}
"""Where the programs of the fixtures keep their logins in a home, as they were seen to."""

_REDIRECT: Final = "http://127.0.0.1:9/callback"


class Issued(NamedTuple):
    """A login at the server; another program keeps it."""

    server_url: str
    issuer: str
    client_id: str
    client_secret: str
    access_token: str
    refresh_token: str
    expires_at: float


def issue(server: MCPLogin, *, secret: bool = False) -> Issued:
    """Register a client, log in and get tokens, as a program does."""
    verifier = secrets.token_urlsafe(48)
    method = "client_secret_post" if secret else "none"
    with httpx.Client(base_url=server.issuer, trust_env=False, timeout=60) as http:
        client = http.post(
            "/register", json={"redirect_uris": [_REDIRECT], "token_endpoint_auth_method": method}
        ).json()
        challenge = urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        asked = {"response_type": "code", "client_id": client["client_id"], "redirect_uri": _REDIRECT, "state": "x"}
        asked |= {"code_challenge": challenge, "code_challenge_method": "S256", "resource": server.url}
        (code,) = parse_qs(urlsplit(http.get("/authorize", params=asked).headers["location"]).query)["code"]
        fields = {"grant_type": "authorization_code", "code": code, "redirect_uri": _REDIRECT, "resource": server.url}
        known = {key: client[key] for key in ("client_id", "client_secret") if client.get(key)}
        tokens = http.post("/token", data={**fields, **known, "code_verifier": verifier}).json()
    return Issued(
        server.url,
        server.issuer,
        client["client_id"],
        client.get("client_secret") or "",
        tokens["access_token"],
        tokens["refresh_token"],
        time.time() + tokens["expires_in"],
    )


class Programs:
    """A home with the files of programs, and the command in it."""

    def __init__(self, home: Path, refresher: Command) -> None:
        self.home = home
        self._refresher = refresher
        self.environment = {"HOME": str(home), "REFRESHER_STATE_DIR": str(refresher.state)}

    def run(self, *arguments: str, environment: Mapping[str, str] | None = None) -> Done:
        """Run refresher as the person whose home it is."""
        return self._refresher(*arguments, environment={**self.environment, **(environment or {})})

    def keep(self, program: str, issued: Issued) -> Path:
        """Write the files of ``program`` for a login, and return the place of the program."""
        self._refresher.vault.learn(issued.client_secret, issued.access_token, issued.refresh_token)
        place = self.home / PLACES[program]
        source = FIXTURES / (program if (FIXTURES / program).is_dir() else f"{program}.json")
        for file in [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file()):
            target = place if source.is_file() else place / _renamed(file.relative_to(source), issued.server_url)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch(mode=0o600)
            target.write_text(_filled(file.read_text(), issued))
        return place

    def rows(self, *arguments: str) -> list[dict[str, Any]]:
        """Return what ``import --list --json`` shows."""
        done = self.run("import", "--list", "--json", *arguments)
        assert done.code == 0, done.stderr
        rows: list[dict[str, Any]] = json.loads(done.stdout)["logins"]
        return rows


def rotates(programs: Programs, refresher: Command, name: str, server: MCPLogin) -> None:
    """Check that the imported login rotates at the server, and that its new token is accepted there."""
    before = server.seen()
    done = programs.run("run-once", "--force", name)
    assert done.code == 0, done.stderr
    seen = server.seen()
    assert seen["refreshed"] == before["refreshed"] + 1
    assert seen["reused"] == before["reused"]
    headers = {"Authorization": f"Bearer {refresher.token(name).access_token}", "Accept": "application/json"}
    answer = httpx.post(server.url, json={}, headers=headers, trust_env=False, timeout=60)
    assert answer.status_code not in (401, 403)


def _renamed(path: Path, url: str) -> Path:
    """Return the path with the hashes of ``url``, by which mcp-remote and FastMCP name their files."""
    name, _, end = path.name.partition("_")
    if len(name) == 32:
        return path.with_name(f"{hashlib.md5(url.encode()).hexdigest()}_{end}")
    for kind in ("tokens", "client_info"):
        if f"_{kind}-" in path.name and path.name.startswith("S_"):
            mark = hashlib.sha256(f"{url}/{kind}".encode()).hexdigest()[:8]
            return path.with_name(f"S_{''.join(c if c.isalnum() else '_' for c in url)}_{kind}-{mark}.json")
    return path


def _filled(text: str, issued: Issued) -> str:
    for word, value in (
        ("SERVER_URL", issued.server_url),
        ("ISSUER", issued.issuer),
        ("CLIENT_ID", issued.client_id),
        ("CLIENT_SECRET", issued.client_secret),
        ("ACCESS_TOKEN", issued.access_token),
        ("REFRESH_TOKEN", issued.refresh_token),
        ("4000000000000", str(round(issued.expires_at * 1000))),
        ("4000000000.5", str(issued.expires_at)),
    ):
        text = text.replace(word, value)
    return text
