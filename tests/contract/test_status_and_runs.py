"""The commands ``status``, ``remove`` and ``run-once``: their output, their exit codes, and what they change."""

import json
import socket

from tests.support.cli import GRANT, one_line
from tests.support.command import Command

STATUS_KEYS = {
    "name", "state", "generation", "issued_at", "expires_at", "next_rotation_at", "last_rotation_at", "failures", "error",
    "issuer", "resource", "scope", "origins", "refresh_token_expires_at", "login_ends_at", "account", "overdue", "ends",
}  # fmt: skip


def test_status_as_json_has_exactly_these_fields(refresher: Command) -> None:
    """If it failed, dashboards and scripts that read a field would break."""
    refresher.import_grant("linear", GRANT | {"access_token": "an-access-token-of-it", "expires_in": 3600})
    refresher.import_grant("notion", GRANT | {"refresh_token": "another-refresh-token"})
    grants = json.loads(refresher("status", "--json").stdout)["grants"]
    assert [grant["name"] for grant in grants] == ["linear", "notion"]
    assert all(set(grant) == STATUS_KEYS for grant in grants)
    linear, notion = grants
    assert (linear["state"], linear["generation"], linear["failures"], linear["error"]) == ("active", 0, 0, None)
    assert linear["issued_at"] < linear["next_rotation_at"] < linear["expires_at"]
    assert (notion["issued_at"], notion["expires_at"]) == (None, None)
    assert json.loads(refresher("status", "--json", "notion").stdout)["grants"] == [notion]


def test_status_for_a_person_says_what_is_wrong(refresher: Command) -> None:
    """If it failed, a person would see that a grant fails, but not why."""
    refresher.import_grant("linear", GRANT)
    assert refresher("run-once").code == 4
    table = refresher("status").stdout
    head, row = table.splitlines()
    assert head.split() == ["NAME", "STATE", "GENERATION", "TIME", "LEFT", "NEXT", "ROTATION", "LAST", "ERROR"]
    assert "failing" in row
    assert "nothing was sent" in row
    assert "\x1b" not in table, "a pipe gets colours"


def test_a_removed_grant_is_published_as_removed_and_keeps_its_generation(refresher: Command) -> None:
    """If it failed, agents would continue with a removed grant, or its used tokens could be imported again."""
    refresher.import_grant("linear", GRANT | {"access_token": "an-access-token-of-it", "expires_in": 60})
    demand = refresher.state / "demands/linear.0"
    demand.touch()
    assert refresher("remove", "linear").code == 0
    assert GRANT["refresh_token"] not in (refresher.state / "grants/linear.json").read_text()
    token = refresher.token("linear")
    assert (token.state, token.access_token, token.generation) == ("removed", None, 0)
    assert not demand.exists()
    for arguments in (("run-once", "linear"), ("status", "linear"), ("remove", "linear")):
        assert "removed" in one_line(refresher(*arguments))
    assert "none yet" in one_line(refresher("status", "nobody")), "the message suggests a removed name"
    assert json.loads(refresher("run-once", "--json").stdout) == {"results": [], "exit_code": 0}
    refresher.import_grant("linear", GRANT)
    assert refresher.grant("linear").generation == 1, "the generation is lower than before"


def test_the_next_run_publishes_a_removal_that_was_interrupted(refresher: Command) -> None:
    """If it failed, after a kill during a removal the token of the removed grant would stay published."""
    refresher.import_grant("linear", GRANT | {"access_token": "an-access-token-of-it", "expires_in": 60})
    published = (refresher.state / "tokens/linear.json").read_bytes()
    refresher("remove", "linear")
    (refresher.state / "tokens/linear.json").write_bytes(published)
    assert refresher("run-once").code == 0
    assert refresher.token("linear").state == "removed"


def test_run_once_as_json_has_exactly_these_fields(refresher: Command) -> None:
    """If it failed, cron jobs and scripts that read a result would break."""
    refresher.import_grant("linear", GRANT | {"access_token": "an-access-token-of-it", "expires_in": 3600})
    answer = json.loads(refresher("run-once", "--json").stdout)
    assert set(answer) == {"results", "exit_code"}
    assert answer["exit_code"] == 0
    (result,) = answer["results"]
    assert set(result) == {"name", "outcome", "generation", "detail"}
    assert (result["name"], result["outcome"], result["generation"]) == ("linear", "not_due", 0)


def test_without_grants_a_run_succeeds(refresher: Command) -> None:
    """If it failed, a cron job that is installed before the first import would report errors."""
    for arguments in (("run-once",), ("status",)):
        done = refresher(*arguments)
        assert (done.code, done.stdout) == (0, "")
        assert "refresher login" in done.stderr
    assert not refresher.state.exists(), "the command created directories"


def test_nothing_due_loads_no_http_library(refresher: Command) -> None:
    """If it failed, a cron job that has nothing to do would cost as much as one that has."""
    refresher.import_grant("linear", GRANT | {"access_token": "an-access-token-of-it", "expires_in": 3600})
    done = refresher("run-once", environment={"PYTHONVERBOSE": "1"})
    assert done.code == 0
    loaded = {line.split("'")[1].partition(".")[0] for line in done.stderr.splitlines() if line.startswith("import '")}
    assert {"refresher", "click", "msgspec"} <= loaded
    assert (
        not {"httpx", "httpcore", "apscheduler", "mcp", "anyio", "filelock", "asyncio", "ssl", "rich", "cryptography"}
        & loaded
    )


def test_a_damaged_grant_file_does_not_stop_the_other_grants(refresher: Command) -> None:
    """If it failed, one damaged file would stop the rotation of every grant."""
    refresher.import_grant("linear", GRANT | {"access_token": "an-access-token-of-it", "expires_in": 3600})
    (refresher.state / "tokens/linear.json").unlink()
    broken = {"empty": b"", "torn": b'{"version":1', "strange": b'{"version":9}'}
    for name, data in broken.items():
        (refresher.state / f"grants/{name}.json").write_bytes(data)
    (refresher.state / "grants/folder.json").mkdir()
    (refresher.state / "grants/link.json").symlink_to("linear.json")
    done = refresher("run-once", "--json")
    assert done.code == 2
    outcomes = {name: result["outcome"] for name, result in done.results.items()}
    assert outcomes == dict.fromkeys([*broken, "folder", "link"], "invalid_grant_file") | {"linear": "not_due"}
    assert refresher.token("linear").generation == 0, "it was not published again"
    assert {name: (refresher.state / f"grants/{name}.json").read_bytes() for name in broken} == broken
    states = {grant["name"]: grant["state"] for grant in json.loads(refresher("status", "--json").stdout)["grants"]}
    assert states["torn"] == "invalid_grant_file"
    assert "invalid_grant_file" in refresher("status").stdout


def test_only_a_new_import_sets_a_damaged_grant_file_aside(refresher: Command) -> None:
    """If it failed, a person could not replace a damaged record, or its only copy would be overwritten."""
    refresher.import_grant("linear", GRANT | {"access_token": "an-access-token-of-it", "expires_in": 3600})
    (refresher.state / "grants/linear.json").write_bytes(b"damaged")
    path = str(refresher.write_import("again", GRANT | {"refresh_token": "another-refresh-token"}))
    one_line(refresher("import", "linear", "--from", path))
    one_line(refresher("import", "linear", "--from", path, "--if-absent"))
    one_line(refresher("remove", "linear"))
    done = refresher("import", "linear", "--from", path, "--replace")
    assert done.code == 0
    assert "damaged record is now" in done.stderr
    (aside,) = (refresher.state / "grants").glob("linear.json.aside.*")
    assert aside.read_bytes() == b"damaged"
    assert refresher.grant("linear").generation == 1, "agents would see a generation again"


def test_an_unreachable_server_is_retried_after_a_backoff(refresher: Command) -> None:
    """If it failed, an outage of a server would look like a lost login, or cause requests without pause."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    refresher.import_grant("linear", GRANT | {"token_endpoint": f"http://127.0.0.1:{port}/token"})
    done = refresher("run-once", "--json")
    assert (done.code, done.results["linear"]["outcome"]) == (4, "transient")
    token = refresher.token("linear")
    assert (token.state, token.access_token) == ("failing", None)
    for failures in range(2, 6):
        assert refresher("run-once", "--force").code == 4
        assert refresher.grant("linear").failures == failures, "--force did not skip the backoff"
    # The fifth backoff lasts for more than a minute: it is not over before the next run even on a busy machine.
    again = refresher("run-once", "--json")
    assert (again.code, again.results["linear"]["outcome"]) == (4, "transient")
    assert refresher.grant("linear").failures == 5, "a run did not wait for the end of the backoff"
