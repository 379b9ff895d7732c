"""The outcome of each answer: the forms of RFC 6749 section 5, and the dialects of servers."""

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
    GrantRejected,
    Outcome,
    ResourceRefused,
    TokensIssued,
    TooEarly,
    Transient,
    Unreadable,
)
from refresher.oauth.dialects import RULES
from refresher.oauth.token_response import parse_token_response
from tests.support.peak import MIB, peak
from tests.support.samples import NOON, jwt

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
BEHIND, AHEAD = "Fri, 15 Jan 2027 07:51:00 GMT", "Fri, 15 Jan 2027 08:10:00 GMT"
REFRESH = Secret("the-refresh-token-that-was-sent")


class Row(NamedTuple):
    """One answer and the expected outcome."""

    what: str
    status: int
    body: Any
    kind: type[Outcome]
    expected: dict[str, Any] = {}
    content_type: str = JSON
    headers: dict[str, str] = {}
    complete: bool = True


GOOD = {"access_token": "a", "token_type": "Bearer", "expires_in": 3600, "refresh_token": "r", "scope": "read"}
BROKEN_ID_TOKENS: list[Any] = [None, "", 5, {}, ["i.j.k"], "i\nj", "\ud800"]
TABLE = [
    Row("RFC 6749 5.1", 200, GOOD, TokensIssued, {"expires_in": 3600.0, "scope": "read", "token_type": "Bearer"}),
    Row("201 is success too", 201, GOOD, TokensIssued),
    Row("no refresh token: the old one stays (section 6)", 200, {"access_token": "a"}, TokensIssued, {"refresh_token": None}),
    Row("refresh token null", 200, GOOD | {"refresh_token": None}, TokensIssued, {"refresh_token": None}),
    Row("refresh token empty", 200, GOOD | {"refresh_token": ""}, TokensIssued, {"refresh_token": None}),
    Row("id_token (OpenID Connect Core 3.1.3.3)", 200, GOOD | {"id_token": "i.j.k"}, TokensIssued, {"id_token": Secret("i.j.k")}),
    *(
        Row("an unreadable id_token must not lose the tokens", 200, GOOD | {"id_token": bad}, TokensIssued, {"id_token": None})
        for bad in BROKEN_ID_TOKENS
    ),
    Row("expires_in as text", 200, GOOD | {"expires_in": "3600"}, TokensIssued, {"expires_in": 3600.0}),
    Row("expires_in absent", 200, {"access_token": "a"}, TokensIssued, {"expires_in": None, "expires_at": None}),
    Row("expires_in negative", 200, GOOD | {"expires_in": -1}, TokensIssued, {"expires_in": None}),
    Row("expires_in zero means never (VK, GoToSocial)", 200, GOOD | {"expires_in": 0}, TokensIssued, {"expires_in": None}),
    Row("expires_in as a float", 200, GOOD | {"expires_in": 59.5}, TokensIssued, {"expires_in": 59.5}),
    Row("expires_in null", 200, GOOD | {"expires_in": None}, TokensIssued, {"expires_in": None}),
    Row("expires_in as a word", 200, GOOD | {"expires_in": "soon"}, TokensIssued, {"expires_in": None}),
    Row("expires_in zero, and a JWT", 200, {"access_token": jwt(exp=NOON + 60), "expires_in": 0}, TokensIssued, {"expires_at": NOON + 60}),
    Row("the expiry as epoch seconds (Supabase)", 200, {"access_token": "a", "expires_at": NOON + 60}, TokensIssued, {"expires_at": NOON + 60}),
    Row("the expiry as ISO 8601 (Square)", 200, {"access_token": "a", "expires_at": "2027-01-15T08:01:00Z"}, TokensIssued, {"expires_at": NOON + 60}),
    Row("an expiry in the past", 200, {"access_token": "a", "expires_at": 1}, TokensIssued, {"expires_at": None}),
    Row("an expiry that is not a time", 200, {"access_token": "a", "expires_at": {"x": 1}}, TokensIssued, {"expires_at": None}),
    Row("scope as a list (Twitch, Linear)", 200, GOOD | {"scope": ["read", "write"]}, TokensIssued, {"scope": "read write"}),
    Row("scope as a list of something else", 200, GOOD | {"scope": [1]}, TokensIssued, {"scope": None}),
    Row("scope null", 200, GOOD | {"scope": None}, TokensIssued, {"scope": None}),
    Row("a lower-case token type stays", 200, GOOD | {"token_type": "bearer"}, TokensIssued, {"token_type": "bearer"}),
    Row("a token type that is not a scheme (Slack's bot)", 200, GOOD | {"token_type": "bot"}, TokensIssued, {"token_type": "Bearer"}),
    Row("a token type with a line end", 200, GOOD | {"token_type": "Bearer\r\nX: y"}, TokensIssued, {"token_type": "Bearer"}),
    Row("DPoP is a scheme (RFC 9449)", 200, GOOD | {"token_type": "DPoP"}, TokensIssued, {"token_type": "DPoP"}),
    Row("status and code in a success are ignored", 200, GOOD | {"status": "failed", "code": "x", "ok": True}, TokensIssued),
    Row("expires_in far too large", 200, GOOD | {"expires_in": 1e300}, TokensIssued, {"expires_in": 315_360_000.0}),
    Row("expires_in true", 200, GOOD | {"expires_in": True}, TokensIssued, {"expires_in": None}),
    Row("a JWT with exp", 200, {"access_token": jwt(exp=NOON + 60)}, TokensIssued, {"expires_at": NOON + 60}),
    Row("a JWT that has expired by the local clock", 200, {"access_token": jwt(exp=NOON)}, TokensIssued, {"expires_at": None}),
    Row("an access token that only looks like a JWT", 200, {"access_token": "a.%%%.c"}, TokensIssued, {"expires_at": None}),
    Row("JSON with a BOM", 200, b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), TokensIssued),
    Row("the end of the refresh token (GitHub, Entra, RingCentral)", 200, GOOD | {"refresh_token_expires_in": 15897600}, TokensIssued, {"refresh_token_expires_in": 15897600.0}),
    Row("the end of the refresh token (Keycloak)", 200, GOOD | {"refresh_expires_in": 1800}, TokensIssued, {"refresh_token_expires_in": 1800.0}),
    Row("the end of the refresh token (Intuit)", 200, GOOD | {"x_refresh_token_expires_in": 8726400}, TokensIssued, {"refresh_token_expires_in": 8726400.0}),
    Row("the end of the refresh token as text", 200, GOOD | {"refresh_expires_in": "1800"}, TokensIssued, {"refresh_token_expires_in": 1800.0}),
    Row("the end of the refresh token in a form (GitHub)", 200, b"access_token=a&refresh_token=r&refresh_token_expires_in=60", TokensIssued, {"refresh_token_expires_in": 60.0}, FORM),
    Row("no end of the refresh token (Keycloak's offline tokens)", 200, GOOD | {"refresh_expires_in": 0}, TokensIssued, {"refresh_token_expires_in": None}),
    Row("a negative end of the refresh token", 200, GOOD | {"refresh_expires_in": -1}, TokensIssued, {"refresh_token_expires_in": None}),
    Row("an end of the refresh token that is no number", 200, GOOD | {"refresh_expires_in": {"x": 1}}, TokensIssued, {"refresh_token_expires_in": None}),
    Row("0 says nothing, another key does", 200, GOOD | {"refresh_expires_in": 0, "x_refresh_token_expires_in": 60}, TokensIssued, {"refresh_token_expires_in": 60.0}),
    Row("an end without a new refresh token", 200, {"access_token": "a", "refresh_token_expires_in": 60}, TokensIssued, {"refresh_token": None, "refresh_token_expires_in": 60.0}),
    Row("a refresh token that is a JWT", 200, GOOD | {"refresh_token": jwt(exp=NOON + 1800)}, TokensIssued, {"refresh_token_expires_in": 1800.0}),
    Row("a refresh token that is a JWT: what is announced counts first", 200, GOOD | {"refresh_token": jwt(exp=NOON + 1800), "refresh_expires_in": 600}, TokensIssued, {"refresh_token_expires_in": 600.0}),
    Row("a refresh token that is a JWT, from a server whose clock is ahead", 200, GOOD | {"refresh_token": jwt(exp=NOON + 2400)}, TokensIssued, {"refresh_token_expires_in": 1800.0}, JSON, {"date": AHEAD}),
    Row("a refresh token that is a JWT, by a local clock that is behind", 200, GOOD | {"refresh_token": jwt(iat=NOON + 7200, exp=NOON + 9000)}, TokensIssued, {"refresh_token_expires_in": 1800.0}),
    Row("a refresh token that is a JWT and has expired by the local clock", 200, GOOD | {"refresh_token": jwt(exp=NOON - 5)}, TokensIssued, {"refresh_token_expires_in": None}),
    Row("a refresh token that is a JWT and expires at once by the local clock", 200, GOOD | {"refresh_token": jwt(exp=NOON + 2)}, TokensIssued, {"refresh_token_expires_in": None}),
    Row("a refresh token that is a JWT without an end (Keycloak's offline tokens)", 200, GOOD | {"refresh_token": jwt(iat=NOON, exp=0)}, TokensIssued, {"refresh_token_expires_in": None}),
    Row("form encoding", 200, b"access_token=a&expires_in=60", TokensIssued, {"expires_in": 60.0}, FORM),
    Row("complete JSON in a truncated body", 200, GOOD, TokensIssued, complete=False),
    Row("a truncated form", 200, b"access_token=a&refresh_tok", Unreadable, {}, FORM, complete=False),
    Row("truncated JSON", 200, b'{"access_token": "a", "refr', Unreadable, complete=False),
    Row(
        "truncated JSON with both tokens",
        200,
        b'{"access_token": "a", "expires_in": 3600, "refresh_token": "r", "id_token": "eyJ',
        TokensIssued,
        {"expires_in": 3600.0, "refresh_token": Secret("r")},
        complete=False,
    ),
    Row(
        "JSON truncated within a number",
        200,
        b'{"access_token": "a", "refresh_token": "r", "expires_in": 36',
        TokensIssued,
        {"expires_in": None},
        complete=False,
    ),
    Row("two copies of an answer", 200, json.dumps(GOOD).encode() * 2, TokensIssued, {"scope": "read"}),
    Row("JSON truncated before the refresh token", 200, b'{"access_token": "a", ', Unreadable, complete=False),
    Row("JSON without its only quote", 200, b'{"access_token": "a", "refresh_token": "r"x"}', Unreadable),
    Row("truncated JSON with tokens in an inner object", 200, b'{"user": {"access_token": "a", "refresh_token": "r"}, "', Unreadable),
    Row("ok: false in truncated JSON", 200, b'{"ok": false, "access_token": "a", "refresh_token": "r", ', Unreadable),
    Row("a control character in a token", 200, GOOD | {"access_token": "a\r\nX: y"}, Unreadable),
    Row("a space in the access token, not allowed in a header", 200, GOOD | {"access_token": "a b"}, Unreadable),
    Row("a space in the refresh token, allowed by RFC 6749", 200, GOOD | {"refresh_token": "r s"}, TokensIssued),
    Row("a control character in the refresh token", 200, GOOD | {"refresh_token": "r\n"}, Unreadable),
    Row("a refresh token that is a number", 200, GOOD | {"refresh_token": 5}, Unreadable),
    Row("no access token", 200, {"refresh_token": "r"}, Unreadable),
    Row("an empty access token", 200, GOOD | {"access_token": ""}, Unreadable),
    Row("an HTML page", 200, b"<html>Welcome</html>", Unreadable, {}, "text/html"),
    Row("an empty body", 200, b"", Unreadable),
    Row("JSON that is nested too deep", 200, b"[" * 100_000, Unreadable),
    Row("an error with 200", 200, {"error": "invalid_grant"}, GrantRejected, {"code": "invalid_grant"}),
    Row("an error with tokens is saved for a person", 200, {"error": "invalid_grant", **GOOD}, Unreadable),
    Row("an error with a new refresh token", 200, {"error": "x", "refresh_token": "r"}, Unreadable),
    Row("error: false is not an error", 200, GOOD | {"error": False}, TokensIssued),
    Row("an empty error is not an error", 200, GOOD | {"error": ""}, TokensIssued),
    Row("ok: false is an error", 200, {"ok": False}, Transient, {"code": "server_error"}),
    Row("ok: false with a token", 200, GOOD | {"ok": False}, Unreadable),
    Row("JSON with the wrong content type", 200, GOOD, TokensIssued, {"expires_in": 3600.0}, FORM),
    Row("a rejection with the wrong content type", 400, {"error": "invalid_grant"}, GrantRejected, {}, FORM),
    Row("a form with the wrong content type", 200, b"access_token=a&expires_in=60", TokensIssued, {"expires_in": 60.0}, "text/plain"),
    Row("invalid UTF-8 in a field that is not stored", 200, b'{"access_token":"a","note":"caf\xe9"}', TokensIssued),
    Row("invalid UTF-8 in a rejection", 400, b'{"error":"invalid_grant","error_description":"caf\xe9"}', GrantRejected),
    Row("invalid UTF-8 in a token", 200, b'{"access_token":"caf\xe9"}', Unreadable),
    Row("half a surrogate in a field", 200, b'{"access_token":"a","note":"\\ud800"}', TokensIssued),
    Row("an infinite expires_in", 200, b'{"access_token":"a","expires_in":1e999}', TokensIssued, {"expires_in": None}),
    Row("invalid_grant", 400, {"error": "invalid_grant"}, GrantRejected, {"code": "invalid_grant"}),
    Row("invalid_grant as 401", 401, {"error": "invalid_grant"}, GrantRejected),
    Row("invalid_client", 401, {"error": "invalid_client"}, ClientRejected, {"code": "invalid_client"}),
    Row("a 4xx without a code is not a rejection", 400, b"Bad Request", Transient, {"code": "server_error"}, "text/plain"),
    Row("404", 404, b"", Transient),
    Row("invalid_request is not a rejection", 400, {"error": "invalid_request"}, Transient, {"code": "invalid_request"}),
    Row("a code that is a number", 400, {"error": {"code": 5}}, Transient, {"code": "server_error"}),
    Row("a code in an object", 400, {"error": {"code": "x"}}, Transient, {"code": "x", "refusal": True}),
    Row("invalid_target; the refresh token may be used up", 400, {"error": "invalid_target"}, ResourceRefused),
    Row("300 is not a success", 300, GOOD, Transient),
    Row("a redirect", 307, b"", Transient, headers={"location": "https://elsewhere.example"}),
    Row("408", 408, b"", Transient, {"code": "temporarily_unavailable"}),
    Row("425", 425, b"", Transient),
    Row("a JWT of a server nine minutes behind", 200, {"access_token": jwt(exp=NOON + 1)}, TokensIssued, {"expires_at": NOON + 541, "clock_skew": -540.0}, headers={"date": BEHIND}),
    Row("a JWT of a server ten minutes ahead", 200, {"access_token": jwt(exp=NOON + 660)}, TokensIssued, {"expires_at": NOON + 60, "clock_skew": 600.0}, headers={"date": AHEAD}),
    Row("a JWT that has expired by both clocks", 200, {"access_token": jwt(exp=NOON + 600)}, TokensIssued, {"expires_at": None}, headers={"date": AHEAD}),
    Row("expires_at of a server ten minutes ahead", 200, {"access_token": "a", "expires_at": NOON + 660}, TokensIssued, {"expires_at": NOON + 60}, headers={"date": AHEAD}),
    Row("expires_in does not depend on the clock", 200, GOOD, TokensIssued, {"expires_in": 3600.0, "expires_at": None}, headers={"date": AHEAD}),
    Row("a Date header within a minute is not clock skew", 200, {"access_token": jwt(exp=NOON + 90)}, TokensIssued, {"expires_at": NOON + 90}, headers={"date": "Fri, 15 Jan 2027 08:00:59 GMT"}),
    Row("a Date header that is not a date", 200, {"access_token": jwt(exp=NOON + 90)}, TokensIssued, {"expires_at": NOON + 90}, headers={"date": "tomorrow"}),
    Row("503 with a date, from a server ten minutes ahead", 503, b"", Transient, {"retry_after": 5.0}, headers={"retry-after": "Fri, 15 Jan 2027 08:10:05 GMT", "date": AHEAD}),
    Row("429 with seconds", 429, b"", Transient, {"retry_after": 7.0}, headers={"retry-after": "7"}),
    Row("503 with a date", 503, b"", Transient, {"retry_after": 3600.0}, headers={"retry-after": "Fri, 31 Dec 2100 23:59:59 GMT"}),
    Row("503 with a date in the past", 503, b"", Transient, {"retry_after": 0.0}, headers={"retry-after": "Fri, 31 Dec 1999 23:59:59 GMT"}),
    Row("503 with an invalid Retry-After", 503, b"", Transient, {"retry_after": None}, headers={"retry-after": "soon"}),
    Row("500", 500, b"", Ambiguous),
    Row("502", 502, b"<html>", Ambiguous, {}, "text/html"),
    Row("504", 504, b"", Ambiguous),
    Row("501", 501, b"", Ambiguous),
    Row("500 with a code that is not a rejection", 500, {"error": "server_error"}, Ambiguous),
    Row("invalid_grant with 429 is not a rejection", 429, {"error": "invalid_grant"}, Transient, {"refusal": False}),
    Row("invalid_grant with 503 is not a rejection", 503, {"error": "invalid_grant"}, Transient),
    Row("429 with a very long wait", 429, b"", Transient, {"retry_after": 3600.0}, headers={"retry-after": "99999999999999999999"}),
    Row("429 with a negative wait", 429, b"", Transient, {"retry_after": None}, headers={"retry-after": "-5"}),
    Row("403 from a web application firewall", 403, b"<html>Attention Required! | Cloudflare</html>", Transient, {"refusal": True}, "text/html"),
]  # fmt: skip


# Each dialect as it was documented or seen: (server and source, status, body, what it must be taken for).
DIALECTS: list[tuple[str, int, Any, type[Outcome]]] = [
    ("GitHub, simple-oauth2#459", 200, {"error": "bad_refresh_token", "error_description": "The refresh token passed is incorrect or expired."}, GrantRejected),
    ("GitHub as a form, github/docs", 200, b"error=bad_refresh_token&error_description=The+refresh+token+passed+is+incorrect", GrantRejected),
    ("GitHub, github/docs troubleshooting", 200, {"error": "incorrect_client_credentials"}, ClientRejected),
    ("Slack, node-slack-sdk#2038", 200, {"ok": False, "error": "invalid_refresh_token"}, GrantRejected),
    ("Slack, oauth.v2.exchange", 200, {"ok": False, "error": "bad_client_secret"}, ClientRejected),
    ("Slack, oauth.v2.exchange: part may have succeeded", 200, {"ok": False, "error": "internal_error"}, Ambiguous),
    ("Slack, ratelimited", 429, {"ok": False, "error": "ratelimited"}, Transient),
    ("Slack, unknown", 200, {"ok": False, "error": "something_new"}, Transient),
    ("Supabase, supabase/auth#2829", 400, {"code": 400, "error_code": "refresh_token_not_found", "msg": "Invalid Refresh Token: Refresh Token Not Found"}, GrantRejected),
    ("Supabase, tokens/service.go", 400, {"code": 400, "error_code": "refresh_token_already_used", "msg": "Invalid Refresh Token: Already Used"}, GrantRejected),
    ("Supabase, errorcode.go", 403, {"code": 403, "error_code": "session_expired"}, GrantRejected),
    ("Supabase, concurrent", 409, {"code": 409, "error_code": "conflict", "msg": "Too many concurrent token refresh requests on the same session or refresh token"}, Transient),
    ("Supabase, errorcode.go", 429, {"error_code": "over_request_rate_limit"}, Transient),
    ("Atlassian and Auth0", 403, {"error": "invalid_grant", "error_description": "Unknown or invalid refresh token."}, GrantRejected),
    ("Atlassian MCP, codex#27165", 400, {"error": "unauthorized_client", "error_description": "refresh_token is invalid"}, GrantRejected),
    ("unauthorized_client by the RFC", 400, {"error": "unauthorized_client", "error_description": "not allowed to use this grant type"}, ClientRejected),
    ("Auth0, community.auth0.com/t/77440", 500, {"error": "access_denied", "error_description": "Global limit has been reached"}, Transient),
    ("Google", 400, {"error": "invalid_grant", "error_description": "Token has been expired or revoked."}, GrantRejected),
    ("Google, blobfile#2", 400, {"error": "invalid_grant", "error_subtype": "invalid_rapt", "error_description": "reauth related error (invalid_rapt)"}, GrantRejected),
    ("Google, google-auth-library-python#1043", 400, {"error": "invalid_grant", "error_description": "Bad Request"}, Transient),
    ("Entra, blobfile#93", 400, {"error": "invalid_grant", "error_description": "AADSTS700082: The refresh token has expired due to inactivity."}, GrantRejected),
    ("Entra, CIPP#1156", 400, {"error": "interaction_required", "error_description": "AADSTS70043: The refresh token has expired"}, GrantRejected),
    ("Entra, BingAds-Python-SDK#279: intermittent", 400, {"error": "invalid_grant", "error_description": "AADSTS70000: 'refresh_token' or 'assertion' is not valid"}, Transient),
    ("Entra, azure-docs#63819", 400, {"error": "invalid_grant", "error_description": "AADSTS9002313: Invalid request."}, Transient),
    ("Entra, csharp-sdk#1587", 400, {"error": "invalid_target", "error_description": "AADSTS9010010: The resource parameter provided in the request doesn't match with the requested scopes"}, ResourceRefused),
    ("Entra, reference-error-codes", 401, {"error": "invalid_client", "error_description": "AADSTS7000222: The provided client secret keys are expired."}, ClientRejected),
    ("Entra, reference-error-codes", 400, {"error": "invalid_grant", "error_description": "AADSTS90033: A transient error has occurred."}, Transient),
    ("Dropbox, integration_dropbox#34", 400, {"error": "invalid_grant", "error_description": "refresh token is invalid or revoked"}, GrantRejected),
    ("Dropbox-like, react-native-app-auth#687", 400, {"error": "invalid_request", "error_description": 'unknown field "resource"'}, ResourceRefused),
    ("Salesforce", 400, {"error": "invalid_grant", "error_description": "expired access/refresh token"}, GrantRejected),
    ("Salesforce, another network", 400, {"error": "invalid_grant", "error_description": "IP restricted"}, Transient),
    ("Salesforce, the client under another code", 400, {"error": "invalid_grant", "error_description": "authentication failure - invalid client credentials"}, ClientRejected),
    ("Okta, okta-react-native#109", 400, {"error": "invalid_grant", "error_description": "The refresh token is invalid or expired."}, GrantRejected),
    ("Keycloak, TokenManager.java", 400, {"error": "invalid_grant", "error_description": "Maximum allowed refresh token reuse exceeded"}, GrantRejected),
    ("Keycloak, keycloak#44821: wrong node", 400, {"error": "invalid_grant", "error_description": "Session not active"}, Transient),
    ("Keycloak, TokenManager.java", 400, {"error": "invalid_grant", "error_description": "Invalid refresh token. Token client and authorized client don't match"}, ClientRejected),
    ("HubSpot, nango.dev", 400, {"status": "BAD_REFRESH_TOKEN", "message": "missing or invalid refresh token"}, GrantRejected),
    ("Linear, linear-cli#44", 400, {"error": "invalid_request", "error_description": "Refresh token expired"}, GrantRejected),
    ("Obot#7501", 400, {"error": "invalid_request", "error_description": "Obot: refresh_token is invalid"}, GrantRejected),
    ("RFC 6749 5.2, verbatim", 400, {"error": "invalid_grant", "error_description": "The provided authorization grant or refresh token is invalid, expired, revoked, does not match the redirection URI used in the authorization request, or was issued to another client."}, GrantRejected),
    ("a wrong request", 400, {"error": "invalid_request", "error_description": "Refresh token not found in request body"}, Transient),
    ("another wrong request", 400, {"error": "invalid_request", "error_description": "Invalid refresh_token parameter encoding"}, Transient),
    ("Klaxoon, the same text for every error", 400, {"error": "invalid_request", "error_description": "The access_token is missing, the authorization code is invalid or the refresh_token is invalid"}, Transient),
    ("Metabase#80389, the same text for every error", 400, {"error": "invalid_request", "error_description": "The token request is invalid."}, Transient),
    ("athenaFlex#107: a rejected grant under invalid_client", 400, {"expires_in": 0, "error": "invalid_client", "error_description": "Refresh token could not be mapped ... User must re-authenticate."}, GrantRejected),
    ("PayPal-Android-SDK#422", 401, {"error": "invalid_refresh_token", "error_description": "Refresh Token is invalid"}, GrantRejected),
    ("Square forum", 401, {"message": "Invalid refresh token", "type": "service.not_authorized"}, GrantRejected),
    ("Zoho, token-validity", 200, {"error": "invalid_code"}, GrantRejected),
    ("Zoho, token-validity", 400, {"error_description": "You have made too many requests continuously. Please try again after some time.", "error": "Access Denied", "status": "failure"}, Transient),
    ("OpenAI, codex#6028", 401, {"error": {"message": "Your refresh token has already been used to generate a new access token.", "type": "invalid_request_error", "code": "refresh_token_reused"}}, GrantRejected),
    ("Anthropic, pi#9369", 429, {"error": {"type": "rate_limit_error", "message": "Rate limited."}}, Transient),
    ("FastMCP, fastmcp#5002: an outage", 400, {"error": "invalid_grant", "error_description": "Upstream refresh failed: timeout"}, Transient),
    ("Exact Online, laravel-exact-online#31", 400, {"error": "access_denied", "error_description": "Rate limit exceeded: access_token not expired"}, TooEarly),
    ("hh.ru, hhru/api#130", 400, {"error": "invalid_grant", "error_description": "Refresh token may be used only after access token expired."}, TooEarly),
    ("Cognito, aws-sdk-net-extensions-cognito#75", 400, {"__type": "NotAuthorizedException", "message": "SecretHash does not match for the client: x"}, ClientRejected),
    ("Cognito, RefreshTokenRotationType", 400, {"__type": "RefreshTokenReuseException"}, GrantRejected),
    ("AWS Sign-In, TooManyRequestsError", 429, {"error": "INVALID_REQUEST", "message": "x"}, Transient),
    ("InsForge, insforge-mcp#107", 503, {"error": "temporarily_unavailable"}, Transient),
    ("COROS, a success without a token", 200, {"result": "1001", "message": "Service exceptions"}, Unreadable),
    ("upper case, platform.sohojx.com", 400, {"success": False, "error": {"code": "INVALID_GRANT", "message": "no"}}, GrantRejected),
]  # fmt: skip


@pytest.mark.parametrize(("source", "status", "body", "kind"), DIALECTS)
def test_each_dialect_has_its_outcome(source: str, status: int, body: Any, kind: type[Outcome]) -> None:
    """If it failed, an error of this server would end a valid grant, or a rejected one would be retried for ever."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    outcome = _judge(status, data, {"content-type": FORM if isinstance(body, bytes) else JSON})
    assert type(outcome) is kind, outcome


def test_every_rule_has_a_source() -> None:
    """If it failed, a rule would have no source, or never match."""
    for rule in RULES:
        assert rule.source
        assert rule.codes or rule.pattern
        assert all(code == code.lower() for code in rule.codes)


def test_an_unknown_code_is_masked() -> None:
    """If it failed, a secret that a server sends as an error code would be shown."""
    secret = "s3cr3t-0123456789-abcdefghij"
    outcome = _judge(400, json.dumps({"error": secret, "error_description": "too many requests"}).encode(), {})
    assert isinstance(outcome, Transient)
    assert secret not in outcome.code + outcome.description


def _judge(status: int, body: bytes, headers: dict[str, str], *, complete: bool = True) -> Outcome:
    return parse_token_response(status, headers, body, complete=complete, now=NOON, secrets=(REFRESH, None))


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.what)
def test_each_answer_has_its_outcome(row: Row) -> None:
    """If it failed, a valid grant would be ended, or a used refresh token would be sent again."""
    body = row.body if isinstance(row.body, bytes) else json.dumps(row.body).encode()
    outcome = _judge(row.status, body, {"content-type": row.content_type, **row.headers}, complete=row.complete)
    assert type(outcome) is row.kind, outcome
    for field, value in row.expected.items():
        assert getattr(outcome, field) == value


@pytest.mark.parametrize("order", [list(GOOD), list(reversed(GOOD))])
def test_a_truncated_answer_gives_complete_tokens_or_none(order: list[str]) -> None:
    """If it failed, a part of a refresh token would replace one that may still be valid (I6)."""
    tokens = {"access_token": "access-0123456789", "refresh_token": r"refresh \"quoted\" \\ 0123456789"}
    body = json.dumps({key: tokens.get(key, GOOD[key]) for key in order}).encode()
    rotated = 0
    for length in range(len(body)):
        outcome = _judge(200, body[:length], {}, complete=False)
        if isinstance(outcome, TokensIssued):
            rotated += 1
            assert outcome.access_token == Secret(tokens["access_token"])
            assert outcome.refresh_token == Secret(tokens["refresh_token"])
            assert outcome.expires_in in (None, 3600.0)
        else:
            assert isinstance(outcome, Unreadable)
    assert rotated > 0


def test_an_unreadable_success_keeps_every_byte() -> None:
    """If it failed, a person could not recover a new refresh token from a damaged answer."""
    body = bytes(range(256))
    outcome = _judge(200, body, {})
    assert isinstance(outcome, Unreadable)
    assert outcome.body.reveal().encode("latin-1") == body


def test_an_echoed_token_is_masked() -> None:
    """If it failed, a refresh token would appear in logs and in token files."""
    words = f"token {REFRESH.reveal()} or eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln is used\x1b[31m\nup"
    outcome = _judge(400, json.dumps({"error": "invalid_grant", "error_description": words}).encode(), {})
    assert isinstance(outcome, GrantRejected)
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
def test_no_answer_raises_or_shows_a_secret_and_only_a_complete_success_issues_tokens(
    status: int, body: bytes, headers: dict[str, str], complete: bool
) -> None:
    """If it failed, an unusual answer would end the process between request and disk, or show a secret."""
    outcome = _judge(status, body, headers, complete=complete)
    if isinstance(outcome, TokensIssued):
        assert 200 <= status < 300
        for token in (outcome.access_token, outcome.refresh_token):
            assert token is None or (token.reveal() and token.reveal().isprintable() and token.reveal().isascii())
        assert outcome.expires_in is None or outcome.expires_in > 0
        assert outcome.scope is None or outcome.scope.isprintable()
        assert " " not in outcome.token_type
    else:
        assert REFRESH.reveal() not in f"{outcome.description} {getattr(outcome, 'code', '')}"
        assert outcome.description.isprintable()
    if isinstance(outcome, GrantRejected | ClientRejected | ResourceRefused | TooEarly):
        assert outcome.code == "" or outcome.code.isprintable()
    if isinstance(outcome, Transient) and outcome.retry_after is not None:
        assert 0 <= outcome.retry_after <= 3600


def test_a_form_of_very_many_fields_needs_little_memory() -> None:
    """If it failed, eight such answers at once would end a daemon with a memory limit."""
    program = """
from refresher.oauth.token_response import parse_token_response
body = b"access_token=abc" + b"&a=b" * 2**20
outcome = parse_token_response(200, {}, body, complete=True, now=1.0, secrets=())
assert outcome.access_token.reveal() == "abc"
"""
    assert peak(program) < 110 * MIB
