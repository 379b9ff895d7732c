"""The command doctor: what it prints, its exit codes, and that it changes and sends nothing."""

import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from refresher.doctor.finding import GRAVITIES, KINDS, Finding
from refresher.grants.encoding import encode
from tests.conftest import need
from tests.support.answering import Answer, Answering
from tests.support.cli import one_line
from tests.support.command import Command, wait_until
from tests.support.daemon import running, stopped
from tests.support.parts import injecting, no_mounts, no_strace
from tests.support.proxy import Proxy, passes

PLACE = "/.well-known/oauth-authorization-server"
ROOT = Path(__file__).parent.parent.parent


def metadata(server: str) -> dict[str, str]:
    """Return the metadata of a server."""
    return {"issuer": server, "token_endpoint": f"{server}/token", "authorization_endpoint": f"{server}/authorize"}


def fields(server: str, name: str = "linear", **more: Any) -> dict[str, Any]:
    """Return an import of a grant with a token for an hour."""
    return {
        "issuer": server,
        "token_endpoint": f"{server}/token",
        "client_id": "client",
        "refresh_token": f"refresh-token-of-{name}",
        "access_token": f"access-token-of-{name}",
        "expires_in": 3600,
        "server_url": "https://mcp.example/mcp",
        **more,
    }


def codes(refresher: Command, *arguments: str, **more: Any) -> tuple[int, list[str]]:
    """Return the exit code, and the codes of the findings, in order."""
    done = refresher("doctor", *arguments, "--json", **more)
    answer = json.loads(done.stdout)
    assert (set(answer), answer["exit_code"]) == ({"findings", "exit_code"}, done.code)
    return done.code, [finding["code"] for finding in answer["findings"]]


def tree(top: Path) -> dict[str, tuple[Any, ...]]:
    """Return what is in a directory, with everything but the times of the last access."""
    return {
        str(path): (*(status := path.lstat())[:7], status.st_mtime_ns, status.st_ctime_ns, path.read_bytes() if path.is_file() else b"")
        for path in (top, *sorted(top.rglob("*")))
    }  # fmt: skip


def test_a_healthy_set_up_has_no_finding(refresher: Command) -> None:
    """If it failed, a person would not know whether all is well."""
    with Answering() as server:
        server.answers = {PLACE: [Answer(200, metadata(server.url))]}
        refresher.import_grant("linear", fields(server.url))
        refresher.import_grant("notion", fields(server.url, "notion"))
        with running(refresher) as process:
            wait_until((refresher.state / "last-run").exists, "the service notes that it runs")
            done = refresher("doctor")
            assert (done.code, done.stderr) == (0, ""), done.stdout
            assert [re.split(r"  +", line) for line in done.stdout.splitlines()] == [
                ["directories", str(refresher.state)],
                ["service", "'refresher run' is running"],
                ["grants", "2 grants"],
                ["servers", server.url],
                ["configuration", "no hooks, no page token in the configuration"],
                ["package shim", "that of refresher"],
                [""],
                ["nothing found"],
            ]
            assert json.loads(refresher("doctor", "--json").stdout) == {"findings": [], "exit_code": 0}
            assert server.seen == [f"GET {PLACE}"] * 2, "a server is asked more than once, or in another way"
            stopped(refresher, process)
        assert refresher("run-once", "--horizon", "10m").code == 0
        assert codes(refresher) == (0, []), "cron is as good as a service"


def test_before_the_first_login_nothing_is_wrong_and_nothing_is_created(refresher: Command) -> None:
    """If it failed, a new user would be sent to mend a set-up that does not exist."""
    assert codes(refresher) == (0, [])
    assert codes(refresher, "--state-dir", str(refresher.home / "nowhere")) == (2, ["directory_missing"])
    assert list(refresher.home.iterdir()) == []


def test_it_changes_nothing_and_offline_connects_to_no_server(refresher: Command) -> None:
    """If it failed, a look at a broken set-up could make it worse, or send a request that nobody asked for."""
    with Answering() as server, Proxy(server.url, otherwise=passes) as front:
        url = front.url.removesuffix("/")
        server.answers = {PLACE: [Answer(200, metadata(url))]}
        for name in ("linear", "notion", "damaged", "exposed", "dead"):
            refresher.import_grant(name, fields(url, name))
        grants = refresher.state / "grants"
        (grants / "damaged.json").write_bytes(b"damaged")
        (grants / "exposed.json").chmod(0o644)
        (grants / "dead.json").write_bytes(encode(msgspec.structs.replace(refresher.grant("dead"), dead=True))[0])
        (grants / "notion.next").write_bytes(b"\0" * 100)
        (grants / "left.intent").write_bytes(b"left")
        for entry in ("linear.0", "nobody.3"):
            (refresher.state / "demands" / entry).touch()
        (refresher.tokens / "linear.json").unlink()
        before = tree(refresher.home)
        assert codes(refresher, "--offline")[0] == 3
        assert refresher("doctor", "--offline").code == 3
        assert front.connections == 0, "offline, it connects to a server"
        code, found = codes(refresher)
        assert (code, found[0]) == (3, "reauthorization_required"), "the most serious one comes first"
        assert sorted(found) == sorted(
            ["reauthorization_required", "invalid_grant_file", "invalid_grant_file", "not_running", "demand_unknown"]
        )
        assert front.connections == 1
        assert tree(refresher.home) == before, "it changes files"
    (request,) = front.requests
    assert request.startswith(b"GET ")
    assert b"\r\nauthorization:" not in request.lower()


def test_with_a_name_it_looks_at_this_grant_only(refresher: Command) -> None:
    """If it failed, a person with many grants could not see what concerns one of them."""
    with Answering() as server, Answering() as other:
        server.answers = {PLACE: [Answer(200, metadata(server.url))]}
        refresher.import_grant("linear", fields(server.url))
        refresher.import_grant("notion", fields(other.url, "notion"))
        (refresher.state / "grants/notion.json").chmod(0o644)
        assert refresher("run-once", "--horizon", "10m").code == 2
        assert codes(refresher, "linear") == (0, [])
        assert codes(refresher, "notion") == (2, ["invalid_grant_file"])
        assert other.seen == []
    assert "did you mean: refresher doctor linear" in one_line(refresher("doctor", "lineer"))


def test_each_finding_can_be_read_at_80_columns_and_says_how_to_mend_it(refresher: Command) -> None:
    """If it failed, a person in trouble would have to search for the command that helps."""
    with Answering() as server:
        server.answers = {PLACE: [Answer(200, metadata("https://evil.example/\x1b[31m"))]}
        refresher.import_grant("linear", fields(server.url))
        (refresher.state / "grants/torn.json").touch(mode=0o600)
        done = refresher("doctor", environment={"COLUMNS": "80"})
    assert done.code == 2
    assert "\x1b" not in done.stdout, "a server controls the terminal, or a pipe gets colours"
    blocks = done.stdout.split("\n\n")
    assert blocks[-1] == "3 findings\n"
    assert [block.split()[0] for block in blocks[1:-1]] == ["broken", "attention", "attention"]
    for block in blocks[1:-1]:
        lines = block.splitlines()
        assert lines[-1].startswith("           Mend: ")
        assert any(line.startswith("           Why: ") for line in lines)
        assert [line for line in lines[:-1] if len(line) > 80 and " " in line.strip()] == []
    assert "           Mend: refresher run" in done.stdout.splitlines()


def test_json_has_exactly_these_keys_and_codes(refresher: Command) -> None:
    """If it failed, scripts that read a finding would break."""
    keys = ("code", "gravity", "name", "what", "why", "mend")
    assert Finding.__struct_fields__ == keys
    refresher.import_grant("linear", fields("http://127.0.0.1:9"))
    answer = json.loads(refresher("doctor", "--json").stdout)
    assert all(tuple(finding) == keys for finding in answer["findings"])
    assert {kind.gravity for kind in KINDS.values()} == set(GRAVITIES)
    assert all(finding["why"] == KINDS[finding["code"]].why and finding["mend"] for finding in answer["findings"])


def test_a_history_that_cannot_be_used_is_found_unless_it_is_off(refresher: Command) -> None:
    """If it failed, nobody would learn why 'refresher events' shows nothing new."""
    refresher.import_grant("linear", fields("http://127.0.0.1:9"))
    refresher("run-once", "--horizon", "10m")
    refresher.directories.history.write_bytes(b"noise" * 1000)
    before = tree(refresher.home)
    assert codes(refresher, "--offline") == (1, ["history_unusable"])
    assert codes(refresher, "--offline", environment={"REFRESHER_HISTORY_DAYS": "0"}) == (0, [])
    assert tree(refresher.home) == before
    refresher.directories.history.unlink()
    assert codes(refresher, "--offline") == (0, [])


@pytest.mark.parametrize("error", ["ENOLCK", "EOPNOTSUPP"])
def test_a_file_system_without_locks_is_found(refresher: Command, error: str) -> None:
    """If it failed, a person would not learn why nothing rotates on a network file system."""
    need(no_strace())
    refresher.import_grant("linear", fields("http://127.0.0.1:9"))
    done = refresher("doctor", "--offline", "--json", prefix=injecting("flock", f"error={error}"))
    (finding,) = [each for each in json.loads(done.stdout)["findings"] if each["code"] == "no_locks"]
    assert "this file system has no locks" in finding["what"]


def test_a_lock_that_is_held_is_neither_a_finding_nor_waited_for(refresher: Command) -> None:
    """If it failed, the doctor would hang beside an import that hangs."""
    import fcntl

    refresher.import_grant("linear", fields("http://127.0.0.1:9"))
    with (refresher.state / "grants/.import.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "no_locks" not in codes(refresher, "--offline")[1]


def test_directories_of_another_user_are_one_finding(refresher: Command) -> None:
    """If it failed, root would read the grants of a service, and report each of them as damaged."""
    need(no_mounts())
    refresher.import_grant("linear", fields("http://127.0.0.1:9"))
    os.chown(refresher.state / "grants", 12345, -1)
    code, found = codes(refresher)
    assert (code, found) == (2, ["directory_refused"])


def test_an_unrelated_package_of_the_name_shim_is_found(refresher: Command) -> None:
    """If it failed, agents would import a package of PyPI, and nobody would see why they have no tokens."""
    beside = refresher.home / "packages"
    (beside / "shim-1.0.dist-info").mkdir(parents=True)
    (beside / "shim-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: shim\nVersion: 1.0\n")
    path = {"PYTHONPATH": str(beside)}
    assert codes(refresher, "--offline", environment=path) == (2, ["foreign_shim"])
    shutil.copytree(ROOT / "shim", beside / "shim")
    assert codes(refresher, "--offline", environment=path) == (2, ["foreign_shim"])
    shutil.rmtree(beside / "shim")
    (beside / "shim").mkdir()
    (beside / "shim/__init__.py").touch()
    done = refresher("doctor", environment=path)
    assert (done.code, done.stdout) == (2, "")
    assert "an unrelated package named shim" in done.stderr
    assert "pip uninstall shim" in done.stderr


def test_without_the_extra_for_logins_the_servers_are_not_checked(refresher: Command) -> None:
    """If it failed, the doctor would end with a traceback where only the service is installed."""
    refresher.import_grant("linear", fields("http://127.0.0.1:9"))
    refresher("run-once", "--horizon", "10m")
    fake = refresher.home / "packages/mcp"
    fake.mkdir(parents=True)
    (fake / "__init__.py").write_text("raise ModuleNotFoundError('No module named mcp', name='mcp')\n")
    path = {"PYTHONPATH": str(fake.parent)}
    assert codes(refresher, environment=path) == (1, ["servers_not_checked"])
    assert codes(refresher, "--offline", environment=path) == (0, [])


def test_an_expired_run_is_found_with_the_time_since(refresher: Command) -> None:
    """If it failed, a person would not see since when nobody refreshes."""
    refresher.import_grant("linear", fields("http://127.0.0.1:9"))
    assert refresher("run-once", "--horizon", "10m").code == 0
    os.utime(refresher.state / "last-run", (time.time() - 7300,) * 2)
    done = refresher("doctor", "--offline")
    assert (done.code, "nobody has refreshed for 2 h 1 min" in done.stdout) == (1, True), done.stdout


def test_one_cause_of_many_findings_does_not_hide_the_others(refresher: Command) -> None:
    """If it failed, a person would have to read a thousand findings to see two."""
    for number in range(15):
        refresher.bring(f"grant{number}", fields("http://127.0.0.1:9", str(number)))
        (refresher.state / f"grants/grant{number}.json").chmod(0o644)
    done = refresher("doctor", "--offline")
    assert (done.code, done.stdout.count("Mend: ")) == (2, 10)
    last = done.stdout.splitlines()[-1]
    assert last == "15 findings; 5 more of the same kinds are in 'refresher doctor --json'"
    assert len(codes(refresher, "--offline")[1]) == 15
