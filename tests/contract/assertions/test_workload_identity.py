"""Access tokens for the token of a workload in a file (RFC 7523)."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from refresher.common.errors import ImportRefused
from refresher.doctor.grants import check_files
from refresher.operations.rotate import Order, Terms, rotate
from refresher.storage.store import Store
from tests.support.assertion_grants import grant_of, import_grant, published_of, retry_now, rotate_now
from tests.support.assertion_server import AssertionServer, Issuer


def test_the_file_of_an_assertion_is_read_for_each_request(
    files: Store, server: AssertionServer, issuer: Issuer, tmp_path: Path
) -> None:
    """If it failed, a projected token would be used after it was replaced, or a client would be sent that nobody has."""
    path = tmp_path / "token"
    tokens = [issuer.write(path, server.token_endpoint)]
    import_grant(files, "work", server.workload(path, resource="https://mcp.example/mcp", scope="use"))
    assert rotate_now(files, "work").outcome == "rotated"
    tokens.append(issuer.write(path, server.token_endpoint))
    assert rotate_now(files, "work").outcome == "rotated"
    assert server.requests == [
        {
            "grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer",
            "assertion": token,
            "scope": "use",
            "resource": "https://mcp.example/mcp",
        }
        for token in tokens
    ]
    record = files.directories.record("work").read_text()
    assert grant_of(files, "work").refresh_token is None
    assert not any(token in record for token in tokens)


@pytest.mark.parametrize(
    ("lifetime", "code", "words"),
    [
        (None, "assertion_missing", "cannot read the assertion {}: No such file or directory"),
        (-3600.0, "assertion_expired", "the assertion {} expired 60 min ago: whatever writes this file must renew it"),
    ],
    ids=["missing", "expired"],
)
def test_an_assertion_that_cannot_be_used_is_named_and_not_sent(
    files: Store,
    server: AssertionServer,
    issuer: Issuer,
    tmp_path: Path,
    lifetime: float | None,
    code: str,
    words: str,
) -> None:
    """If it failed, nobody would know which file is the cause, or agents would lose a token that is still valid (I5)."""
    path = tmp_path / "token"
    issuer.write(path, server.token_endpoint)
    import_grant(files, "work", server.workload(path))
    rotate_now(files, "work")
    before = published_of(files, "work")
    path.unlink() if lifetime is None else issuer.write(path, server.token_endpoint, lifetime=lifetime)
    result = rotate_now(files, "work")
    assert result.outcome == "transient"
    assert result.detail.startswith(words.format(path))
    assert len(server.requests) == 1
    after = published_of(files, "work")
    assert (after.state, after.access_token) == ("failing", before.access_token)
    assert after.error is not None
    assert (after.error.code, after.error.retry_at is not None) == (code, True)
    issuer.write(path, server.token_endpoint)
    assert rotate_now(files, "work").outcome == "rotated"
    assert published_of(files, "work").state == "active"


def test_an_assertion_for_another_server_is_explained_and_retried(
    files: Store, server: AssertionServer, issuer: Issuer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """If it failed, a wrong audience would look like a login that has ended, or a mended one would not be tried."""
    path = tmp_path / "token"
    issuer.write(path, "https://other.example")
    import_grant(files, "work", server.workload(path))
    assert f"the audience of the assertion {path} is https://other.example" in caplog.text
    result = rotate_now(files, "work")
    assert result.outcome == "transient"
    expected = f"{path}, whose audience is https://other.example: most servers require {server.token_endpoint}"
    assert expected in result.detail
    assert not grant_of(files, "work").dead
    issuer.write(path, server.token_endpoint)
    assert rotate_now(files, "work").outcome == "rotated"


@pytest.mark.parametrize(
    ("mode", "owner", "words"),
    [
        (0o666, None, "can be changed by any user: run 'chmod go-w' on it"),
        (0o660, None, "can be changed by the group"),
        (0o600, 65534, "belongs to the user 65534: it must belong to the user of refresher or to root"),
        (0o600, None, None),
        (0o640, 0, None),
        (0o644, None, None),
    ],
    ids=["others write", "group writes", "other owner", "helper", "projected with a group", "projected"],
)
@pytest.mark.parametrize("client", [False, True], ids=["assertion", "client assertion"])
def test_a_file_that_another_user_can_change_is_no_assertion(
    files: Store,
    server: AssertionServer,
    issuer: Issuer,
    tmp_path: Path,
    mode: int,
    owner: int | None,
    words: str | None,
    client: bool,
) -> None:
    """If it failed, any user of the host could choose as whom refresher gets tokens, or no pod could use its own."""
    if owner is not None and os.geteuid() != 0:
        pytest.skip("only root can give a file to another user")
    # As Kubernetes projects it: through links, in a directory that is open to all.
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    (shared / "data").mkdir()
    path = shared / "token"
    path.symlink_to("data/token")
    issuer.write(shared / "data" / "token", server.token_endpoint)
    grant = _authenticated(server, path) if client else server.workload(path)
    import_grant(files, "work", grant)
    (shared / "data" / "token").chmod(mode)
    if owner is not None:
        os.chown(path, owner, -1)
    result = rotate_now(files, "work")
    (found,) = list(check_files([grant_of(files, "work")], None)) or (None,)
    if words is None:
        assert result.outcome == "rotated"
        assert found is None
        return
    assert words in result.detail
    assert str(path) in result.detail
    assert server.requests == []
    assert found is not None
    assert (found.code, found.name, words in found.what) == ("file_unreadable", "work", True)
    with pytest.raises(ImportRefused, match="is sent to nobody"):
        import_grant(files, "other", grant)


def test_a_file_that_is_too_large_is_no_assertion(
    files: Store, server: AssertionServer, issuer: Issuer, tmp_path: Path
) -> None:
    """If it failed, whatever a wrong path leads to would be sent to a server."""
    path = tmp_path / "token"
    issuer.write(path, server.token_endpoint)
    import_grant(files, "work", server.workload(path))
    path.write_text("a" * 300_000)
    assert "it is larger than 262144 bytes" in rotate_now(files, "work").detail
    assert server.requests == []


def _authenticated(server: AssertionServer, path: Path) -> dict[str, Any]:
    """Return the import of a grant whose client authenticates with the assertion in ``path``."""
    return {
        "token_endpoint": server.token_endpoint,
        "client_id": "app",
        "refresh_token": server.refresh_token,
        "client_assertion_file": str(path),
        "server_url": "https://mcp.example/mcp",
    }


def test_a_client_authenticates_with_an_assertion_of_somebody_else(
    files: Store, server: AssertionServer, issuer: Issuer, tmp_path: Path
) -> None:
    """If it failed, a workload would need a secret although its platform vouches for it (RFC 7523 section 2.2)."""
    path = tmp_path / "token"
    issuer.write(path, server.token_endpoint)
    import_grant(files, "app", _authenticated(server, path))
    token = issuer.write(path, server.token_endpoint)
    assert rotate_now(files, "app").outcome == "rotated"
    assert server.requests[0]["client_assertion"] == token
    assert server.requests[0]["client_assertion_type"] == "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
    before = grant_of(files, "app").refresh_token
    path.unlink()
    result = rotate_now(files, "app")
    assert (result.outcome, len(server.requests)) == ("transient", 1)
    assert grant_of(files, "app").refresh_token == before
    assert grant_of(files, "app").doubt is None, "nothing was sent"


def test_a_doubt_outlives_an_assertion_that_is_missing(
    files: Store, server: AssertionServer, issuer: Issuer, tmp_path: Path
) -> None:
    """If it failed, a refresh token that may be spent would be sent again, and could revoke a valid access token (I1)."""
    path = tmp_path / "token"
    issuer.write(path, server.token_endpoint)
    import_grant(files, "app", _authenticated(server, path) | {"replay": "none"})
    assert rotate_now(files, "app").outcome == "rotated"
    server.answer = lambda _: (500, {})
    assert rotate_now(files, "app").outcome == "in_doubt"
    path.unlink()
    demand = files.directories.demands / "app.1"
    demand.touch()
    retry_now(files, "app")
    order = Order(name="app", seen=1, demanded=frozenset({1}))
    assert "No such file" in str(rotate(files, order, Terms(ca_file=None, stopping=lambda: False)))
    assert grant_of(files, "app").doubt is not None
    demand.unlink(missing_ok=True)
    issuer.write(path, server.token_endpoint)
    retry_now(files, "app")
    assert rotate_now(files, "app").outcome == "in_doubt"
    assert len(server.requests) == 2, "the token in doubt was sent again"


def test_an_answer_never_repeats_an_assertion(
    files: Store, server: AssertionServer, issuer: Issuer, tmp_path: Path
) -> None:
    """If it failed, a server that echoes the assertion would put it into logs and token files (I7)."""
    path = tmp_path / "token"
    token = issuer.write(path, server.token_endpoint)
    # A whole one would be masked as any token is.
    server.answer = lambda fields: (
        400,
        {"error": "invalid_grant", "error_description": f"bad {fields['assertion'][90:99]}"},
    )
    import_grant(files, "work", server.workload(path))
    detail = rotate_now(files, "work").detail
    assert "bad " in detail
    assert token[90:99] not in detail


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"assertion_file": None}, "jwt_bearer needs an assertion_file"),
        ({"idp": "company"}, "one of them"),
        ({"subject_file": "/x"}, "subject_file: only for grant_type token_exchange"),
        ({"grant_type": "token_exchange"}, "assertion_file: only for grant_type jwt_bearer"),
        ({"grant_type": "token_exchange", "assertion_file": None}, "needs a subject_file or a subject_grant"),
        ({"assertion_file": None, "idp": "company"}, "idp needs the issuer"),
        ({"assertion_file": None, "assertion_grant": "No Name"}, "must be the NAME of another grant"),
        ({"client_secret": "secret-of-it"}, "client_id is missing"),
        ({"refresh_token": "token-of-it"}, "give a refresh_token, or another grant_type"),
        (
            {"grant_type": "client_credentials", "client_id": "x", "client_secret": "y"},
            "only for grant_type jwt_bearer",
        ),
        ({"assertion_file": None, "assertion_grant": "work"}, "work would need its own token"),
        ({"refresh_params": {"assertion": "static"}}, "refresh_params must be .* none of .*assertion"),
        (
            {
                "grant_type": "token_exchange",
                "assertion_file": None,
                "subject_grant": "other",
                "refresh_params": {"audience": "x"},
            },
            "a token_exchange has a field audience",
        ),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_an_import_that_contradicts_itself_is_refused(
    files: Store, server: AssertionServer, issuer: Issuer, tmp_path: Path, fields: dict[str, Any], words: str
) -> None:
    """If it failed, a grant would be stored that can never get a token."""
    path = tmp_path / "token"
    issuer.write(path, server.token_endpoint)
    given = {key: value for key, value in server.workload(path, **fields).items() if value is not None}
    with pytest.raises(ImportRefused, match=words):
        import_grant(files, "work", given)
