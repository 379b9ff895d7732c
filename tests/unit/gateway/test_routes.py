"""What a path means, and which addresses of a server stay under the prefix."""

import pytest

from refresher.gateway.failures import Failure
from refresher.gateway.routes import Destination, Target, choose, parse, relocate
from tests.support.published import token

KEY = "RGK-" + "k" * 43
TO = Destination(
    "https://mcp.example", "/v1/mcp?x=1", "/linear", "/linear", ("https://mcp.example", "https://api.example")
)


@pytest.mark.parametrize(
    ("target", "key", "prefix", "rest"),
    [
        ("/linear", None, "/linear", "/"),
        ("/linear?x", None, "/linear", "/?x"),
        ("/linear?", None, "/linear", "/?"),
        ("/linear/", None, "/linear", "/"),
        ("/linear//", None, "/linear", "//"),
        ("/linear//x", None, "/linear", "//x"),
        ("/linear/a/../b/%2e%2E/%2f//c?d=%zz&e=a/../b?f", None, "/linear", "/a/../b/%2e%2E/%2f//c?d=%zz&e=a/../b?f"),
        ("/linear/../other/x", None, "/linear", "/../other/x"),
        (f"/{KEY}/linear/mcp?x=1", KEY, f"/{KEY}/linear", "/mcp?x=1"),
        (f"/{KEY}/linear", KEY, f"/{KEY}/linear", "/"),
    ],
)
def test_a_path_passes_byte_for_byte_below_its_prefix(target: str, key: str | None, prefix: str, rest: str) -> None:
    """If it failed, a server would get another path than the agent asked for, or a request would reach another grant."""
    assert parse(target) == Target(key, "linear", prefix, rest)


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("http://evil.example/linear/x", 400),
        ("evil.example:443", 400),
        ("*", 400),
        ("/linear/\x7f", 400),
        ("/linear/\udcff", 400),
        ("/linear/#x", 400),
        (f"/linear/{KEY}/mcp", 400),
        ("/", 404),
        ("//linear/x", 404),
        ("/../linear/x", 404),
        ("/%6cinear/x", 404),
        ("/LINEAR/x", 404),
        (f"/{KEY}", 404),
        (f"/{KEY}//x", 404),
        ("/.well-known/oauth-protected-resource/linear/mcp", 404),
        ("/linear/.well-known/oauth-protected-resource", 404),
        ("/linear/.well-known/oauth-authorization-server/x", 404),
        ("/linear/mcp/.well-known/openid-configuration", 404),
        ("/linear/%2ewell-known/oauth-authorization-server", 404),
        ("/linear/.well-known//./OAuth-authorization-server", 404),
    ],
)
def test_what_names_no_grant_is_refused(target: str, status: int) -> None:
    """If it failed, the gateway would be an open proxy, or an agent would find OAuth metadata and begin a login."""
    found = parse(target)
    assert isinstance(found, Failure)
    assert found.status == status


def target(rest: str) -> Target:
    return Target(None, "linear", "/linear", rest)


def test_the_origin_is_that_of_the_server_or_of_the_host_in_the_path() -> None:
    """If it failed, a token for several servers would go to the wrong one."""
    several = token(origins=("https://mcp.example", "http://api.example:8080", "https://api.example:8080"))
    at_server = token(origins=several.origins, server_url="https://mcp.example/v1?key=secret")
    refused = choose(target("/x"), several)
    assert isinstance(refused, Failure)
    assert refused.status == 404
    assert "/linear/@mcp.example/" in refused.message
    for found, expected in (
        (choose(target("/x?y"), at_server), ("https://mcp.example", "/x?y", "/linear")),
        (
            choose(target("/@API.example:8080?y"), several),
            ("https://api.example:8080", "/?y", "/linear/@API.example:8080"),
        ),
        (
            choose(target("/@mcp.example/@scope/x"), at_server),
            ("https://mcp.example", "/@scope/x", "/linear/@mcp.example"),
        ),
        (choose(target("/x"), token()), ("https://mcp.example", "/x", "/linear")),
    ):
        assert isinstance(found, Destination)
        assert (found.origin, found.rest, found.prefix) == expected


@pytest.mark.parametrize("host", ["evil.example", "api.example", "mcp.example:444", "user@mcp.example", "", "scope"])
def test_a_host_that_is_none_of_the_grants_is_refused(host: str) -> None:
    """If it failed, a request for a mistyped host would reach another server."""
    for known in (
        token(origins=("https://mcp.example", "https://api.example:8080"), server_url="https://mcp.example/"),
        token(origins=("https://mcp.example",)),
    ):
        refused = choose(target(f"/@{host}/x"), known)
        assert isinstance(refused, Failure)
        assert (refused.status, "/linear/@mcp.example/" in refused.message) == (404, True)


@pytest.mark.parametrize(
    ("address", "moved"),
    [
        ("https://mcp.example/a?b=c#d", "/linear/a?b=c#d"),
        ("https://MCP.example:443?b", "/linear/?b"),
        ("https://api.example/a", "/linear/@api.example/a"),
        ("//api.example/a", "/linear/@api.example/a"),
        ("/a//b%2F", "/linear/a//b%2F"),
        ("b", "/linear/v1/b"),
        ("?y", "/linear/v1/mcp?y"),
        ("/@scope/x", "/linear/@mcp.example/@scope/x"),
        ("https://api.example/@scope/x", "/linear/@api.example/@scope/x"),
        ("../b", "/linear/b"),
        ("../../../other/b", "/linear/other/b"),
        ("/../../other/b", "/linear/other/b"),
        ("https://evil.example/", None),
        ("https://mcp.example@evil.example/", None),
        ("http://mcp.example/", None),
        ("/%2e%2e/other", None),
        ("https://mcp.example/../other", None),
        ("/\\evil.example", None),
        ("/a\tb", None),
        ("https://[", None),
        ("javascript:alert(1)", None),
    ],
)
def test_an_address_of_a_server_stays_under_the_prefix(address: str, moved: str | None) -> None:
    """If it failed, a redirect would lead an agent out of the gateway, or with its key to another grant."""
    assert relocate(address, TO) == moved
