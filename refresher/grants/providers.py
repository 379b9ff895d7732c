"""Profiles: what is known of authorization servers. Each profile names its source.

A profile sets only what differs from the defaults. If sources conflict, the cautious one counts. If the operator of a
server can configure the grace period (Auth0, Keycloak, Okta, Cognito), nothing is assumed. A provider's own error codes
are in ``oauth/dialects.py``.
"""

from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import urlsplit

__all__ = ["PROFILES", "UNKNOWN", "Profile", "find_profile"]

_MINUTES: Final = 60.0
_HOURS: Final = 3600.0
_DAYS: Final = 86400.0


class Profile(NamedTuple):
    """One authorization server and its behavior."""

    name: str
    hosts: tuple[str, ...]
    """Hosts of its issuer or token endpoint; ``.suffix`` stands for all hosts below it."""
    source: str
    grace_period: float | None = 0.0
    """Seconds for which it accepts the previous refresh token again; ``None``: without end, or it does not rotate."""
    refuses_early: bool = False
    """Whether it refuses a refresh while the access token is valid."""
    send_resource: bool = True
    """Whether it accepts ``resource`` (RFC 8707) in a refresh."""
    send_scope: bool = False
    """Whether a refresh requires ``scope``."""
    revokes_access_token: bool = False
    """Whether a refresh revokes the previous access token at once: each one costs readers a 401."""
    access_token_lifetime: float | None = None
    """Seconds, for answers without ``expires_in``."""
    refresh_token_lifetime: float | None = None
    """Seconds after which an unused refresh token ends, for answers that do not say it; a rotation starts them anew."""
    login_lifetime: float | None = None
    """Seconds after which a login ends, however often it is rotated."""
    supports_pkce: bool = False
    """Whether it supports PKCE with S256, although its metadata does not say so."""
    consent_prompt: bool = True
    """Whether a login with ``offline_access`` must ask with ``prompt=consent``."""


UNKNOWN: Final = Profile("unknown", (), "RFC 6749 section 6, RFC 9700 section 4.14: nothing is assumed")

PROFILES: Final = (
    Profile(
        "Atlassian",
        ("auth.atlassian.com",),
        "community.developer.atlassian.com/t/83103: old tokens 'enter a 10-minutes grace period', 'multiple retries'; "
        "t/54172: 'expire after 90 days of user inactivity', 'All tokens have an absolute expiry time of 365 days'",
        grace_period=10 * _MINUTES,
        refresh_token_lifetime=90 * _DAYS,
        login_lifetime=365 * _DAYS,
    ),
    Profile(
        "Cognito",
        (".amazoncognito.com",),
        "docs.aws.amazon.com/cognito/latest/developerguide/using-pkce-in-authorization-code.html: a SHA256 challenge; "
        "claude-code#13275: no code_challenge_methods_supported",
        supports_pkce=True,
    ),
    Profile(
        "Dropbox",
        ("api.dropboxapi.com", "api.dropbox.com", "www.dropbox.com"),
        "dropbox-sdk-python#544: 'refresh tokens don't expire'; react-native-app-auth#687: refuses unknown fields",
        grace_period=None,
        send_resource=False,
    ),
    Profile(
        "Entra",
        ("login.microsoftonline.com", "login.microsoftonline.us", "login.partner.microsoftonline.cn"),
        "learn.microsoft.com/entra/identity-platform/refresh-tokens: 'doesn't revoke old refresh tokens', '24 hours "
        "for single page apps and 90 days for all other scenarios' (it is not known which one a client is); "
        "csharp-sdk#1587: AADSTS9010010 for resource; typescript-sdk#2718: AADSTS90009 without scope; "
        "learn.microsoft.com/entra/identity-platform/v2-oauth2-auth-code-flow: S256; typescript-sdk#832: no "
        "code_challenge_methods_supported; claude-code#94804, opencode#46361: prompt=consent asks for an administrator "
        "whose consent is there already",
        grace_period=None,
        send_resource=False,
        send_scope=True,
        supports_pkce=True,
        consent_prompt=False,
    ),
    Profile(
        "Exact Online",
        tuple(f".exactonline.{domain}" for domain in ("com", "nl", "be", "de", "fr", "co.uk")),
        "laravel-exact-online#31: 400 'Rate limit exceeded: access_token not expired'; forums.invantive.com/t/2903: an "
        "unused refresh token lasts '30 to 180 days'",
        refuses_early=True,
        refresh_token_lifetime=30 * _DAYS,
    ),
    Profile(
        "Figma",
        ("api.figma.com", "www.figma.com"),
        "arcticjs.dev/providers/figma: a refresh 'only returns an access token and its expiration'",
        grace_period=None,
    ),
    Profile(
        "GitHub Apps",
        ("github.com",),
        "docs.github.com, refreshing user access tokens: 'that refresh token and the old user access token will no "
        "longer work'; 'the refresh token expires after six months'",
        revokes_access_token=True,
        access_token_lifetime=8 * _HOURS,
        refresh_token_lifetime=180 * _DAYS,
    ),
    Profile(
        "Google",
        ("accounts.google.com", "oauth2.googleapis.com", "www.googleapis.com"),
        "developers.google.com/identity/protocols/oauth2: a refresh brings no refresh token, the old one stays",
        grace_period=None,
    ),
    Profile(
        "hh.ru",
        ("hh.ru", "api.hh.ru"),
        "hhru/api#130 (staff): 'Refresh token may be used only after access token expired.'",
        refuses_early=True,
    ),
    Profile(
        "HubSpot",
        ("api.hubapi.com", ".hubspot.com"),
        "developers.hubspot.com, auth-oauth-v3: the same refresh token comes back",
        grace_period=None,
    ),
    Profile(
        "Linear",
        ("api.linear.app", "linear.app", "mcp.linear.app"),
        "claude-code#85236, airbyte source-linear: '30-minute replay grace period'",
        grace_period=30 * _MINUTES,
    ),
    Profile(
        "Notion MCP",
        ("mcp.notion.com",),
        "makenotion/notion-cookbook, mcp-client-integration: an hour; sources conflict about a replay, so none; "
        "local-operator#340: a refresh 'revokes ALL previously issued access tokens'",
        revokes_access_token=True,
        access_token_lifetime=1 * _HOURS,
    ),
    Profile(
        "RingCentral",
        ("platform.ringcentral.com",),
        "developers.ringcentral.com/guide/authentication/refresh-tokens: 'invalidated immediately'; "
        "ringcentral.github.io/ringcentral-faq/refresh-tokens: 'Refresh tokens expire after 7 days'",
        revokes_access_token=True,
        refresh_token_lifetime=7 * _DAYS,
    ),
    Profile(
        "Shopify",
        (".myshopify.com",),
        "shopify.dev/changelog: 'an app can retry its previously stored refresh token until it starts using the "
        "replacement', 30 days",
        grace_period=30 * _DAYS,
        access_token_lifetime=1 * _HOURS,
    ),
    Profile(
        "Slack",
        ("slack.com",),
        "docs.slack.dev/authentication/using-token-rotation: 'The refresh token is then revoked'",
        access_token_lifetime=12 * _HOURS,
    ),
    Profile(
        "Stripe",
        ("api.stripe.com", "connect.stripe.com"),
        "NangoHQ/nango provider.client.ts: no expires_in, an hour",
        access_token_lifetime=1 * _HOURS,
    ),
    Profile(
        "Supabase",
        (".supabase.co",),
        "supabase/auth internal/tokens/service.go: the parent of the active token returns the active one",
        grace_period=None,
    ),
    Profile(
        "Wise",
        ("api.wise.com", "api.transferwise.com"),
        "docs.wise.com/guides/developer/auth-and-security/refresh-tokens: 'the previous access token is immediately "
        "invalidated'",
        revokes_access_token=True,
    ),
    Profile(
        "WorkOS",
        ("api.workos.com", ".authkit.app"),
        "workos.com/docs/authkit/session-resilience: 'replay grace period'; kcap-cli#946: 30 seconds",
        grace_period=30.0,
    ),
    Profile(
        "Xero",
        ("identity.xero.com",),
        "developer.xero.com/faq/oauth2: 'retry using your existing refresh token for up to 30 minutes'; "
        "community.xero.com/developer/discussion/105714701: 'Refresh tokens expire after 30 days if not "
        "used' (others say 60)",
        grace_period=30 * _MINUTES,
        refresh_token_lifetime=30 * _DAYS,
    ),
    Profile(
        "Zoho",
        (".zoho.com", ".zoho.eu", ".zoho.in", ".zoho.com.au", ".zoho.jp"),
        "zoho.com/crm/developer/docs/api/v3/token-validity: refresh tokens do not change; 10 refreshes in 10 minutes",
        grace_period=None,
    ),
)


@lru_cache(maxsize=1024)  # thousands of grants share few servers, and each decision looks up several times
def find_profile(token_endpoint: str, issuer: str | None) -> Profile:
    """Return the profile for the host of the issuer, else for that of the token endpoint, else ``UNKNOWN``."""
    for address in (issuer, token_endpoint):
        host = (urlsplit(address).hostname or "") if address else ""
        for profile in PROFILES:
            if any(_matches(host, pattern) for pattern in profile.hosts):
                return profile
    return UNKNOWN


def _matches(host: str, pattern: str) -> bool:
    return host.endswith(pattern) and host != pattern if pattern.startswith(".") else host == pattern
