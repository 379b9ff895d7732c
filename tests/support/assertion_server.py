"""An authorization server that accepts tokens of others: signed assertions (RFC 7523) and subject tokens (RFC 8693).

It checks signatures, audiences and times as a real one does. It can also be an identity provider that issues identity
assertions (draft-ietf-oauth-identity-assertion-authz-grant), and it has an MCP server, as far as a login asks one.
"""

import base64
import json
import secrets
import threading
import time
import uuid
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, unquote_plus

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from refresher.grants.assertion import GRANT_TYPES, ID_JAG, ID_TOKEN
from tests.support.listener import Listening

__all__ = ["AssertionServer", "Issuer"]

_WELL_KNOWN: Final = "/.well-known/oauth-authorization-server"
_ASSERTION_TYPE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


class Issuer:
    """Signs tokens that somebody puts into files: a Kubernetes API server, SPIRE, or a cloud."""

    def __init__(self, issuer: str = "https://kubernetes.default.svc") -> None:
        self.issuer = issuer
        self._key = ec.generate_private_key(ec.SECP256R1())

    @property
    def jwks(self) -> dict[str, Any]:
        """The public key, as a JWK set."""
        return {"keys": [{**ECAlgorithm.to_jwk(self._key.public_key(), as_dict=True), "alg": "ES256"}]}

    def token(self, audience: Any, *, lifetime: float = 600.0, subject: str = "workload", **claims: Any) -> str:
        """Return a signed token; ``lifetime`` can be negative."""
        now = time.time()
        claims = {"iss": self.issuer, "sub": subject, "aud": audience, "iat": int(now), **claims}
        claims |= {"exp": int(now + lifetime), "jti": uuid.uuid4().hex}
        return jwt.encode(claims, self._key, algorithm="ES256")

    def write(self, path: Path, audience: Any, **options: Any) -> str:
        """Replace the token in a file, as a projected volume does: by a rename."""
        token = self.token(audience, **options)
        new = path.with_suffix(".new")
        new.write_text(f"{token}\n")
        new.chmod(0o600)
        new.rename(path)
        return token

    def claims(self, token: str, audience: str | None) -> dict[str, Any]:
        """Return the claims of one of its tokens. Raises ``jwt.PyJWTError``."""
        options: Any = {"verify_aud": audience is not None}
        claims: dict[str, Any] = jwt.decode(
            token, self._key.public_key(), algorithms=["ES256"], audience=audience, issuer=self.issuer, options=options
        )
        return claims


class AssertionServer(Listening):
    """Answers ``POST /token``; ``requests`` are the fields of each request, with what HTTP Basic says.

    ``trusted``: the issuers whose assertions it accepts. ``answer``: returns an answer in the place of its own, or
    ``None``. ``life``: seconds of an access token.
    """

    def __init__(
        self,
        *trusted: Issuer,
        life: float = 3600.0,
        answer: Callable[[dict[str, str]], tuple[int, dict[str, Any]] | None] = lambda _: None,
    ) -> None:
        self.requests: list[dict[str, str]] = []
        self.trusted = list(trusted)
        self.answer = answer
        self.before: Callable[[dict[str, str]], None] = lambda _: None
        """Called with the fields of each request, before it is answered."""
        self.headers: dict[str, str] = {}
        """Of each answer of the token endpoint."""
        self.life = life
        self.id_token_life: float | None = 300.0
        """Seconds of the ``id_token`` in the answer to a refresh; ``None``: it has none."""
        self.issued: list[str] = []
        """The tokens that it has issued, newest last."""
        self.dead = False
        """Whether it rejects each refresh token."""
        self.replayed: str | None = None
        """A spent refresh token that it accepts again, with a new answer."""
        self.refresh_token = secrets.token_urlsafe(24)
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path.startswith("/.well-known/oauth-protected-resource"):
                    self._send(200, {"resource": f"{server.url}/mcp", "authorization_servers": [server.url]})
                elif self.path == _WELL_KNOWN:
                    self._send(200, server.metadata)
                else:
                    self._send(404, {})

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                if self.path == "/mcp":
                    metadata = f"{server.url}/.well-known/oauth-protected-resource"
                    self._send(401, {}, {"WWW-Authenticate": f'Bearer resource_metadata="{metadata}"'})
                    return
                fields = dict(parse_qsl(body)) | _basic(self.headers.get("Authorization", ""))
                server.before(fields)
                with server._lock:
                    server.requests.append(fields)
                    status, answer = server.answer(fields) or server._answer(fields)
                    server.issued += [answer[key] for key in ("access_token", "refresh_token") if key in answer]
                self._send(status, answer, server.headers)

            def _send(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
                text = json.dumps(body).encode()
                self.send_response(status)
                for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  http.server's signature
                return

        super().__init__(Handler)
        self.own = Issuer(self.url)
        self.token_endpoint = f"{self.url}/token"
        self.mcp = f"{self.url}/mcp"
        self.metadata: dict[str, Any] = {
            "issuer": self.url,
            "token_endpoint": self.token_endpoint,
            "authorization_endpoint": f"{self.url}/authorize",
            "response_types_supported": ["code"],
            "grant_types_supported": ["refresh_token", *GRANT_TYPES.values()],
            "authorization_grant_profiles_supported": ["urn:ietf:params:oauth:grant-profile:id-jag"],
            "code_challenge_methods_supported": ["S256"],
        }

    @staticmethod
    def grant_type(short: str) -> str:
        """Return a grant type by its short name."""
        return next((uri for name, uri in GRANT_TYPES.items() if name == short), short)

    def asked(self, grant_type: str) -> list[dict[str, str]]:
        """Return the requests with a grant type, by its short name."""
        wanted = self.grant_type(grant_type)
        return [fields for fields in self.requests if fields["grant_type"] == wanted]

    def renew(self) -> str:
        """Return the refresh token of a new login."""
        self.refresh_token = secrets.token_urlsafe(24)
        return self.refresh_token

    def workload(self, path: Path, **more: Any) -> dict[str, Any]:
        """Return the fields of an import whose assertion is in a file."""
        about = {"grant_type": "jwt_bearer", "assertion_file": str(path), "server_url": "https://mcp.example/mcp"}
        return {"token_endpoint": self.token_endpoint, **about, **more}

    def person(self, **more: Any) -> dict[str, Any]:
        """Return the fields of an import of the login of a person at this identity provider."""
        return {
            "token_endpoint": self.token_endpoint,
            "issuer": self.url,
            "client_id": "company",
            "refresh_token": self.refresh_token,
            "id_token": self.own.token("company", lifetime=self.id_token_life or 300.0, subject="alice"),
            "server_url": "https://idp.example",
            **more,
        }

    def managed(self, idp: str, **more: Any) -> dict[str, Any]:
        """Return the fields of an import of a grant that the identity provider ``idp`` feeds."""
        about = {"grant_type": "jwt_bearer", "idp": idp, "client_id": "at-server", "issuer": self.url}
        return {"token_endpoint": self.token_endpoint, "server_url": self.mcp, "resource": self.mcp, **about, **more}

    def _answer(self, fields: dict[str, str]) -> tuple[int, dict[str, Any]]:
        match fields["grant_type"]:
            case "refresh_token":
                return self._refreshed(fields)
            case "urn:ietf:params:oauth:grant-type:jwt-bearer":
                return self._accepted(fields["assertion"])
            case _:
                return self._exchanged(fields)

    def _refreshed(self, fields: dict[str, str]) -> tuple[int, dict[str, Any]]:
        if self.dead or fields["refresh_token"] not in (self.refresh_token, self.replayed):
            return 400, {"error": "invalid_grant", "error_description": "the session has ended"}
        self.refresh_token = secrets.token_urlsafe(24)
        answer = self._token() | {"refresh_token": self.refresh_token}
        if self.id_token_life is not None:
            client = fields["client_id"]
            answer["id_token"] = self.own.token(client, lifetime=self.id_token_life, subject="alice")
        return 200, answer

    def _accepted(self, assertion: str) -> tuple[int, dict[str, Any]]:
        why = "no trusted issuer"
        for issuer in self.trusted:
            for audience in (self.token_endpoint, self.url):
                try:
                    issuer.claims(assertion, audience)
                except jwt.PyJWTError as error:
                    why = str(error)
                else:
                    return 200, self._token()
        return 400, {"error": "invalid_grant", "error_description": why}

    def _exchanged(self, fields: dict[str, str]) -> tuple[int, dict[str, Any]]:
        subject = fields["subject_token"]
        if fields.get("requested_token_type") == ID_JAG:
            try:
                claims = self.own.claims(subject, fields["client_id"])
            except jwt.PyJWTError as error:
                return 400, {"error": "invalid_grant", "error_description": str(error)}
            assert fields["subject_token_type"] == ID_TOKEN
            extra: Any = {key: fields[key] for key in ("resource", "scope") if key in fields}
            granted = self.own.token(fields["audience"], subject=claims["sub"], client_id="at-server", **extra)
            return 200, {"access_token": granted, "issued_token_type": ID_JAG, "token_type": "N_A", "expires_in": 300}
        known = subject in self.issued or any(_is_of(issuer, subject) for issuer in self.trusted)
        if not known:
            return 400, {"error": "invalid_request", "error_description": "the subject token is not known"}
        issued = "urn:ietf:params:oauth:token-type:access_token"
        return 200, self._token() | {"issued_token_type": issued}

    def _token(self) -> dict[str, Any]:
        return {"access_token": secrets.token_urlsafe(24), "token_type": "Bearer", "expires_in": self.life}


def _is_of(issuer: Issuer, token: str) -> bool:
    try:
        issuer.claims(token, None)
    except jwt.PyJWTError:
        return False
    return True


def _basic(header: str) -> dict[str, str]:
    scheme, _, text = header.partition(" ")
    if scheme != "Basic":
        return {}
    user, _, password = base64.b64decode(text).decode().partition(":")
    return {"client_id": unquote_plus(user), "client_secret": unquote_plus(password)}
