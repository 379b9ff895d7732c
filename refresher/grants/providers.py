"""What is known of authorization servers, each with its source: data, and nothing else.

A profile holds only what changes what refresher does. A grant's own settings overrule it, and so does what was seen of
its server (``conduct``). Where sources conflict, the cautious one counts; where a grace can be configured by whoever
runs the server (Auth0, Keycloak, Okta, Cognito), nothing is assumed.
"""

from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import urlsplit

__all__ = ["PROFILES", "UNKNOWN", "Profile", "profile_of"]

_MINUTES: Final = 60.0
_HOURS: Final = 3600.0
_DAYS: Final = 86400.0


class Profile(NamedTuple):
    """One server: its name, the hosts of its issuer or token endpoint (``.suffix`` for all below), and its ways."""

    name: str
    hosts: tuple[str, ...]
    source: str
    replay: float | None = 0.0
    """Seconds for which it takes the previous refresh token again; ``None`` for ever, or it never changes them."""
    refuses_early: bool = False
    """It refuses a refresh while the access token lives."""
    send_resource: bool = True
    """It takes RFC 8707's ``resource`` in a refresh."""
    send_scope: bool = False
    """A refresh needs ``scope``."""
    ends_access: bool = False
    """A refresh ends the previous access token at once: each costs its readers a 401."""
    access_life: float | None = None
    """Seconds, where the answer does not tell."""


UNKNOWN: Final = Profile("unknown", (), "RFC 6749 section 6, RFC 9700 section 4.14: nothing is assumed")

PROFILES: Final = (
    Profile(
        "Atlassian",
        ("auth.atlassian.com",),
        "community.developer.atlassian.com/t/83103: old tokens 'enter a 10-minutes grace period', 'multiple retries'",
        replay=10 * _MINUTES,
    ),
    Profile(
        "Dropbox",
        ("api.dropboxapi.com", "api.dropbox.com", "www.dropbox.com"),
        "dropbox-sdk-python#544: 'refresh tokens don't expire'; react-native-app-auth#687: refuses unknown fields",
        replay=None,
        send_resource=False,
    ),
    Profile(
        "Entra",
        ("login.microsoftonline.com", "login.microsoftonline.us", "login.partner.microsoftonline.cn"),
        "learn.microsoft.com/entra/identity-platform/refresh-tokens: 'doesn't revoke old refresh tokens'; "
        "csharp-sdk#1587: AADSTS9010010 for resource; typescript-sdk#2718: AADSTS90009 without scope",
        replay=None,
        send_resource=False,
        send_scope=True,
    ),
    Profile(
        "Exact Online",
        (
            ".exactonline.com",
            ".exactonline.nl",
            ".exactonline.be",
            ".exactonline.de",
            ".exactonline.fr",
            ".exactonline.co.uk",
        ),
        "laravel-exact-online#31: 400 'Rate limit exceeded: access_token not expired'",
        refuses_early=True,
    ),
    Profile(
        "Figma",
        ("api.figma.com", "www.figma.com"),
        "arcticjs.dev/providers/figma: a refresh 'only returns an access token and its expiration'",
        replay=None,
    ),
    Profile(
        "GitHub Apps",
        ("github.com",),
        "docs.github.com, refreshing user access tokens: 'that refresh token and the old user access token will no "
        "longer work'",
        ends_access=True,
        access_life=8 * _HOURS,
    ),
    Profile(
        "Google",
        ("accounts.google.com", "oauth2.googleapis.com", "www.googleapis.com"),
        "developers.google.com/identity/protocols/oauth2: a refresh brings no refresh token, the old one stays",
        replay=None,
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
        replay=None,
    ),
    Profile(
        "Linear",
        ("api.linear.app", "linear.app", "mcp.linear.app"),
        "claude-code#85236, airbyte source-linear: '30-minute replay grace period'",
        replay=30 * _MINUTES,
    ),
    Profile(
        "Notion MCP",
        ("mcp.notion.com",),
        "makenotion/notion-cookbook, mcp-client-integration: an hour; sources conflict about a replay, so none",
        access_life=1 * _HOURS,
    ),
    Profile(
        "RingCentral",
        ("platform.ringcentral.com",),
        "developers.ringcentral.com/guide/authentication/refresh-tokens: 'invalidated immediately'",
        ends_access=True,
    ),
    Profile(
        "Shopify",
        (".myshopify.com",),
        "shopify.dev/changelog: 'an app can retry its previously stored refresh token until it starts using the "
        "replacement', 30 days",
        replay=30 * _DAYS,
        access_life=1 * _HOURS,
    ),
    Profile(
        "Slack",
        ("slack.com",),
        "docs.slack.dev/authentication/using-token-rotation: 'The refresh token is then revoked'",
        access_life=12 * _HOURS,
    ),
    Profile(
        "Stripe",
        ("api.stripe.com", "connect.stripe.com"),
        "NangoHQ/nango provider.client.ts: no expires_in, an hour",
        access_life=1 * _HOURS,
    ),
    Profile(
        "Supabase",
        (".supabase.co",),
        "supabase/auth internal/tokens/service.go: the parent of the active token returns the active one",
        replay=None,
    ),
    Profile(
        "Wise",
        ("api.wise.com", "api.transferwise.com"),
        "docs.wise.com/guides/developer/auth-and-security/refresh-tokens: 'the previous access token is immediately "
        "invalidated'",
        ends_access=True,
    ),
    Profile(
        "WorkOS",
        ("api.workos.com", ".authkit.app"),
        "workos.com/docs/authkit/session-resilience: 'replay grace period'; kcap-cli#946: 30 seconds",
        replay=30.0,
    ),
    Profile(
        "Xero",
        ("identity.xero.com",),
        "developer.xero.com/faq/oauth2: 'retry using your existing refresh token for up to 30 minutes'",
        replay=30 * _MINUTES,
    ),
    Profile(
        "Zoho",
        (".zoho.com", ".zoho.eu", ".zoho.in", ".zoho.com.au", ".zoho.jp"),
        "zoho.com/crm/developer/docs/api/v3/token-validity: refresh tokens do not change; 10 refreshes in 10 minutes",
        replay=None,
    ),
)


@lru_cache(maxsize=1024)  # thousands of grants have few servers, and each decision asks several times
def profile_of(token_endpoint: str, issuer: str | None) -> Profile:
    """Return the profile of a server by its issuer's host, else by its token endpoint's; ``UNKNOWN`` where none fits.

    Hosts that serve many customers below one name (``mcp.example``'s own servers) have none: their software decides.
    """
    for address in (issuer, token_endpoint):
        host = (urlsplit(address).hostname or "") if address else ""
        for profile in PROFILES:
            if any(_fits(host, pattern) for pattern in profile.hosts):
                return profile
    return UNKNOWN


def _fits(host: str, pattern: str) -> bool:
    return host.endswith(pattern) and host != pattern if pattern.startswith(".") else host == pattern
