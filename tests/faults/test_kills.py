"""A process that is killed between any two of its steps."""

from collections.abc import Callable

import pytest

from tests.conftest import need
from tests.support.command import Command
from tests.support.oidc import OIDC
from tests.support.parts import injecting, no_strace

Start = Callable[..., OIDC]

CALLS = ["fsync", "pwrite64", "ftruncate", "rename", "unlink", "fchmod", "flock", "connect", "sendto", "recvfrom"]


@pytest.mark.parametrize("call", CALLS)
def test_killed_at_any_system_call_the_next_run_goes_on_or_says_in_doubt(
    refresher: Command, own_oidc: Start, call: str
) -> None:
    """If it failed, a kill at the wrong instant would lose a token, or send a spent one again (I1, I4, I6)."""
    need(no_strace())
    server = own_oidc()
    for number in range(1, 40):
        live = _replace(refresher, server)
        kill = injecting(call, f"signal=KILL:when={number}")
        process = refresher.start("run-once", "--force", "--json", prefix=kill)
        code = refresher.finish(process).code
        done = refresher("run-once", "--json")
        assert done.outcome in ("not_due", "adopted", "in_doubt"), done.stdout
        assert refresher.leftovers() == []
        forced = refresher("run-once", "--force", "--json")
        if done.outcome == "in_doubt":
            assert forced.outcome == "in_doubt"
            assert refresher.token("linear").access_token == live
        else:
            assert forced.outcome == "rotated"
            assert server.introspect(refresher.token("linear").access_token)["active"]
        if code == 0:
            break
    else:
        pytest.fail(f"40 kills at {call} and no end")
    assert (server.log()["reused"], server.log()["presented_twice"]) == (0, 0)


def _replace(refresher: Command, server: OIDC) -> str | None:
    refresher.import_grant("linear", server.mint("public"), "--replace")
    assert refresher("run-once").code == 0
    return refresher.token("linear").access_token


@pytest.mark.parametrize("call", ["import", "remove"])
def test_an_import_or_a_removal_that_is_killed_is_old_or_new(refresher: Command, own_oidc: Start, call: str) -> None:
    """If it failed, a killed import could leave half a record, or both logins lost (I4)."""
    need(no_strace())
    server = own_oidc()
    for number in range(1, 40):
        _replace(refresher, server)
        old = refresher.grant("linear").refresh_token
        fields = server.mint("public")
        path = refresher.write_import("new", fields)
        arguments = ("import", "linear", "--replace", "--from", str(path)) if call == "import" else ("remove", "linear")
        calls = "fsync,pwrite64,rename,unlink,fchmod"
        kill = injecting(calls, f"signal=KILL:when={number}")
        code = refresher.finish(refresher.start(*arguments, prefix=kill)).code
        assert refresher("run-once").code == 0
        assert refresher.leftovers() == []
        record = refresher.record("linear")
        if call == "remove":
            assert refresher.token("linear").state == ("removed" if not hasattr(record, "refresh_token") else "active")
        else:
            assert old is not None
            spent = {old.fingerprint()} & set(refresher.grant("linear").spent)
            assert refresher.grant("linear").refresh_token == old or not spent
        if code == 0:
            break
    else:
        pytest.fail("40 kills and no end")
    assert (server.log()["reused"], server.log()["presented_twice"]) == (0, 0)
