"""The errors of ``shim``, as other processes and models see them."""

import pickle

import pytest

from shim import (
    ReauthorizationRequired,
    Removed,
    ShimError,
    TokenUnavailable,
)


@pytest.mark.parametrize("error", [
    ReauthorizationRequired("linear", code="invalid_grant", description="revoked", server="https://mcp.example"),
    Removed("linear"),
])  # fmt: skip
def test_errors_can_be_pickled(error: ShimError) -> None:
    """If it failed, an error in a process pool would break the pool."""
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), vars(again)) == (str(error), vars(error))


def test_as_json_says_whether_retrying_helps() -> None:
    """If it failed, a model would retry again and again instead of asking a person."""
    import json

    error = ReauthorizationRequired("linear", code="invalid_grant", description="revoked", server="https://mcp.example")
    shown = json.loads(error.as_json())
    assert set(shown) == {"error", "needs_reauth", "server", "login_command", "retry"}
    assert (shown["needs_reauth"], shown["retry"], shown["server"]) == (True, False, "https://mcp.example")
    assert "linear" in shown["login_command"]
    assert json.loads(Removed("linear").as_json())["needs_reauth"]
    passing = json.loads(TokenUnavailable("expired").as_json())
    assert (set(passing), passing["needs_reauth"], passing["retry"]) == (set(shown), False, True)
