"""What a token endpoint's answer means: the plain forms of RFC 6749 section 5."""

import base64
import json
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refresher.answer import judge
from refresher.outcome import (
    Ambiguous,
    ClientRejected,
    GrantDead,
    Outcome,
    Rotated,
    Transient,
    Unintelligible,
)
from refresher.secret import Secret
from tests.support.samples import NOON

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
REFRESH = Secret("the-refresh-token-that-was-sent")


def _jwt(**claims: Any) -> str:
    return ".".join(
        base64.urlsafe_b64encode(part).decode().rstrip("=") for part in (b"{}", json.dumps(claims).encode(), b"s")
    )


class Row(NamedTuple):
    """One answer and what it must be taken for."""

    what: str
    status: int
    body: Any
    kind: type[Outcome]
    expected: dict[str, Any] = {}
    content_type: str = JSON
    headers: dict[str, str] = {}
    whole: bool = True


GOOD = {"access_token": "a", "token_type": "Bearer", "expires_in": 3600, "refresh_token": "r", "scope": "read"}
TABLE = [
    Row("RFC 6749 5.1", 200, GOOD, Rotated, {"expires_in": 3600.0, "scope": "read", "token_type": "Bearer"}),
    Row("201 is success too", 201, GOOD, Rotated),
    Row("no refresh token: the old one stays (section 6)", 200, {"access_token": "a"}, Rotated, {"refresh_token": None}),
    Row("refresh token null", 200, GOOD | {"refresh_token": None}, Rotated, {"refresh_token": None}),
    Row("refresh token empty", 200, GOOD | {"refresh_token": ""}, Rotated, {"refresh_token": None}),
    Row("expires_in as text", 200, GOOD | {"expires_in": "3600"}, Rotated, {"expires_in": 3600.0}),
    Row("expires_in absent", 200, {"access_token": "a"}, Rotated, {"expires_in": None, "expires_at": None}),
    Row("expires_in negative", 200, GOOD | {"expires_in": -1}, Rotated, {"expires_in": None}),
    Row("expires_in zero", 200, GOOD | {"expires_in": 0}, Rotated, {"expires_in": 0.0}),
    Row("expires_in absurd", 200, GOOD | {"expires_in": 1e300}, Rotated, {"expires_in": 315_360_000.0}),
    Row("expires_in true", 200, GOOD | {"expires_in": True}, Rotated, {"expires_in": None}),
    Row("a JWT tells its end", 200, {"access_token": _jwt(exp=NOON)}, Rotated, {"expires_at": NOON}),
    Row("what looks like a JWT", 200, {"access_token": "a.%%%.c"}, Rotated, {"expires_at": None}),
    Row("JSON with a BOM", 200, b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), Rotated),
    Row("form encoding", 200, b"access_token=a&expires_in=60", Rotated, {"expires_in": 60.0}, FORM),
    Row("JSON whose framing breaks off after its end", 200, GOOD, Rotated, whole=False),
    Row("a form that breaks off", 200, b"access_token=a&refresh_tok", Unintelligible, {}, FORM, whole=False),
    Row("JSON that breaks off", 200, b'{"access_token": "a", "refr', Unintelligible, whole=False),
    Row("a control character in a token", 200, GOOD | {"access_token": "a\r\nX: y"}, Unintelligible),
    Row("a space in a token, which no header can carry", 200, GOOD | {"access_token": "a b"}, Unintelligible),
    Row("a space in the refresh token, which RFC 6749 allows", 200, GOOD | {"refresh_token": "r s"}, Rotated),
    Row("a control character in the refresh token", 200, GOOD | {"refresh_token": "r\n"}, Unintelligible),
    Row("a refresh token that is a number", 200, GOOD | {"refresh_token": 5}, Unintelligible),
    Row("no access token", 200, {"refresh_token": "r"}, Unintelligible),
    Row("an empty access token", 200, GOOD | {"access_token": ""}, Unintelligible),
    Row("an HTML page", 200, b"<html>Welcome</html>", Unintelligible, {}, "text/html"),
    Row("an empty body", 200, b"", Unintelligible),
    Row("JSON nested beyond measure", 200, b"[" * 100_000, Unintelligible),
    Row("an error with 200", 200, {"error": "invalid_grant"}, GrantDead, {"code": "invalid_grant"}),
    Row("an error beside a token is kept for a person", 200, {"error": "invalid_grant", **GOOD}, Unintelligible),
    Row("an error beside a new refresh token", 200, {"error": "x", "refresh_token": "r"}, Unintelligible),
    Row("an error that is false is none", 200, GOOD | {"error": False}, Rotated),
    Row("an error that is empty is none", 200, GOOD | {"error": ""}, Rotated),
    Row("not ok is an error", 200, {"ok": False}, Transient, {"code": "server_error"}),
    Row("not ok beside a token", 200, GOOD | {"ok": False}, Unintelligible),
    Row("JSON under the wrong type", 200, GOOD, Rotated, {"expires_in": 3600.0}, FORM),
    Row("a verdict under the wrong type", 400, {"error": "invalid_grant"}, GrantDead, {}, FORM),
    Row("a form under the wrong type", 200, b"access_token=a&expires_in=60", Rotated, {"expires_in": 60.0}, "text/plain"),
    Row("a stray byte in a field that is not stored", 200, b'{"access_token":"a","note":"caf\xe9"}', Rotated),
    Row("a stray byte in a verdict", 400, b'{"error":"invalid_grant","error_description":"caf\xe9"}', GrantDead),
    Row("a stray byte in a token", 200, b'{"access_token":"caf\xe9"}', Unintelligible),
    Row("half a surrogate in a field", 200, b'{"access_token":"a","note":"\\ud800"}', Rotated),
    Row("an infinite expires_in", 200, b'{"access_token":"a","expires_in":1e999}', Rotated, {"expires_in": None}),
    Row("invalid_grant", 400, {"error": "invalid_grant"}, GrantDead, {"code": "invalid_grant"}),
    Row("invalid_grant as 401", 401, {"error": "invalid_grant"}, GrantDead),
    Row("invalid_client", 401, {"error": "invalid_client"}, ClientRejected, {"code": "invalid_client"}),
    Row("a 4xx without a code is no verdict", 400, b"Bad Request", Transient, {"code": "server_error"}, "text/plain"),
    Row("404", 404, b"", Transient),
    Row("invalid_request is no verdict", 400, {"error": "invalid_request"}, Transient, {"code": "invalid_request"}),
    Row("a code that is none", 400, {"error": {"code": "x"}}, Transient, {"code": "server_error"}),
    Row("invalid_target may follow the spend", 400, {"error": "invalid_target"}, Ambiguous),
    Row("300 is no success", 300, GOOD, Transient),
    Row("a redirect", 307, b"", Transient, headers={"location": "https://elsewhere.example"}),
    Row("408", 408, b"", Transient, {"code": "temporarily_unavailable"}),
    Row("425", 425, b"", Transient),
    Row("429 with seconds", 429, b"", Transient, {"retry_after": 7.0}, headers={"retry-after": "7"}),
    Row("503 with a date", 503, b"", Transient, {"retry_after": 3600.0}, headers={"retry-after": "Fri, 31 Dec 2100 23:59:59 GMT"}),
    Row("503 with a date that has passed", 503, b"", Transient, {"retry_after": 0.0}, headers={"retry-after": "Fri, 31 Dec 1999 23:59:59 GMT"}),
    Row("503 with nonsense", 503, b"", Transient, {"retry_after": None}, headers={"retry-after": "soon"}),
    Row("500", 500, b"", Ambiguous),
    Row("502", 502, b"<html>", Ambiguous, {}, "text/html"),
    Row("500 with a code that is no verdict", 500, {"error": "server_error"}, Ambiguous),
]  # fmt: skip


def _judge(status: int, body: bytes, headers: dict[str, str], *, whole: bool = True) -> Outcome:
    return judge(status, headers, body, whole=whole, now=NOON, known=(REFRESH, None))


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.what)
def test_each_answer_is_taken_for_what_it_is(row: Row) -> None:
    """If it failed, a live grant would be given up, or a spent token sent again."""
    body = row.body if isinstance(row.body, bytes) else json.dumps(row.body).encode()
    outcome = _judge(row.status, body, {"content-type": row.content_type, **row.headers}, whole=row.whole)
    assert type(outcome) is row.kind, outcome
    for field, value in row.expected.items():
        assert getattr(outcome, field) == value


def test_an_unreadable_success_is_kept_byte_for_byte() -> None:
    """If it failed, a new refresh token in a garbled answer could not be rescued by hand."""
    body = bytes(range(256))
    outcome = _judge(200, body, {})
    assert isinstance(outcome, Unintelligible)
    assert outcome.answer.reveal().encode("latin-1") == body


def test_a_server_that_echoes_a_token_is_not_repeated() -> None:
    """If it failed, a refresh token would stand in logs and in token files that agents read."""
    words = f"token {REFRESH.reveal()} or eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln is used\x1b[31m\nup"
    outcome = _judge(400, json.dumps({"error": "invalid_grant", "error_description": words}).encode(), {})
    assert isinstance(outcome, GrantDead)
    assert REFRESH.reveal() not in outcome.description
    assert "eyJ" not in outcome.description
    assert outcome.description.isprintable()


@given(
    st.integers(100, 599),
    st.one_of(st.binary(), st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists).map(lambda v: json.dumps(v).encode()),
              st.dictionaries(st.sampled_from(["access_token", "refresh_token", "expires_in", "error", "scope", "token_type", "error_description"]),
                              st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text())).map(lambda v: json.dumps(v).encode())),
    st.dictionaries(st.sampled_from(["retry-after", "content-type"]), st.text() | st.just(FORM)),
    st.booleans(),
)  # fmt: skip
def test_no_answer_raises_and_only_success_rotates(
    status: int, body: bytes, headers: dict[str, str], whole: bool
) -> None:
    """If it failed, a server's odd answer would end the process between the request and the disk."""
    outcome = _judge(status, body, headers, whole=whole)
    if isinstance(outcome, Rotated):
        assert 200 <= status < 300
        assert outcome.access_token.reveal()
