"""The MCP project's own conformance suite, against login and the shim together."""

import shlex

import pytest

from tests.conftest import need
from tests.support import conformance
from tests.support.browser import as_browser
from tests.support.warm import stub

MACHINES = ("auth/client-credentials-jwt", "auth/client-credentials-basic")
CLIENT = stub("tests.support.conforming", shlex.join(stub("refresher")))

NOT_SUPPORTED = {
    # An enterprise's identity provider vouches for its people (SEP-990, an extension): an ID token is exchanged for an
    # assertion (RFC 8693), and that for an access token (RFC 7523). Neither brings a refresh token to keep.
    "auth/enterprise-managed-authorization": {"complete-flow-token-exchange", "complete-flow-jwt-bearer"},
    # Likewise of a platform's workload identity, without a person.
    "auth/wif-jwt-bearer": {"wif-assertion-verified"},
    # Tokens that are bound to a key (RFC 9449): agents are given the token alone, and would need the key as well.
    "auth/dpop": {
        "sep-1932-client-token-request-proof",
        "sep-1932-client-dpop-auth-scheme",
        "sep-1932-client-fresh-proof",
    },
    "auth/dpop-nonce": {
        "sep-1932-client-as-nonce",
        "sep-1932-client-dpop-auth-scheme",
        "sep-1932-client-fresh-proof",
        "sep-1932-client-rs-nonce",
        "sep-1932-client-token-request-proof",
    },
}
"""What is left out on purpose, and which checks fail for it."""


@pytest.fixture(autouse=True)
def _suite() -> None:
    need(conformance.missing())


@pytest.mark.parametrize("scenario", [*conformance.LOGINS, *MACHINES])
def test_the_suite_finds_no_fault(scenario: str) -> None:
    """If it failed, people could not log in at servers that keep to the specification."""
    verdict = conformance.run(scenario, CLIENT, as_browser("person"))
    assert verdict.failed == {}, verdict.said
    assert verdict.passed, verdict.said


@pytest.mark.parametrize(("scenario", "failed"), NOT_SUPPORTED.items(), ids=NOT_SUPPORTED)
def test_what_is_not_supported_fails_in_that_way_alone(scenario: str, failed: set[str]) -> None:
    """If it failed, something else would be wrong with us than what we say is left out, or it would be supported."""
    verdict = conformance.run(scenario, CLIENT, as_browser("person"))
    assert not verdict.passed
    assert verdict.failed.keys() == failed, verdict.said
