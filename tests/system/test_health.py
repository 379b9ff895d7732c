"""How a daemon is: what probes over HTTP, the command and systemd are told."""

import json
import re
import signal
import socket
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from refresher.daemon.health import Health
from tests.conftest import need
from tests.support.command import Command, wait_until
from tests.support.daemon import heard, in_mid_exchange, published, running, stopped
from tests.support.notified import Notified
from tests.support.oidc import OIDC
from tests.support.parts import mounted, no_mounts, no_strace
from tests.support.token_server import Gate, TokenServer

Start = Callable[..., OIDC]

LISTEN = ("--listen", "127.0.0.1:0")
AWAY = {
    "token_endpoint": "http://127.0.0.1:9/token",
    "client_id": "client",
    "refresh_token": "a-refresh-token-of-nobody",
    "server_url": "https://mcp.example/mcp",
}
LIVE = {**AWAY, "access_token": "an-access-token-of-nobody", "expires_in": 3600}


def where(process: subprocess.Popen[str]) -> str:
    """Return the HOST:PORT at which a daemon says that it can be asked."""
    found = re.search(r"http://(\S+)/healthz", heard(process, "how it is can be asked")[-1])
    assert found is not None
    return found[1]


def page(address: str, name: str) -> tuple[int, dict[str, Any]]:
    """Fetch a page as a probe does."""
    answer = httpx.get(f"http://{address}/{name}", trust_env=False)
    return answer.status_code, answer.json()


def is_ready(address: str) -> bool:
    """Whether a probe would call it ready."""
    return page(address, "readyz")[0] == 200


def test_ready_once_each_grant_has_a_token_that_readers_see(refresher: Command) -> None:
    """If it failed, agents would be sent work before there is a token for them, or never."""
    gate = Gate()
    with TokenServer(lambda _: 3600.0, hold=gate) as server:
        refresher.bring("linear", server.grant("linear"))
        with running(refresher, *LISTEN) as process:
            address = where(process)
            assert gate.reached.wait(30)
            wait_until(lambda: page(address, "healthz")[0] == 200, "the loops turn")
            status, body = page(address, "readyz")
            assert (status, body["waiting"], body["fresh"], body["live"]) == (503, ["linear"], 0, True)
            asked = refresher("health", "--listen", address)
            assert asked.code == 1
            assert "not ready: 0 of 1 grant fresh; waiting for a token: linear ('refresher status'" in asked.stdout
            asked = refresher("health", "--live", "--listen", address)
            assert (asked.code, asked.stdout.partition(":")[0]) == (0, "live"), "not what it was asked"
            gate.opened.set()
            wait_until(lambda: is_ready(address), "it is ready")
            assert refresher.token("linear").access_token is not None
            asked = refresher("health", environment={"REFRESHER_LISTEN": address})
            assert (asked.code, asked.stdout) == (0, "ready: 1 of 1 grant fresh\n")
            assert json.loads(refresher("health", "--json", "--listen", address).stdout) == page(address, "healthz")[1]
            assert set(page(address, "healthz")[1]) == set(Health.__struct_fields__)
            stopped(refresher, process)


def test_not_ready_while_a_token_has_ended_and_its_server_is_away(refresher: Command) -> None:
    """If it failed, nobody would be told that agents have nothing left to work with."""
    refresher.bring("short", {**AWAY, "access_token": "a-token-that-ends", "expires_in": 2})
    refresher.bring("long", {**LIVE, "refresh_token": "a-refresh-token-of-another"})
    with running(refresher, *LISTEN) as process:
        address = where(process)
        wait_until(lambda: page(address, "readyz")[1]["waiting"] == ["short"], "its token has ended")
        status, body = page(address, "readyz")
        assert (status, body["ready"], body["grants"], body["fresh"]) == (503, False, 2, 1)
        assert page(address, "healthz")[0] == 200, "nothing is gained by restarting it"
        refresher("remove", "short")
        wait_until(lambda: is_ready(address), "who is removed is not waited for")
        stopped(refresher, process)


def test_what_needs_a_person_is_named_and_keeps_nobody_from_being_ready(refresher: Command, own_oidc: Start) -> None:
    """If it failed, one dead login would have all agents taken out of service, or nobody would hear of it."""
    server = own_oidc()
    fields = server.mint("public")
    refresher.import_grant("dead", fields)
    refresher.bring("good", LIVE)
    refresher.bring("broken", {**LIVE, "refresh_token": "a-refresh-token-of-a-third"})
    (refresher.state / "grants/broken.json").write_bytes(b"rubbish")
    server.script(status=400, body={"error": "invalid_grant"})
    with running(refresher, *LISTEN) as process:
        address = where(process)
        wait_until(lambda: is_ready(address), "it is ready")
        body = page(address, "readyz")[1]
        assert (body["reauthorization_required"], body["invalid_grant_file"]) == (["dead"], ["broken"])
        assert (body["waiting"], body["grants"], body["fresh"]) == ([], 3, 1)
        asked = refresher("health", "--listen", address)
        assert asked.code == 0
        assert "waiting for a person: dead, broken ('refresher status' says why)" in asked.stdout
        stopped(refresher, process)


def test_a_token_that_cannot_be_published_is_none(refresher: Command) -> None:
    """If it failed, all would be called well while agents cannot see a token."""
    need(no_mounts())
    tokens = refresher.home / "tokens"
    with mounted(tokens, "size=4k,nr_inodes=8"):
        (tokens / "filler").write_bytes(b"x" * 4096)
        refresher.bring("linear", LIVE)
        options = ("--tokens-dir", str(tokens))
        with running(refresher, *LISTEN, options=options) as process:
            address = where(process)
            wait_until(lambda: page(address, "readyz")[1]["waiting"] == ["linear"], "it is not published")
            (tokens / "filler").unlink()
            wait_until(lambda: is_ready(address), "there is room")
            stopped(refresher, process)


def test_nobody_and_somebody_else_are_told_from_a_refresher(refresher: Command) -> None:
    """If it failed, a probe of the wrong port would say that all is well, or end in a trace."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        for arguments in (("--listen", address), ("--live", "--listen", address)):
            done = refresher("health", *arguments)
            assert (done.code, done.stderr) == (1, "")
            assert f"nobody answers at {address} (Connection refused): does 'refresher run --listen" in done.stdout
        told = json.loads(refresher("health", "--json", "--listen", address).stdout)
        assert (told["live"], told["ready"]) == (False, False)
        assert "nobody answers" in told["problem"]
    with TokenServer(lambda _: 1.0) as other:
        done = refresher("health", "--listen", other.url.removeprefix("http://"))
        assert done.code == 1
        assert "is no refresher" in done.stdout


def test_an_address_that_cannot_be_had_is_one_line(refresher: Command) -> None:
    """If it failed, a daemon would run that every probe calls dead."""
    with running(refresher, *LISTEN) as process:
        done = refresher("run", "--listen", where(process))
        assert done.code == 2
        assert "cannot listen on 127.0.0.1:" in done.stderr
        assert done.stderr.count("\n") == 1
        stopped(refresher, process)
    for wrong in ("9464", ":9464", "127.0.0.1", "::1:9464", "127.0.0.1:65536", "http://127.0.0.1:9464"):
        done = refresher("run", "--listen", wrong)
        assert (done.code, done.stderr.count("\n")) == (2, 1)
        assert "--listen must be HOST:PORT" in done.stderr


def test_only_two_pages_by_reading_alone(refresher: Command) -> None:
    """If it failed, what is meant for probes could do more than answer them."""
    refresher.bring("linear", LIVE)
    with running(refresher, *LISTEN) as process:
        address = where(process)
        wait_until(lambda: is_ready(address), "it is ready")
        url = f"http://{address}"
        with httpx.Client(trust_env=False) as client:
            assert client.get(f"{url}/").status_code == 404
            assert client.get(f"{url}/healthz/../grants/linear.json").status_code == 404
            assert client.post(f"{url}/readyz").status_code == 501
            head = client.head(f"{url}/readyz")
            assert (head.status_code, head.content) == (200, b"")
            answer = client.get(f"{url}/readyz?verbose")
            assert (answer.headers["content-type"], answer.headers["server"]) == ("application/json", "refresher")
            assert "an-access-token-of-nobody" not in answer.text
        stopped(refresher, process)


def test_who_says_nothing_or_opens_connections_without_end_keeps_no_probe_waiting(refresher: Command) -> None:
    """If it failed, one bad neighbour could have the refresher restarted again and again."""
    refresher.bring("linear", LIVE)
    with running(refresher, *LISTEN) as process:
        address = where(process)
        host, port = address.split(":")
        with ExitStack() as open_ones:
            for _ in range(100):
                connection = open_ones.enter_context(socket.create_connection((host, int(port))))
                connection.send(b"GET /healthz")

            def answered() -> bool:
                try:
                    return page(address, "healthz")[0] == 200
                except httpx.TransportError:
                    return False  # all places are taken for this moment

            wait_until(answered, "it is answered though the others still wait")
            assert len(list(Path(f"/proc/{process.pid}/task").iterdir())) < 80, "each connection has cost threads"
            assert (process.poll(), refresher("health", "--live", "--listen", address).code) == (None, 0)
        stopped(refresher, process)


def test_a_reload_moves_to_another_address_and_stays_where_that_cannot_be_had(refresher: Command) -> None:
    """If it failed, a changed configuration would leave probes without an answer."""
    config = refresher.home / ".config/refresher/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('listen = "127.0.0.1:0"\n')
    with running(refresher) as process:
        first = where(process)
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            config.write_text(f'listen = "127.0.0.1:{taken.getsockname()[1]}"\n')
            process.send_signal(signal.SIGHUP)
            heard(process, "the configuration is kept as it was: cannot listen on")
            assert page(first, "healthz")[0] == 200
        config.write_text('listen = "[::1]:0"\n')
        process.send_signal(signal.SIGHUP)
        second = where(process)
        assert second.startswith("[::1]:")
        assert page(second, "healthz")[0] == 200
        with pytest.raises(httpx.ConnectError):
            page(first, "healthz")
        config.write_text(f'listen = "{second}"\n')
        assert refresher("health").code == 0, "the command reads the same configuration"
        stopped(refresher, process)


def test_a_daemon_that_is_stopped_answers_to_the_end(refresher: Command, own_oidc: Start) -> None:
    """If it failed, a probe could have a refresher killed while it saves a new token."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public"))
    with running(refresher, *LISTEN) as process:
        address = where(process)
        wait_until(lambda: published(refresher) == 1, "the first token is there")
        in_mid_exchange(refresher, server)
        process.send_signal(signal.SIGTERM)
        heard(process, "first linear is finished")
        assert page(address, "healthz")[0] == 200
        server.release()
        assert refresher.finish(process).code == 0


# --- systemd ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_hears_that_it_is_ready_reads_again_and_stops(refresher: Command, abstract: bool) -> None:
    """If it failed, a service of Type=notify would never count as started, or be killed in a reload."""
    refresher.bring("linear", LIVE)
    place: Path | str = f"@refresher-{refresher.home}" if abstract else refresher.home / "notify"
    with Notified(place) as systemd, running(refresher, environment=systemd.environment) as process:
        first = systemd.hear()
        assert first == {"READY": "1", "STATUS": "1 of 1 grant fresh"}
        assert "WATCHDOG" not in systemd.until("STATUS")[-1], "nobody asked for it"
        process.send_signal(signal.SIGHUP)
        said = systemd.until("RELOADING")
        assert int(said[-1]["MONOTONIC_USEC"]) > 0
        assert "READY" in systemd.until("READY")[-1]
        process.send_signal(signal.SIGTERM)
        assert systemd.until("STOPPING")[-1]["STATUS"] == "stopping"
        assert refresher.finish(process).code == 0


def test_a_server_that_is_away_keeps_no_service_from_starting(refresher: Command) -> None:
    """If it failed, a machine that starts before its network would end up without a refresher."""
    refresher.bring("linear", AWAY)
    with Notified(refresher.home / "notify") as systemd, running(refresher, environment=systemd.environment) as process:
        assert systemd.hear()["READY"] == "1"
        assert "waiting for a token: linear" in systemd.until("STATUS")[-1]["STATUS"]
        stopped(refresher, process)


def test_a_new_token_that_no_disk_takes_yet_is_not_killed_by_a_time_out(refresher: Command, own_oidc: Start) -> None:
    """If it failed, systemd would kill a refresher that still has something to save."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public"))
    with (
        Notified(refresher.home / "notify", watchdog=60.0) as systemd,
        running(refresher, environment=systemd.environment) as process,
    ):
        wait_until(lambda: published(refresher) == 1, "the first token is there")
        in_mid_exchange(refresher, server)
        process.send_signal(signal.SIGTERM)
        assert "first linear is finished" in systemd.until("STOPPING")[-1]["STATUS"]
        plea = systemd.until("EXTEND_TIMEOUT_USEC")[-1]
        assert int(plea["EXTEND_TIMEOUT_USEC"]) >= 5_000_000
        assert plea["WATCHDOG"] == "1"
        server.release()
        assert refresher.finish(process).code == 0


def test_the_watchdog_hears_nothing_from_a_loop_that_stands_still(refresher: Command) -> None:
    """If it failed, a refresher that hangs would be called alive for ever."""
    need(no_strace())
    refresher.bring("linear", LIVE)
    with (
        Notified(refresher.home / "notify", watchdog=0.9) as systemd,
        running(refresher, environment=systemd.environment) as process,
    ):
        systemd.until("WATCHDOG", "1")
        # Only the thread that looks around hangs, in the kernel; all others go on.
        hang = ["strace", "-qq", "-o", "/dev/null", "-e", "inject=newfstatat:delay_enter=60s", "-p", str(process.pid)]
        with subprocess.Popen(hang, stderr=subprocess.DEVNULL) as strace:
            try:
                wait_until(lambda: systemd.hear(longest=3.0) == {}, "it says nothing any more")
            finally:
                strace.kill()
        systemd.until("WATCHDOG", "1")
        stopped(refresher, process)


def test_a_service_manager_that_is_gone_is_no_trouble(refresher: Command) -> None:
    """If it failed, an environment inherited from somebody else's service would end the daemon."""
    for address in (str(refresher.home / "nobody"), "@nobody", "vsock:2:1234", ""):
        environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "rubbish", "WATCHDOG_PID": "1"}
        with running(refresher, *LISTEN, environment=environment) as process:
            where(process)
            assert stopped(refresher, process) == "refresher: stopped\n"
