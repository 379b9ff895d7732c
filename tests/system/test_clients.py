"""Client authentication, client credentials, and servers that refuse ``resource``."""

import json
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.support import keys
from tests.support.command import Command, wait_until
from tests.support.oidc import OIDC
from tests.support.raw_server import RawServer

Start = Callable[..., OIDC]
RESOURCE = "https://mcp.example/mcp"


@pytest.mark.parametrize("kind", ["ES256", "RS256", "EdDSA"])
def test_a_client_authenticates_with_a_signed_assertion(refresher: Command, own_oidc: Start, kind: str) -> None:
    """If it failed, clients without a shared secret could not be refreshed."""
    pem = refresher.home / "key.pem"
    server = own_oidc(jwk=keys.key(pem, kind) | {"kid": "the-key"})
    fields = server.mint("jwt", RESOURCE) | {"private_key_file": "key.pem", "private_key_id": "the-key"}
    refresher.import_grant("linear", fields)
    assert refresher("run-once").code == 0
    assert refresher("run-once", "--force").code == 0
    assert [request["client_auth"] for request in server.requests()] == ["jwt", "jwt"]
    assert server.introspect(refresher.token("linear").access_token)["active"]
    assert server.log()["presented_twice"] == 0


def test_the_key_is_read_for_each_assertion_and_a_missing_key_spends_nothing(
    refresher: Command, own_oidc: Start
) -> None:
    """If it failed, a new key would need a restart, or a missing one would cost a refresh token."""
    pem = refresher.home / "key.pem"
    server = own_oidc(jwk=keys.key(pem))
    refresher.import_grant("linear", server.mint("jwt") | {"private_key_file": str(pem)})
    pem.rename(refresher.home / "elsewhere.pem")
    done = refresher("run-once", "--json")
    assert done.code == 4
    assert f"cannot read the private key {pem}" in done.results["linear"]["detail"]
    assert server.requests() == []
    (refresher.home / "elsewhere.pem").rename(pem)
    assert refresher("run-once", "--force").code == 0
    keys.key(pem)
    done = refresher("run-once", "--force", "--json")
    assert (done.code, done.results["linear"]["outcome"]) == (4, "client_rejected")


def test_client_credentials_rotate_and_are_published_like_any_other_grant(refresher: Command, own_oidc: Start) -> None:
    """If it failed, services could not get their tokens from refresher."""
    server = own_oidc(accessTokenTtl=4)
    fields = {
        "grant_type": "client_credentials",
        "token_endpoint": server.endpoints["token_endpoint"],
        "client_id": "machine",
        "client_secret": server.secrets["basic"],
        "scope": "mcp:read",
        "resource": RESOURCE,
        "server_url": RESOURCE,
    }
    refresher.import_grant("machine", fields)
    refresher.import_grant("another", fields)
    process = refresher.start("run")
    try:
        wait_until(lambda: (refresher.state / "tokens/machine.json").exists(), "the first token is published")
        assert refresher.token("machine").scope == "mcp:read"
        # The token may expire before the server is asked about it; then another one follows.
        wait_until(
            lambda: server.introspect(refresher.token("machine").access_token).get("aud") == RESOURCE,
            "the published token is valid for the resource",
        )
        # A lost response costs nothing: refresher sends the request again at once, and needs no person.
        server.script(drop=True, process=True)
        wait_until(lambda: refresher.token("machine").generation >= 4, "the grant rotates three times")
    finally:
        process.terminate()
    assert refresher.finish(process).code == 0
    seen = server.requests()
    assert {request["grant_type"] for request in seen} == {"client_credentials"}
    assert refresher.grant("machine").doubt is None
    assert refresher.leftovers() == []


def test_a_lost_response_to_client_credentials_is_not_in_doubt(refresher: Command, own_oidc: Start) -> None:
    """If it failed, a client that cannot lose a refresh token would wait for the end of its token, or ask for a person."""
    server = own_oidc()
    fields = {
        "grant_type": "client_credentials",
        "token_endpoint": server.endpoints["token_endpoint"],
        "client_id": "machine",
        "client_secret": server.secrets["basic"],
        "server_url": RESOURCE,
    }
    refresher.import_grant("machine", fields)
    for _ in range(2):
        server.script(drop=True, process=True)
    done = refresher("run-once", "--json")
    assert (done.code, done.results["machine"]["outcome"]) == (4, "transient")
    assert refresher("run-once", "--force").code == 0


def test_a_client_presents_its_certificate_to_the_token_endpoint(refresher: Command) -> None:
    """If it failed, servers that bind clients to certificates (RFC 8705) could not be used."""
    home = refresher.home
    keys.certificate(home / "server.pem", "localhost")
    keys.certificate(home / "client.pem", "agent")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(home / "server.pem", home / "server.key")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(home / "client.pem")
    shown: list[Any] = []

    def encrypt(connection: socket.socket) -> socket.socket:
        encrypted = context.wrap_socket(connection, server_side=True)
        shown.append(encrypted.getpeercert())
        return encrypted

    def answer(connection: socket.socket, request: bytes) -> None:
        body = json.dumps({"access_token": "an-access-token-by-mtls", "expires_in": 3600}).encode()
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    with RawServer(answer, wrap=encrypt) as server:
        fields = {
            "token_endpoint": server.token_endpoint.replace("http://127.0.0.1", "https://localhost"),
            "client_id": "agent",
            "refresh_token": "a-refresh-token-by-mtls",
            "server_url": RESOURCE,
        }
        trust = {"REFRESHER_CA_FILE": str(home / "server.pem")}
        refresher.import_grant("without", fields)
        assert refresher("run-once", "without", environment=trust).code in (4, 5)
        assert server.requests == [], "the refresh token went to a server that requires a certificate"
        refresher("remove", "without")
        mtls = {"client_cert": "client.pem", "client_key": "client.key", "refresh_token": "another-token-by-mtls"}
        refresher.import_grant("linear", fields | mtls)
        assert refresher.grant("linear").token_endpoint_auth_method == "tls_client_auth"
        done = refresher("run-once", "linear", environment=trust)
        assert done.code == 0, done.stderr
    assert shown[-1]["subject"][0][0][1] == "agent"
    assert b"client_id=agent" in server.requests[0]
    assert b"authorization" not in server.requests[0].lower()


def test_a_key_with_a_passphrase_is_an_error_without_a_prompt(refresher: Command) -> None:
    """If it failed, a daemon would hang at a prompt that nobody sees."""
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        PrivateFormat,
        load_pem_private_key,
    )

    keys.certificate(refresher.home / "client.pem", "agent")
    path = refresher.home / "client.key"
    locked = load_pem_private_key(path.read_bytes(), None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    path.write_bytes(locked)
    fields = {
        "token_endpoint": "https://as.example/token",
        "client_id": "agent",
        "refresh_token": "a-refresh-token-of-nobody",
        "server_url": RESOURCE,
    }
    for more in ({"client_cert": "client.pem", "client_key": "client.key"}, {"private_key_file": "client.key"}):
        done = refresher("import", "linear", "--from", str(refresher.write_import("linear", fields | more)))
        assert done.code == 2
        assert done.stderr.count("\n") == 1
        assert "client." in done.stderr


# --- a refused resource --------------------------------------------------------------------------------------------

REFUSED = {"status": 400, "body": {"error": "invalid_target", "error_description": "AADSTS9010010: no match"}}


def test_a_refused_resource_is_left_out_from_then_on(refresher: Command, own_oidc: Start) -> None:
    """If it failed, grants at servers that reject the parameter would never get a token."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public", RESOURCE))
    server.script(**REFUSED)
    assert refresher("run-once").code == 0
    assert [request["resource"] for request in server.requests()] == [RESOURCE, None]
    assert refresher("run-once", "--force").code == 0
    assert server.requests()[-1]["resource"] is None, "the refusal was not remembered"
    assert refresher.grant("linear").resource_refused


def test_a_refused_resource_waits_for_the_end_of_a_live_token(refresher: Command, own_oidc: Start) -> None:
    """If it failed, a server that spends the refresh token before it checks the resource would end a live login (I1)."""
    server = own_oidc(accessTokenTtl=20)
    refresher.import_grant("linear", server.mint("public", RESOURCE))
    assert refresher("run-once").code == 0
    live = refresher.token("linear").access_token
    server.script(**REFUSED)
    done = refresher("run-once", "--force", "--json")
    assert (done.code, done.results["linear"]["outcome"]) == (5, "in_doubt")
    assert len(server.requests()) == 2
    assert server.introspect(live)["active"]
    process = refresher.start("run")
    try:
        wait_until(lambda: refresher.token("linear").generation == 2, "refresher rotates without the resource")
    finally:
        process.terminate()
    assert refresher.finish(process).code == 0
    assert server.requests()[-1]["resource"] is None


# --- client_id beside HTTP Basic -----------------------------------------------------------------------------------


def choosy(connection: socket.socket, request: bytes) -> None:
    """Refuse ``client_id`` in the body."""
    refused = b"client_id=" in request
    fields = {
        "access_token": "an-access-token-of-choosy",
        "refresh_token": f"r-{time.monotonic_ns()}",
        "expires_in": 600,
    }
    body = json.dumps({"error": "invalid_request"} if refused else fields).encode()
    status = b"400 Bad Request" if refused else b"200 OK"
    connection.sendall(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body))


def of_choosy(server: RawServer, **more: Any) -> dict[str, Any]:
    """Return an import for the server."""
    fields = {"client_id": "agent", "client_secret": "a-secret-of-the-agent", "server_url": RESOURCE}
    return {"token_endpoint": server.token_endpoint, "refresh_token": "a-refresh-token-of-choosy", **fields, **more}


def test_a_refused_client_id_is_left_out_from_then_on(refresher: Command) -> None:
    """If it failed, grants at servers that refuse client_id beside HTTP Basic would never get a token."""
    with RawServer(choosy) as server:
        refresher.import_grant("linear", of_choosy(server))
        assert refresher("run-once").code == 0
        assert refresher("run-once", "--force").code == 0
        assert [b"client_id=" in request for request in server.requests] == [True, False, False]
    assert refresher.grant("linear").omits_client_id


def test_a_refused_client_id_is_not_left_out_while_a_token_is_live(refresher: Command) -> None:
    """If it failed, a server that spends the refresh token before it refuses would end a live login (I1)."""
    with RawServer(choosy) as server:
        live = {"access_token": "a-live-access-token-of-choosy", "expires_in": 3600}
        refresher.import_grant("linear", of_choosy(server, **live))
        assert refresher("run-once", "--force").code == 4
        assert len(server.requests) == 1
    assert not refresher.grant("linear").omits_client_id


def test_parameters_of_an_import_are_part_of_each_refresh(refresher: Command) -> None:
    """If it failed, a server that requires an audience would refuse each refresh, or issue tokens for another API."""
    with RawServer(choosy) as server:
        post = {"token_endpoint_auth_method": "client_secret_post"}
        params = {"refresh_params": {"audience": "https://api.example", "tenant": "a b"}}
        refresher.import_grant("linear", of_choosy(server, **post, **params))
        refresher("run-once")
        assert b"audience=https%3A%2F%2Fapi.example&tenant=a+b" in server.requests[0]
        for wrong in ({"scope": "all"}, {"refresh_token": "x"}, {"audience": 1}, {"audience": ""}):
            path = refresher.write_import("other", of_choosy(server, refresh_params=wrong))
            done = refresher("import", "other", "--from", str(path))
            assert (done.code, done.stderr.count("refresh_params must be")) == (2, 1), done.stderr


def test_parameters_of_a_login_with_client_credentials_are_part_of_each_renewal(refresher: Command) -> None:
    """If it failed, the first token would be for an audience, and each later one for another, or refused."""
    secret = refresher.home / "secret.import.json"
    secret.write_text("a-secret-of-the-agent")
    with RawServer(choosy, marker=b"tenant=b") as server:
        options = ["--client-credentials", "--token-endpoint", server.token_endpoint, "--client-id", "agent"]
        options += ["--client-secret-file", str(secret), "--param", "audience=here", "--refresh-param", "tenant=b"]
        for arguments in (("https://api.example", *options), ()):
            done = refresher("login", "machine", *arguments)
            assert done.code == 0, done.stderr
        assert refresher("run-once", "--force").code == 0
        assert all(b"audience=here&tenant=b" in request for request in server.requests)
        assert [b"client_id=" in request for request in server.requests] == [True, False, False, False]


def test_a_client_rejected_ten_times_needs_a_person_and_is_still_retried(refresher: Command, own_oidc: Start) -> None:
    """If it failed, a wrong secret would fail forever without a report, or one wrong answer would end a grant."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public"))
    assert refresher("run-once").code == 0
    for count in range(1, 11):
        server.script(status=401, body={"error": "invalid_client"})
        done = refresher("run-once", "--force", "--json")
        expected = (4, "client_rejected") if count < 10 else (3, "reauthorization_required")
        assert (done.code, done.results["linear"]["outcome"]) == expected
    token = refresher.token("linear")
    assert (token.state, token.access_token is None) == ("reauthorization_required", False)
    assert "10 times in a row" in done.results["linear"]["detail"]
    assert refresher("run-once").code == 3
    assert refresher("run-once", "--force").code == 0
    assert refresher.token("linear").state == "active"
    assert server.log()["reused"] == 0
