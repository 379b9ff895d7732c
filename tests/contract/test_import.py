"""The command ``import``: what it accepts, what it refuses, what it stores."""

import json
import time
from typing import Any

import pytest

from refresher.grants import server_behavior
from tests.support.cli import GRANT, one_line
from tests.support.command import Command


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"token_endpoint": None}, "token_endpoint"),
        ({"client_id": None}, "client_id"),
        ({"refresh_token": None}, "refresh_token"),
        ({"server_url": None}, "server_url"),
        ({"origns": [], "a": 1}, "unknown keys: origns (did you mean origins?)"),
        ({"accessToken": "a-good-token"}, "accessToken (did you mean access_token?)"),
        ({"access_token": "a-good-token", "token_type": "DPoP"}, "DPoP tokens need a proof"),
        ({"access_token": "a token"}, "space"),
        ({"access_token": "a-good-token", "expires_at": 1_800_000_000_000}, "milliseconds"),
        ({"expires_in": 60}, "access_token"),
        ({"send_resource": True}, "send_resource"),
        ({"token_endpoint": "http://as.example/token"}, "https"),
        ({"token_endpoint": "https://user@as.example/token"}, "password"),
        ({"server_url": "mcp.example"}, "server_url"),
        ({"origins": ["nowhere"]}, "origins"),
        ({"origins": [], "server_url": None}, "origins"),
        ({"refresh_token": "with\nnewline"}, "refresh_token"),
        ({"refresh_token": ""}, "refresh_token"),
        ({"refresh_token": 5}, "refresh_token must be a text"),
        ({"client_id": None}, "client_id is missing"),
        ({"client_id": ["client"]}, "client_id must be a text"),
        ({"scope": 5.5}, "scope must be a text"),
        ({"expires_in": "soon"}, "expires_in must be a number"),
        ({"send_resource": "perhaps"}, "send_resource must be true or false"),
        ({"origins": "https://mcp.example"}, "origins must be a list of texts"),
        ({"origins": [5]}, "origins must be a text"),
        ({"client_secret": "a-secret-of-it", "token_endpoint_auth_method": "none"}, "must match the given credentials"),
        ({"token_endpoint_auth_method": "client_secret_post"}, "must match the given credentials"),
        ({"client_secret": "a-secret-of-it", "token_endpoint_auth_method": "private_key_jwt"}, "private_key_file"),
        ({"token_endpoint_auth_method": "tls_client_auth"}, "client_cert"),
        ({"token_endpoint_auth_method": "secret_handshake"}, "private_key_jwt"),
        ({"client_secret": "a-secret-of-it", "private_key_file": "/nowhere"}, "must match the given credentials"),
        ({"private_key_file": "/nowhere/key.pem"}, "cannot read the private key /nowhere/key.pem"),
        ({"private_key_id": "kid"}, "private_key_file"),
        ({"client_cert": "/nowhere/cert.pem"}, "cannot read /nowhere/cert.pem"),
        ({"client_key": "/nowhere/key.pem"}, "client_cert"),
        ({"grant_type": "client_credentials"}, "without one"),
        ({"grant_type": "client_credentials", "refresh_token": None}, "requires client authentication"),
        ({"grant_type": "password", "refresh_token": None}, "grant_type"),
        ({"refresh_token": None}, "give a refresh_token"),
        ({"replay": "sometimes"}, "replay"),
        ({"replay": "30"}, "replay"),
        ({"max_age": -1}, "max_age"),
        ({"max_age": "soon"}, "max_age"),
        ({"access_token": "an-access-token-of-it", "expires_in": 60, "expires_at": 1}, "not both"),
        ({"issuer": "http://as.example"}, "issuer"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else value,
)
def test_an_import_with_an_invalid_field_is_refused(refresher: Command, changes: dict[str, Any], words: str) -> None:
    """If it failed, a grant would be stored that can never rotate, or whose token is sent to a wrong server."""
    fields = {key: value for key, value in (GRANT | changes).items() if value is not None}
    path = refresher.write_import("linear", fields)
    line = one_line(refresher("import", "linear", "--from", str(path)))
    assert words in line
    assert f"{path}: " in line, "the message does not name the file"
    assert not (refresher.state / "grants/linear.json").exists()


@pytest.mark.parametrize("data", ["", "{", "[]", "null", '"text"', '{"a": 1} trailing', "\x00\x01", "{" * 10_000])
def test_an_import_of_invalid_json_is_one_line(refresher: Command, data: str) -> None:
    """If it failed, a wrong file would end in a traceback that shows its content, or in the words of a parser."""
    line = one_line(refresher("import", "linear", "--from", "-", stdin=data))
    assert "standard input" in line
    assert any(words in line for words in ("is not JSON", "is not one JSON object", "is missing", "is empty")), line


def test_an_import_from_standard_input_stores_every_field(refresher: Command) -> None:
    """If it failed, an optional field would be missing from the record."""
    fields = GRANT | {
        "client_secret": "the-client-secret-of-it",
        "token_endpoint_auth_method": "client_secret_post",
        "access_token": "an-access-token-of-it",
        "expires_in": 600,
        "scope": "read write",
        "issuer": "https://as.example",
        "resource": "https://mcp.example",
        "send_resource": False,
        "replay": "30s",
        "max_age": "10m",
        "origins": ["https://one.example", "https://two.example:8443/x"],
    }
    refresher.vault.learn(fields["client_secret"], fields["access_token"], fields["refresh_token"])
    before = time.time()
    done = refresher("import", "linear", "--from", "-", stdin=f"\ufeff{json.dumps(fields)}")
    assert done.code == 0, done.stderr
    grant = refresher.grant("linear")
    assert (grant.replay, grant.max_age, grant.send_resource) == (30.0, 600.0, False)
    assert (grant.scope, grant.issuer, grant.resource) == ("read write", "https://as.example", "https://mcp.example")
    assert grant.token_endpoint_auth_method == "client_secret_post"
    token = refresher.token("linear")
    assert token.access_token == fields["access_token"]
    assert token.origins == ("https://one.example", "https://two.example:8443")
    assert (token.generation, token.state) == (0, "active")
    assert token.expires_at is not None
    assert before + 600 <= token.expires_at <= time.time() + 600


def test_a_token_response_with_the_other_required_keys_is_an_import(refresher: Command) -> None:
    """If it failed, a person could not import the token response of a login without deleting fields from it."""
    response = {"access_token": "an-access-token-of-it", "expires_in": "3600", "id_token": "an-id-token-of-it", "token_type": "bearer", "scope": "a"}  # fmt: skip
    more = {"not-before-policy": 0, "session_state": "x", "ext_expires_in": 3600}
    done = refresher("import", "linear", "--from", str(refresher.write_import("linear", GRANT | response | more)))
    assert (done.code, done.stderr) == (0, "")
    assert refresher.token("linear").token_type == "bearer"


def test_a_key_that_means_nothing_is_ignored_and_named(refresher: Command) -> None:
    """If it failed, a person would have to delete such keys, or would not see that a setting has no effect."""
    done = refresher("import", "linear", "--from", str(refresher.write_import("linear", GRANT | {"surprise": {}})))
    assert done.code == 0
    assert "linear: warning: ignored, because refresher has no use for them: surprise" in done.stderr


def test_the_defaults_of_an_import_are_cautious(refresher: Command) -> None:
    """If it failed, a person would have to know and set every cautious setting."""
    refresher.import_grant("plain", GRANT)
    plain = refresher.grant("plain")
    assert (server_behavior.grace_period(plain), plain.token_endpoint_auth_method) == (0.0, "none")
    assert not server_behavior.sends_resource(plain)
    fields = GRANT | {
        "refresh_token": "another-refresh-token",
        "client_secret": "its-client-secret",
        "resource": "urn:x",
    }
    refresher.import_grant("full", fields)
    full = refresher.grant("full")
    assert full.token_endpoint_auth_method == "client_secret_basic"
    assert server_behavior.sends_resource(full)


def test_an_existing_grant_is_never_replaced_by_accident(refresher: Command) -> None:
    """If it failed, a repeated import would replace a rotated refresh token by a used one."""
    refresher.import_grant("linear", GRANT)
    other = refresher.write_import("other", GRANT | {"refresh_token": "another-refresh-token"})
    assert "--replace" in one_line(refresher("import", "linear", "--from", str(other)))
    kept = refresher("import", "linear", "--from", str(other), "--if-absent")
    assert kept.code == 0
    assert refresher.refresh_token("linear") == GRANT["refresh_token"]
    replaced = refresher("import", "linear", "--from", str(other), "--replace")
    assert replaced.code == 0
    assert refresher.refresh_token("linear") == "another-refresh-token"
    assert refresher.grant("linear").generation == 1


def test_one_refresh_token_has_one_name(refresher: Command) -> None:
    """If it failed, two names would rotate one refresh token against each other (I3)."""
    refresher.import_grant("linear", GRANT)
    assert "linear" in one_line(refresher("import", "other", "--from", str(refresher.write_import("other", GRANT))))


def test_the_refresh_token_of_an_interrupted_import_is_not_imported_again(refresher: Command) -> None:
    """If it failed, a killed import and a second one under another name would share a refresh token (I3)."""
    refresher.import_grant("linear", GRANT)
    grants = refresher.state / "grants"
    (grants / "linear.json").rename(grants / "linear.next.1")  # as after a kill just before the rename
    again = refresher.write_import("other", GRANT)
    assert "linear" in one_line(refresher("import", "other", "--from", str(again)))
    adopted = refresher("import", "linear", "--from", str(again))
    assert adopted.code == 2
    assert "adopted" in adopted.stderr
    assert "exists" in adopted.stderr
    assert refresher.refresh_token("linear") == GRANT["refresh_token"]


def test_an_import_file_that_others_can_read_causes_a_warning(refresher: Command) -> None:
    """If it failed, all users of the machine could read a refresh token without a warning."""
    path = refresher.write_import("linear", GRANT)
    path.chmod(0o644)
    done = refresher("import", "linear", "--from", str(path))
    assert done.code == 0
    assert "others can read" in done.stderr


def test_a_token_that_is_sent_without_tls_causes_a_warning(refresher: Command) -> None:
    """If it failed, nobody would notice that an access token is sent over the network without encryption."""
    path = refresher.write_import("linear", GRANT | {"server_url": "http://mcp.internal/mcp"})
    assert "http://mcp.internal" in refresher("import", "linear", "--from", str(path)).stderr
    loopback = refresher.write_import(
        "local", GRANT | {"refresh_token": "another-token", "server_url": "http://[::1]:1/"}
    )
    assert refresher("import", "local", "--from", str(loopback)).stderr == ""


def test_no_key_of_an_import_reaches_the_terminal_as_a_control_sequence(refresher: Command) -> None:
    """If it failed, a file from elsewhere could change what a person sees."""
    done = refresher("import", "linear", "--from", str(refresher.write_import("linear", GRANT | {"b\x1b[31m": 1})))
    assert done.code == 0
    assert "\x1b" not in done.stderr
    assert r"'b\x1b[31m'" in done.stderr
