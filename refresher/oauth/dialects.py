"""Dialects: what the error answers of each server mean. Each rule names its source.

RFC 6749 section 5.2 defines the error codes. Many servers have their own codes, use a wrong code for a rejected grant,
or answer ``invalid_grant`` although the grant is valid. A rule matches codes, a pattern in the description, or both.
The first rule that matches counts, so rules with a pattern come before rules with only codes. If an answer has several
possible meanings, it is a refusal, which is retried; a rejection ends the grant.
"""

import re
from typing import Final, Literal, NamedTuple

__all__ = ["KNOWN_CODES", "RULES", "ErrorKind", "Rule", "classify_error"]

ErrorKind = Literal[
    "grant_rejected", "client_rejected", "too_early", "resource_refused", "busy", "refused", "ambiguous"
]
"""The outcome that follows, by its name. ``busy`` and ``refused`` are the two kinds of ``Transient``: the server asks
for a later request, or refuses for another reason. ``ambiguous``: the refresh token may be spent."""


class Rule(NamedTuple):
    """The kind of answers with one of ``codes`` and with ``pattern`` in their description."""

    kind: ErrorKind
    source: str
    codes: str = ""
    """In lower case, separated by spaces; empty: any code."""
    pattern: str = ""
    """A regular expression that ignores case; empty: any description."""


def _entra(*numbers: int) -> str:
    return rf"\bAADSTS(?:{'|'.join(map(str, numbers))})\b"


RULES: Final = (
    # Descriptions that overrule a code.
    Rule(
        "too_early",
        "Exact Online (laravel-exact-online#31), hh.ru (hhru/api#130), jwt-guard#5",
        pattern=r"access[_ ]token (?:is )?not expired|only after access token expired|can not be used yet",
    ),
    Rule(
        "busy",
        "Auth0 500 'Global limit has been reached' (community.auth0.com/t/77440), Zoho, Supabase 409",
        pattern=r"\b(?:rate|global) limit\b|too many (?:concurrent )?(?:token )?(?:refresh )?requests",
    ),
    Rule(
        "busy",
        "Entra reference-error-codes: transient, throttled (90055), a client in a loop (50196)",
        pattern=_entra(90033, 90024, 90006, 90090, 50033, 50087, 50088, 90012, 70012, 80005, 501621, 90055, 50196),
    ),
    Rule(
        "resource_refused",
        "Entra (csharp-sdk#1587, codex#17265), Dropbox-like 'unknown field' (react-native-app-auth#687)",
        pattern=r"\bAADSTS(?:9010010|901002)\b|unknown (?:field|parameter)\W+resource\b",
    ),
    Rule(
        "refused",
        "Entra: malformed (AADSTS9002313), no scope (AADSTS90009); 70000 is intermittent (BingAds-Python-SDK#279)",
        pattern=_entra(9002313, 90009, 70011, 650057, 28002, 70000),
    ),
    Rule(
        "client_rejected",
        "Entra reference-error-codes",
        pattern=_entra(70001, 70002, 7000215, 7000218, 7000222, 700016, 7000112, 700025, 700027),
    ),
    Rule(
        "client_rejected",
        "Keycloak TokenManager.java, Salesforce, Cognito (aws-sdk-net-extensions-cognito#75): under another code",
        pattern=r"unmatching clients|token client and authorized client don't match|invalid client credentials"
        r"|secrethash does not match",
    ),
    Rule(
        "refused",
        "Salesforce 'IP restricted', Keycloak 'Session not active' (keycloak#44821), 'Stale token' (#37900), FastMCP "
        "'Upstream refresh failed' (fastmcp#5002), Google 'Bad Request' (google-auth-library-python#1043)",
        codes="invalid_grant",
        pattern=r"\bip restricted\b|\bsession not active\b|^stale token|^upstream refresh failed|^bad request$"
        r"|session doesn't have required client",
    ),
    Rule(
        "grant_rejected",
        "Atlassian MCP (codex#27165), Linear (linear-cli#44), Databricks, Obot#7501, AniList, athenahealth: a "
        "rejected grant under another code",
        codes="unauthorized_client invalid_request invalid_client service.not_authorized server_error",
        pattern=r"^(?:[\w-]+: )*(?:the )?(?:refresh[_ ]token (?:is |has |has been |was )?"
        r"(?:(?:invalid|expired|revoked|not found|already used)(?: or (?:invalid|expired|revoked))?\W*$"
        r"|could not be mapped)|invalid refresh[_ ]token\W*$)",
    ),
    # Codes of RFC 6749 section 5.2 and OpenID Connect Core section 3.1.2.6, then codes of single servers.
    Rule("grant_rejected", "RFC 6749 section 5.2", "invalid_grant"),
    Rule(
        "grant_rejected",
        "OpenID Connect Core 3.1.2.6; Entra and Google use them on refresh: a person must act",
        "interaction_required consent_required login_required invalid_rapt rapt_required",
    ),
    Rule(
        "grant_rejected",
        "RFC 9470: a person must authenticate again, or more strongly",
        "insufficient_user_authentication",
    ),
    Rule("grant_rejected", "GitHub (lelylan/simple-oauth2#459)", "bad_refresh_token unverified_user_email"),
    Rule(
        "grant_rejected",
        "Slack (node-slack-sdk#2038, oauth.v2.exchange), PayPal (PayPal-Android-SDK#422)",
        "invalid_refresh_token account_inactive token_revoked authorization_not_found",
    ),
    Rule(
        "grant_rejected",
        "Supabase (supabase/auth apierrors/errorcode.go)",
        "refresh_token_not_found refresh_token_already_used session_not_found session_expired user_banned",
    ),
    Rule(
        "grant_rejected",
        "OpenAI (codex#6028), Cognito, CloudBase, Zoho (token-validity), WorkOS (workos-node#1663)",
        "refresh_token_reused refreshtokenreuseexception refresh_token_expired token_expired invalid_code "
        "mfa_enrollment sso_required",
    ),
    Rule("client_rejected", "RFC 6749 section 5.2", "invalid_client unauthorized_client"),
    Rule("client_rejected", "GitHub (troubleshooting access token requests)", "incorrect_client_credentials"),
    Rule(
        "client_rejected", "Slack (oauth.v2.exchange)", "bad_client_secret invalid_client_id token_rotation_not_enabled"
    ),
    Rule("resource_refused", "RFC 8707 section 2; oidc-provider spends the refresh token first", "invalid_target"),
    Rule(
        "busy",
        "RFC 6749 section 4.1.2.1, Slack, Supabase, WorkOS, Anthropic",
        "temporarily_unavailable ratelimited rate_limited rate_limit_exceeded rate_limit_error slow_down "
        "over_request_rate_limit too_many_requests conflict",
    ),
    Rule(
        "ambiguous",
        "Slack (oauth.v2.exchange): 'possible some aspect of the operation succeeded'",
        "internal_error fatal_error",
    ),
    Rule(
        "refused",
        "RFC 6749 section 5.2: the request is wrong, which says nothing of the grant",
        "invalid_request unsupported_grant_type invalid_scope server_error access_denied",
    ),
)

KNOWN_CODES: Final = frozenset(code for rule in RULES for code in rule.codes.split())
"""Codes that are shown as they are. Another code is masked, because a server can put anything there, also a secret."""


def classify_error(code: str, description: str) -> ErrorKind:
    """Return the kind of an error answer; ``refused`` if no rule matches."""
    for rule in RULES:
        known = not rule.codes or code.lower() in rule.codes.split()
        if known and re.search(rule.pattern, description, re.IGNORECASE):
            return rule.kind
    return "refused"
