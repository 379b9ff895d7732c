"""Hypothesis strategies for servers, and for grants with a correct configuration."""

from typing import Any, NamedTuple

import msgspec
from hypothesis import strategies as st

from refresher.common.secret import Secret
from refresher.grants.providers import PROFILES, UNKNOWN, Profile
from refresher.grants.record import Grant
from refresher.grants.tokens import not_before
from tests.support.model_server import Early, ModelServer, Resource, Ways
from tests.support.samples import NOON, grant
from tests.support.simulated_clock import DAY, HOUR, MINUTE

__all__ = ["Login", "logins"]


class Login(NamedTuple):
    """The behavior of a server, and a configuration of the grant that is true of this server."""

    ways: Ways
    configured: dict[str, Any]
    with_access: bool
    """Whether an access token was imported too."""

    def begin(self) -> tuple[ModelServer, Grant]:
        """Log in at noon without refresher, and import the grant."""
        server = ModelServer(self.ways)
        refresh, access = server.log_in(0.0)
        imported = (
            {"max_age": None}
            | self.configured
            | {
                "token_endpoint": "http://127.0.0.1:9/token",
                "refresh_token": Secret(refresh),
                "not_before": not_before(refresh, NOON),
                "access_token": Secret(access) if self.with_access else None,
                "expires_at": NOON + self.ways.life if self.with_access and self.ways.tells_life else None,
                "refresh_token_expires_at": None if self.ways.refresh_life is None else NOON + self.ways.refresh_life,
                "last_rotation_at": None,
                "send_resource": None,
            }
        )
        return server, grant(**imported)


@st.composite
def logins(draw: st.DrawFn) -> Login:
    """Return a server, half of them with the behavior of a profile, and a grant there."""
    profile = draw(st.just(UNKNOWN) | st.sampled_from(PROFILES))
    rotates, grace = _rotation(draw, profile)
    life = profile.access_token_lifetime or draw(st.sampled_from([HOUR, HOUR, 600.0, 8 * HOUR, 5.0, MINUTE, 2 * DAY]))
    tells_life = draw(st.booleans())
    early = _early(draw, profile, may_end_the_login=rotates and life <= DAY)
    resource = draw(st.sampled_from([None, "https://mcp.example/mcp"]))
    ways = Ways(
        rotates=rotates,
        grace=grace,
        life=life,
        tells_life=tells_life,
        ends_access=profile.revokes_access_token or draw(st.booleans()),
        early=early,
        resource=_resource(draw, profile, configured=resource is not None),
        # Some end before the access token.
        refresh_life=draw(st.sampled_from([None, None, None, max(life / 4, MINUTE), max(life / 2, MINUTE), 2 * DAY])),
    )
    with_access = draw(st.integers(0, 5)) < 5
    # If the server sends no lifetime, the configuration must have it.
    known = tells_life or (life <= HOUR if profile.access_token_lifetime is None else True)
    configured = {
        "name": draw(st.sampled_from(["linear", "notion", "slack"])),
        "issuer": _issuer(profile),
        "replay": draw(st.sampled_from(_promises(grace))),
        "max_age": draw(st.sampled_from([life, 2 * life, *([None] if known and with_access else [])])),
        # Needed if neither a profile nor the answer of the server says so.
        "refuses_early": (early == "mistaken for dead" and not profile.refuses_early)
        or (early == "refused" and draw(st.booleans())),
        "resource": resource,
    }
    return Login(ways, configured, with_access)


def _rotation(draw: st.DrawFn, profile: Profile) -> tuple[bool, float | None]:
    if profile.grace_period is None:
        return draw(st.booleans()), None
    if profile.grace_period > 0:
        return True, profile.grace_period
    if draw(st.integers(0, 5)) == 0:
        return False, None
    return True, draw(st.sampled_from([0.0, 0.0, 5.0, 30.0, 30.0, 1800.0, None]))


def _promises(grace: float | None) -> list[Any]:
    """Return the settings of ``replay`` that are true for this grace period."""
    if grace is None:
        return [0.0, msgspec.UNSET, None, 30.0, None]
    return [0.0, msgspec.UNSET, *([grace, grace, grace / 2, grace] if grace > 0 else [])]


def _early(draw: st.DrawFn, profile: Profile, *, may_end_the_login: bool) -> Early:
    ways: list[Early] = ["refused", "mistaken for dead"]
    if not profile.refuses_early:
        ways = ["allowed", "allowed", "allowed", *ways]
        if may_end_the_login:
            ways += ["ends the login", "ends the login"]
    return draw(st.sampled_from(ways))


def _resource(draw: st.DrawFn, profile: Profile, *, configured: bool) -> Resource:
    if not profile.send_resource:
        return "refused"
    ways: list[Resource] = ["ignored", "ignored", "ignored", "refused", "refused once spent"]
    if configured:
        ways += ["required", "required"]
    return draw(st.sampled_from(ways))


def _issuer(profile: Profile) -> str | None:
    if not profile.hosts:
        return None
    host = profile.hosts[0]
    return f"https://{'customer' if host.startswith('.') else ''}{host}"
