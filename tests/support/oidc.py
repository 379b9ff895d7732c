"""oidc-provider: a certified authorization server that rotates, and revokes the family on reuse."""

import json
import secrets
import shutil
import subprocess
import threading
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx

from tests.support.vault import Vault

__all__ = ["OIDC", "close", "missing"]

SERVERS = Path(__file__).parent.parent / "servers"


def missing() -> str | None:
    """Return what must be installed to run it; ``None`` if nothing is missing."""
    if shutil.which("node") is None:
        return "Node.js is not installed"
    if not (SERVERS / "node_modules/oidc-provider").is_dir():
        return "oidc-provider is not installed: (cd tests/servers && npm ci)"
    return None


class OIDC:
    """A running server with the clients ``basic``, ``post`` and ``public``; ``config``: see ``tests/servers/oidc.mjs``."""

    def __init__(self, vault: Vault, **config: Any) -> None:
        # Characters that must be encoded show whether RFC 6749 section 2.3.1 is followed.
        self.secrets = {client: f"{secrets.token_urlsafe(16)}:+%/ &=" for client in ("basic", "post", "inspector")}
        vault.learn(*self.secrets.values())
        self._vault = vault
        with _STARTING:  # threads of a test that start servers share one process
            host = _host()
        self.endpoints: dict[str, str] = host.ask(start={"secrets": self.secrets, "config": config})
        # Without TLS everywhere in the tests: to load the certificates of the world takes 20 ms for each client.
        self._http = httpx.Client(base_url=self.endpoints["issuer"], trust_env=False, verify=False, timeout=60)
        # One request at a time: the pool of httpcore 1.0.9 can close a connection that another thread is using.
        self._one = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()
        _host().ask(stop=self.endpoints["issuer"])

    def mint(self, client: str = "public", resource: str | None = None, *, live: bool = False) -> dict[str, Any]:
        """Return the fields of an import file for a new grant of ``client``; ``live``: with an access token for an hour."""
        body = {"client_id": client} | ({"resource": resource} if resource else {})
        minted = self._post("/test/grant", body)
        self._vault.learn(minted["refresh_token"])
        fields = {
            "token_endpoint": self.endpoints["token_endpoint"],
            "client_id": client,
            "refresh_token": minted["refresh_token"],
            "server_url": "https://mcp.example/mcp",
            "issuer": self.endpoints["issuer"],
        }
        if live:
            self._vault.learn(minted["access_token"])
            fields |= {"access_token": minted["access_token"], "expires_in": 3600}
        if client == "jwt":
            fields["token_endpoint_auth_method"] = "private_key_jwt"
        if client in ("basic", "post"):
            fields["client_secret"] = self.secrets[client]
            fields["token_endpoint_auth_method"] = f"client_secret_{client}"
        if resource is not None:
            fields["resource"] = resource
        self.last_grant_id = minted["grant_id"]
        return fields

    def revoke(self, grant_id: str) -> None:
        """Revoke a grant, as a user does in the account settings."""
        assert self._post("/test/revoke", {"grant_id": grant_id})["revoked"]

    def end(self, access_token: str) -> None:
        """End an access token before it expires."""
        self._post("/test/end", {"access_token": access_token})

    def forget(self, client_id: str) -> None:
        """Delete a registered client."""
        assert self._post("/test/forget", {"client_id": client_id})["forgotten"]

    def script(self, **answer: Any) -> None:
        """Answer the next token requests like this; see ``tests/servers/oidc.mjs``."""
        self._post("/test/script", answer)

    def release(self) -> None:
        """Answer the held token requests, and hold no more until the next script."""
        self._post("/test/release", {})

    def log(self) -> dict[str, Any]:
        """Return the log of the token endpoint."""
        with self._one:
            answer: dict[str, Any] = self._http.get("/test/log").raise_for_status().json()
        return answer

    def requests(self) -> list[dict[str, Any]]:
        """Return the token requests."""
        requests: list[dict[str, Any]] = self.log()["requests"]
        return requests

    def introspect(self, token: str | None) -> dict[str, Any]:
        """Return the state of a token (RFC 7662)."""
        with self._one:
            answer = self._http.post(
                self.endpoints["introspection_endpoint"],
                data={"token": token or ""},
                auth=_FormEncodedBasic("inspector", self.secrets["inspector"]),
            )
        result: dict[str, Any] = answer.raise_for_status().json()
        return result

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        with self._one:
            answer: dict[str, Any] = self._http.post(path, json=body).raise_for_status().json()
        return answer


class _Host:
    """The one process in which the servers of this test process run."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            ["node", str(SERVERS / "oidc.mjs")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C ends the tests, which end the servers
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(f"{json.dumps(request)}\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        assert line, "the process of the authorization servers has ended"
        answer: dict[str, Any] = json.loads(line)
        assert "error" not in answer, answer
        return answer

    def close(self) -> None:
        self._process.communicate()  # it ends when its stdin closes


_STARTING: Final = threading.Lock()


@cache
def _host() -> _Host:
    return _Host()


def close() -> None:
    """End all servers of this test process."""
    if _host.cache_info().currsize:
        _host().close()
        _host.cache_clear()


class _FormEncodedBasic(httpx.BasicAuth):
    def __init__(self, client_id: str, client_secret: str) -> None:
        from urllib.parse import quote_plus

        super().__init__(quote_plus(client_id), quote_plus(client_secret))
