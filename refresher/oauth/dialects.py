"""What refusals mean, by server: data with its sources, and the one function that reads it.

RFC 6749 section 5.2 names the codes; servers have codes of their own, hide a verdict behind another code, or use
``invalid_grant`` for what is none. The first row that fits counts, so rows about words stand before rows about codes.
Where a verdict can be mistaken the cautious reading is taken: a grant that lives is worth more than a quick answer.
"""

import re
from typing import Final, Literal, NamedTuple

__all__ = ["KNOWN_CODES", "MEANINGS", "Meaning", "Row", "meaning_of"]

Meaning = Literal["dead", "client", "early", "resource", "busy", "refused", "spent"]
"""Dead: a verdict on the grant. Client: on the client. Early: ask again at expiry. Resource: it was not wanted. Busy:
have patience. Refused: no verdict. Spent: as busy, but the refresh token may have been spent."""


class Row(NamedTuple):
    """``codes`` (lower case; none: any) and ``words`` (a pattern; none: any) that together mean something."""

    meaning: Meaning
    source: str
    codes: frozenset[str] = frozenset()
    words: re.Pattern[str] | None = None


def _words(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


def _entra(*numbers: int) -> re.Pattern[str]:
    return _words(rf"\bAADSTS(?:{'|'.join(map(str, numbers))})\b")


def _codes(text: str) -> frozenset[str]:
    return frozenset(text.split())


MEANINGS: Final = (
    # Words that overrule a code.
    Row(
        "early",
        "Exact Online (laravel-exact-online#31), hh.ru (hhru/api#130), jwt-guard#5",
        words=_words(r"access[_ ]token (?:is )?not expired|only after access token expired|can not be used yet"),
    ),
    Row(
        "busy",
        "Auth0 500 'Global limit has been reached' (community.auth0.com/t/77440), Zoho, Supabase 409",
        words=_words(r"\b(?:rate|global) limit\b|too many (?:concurrent )?(?:token )?(?:refresh )?requests"),
    ),
    Row(
        "busy",
        "Entra reference-error-codes: transient, throttled (90055), a client in a loop (50196)",
        words=_entra(90033, 90024, 90006, 90090, 50033, 50087, 50088, 90012, 70012, 80005, 501621, 90055, 50196),
    ),
    Row(
        "resource",
        "Entra (csharp-sdk#1587, codex#17265), Dropbox-like 'unknown field' (react-native-app-auth#687)",
        words=re.compile(r"\bAADSTS(?:9010010|901002)\b|unknown (?:field|parameter)\W+resource\b", re.IGNORECASE),
    ),
    Row(
        "refused",
        "Entra: malformed (AADSTS9002313), scope wanted (AADSTS90009); 70000 is intermittent (BingAds-Python-SDK#279)",
        words=_entra(9002313, 90009, 70011, 650057, 28002, 70000),
    ),
    Row(
        "client",
        "Entra reference-error-codes",
        words=_entra(70001, 70002, 7000215, 7000218, 7000222, 700016, 7000112, 700025, 700027),
    ),
    Row(
        "client",
        "Keycloak TokenManager.java, Salesforce, Cognito (aws-sdk-net-extensions-cognito#75): under another code",
        words=_words(
            r"unmatching clients|token client and authorized client don't match|invalid client credentials"
            r"|secrethash does not match"
        ),
    ),
    Row(
        "refused",
        "Salesforce 'IP restricted', Keycloak 'Session not active' (keycloak#44821), 'Stale token' (#37900), FastMCP "
        "'Upstream refresh failed' (fastmcp#5002), Google 'Bad Request' (google-auth-library-python#1043): no verdicts",
        codes=_codes("invalid_grant"),
        words=_words(
            r"\bip restricted\b|\bsession not active\b|^stale token|^upstream refresh failed|^bad request$"
            r"|session doesn't have required client"
        ),
    ),
    Row(
        "dead",
        "Atlassian MCP (codex#27165), Linear (linear-cli#44), Databricks, Obot#7501, AniList, athenahealth: a dead "
        "token under another code",
        codes=_codes("unauthorized_client invalid_request invalid_client service.not_authorized server_error"),
        words=_words(
            r"^(?:[\w-]+: )*(?:the )?(?:refresh[_ ]token (?:is |has |has been |was )?"
            r"(?:(?:invalid|expired|revoked|not found|already used)(?: or (?:invalid|expired|revoked))?\W*$"
            r"|could not be mapped)|invalid refresh[_ ]token\W*$)"
        ),
    ),
    # Codes: RFC 6749 section 5.2 and OpenID Connect Core section 3.1.2.6, then servers' own.
    Row("dead", "RFC 6749 section 5.2", _codes("invalid_grant")),
    Row(
        "dead",
        "OpenID Connect Core 3.1.2.6; Entra and Google use them on refresh: a person must act",
        _codes("interaction_required consent_required login_required invalid_rapt rapt_required"),
    ),
    Row("dead", "GitHub (lelylan/simple-oauth2#459)", _codes("bad_refresh_token unverified_user_email")),
    Row(
        "dead",
        "Slack (node-slack-sdk#2038, oauth.v2.exchange), PayPal (PayPal-Android-SDK#422)",
        _codes("invalid_refresh_token account_inactive token_revoked authorization_not_found"),
    ),
    Row(
        "dead",
        "Supabase (supabase/auth apierrors/errorcode.go)",
        _codes("refresh_token_not_found refresh_token_already_used session_not_found session_expired user_banned"),
    ),
    Row(
        "dead",
        "OpenAI (codex#6028), Cognito, CloudBase, Zoho (token-validity), WorkOS (workos-node#1663)",
        _codes(
            "refresh_token_reused refreshtokenreuseexception refresh_token_expired token_expired invalid_code "
            "mfa_enrollment sso_required"
        ),
    ),
    Row("client", "RFC 6749 section 5.2", _codes("invalid_client unauthorized_client")),
    Row("client", "GitHub (troubleshooting access token requests)", _codes("incorrect_client_credentials")),
    Row(
        "client", "Slack (oauth.v2.exchange)", _codes("bad_client_secret invalid_client_id token_rotation_not_enabled")
    ),
    Row("resource", "RFC 8707 section 2; oidc-provider spends the refresh token first", _codes("invalid_target")),
    Row(
        "busy",
        "RFC 6749 section 4.1.2.1, Slack, Supabase, WorkOS, Anthropic",
        _codes(
            "temporarily_unavailable ratelimited rate_limited rate_limit_exceeded rate_limit_error slow_down "
            "over_request_rate_limit too_many_requests conflict"
        ),
    ),
    Row(
        "spent",
        "Slack (oauth.v2.exchange): 'possible some aspect of the operation succeeded'",
        _codes("internal_error fatal_error"),
    ),
)


KNOWN_CODES: Final = frozenset().union(
    *(row.codes for row in MEANINGS),
    _codes("invalid_request unsupported_grant_type invalid_scope server_error access_denied"),
)
"""Codes that are words of the trade: anything else in their place may be anything, a secret too."""


def meaning_of(code: str, words: str) -> Meaning | None:
    """Return what an error code with its words means; ``None`` where nobody has said so."""
    code = code.lower()
    for row in MEANINGS:
        if (not row.codes or code in row.codes) and (row.words is None or row.words.search(words)):
            return row.meaning
    return None
