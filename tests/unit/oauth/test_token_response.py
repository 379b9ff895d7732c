"""What a token endpoint's answer means: the plain forms of RFC 6749 section 5."""

import json
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refresher.common.secret import Secret
from refresher.grants.outcome import (
    Ambiguous,
    ClientRejected,
    GrantDead,
    Outcome,
    ResourceRefused,
    Rotated,
    TooEarly,
    Transient,
    Unintelligible,
)
from refresher.oauth.dialects import MEANINGS
from refresher.oauth.token_response import judge
from tests.support.samples import NOON, jwt

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
BEHIND, AHEAD = "Fri, 15 Jan 2027 07:51:00 GMT", "Fri, 15 Jan 2027 08:10:00 GMT"
REFRESH = Secret("the-refresh-token-that-was-sent")


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
    Row("expires_in zero means never (VK, GoToSocial)", 200, GOOD | {"expires_in": 0}, Rotated, {"expires_in": None}),
    Row("expires_in as a float", 200, GOOD | {"expires_in": 59.5}, Rotated, {"expires_in": 59.5}),
    Row("expires_in null", 200, GOOD | {"expires_in": None}, Rotated, {"expires_in": None}),
    Row("expires_in as words", 200, GOOD | {"expires_in": "soon"}, Rotated, {"expires_in": None}),
    Row("expires_in zero, and a JWT", 200, {"access_token": jwt(exp=NOON + 60), "expires_in": 0}, Rotated, {"expires_at": NOON + 60}),
    Row("the end as epoch seconds (Supabase)", 200, {"access_token": "a", "expires_at": NOON + 60}, Rotated, {"expires_at": NOON + 60}),
    Row("the end as ISO 8601 (Square)", 200, {"access_token": "a", "expires_at": "2027-01-15T08:01:00Z"}, Rotated, {"expires_at": NOON + 60}),
    Row("an end that has passed", 200, {"access_token": "a", "expires_at": 1}, Rotated, {"expires_at": None}),
    Row("an end that is none", 200, {"access_token": "a", "expires_at": {"x": 1}}, Rotated, {"expires_at": None}),
    Row("scope as a list (Twitch, Linear)", 200, GOOD | {"scope": ["read", "write"]}, Rotated, {"scope": "read write"}),
    Row("scope as a list of something else", 200, GOOD | {"scope": [1]}, Rotated, {"scope": None}),
    Row("scope null", 200, GOOD | {"scope": None}, Rotated, {"scope": None}),
    Row("a type in small letters stays", 200, GOOD | {"token_type": "bearer"}, Rotated, {"token_type": "bearer"}),
    Row("a type that is no scheme (Slack's bot)", 200, GOOD | {"token_type": "bot"}, Rotated, {"token_type": "Bearer"}),
    Row("a type with a line end", 200, GOOD | {"token_type": "Bearer\r\nX: y"}, Rotated, {"token_type": "Bearer"}),
    Row("DPoP is a scheme (RFC 9449)", 200, GOOD | {"token_type": "DPoP"}, Rotated, {"token_type": "DPoP"}),
    Row("status and code in a success say nothing", 200, GOOD | {"status": "failed", "code": "x", "ok": True}, Rotated),
    Row("expires_in absurd", 200, GOOD | {"expires_in": 1e300}, Rotated, {"expires_in": 315_360_000.0}),
    Row("expires_in true", 200, GOOD | {"expires_in": True}, Rotated, {"expires_in": None}),
    Row("a JWT tells its end", 200, {"access_token": jwt(exp=NOON + 60)}, Rotated, {"expires_at": NOON + 60}),
    Row("a JWT that has ended by our clock", 200, {"access_token": jwt(exp=NOON)}, Rotated, {"expires_at": None}),
    Row("what looks like a JWT", 200, {"access_token": "a.%%%.c"}, Rotated, {"expires_at": None}),
    Row("JSON with a BOM", 200, b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), Rotated),
    Row("form encoding", 200, b"access_token=a&expires_in=60", Rotated, {"expires_in": 60.0}, FORM),
    Row("JSON whose framing breaks off after its end", 200, GOOD, Rotated, whole=False),
    Row("a form that breaks off", 200, b"access_token=a&refresh_tok", Unintelligible, {}, FORM, whole=False),
    Row("JSON that breaks off", 200, b'{"access_token": "a", "refr', Unintelligible, whole=False),
    Row(
        "JSON that breaks off once both tokens are there",
        200,
        b'{"access_token": "a", "expires_in": 3600, "refresh_token": "r", "id_token": "eyJ',
        Rotated,
        {"expires_in": 3600.0, "refresh_token": Secret("r")},
        whole=False,
    ),
    Row(
        "JSON that breaks off within a number",
        200,
        b'{"access_token": "a", "refresh_token": "r", "expires_in": 36',
        Rotated,
        {"expires_in": None},
        whole=False,
    ),
    Row("an answer that came twice", 200, json.dumps(GOOD).encode() * 2, Rotated, {"scope": "read"}),
    Row("JSON that breaks off before a refresh token", 200, b'{"access_token": "a", ', Unintelligible, whole=False),
    Row("JSON without its only quote", 200, b'{"access_token": "a", "refresh_token": "r"x"}', Unintelligible),
    Row("tokens of something else", 200, b'{"user": {"access_token": "a", "refresh_token": "r"}, "', Unintelligible),
    Row("not ok, and breaks off", 200, b'{"ok": false, "access_token": "a", "refresh_token": "r", ', Unintelligible),
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
    Row("a code that is none", 400, {"error": {"code": 5}}, Transient, {"code": "server_error"}),
    Row("a code in an object", 400, {"error": {"code": "x"}}, Transient, {"code": "x", "refusal": True}),
    Row("invalid_target may follow the spend", 400, {"error": "invalid_target"}, ResourceRefused),
    Row("300 is no success", 300, GOOD, Transient),
    Row("a redirect", 307, b"", Transient, headers={"location": "https://elsewhere.example"}),
    Row("408", 408, b"", Transient, {"code": "temporarily_unavailable"}),
    Row("425", 425, b"", Transient),
    Row("a JWT of a server nine minutes behind", 200, {"access_token": jwt(exp=NOON + 1)}, Rotated, {"expires_at": NOON + 541, "clock_ahead": -540.0}, headers={"date": BEHIND}),
    Row("a JWT of a server ten minutes ahead", 200, {"access_token": jwt(exp=NOON + 660)}, Rotated, {"expires_at": NOON + 60, "clock_ahead": 600.0}, headers={"date": AHEAD}),
    Row("a JWT that has ended, by either clock", 200, {"access_token": jwt(exp=NOON + 600)}, Rotated, {"expires_at": None}, headers={"date": AHEAD}),
    Row("expires_at of a server ten minutes ahead", 200, {"access_token": "a", "expires_at": NOON + 660}, Rotated, {"expires_at": NOON + 60}, headers={"date": AHEAD}),
    Row("expires_in needs no clock", 200, GOOD, Rotated, {"expires_in": 3600.0, "expires_at": None}, headers={"date": AHEAD}),
    Row("a date within a minute is the way here", 200, {"access_token": jwt(exp=NOON + 90)}, Rotated, {"expires_at": NOON + 90}, headers={"date": "Fri, 15 Jan 2027 08:00:59 GMT"}),
    Row("a date that is none", 200, {"access_token": jwt(exp=NOON + 90)}, Rotated, {"expires_at": NOON + 90}, headers={"date": "tomorrow"}),
    Row("503 with a date, of a server ten minutes ahead", 503, b"", Transient, {"retry_after": 5.0}, headers={"retry-after": "Fri, 15 Jan 2027 08:10:05 GMT", "date": AHEAD}),
    Row("429 with seconds", 429, b"", Transient, {"retry_after": 7.0}, headers={"retry-after": "7"}),
    Row("503 with a date", 503, b"", Transient, {"retry_after": 3600.0}, headers={"retry-after": "Fri, 31 Dec 2100 23:59:59 GMT"}),
    Row("503 with a date that has passed", 503, b"", Transient, {"retry_after": 0.0}, headers={"retry-after": "Fri, 31 Dec 1999 23:59:59 GMT"}),
    Row("503 with nonsense", 503, b"", Transient, {"retry_after": None}, headers={"retry-after": "soon"}),
    Row("500", 500, b"", Ambiguous),
    Row("502", 502, b"<html>", Ambiguous, {}, "text/html"),
    Row("504", 504, b"", Ambiguous),
    Row("501", 501, b"", Ambiguous),
    Row("500 with a code that is no verdict", 500, {"error": "server_error"}, Ambiguous),
    Row("a verdict with 429 is none", 429, {"error": "invalid_grant"}, Transient, {"refusal": False}),
    Row("a verdict with 503 is none", 503, {"error": "invalid_grant"}, Transient),
    Row("429 with an absurd wait", 429, b"", Transient, {"retry_after": 3600.0}, headers={"retry-after": "99999999999999999999"}),
    Row("429 with a negative wait", 429, b"", Transient, {"retry_after": None}, headers={"retry-after": "-5"}),
    Row("a wall in front (WAF) as 403", 403, b"<html>Attention Required! | Cloudflare</html>", Transient, {"refusal": True}, "text/html"),
]  # fmt: skip


# Each dialect as it was documented or seen: (server and source, status, body, what it must be taken for).
DIALECTS: list[tuple[str, int, Any, type[Outcome]]] = [
    ("GitHub, simple-oauth2#459", 200, {"error": "bad_refresh_token", "error_description": "The refresh token passed is incorrect or expired."}, GrantDead),
    ("GitHub as a form, github/docs", 200, b"error=bad_refresh_token&error_description=The+refresh+token+passed+is+incorrect", GrantDead),
    ("GitHub, github/docs troubleshooting", 200, {"error": "incorrect_client_credentials"}, ClientRejected),
    ("Slack, node-slack-sdk#2038", 200, {"ok": False, "error": "invalid_refresh_token"}, GrantDead),
    ("Slack, oauth.v2.exchange", 200, {"ok": False, "error": "bad_client_secret"}, ClientRejected),
    ("Slack, oauth.v2.exchange: part may have succeeded", 200, {"ok": False, "error": "internal_error"}, Ambiguous),
    ("Slack, ratelimited", 429, {"ok": False, "error": "ratelimited"}, Transient),
    ("Slack, unknown", 200, {"ok": False, "error": "something_new"}, Transient),
    ("Supabase, supabase/auth#2829", 400, {"code": 400, "error_code": "refresh_token_not_found", "msg": "Invalid Refresh Token: Refresh Token Not Found"}, GrantDead),
    ("Supabase, tokens/service.go", 400, {"code": 400, "error_code": "refresh_token_already_used", "msg": "Invalid Refresh Token: Already Used"}, GrantDead),
    ("Supabase, errorcode.go", 403, {"code": 403, "error_code": "session_expired"}, GrantDead),
    ("Supabase, concurrent", 409, {"code": 409, "error_code": "conflict", "msg": "Too many concurrent token refresh requests on the same session or refresh token"}, Transient),
    ("Supabase, errorcode.go", 429, {"error_code": "over_request_rate_limit"}, Transient),
    ("Atlassian and Auth0", 403, {"error": "invalid_grant", "error_description": "Unknown or invalid refresh token."}, GrantDead),
    ("Atlassian MCP, codex#27165", 400, {"error": "unauthorized_client", "error_description": "refresh_token is invalid"}, GrantDead),
    ("unauthorized_client by the RFC", 400, {"error": "unauthorized_client", "error_description": "not allowed to use this grant type"}, ClientRejected),
    ("Auth0, community.auth0.com/t/77440", 500, {"error": "access_denied", "error_description": "Global limit has been reached"}, Transient),
    ("Google", 400, {"error": "invalid_grant", "error_description": "Token has been expired or revoked."}, GrantDead),
    ("Google, blobfile#2", 400, {"error": "invalid_grant", "error_subtype": "invalid_rapt", "error_description": "reauth related error (invalid_rapt)"}, GrantDead),
    ("Google, google-auth-library-python#1043", 400, {"error": "invalid_grant", "error_description": "Bad Request"}, Transient),
    ("Entra, blobfile#93", 400, {"error": "invalid_grant", "error_description": "AADSTS700082: The refresh token has expired due to inactivity."}, GrantDead),
    ("Entra, CIPP#1156", 400, {"error": "interaction_required", "error_description": "AADSTS70043: The refresh token has expired"}, GrantDead),
    ("Entra, BingAds-Python-SDK#279: intermittent", 400, {"error": "invalid_grant", "error_description": "AADSTS70000: 'refresh_token' or 'assertion' is not valid"}, Transient),
    ("Entra, azure-docs#63819", 400, {"error": "invalid_grant", "error_description": "AADSTS9002313: Invalid request."}, Transient),
    ("Entra, csharp-sdk#1587", 400, {"error": "invalid_target", "error_description": "AADSTS9010010: The resource parameter provided in the request doesn't match with the requested scopes"}, ResourceRefused),
    ("Entra, reference-error-codes", 401, {"error": "invalid_client", "error_description": "AADSTS7000222: The provided client secret keys are expired."}, ClientRejected),
    ("Entra, reference-error-codes", 400, {"error": "invalid_grant", "error_description": "AADSTS90033: A transient error has occurred."}, Transient),
    ("Dropbox, integration_dropbox#34", 400, {"error": "invalid_grant", "error_description": "refresh token is invalid or revoked"}, GrantDead),
    ("Dropbox-like, react-native-app-auth#687", 400, {"error": "invalid_request", "error_description": 'unknown field "resource"'}, ResourceRefused),
    ("Salesforce", 400, {"error": "invalid_grant", "error_description": "expired access/refresh token"}, GrantDead),
    ("Salesforce, another network", 400, {"error": "invalid_grant", "error_description": "IP restricted"}, Transient),
    ("Salesforce, the client under another code", 400, {"error": "invalid_grant", "error_description": "authentication failure - invalid client credentials"}, ClientRejected),
    ("Okta, okta-react-native#109", 400, {"error": "invalid_grant", "error_description": "The refresh token is invalid or expired."}, GrantDead),
    ("Keycloak, TokenManager.java", 400, {"error": "invalid_grant", "error_description": "Maximum allowed refresh token reuse exceeded"}, GrantDead),
    ("Keycloak, keycloak#44821: wrong node", 400, {"error": "invalid_grant", "error_description": "Session not active"}, Transient),
    ("Keycloak, TokenManager.java", 400, {"error": "invalid_grant", "error_description": "Invalid refresh token. Token client and authorized client don't match"}, ClientRejected),
    ("HubSpot, nango.dev", 400, {"status": "BAD_REFRESH_TOKEN", "message": "missing or invalid refresh token"}, GrantDead),
    ("Linear, linear-cli#44", 400, {"error": "invalid_request", "error_description": "Refresh token expired"}, GrantDead),
    ("Obot#7501", 400, {"error": "invalid_request", "error_description": "Obot: refresh_token is invalid"}, GrantDead),
    ("RFC 6749 5.2, verbatim", 400, {"error": "invalid_grant", "error_description": "The provided authorization grant or refresh token is invalid, expired, revoked, does not match the redirection URI used in the authorization request, or was issued to another client."}, GrantDead),
    ("a request of ours that is wrong", 400, {"error": "invalid_request", "error_description": "Refresh token not found in request body"}, Transient),
    ("another one", 400, {"error": "invalid_request", "error_description": "Invalid refresh_token parameter encoding"}, Transient),
    ("Klaxoon, which says it of everything", 400, {"error": "invalid_request", "error_description": "The access_token is missing, the authorization code is invalid or the refresh_token is invalid"}, Transient),
    ("Metabase#80389, which says it of everything", 400, {"error": "invalid_request", "error_description": "The token request is invalid."}, Transient),
    ("athenaFlex#107: a dead token as a client", 400, {"expires_in": 0, "error": "invalid_client", "error_description": "Refresh token could not be mapped ... User must re-authenticate."}, GrantDead),
    ("PayPal-Android-SDK#422", 401, {"error": "invalid_refresh_token", "error_description": "Refresh Token is invalid"}, GrantDead),
    ("Square forum", 401, {"message": "Invalid refresh token", "type": "service.not_authorized"}, GrantDead),
    ("Zoho, token-validity", 200, {"error": "invalid_code"}, GrantDead),
    ("Zoho, token-validity", 400, {"error_description": "You have made too many requests continuously. Please try again after some time.", "error": "Access Denied", "status": "failure"}, Transient),
    ("OpenAI, codex#6028", 401, {"error": {"message": "Your refresh token has already been used to generate a new access token.", "type": "invalid_request_error", "code": "refresh_token_reused"}}, GrantDead),
    ("Anthropic, pi#9369", 429, {"error": {"type": "rate_limit_error", "message": "Rate limited."}}, Transient),
    ("FastMCP, fastmcp#5002: an outage", 400, {"error": "invalid_grant", "error_description": "Upstream refresh failed: timeout"}, Transient),
    ("Exact Online, laravel-exact-online#31", 400, {"error": "access_denied", "error_description": "Rate limit exceeded: access_token not expired"}, TooEarly),
    ("hh.ru, hhru/api#130", 400, {"error": "invalid_grant", "error_description": "Refresh token may be used only after access token expired."}, TooEarly),
    ("Cognito, aws-sdk-net-extensions-cognito#75", 400, {"__type": "NotAuthorizedException", "message": "SecretHash does not match for the client: x"}, ClientRejected),
    ("Cognito, RefreshTokenRotationType", 400, {"__type": "RefreshTokenReuseException"}, GrantDead),
    ("AWS Sign-In, TooManyRequestsError", 429, {"error": "INVALID_REQUEST", "message": "x"}, Transient),
    ("InsForge, insforge-mcp#107", 503, {"error": "temporarily_unavailable"}, Transient),
    ("COROS, a success without a token", 200, {"result": "1001", "message": "Service exceptions"}, Unintelligible),
    ("upper case, platform.sohojx.com", 400, {"success": False, "error": {"code": "INVALID_GRANT", "message": "no"}}, GrantDead),
]  # fmt: skip


@pytest.mark.parametrize(("source", "status", "body", "kind"), DIALECTS)
def test_each_dialect_is_understood(source: str, status: int, body: Any, kind: type[Outcome]) -> None:
    """If it failed, this server's words would cost a living grant, or a dead one would be tried for ever."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    outcome = _judge(status, data, {"content-type": FORM if isinstance(body, bytes) else JSON})
    assert type(outcome) is kind, outcome


def test_every_meaning_has_its_source() -> None:
    """If it failed, a rule would stand there that nobody can check, or that fits nothing."""
    for row in MEANINGS:
        assert row.source
        assert row.codes or row.words
        assert all(code == code.lower() for code in row.codes)


def test_a_code_that_is_no_word_of_the_trade_is_masked() -> None:
    """If it failed, a server could have a secret shown in the place of an error code, where words decide its meaning."""
    secret = "s3cr3t-0123456789-abcdefghij"
    outcome = _judge(400, json.dumps({"error": secret, "error_description": "too many requests"}).encode(), {})
    assert isinstance(outcome, Transient)
    assert secret not in outcome.code + outcome.description


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


@pytest.mark.parametrize("order", [list(GOOD), list(reversed(GOOD))])
def test_an_answer_that_is_cut_anywhere_gives_whole_tokens_or_none(order: list[str]) -> None:
    """If it failed, a part of a refresh token would be stored in place of one that may still be good (I6)."""
    tokens = {"access_token": "access-0123456789", "refresh_token": r"refresh \"quoted\" \\ 0123456789"}
    body = json.dumps({key: tokens.get(key, GOOD[key]) for key in order}).encode()
    rotated = 0
    for length in range(len(body)):
        outcome = _judge(200, body[:length], {}, whole=False)
        if isinstance(outcome, Rotated):
            rotated += 1
            assert outcome.access_token == Secret(tokens["access_token"])
            assert outcome.refresh_token == Secret(tokens["refresh_token"])
            assert outcome.expires_in in (None, 3600.0)
        else:
            assert isinstance(outcome, Unintelligible)
    assert rotated > 0


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


_KEYS = st.sampled_from([
    "access_token", "refresh_token", "expires_in", "expires_at", "expiresAt", "scope", "token_type", "error", "error_description",
    "error_code", "errorCode", "code", "status", "type", "__type", "message", "msg", "reason", "ok",
])  # fmt: skip
_WORDS = st.text() | st.sampled_from(
    ["invalid_grant", "a-token", "refresh_token is invalid", REFRESH.reveal(), f"x{REFRESH.reveal()}"]
)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3),
    max_leaves=6,
)


@given(
    st.integers(100, 599),
    st.one_of(
        st.binary(),
        _VALUES.map(lambda value: json.dumps(value).encode()),
        st.dictionaries(_KEYS, _VALUES).map(lambda value: json.dumps(value).encode()),
        st.dictionaries(_KEYS, _WORDS).map(lambda value: urlencode(value, errors="replace").encode()),
    ),
    st.dictionaries(st.sampled_from(["retry-after", "content-type", "date"]), st.text() | st.just(FORM)),
    st.booleans(),
)
def test_no_answer_raises_or_repeats_a_secret_and_only_a_whole_success_rotates(
    status: int, body: bytes, headers: dict[str, str], whole: bool
) -> None:
    """If it failed, a server's odd answer would end the process between the request and the disk, or stand in a log."""
    outcome = _judge(status, body, headers, whole=whole)
    if isinstance(outcome, Rotated):
        assert 200 <= status < 300
        for token in (outcome.access_token, outcome.refresh_token):
            assert token is None or (token.reveal() and token.reveal().isprintable() and token.reveal().isascii())
        assert outcome.expires_in is None or outcome.expires_in > 0
        assert outcome.scope is None or outcome.scope.isprintable()
        assert " " not in outcome.token_type
    else:
        assert REFRESH.reveal() not in f"{outcome.description} {getattr(outcome, 'code', '')}"
        assert outcome.description.isprintable()
    if isinstance(outcome, GrantDead | ClientRejected | ResourceRefused | TooEarly):
        assert outcome.code == "" or outcome.code.isprintable()
    if isinstance(outcome, Transient) and outcome.retry_after is not None:
        assert 0 <= outcome.retry_after <= 3600
