"""An authorization server that says what a real one says by its documentation: ``tests/fixtures/providers.json``."""

import base64
import json
import re
import secrets
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, unquote_plus, urlencode, urlsplit

from tests.support.listener import Listening

__all__ = ["PROVIDERS", "ScriptedProvider", "TokenRequest"]

PROVIDERS: Final[list[dict[str, Any]]] = json.loads(
    (Path(__file__).parent.parent / "fixtures/providers.json").read_text()
)
"""Real providers. ``sources``: where each part is documented. ``code``, ``refresh``: the bodies of their token responses,
whose tokens are replaced. ``stored``: what a record has afterwards; ``scope`` after the login and after the refresh."""

CLIENT: Final = "client"


class TokenRequest(NamedTuple):
    """A token request: its fields, and how the client proved itself."""

    fields: dict[str, str]
    methods: set[str]


class ScriptedProvider(Listening):
    """Plays one of ``PROVIDERS``, with its own address in place of their hosts. ``refuses``: rejects each refresh."""

    def __init__(self, provider: dict[str, Any]) -> None:
        self.secret = secrets.token_urlsafe(24)
        self.refuses = False
        self.requests: list[TokenRequest] = []
        self._provider = provider
        self._refresh_token = ""
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                split = urlsplit(self.path)
                if split.path == provider["metadata_path"]:
                    self._send(200, server.metadata)
                elif split.path == urlsplit(provider["metadata"]["authorization_endpoint"]).path:
                    self._send(302, {}, server._redirect(dict(parse_qsl(split.query))))
                else:
                    self._send(404, {})

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                if self.path != urlsplit(provider["metadata"]["token_endpoint"]).path:
                    self._send(404, {})
                    return
                self._send(*server._answer(dict(parse_qsl(body)), self.headers.get("Authorization", "")))

            def _send(self, status: int, body: Any, location: str | None = None) -> None:
                text = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                if location is not None:
                    self.send_header("Location", location)
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  http.server's signature
                return

        super().__init__(Handler)
        self.metadata: dict[str, Any] = json.loads(
            re.sub(r"https://[^/\"]+", self.url, json.dumps(provider["metadata"]))
        )
        self.issuer: str = self.metadata["issuer"]

    def _redirect(self, asked: dict[str, str]) -> str:
        answer = {"code": secrets.token_urlsafe(16), "state": asked["state"]}
        if self.metadata.get("authorization_response_iss_parameter_supported"):
            answer["iss"] = self.issuer
        return f"{asked['redirect_uri']}?{urlencode(answer)}"

    def _answer(self, fields: dict[str, str], header: str) -> tuple[int, Any]:
        self.requests.append(TokenRequest(fields, self._proofs(fields, header)))
        if fields["grant_type"] == "authorization_code":
            return 200, self._tokens(self._provider["code"])
        if self.refuses or fields["refresh_token"] != self._refresh_token:
            return self._provider["refusal"]["status"], self._provider["refusal"]["body"]
        return 200, self._tokens(self._provider["refresh"])

    def _proofs(self, fields: dict[str, str], header: str) -> set[str]:
        proofs = {"client_secret_post"} if fields.get("client_secret") == self.secret else set()
        scheme, _, text = header.partition(" ")
        if scheme == "Basic":
            user, _, password = base64.b64decode(text).decode().partition(":")
            proofs |= {"client_secret_basic"} if (user, unquote_plus(password)) == (CLIENT, self.secret) else set()
        return proofs

    def _tokens(self, documented: dict[str, Any]) -> dict[str, Any]:
        issued = {"access_token": secrets.token_urlsafe(24)}
        if "refresh_token" in documented:
            if not (self._refresh_token and self._provider.get("same_refresh_token")):
                self._refresh_token = secrets.token_urlsafe(24)
            issued["refresh_token"] = self._refresh_token
        if claims := self._provider.get("id_token_claims"):
            issued["id_token"] = _jwt(claims | {"iss": self.issuer, "aud": CLIENT})
        return documented | issued


def _jwt(claims: dict[str, Any]) -> str:
    parts = ({"alg": "RS256"}, claims)
    return ".".join(
        [*(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts), "signature"]
    )
