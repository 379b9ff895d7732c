"""The conformance suite of the MCP project, against login and the shim."""

import shlex

import pytest

from tests.conftest import need
from tests.support import conformance
from tests.support.browser import as_browser
from tests.support.warm import start, stub

MACHINES = (
    "auth/client-credentials-jwt",
    "auth/client-credentials-basic",
    "auth/enterprise-managed-authorization",
    "auth/wif-jwt-bearer",
)
CLIENT = stub("tests.support.conforming", shlex.join(stub("refresher")))

NOT_SUPPORTED = {
    # Tokens that are bound to a key (RFC 9449): agents read only the token, and would need the key too.
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
"""Scenarios that refresher does not support, and the checks that fail."""


@pytest.fixture(autouse=True)
def _suite() -> None:
    need(conformance.missing())
    start()


@pytest.mark.parametrize("scenario", [*conformance.LOGINS, *MACHINES])
def test_each_supported_scenario_passes(scenario: str) -> None:
    """If it failed, login would fail at servers that follow the specification."""
    verdict = conformance.run(scenario, CLIENT, as_browser("person"))
    assert verdict.failed == {}, verdict.said
    assert verdict.passed, verdict.said


@pytest.mark.parametrize(("scenario", "failed"), NOT_SUPPORTED.items(), ids=NOT_SUPPORTED)
def test_unsupported_scenarios_fail_only_in_the_listed_checks(scenario: str, failed: set[str]) -> None:
    """If it failed, a check outside the list would fail, or refresher would support a scenario that the list excludes."""
    verdict = conformance.run(scenario, CLIENT, as_browser("person"))
    assert not verdict.passed
    assert verdict.failed.keys() == failed, verdict.said
