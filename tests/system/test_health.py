"""Health of the daemon, as reported to HTTP probes, the health command and systemd."""

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

from refresher.daemon.readiness import Health
from tests.conftest import need
from tests.support.command import Command, wait_until
from tests.support.daemon import heard, in_mid_exchange, published, running, stopped
from tests.support.notified import Notified
from tests.support.oidc import OIDC
from tests.support.parts import mounted, no_mounts, no_strace
from tests.support.token_server import Gate, TokenServer
from tests.support.unreachable import LIVE, UNREACHABLE

Start = Callable[..., OIDC]

LISTEN = ("--listen", "127.0.0.1:0")


def where(process: subprocess.Popen[str]) -> str:
    """Return the HOST:PORT of the health endpoint, from the log."""
    found = re.search(r"http://(\S+)/healthz", heard(process, "/healthz")[-1])
    assert found is not None
    return found[1]


def page(address: str, name: str) -> tuple[int, dict[str, Any]]:
    """Send a request as a probe does."""
    answer = httpx.get(f"http://{address}/{name}", trust_env=False, verify=False, timeout=60)
    return answer.status_code, answer.json()


def is_ready(address: str) -> bool:
    """Whether a probe gets 200 from /readyz."""
    return page(address, "readyz")[0] == 200


def test_the_daemon_is_ready_once_every_grant_has_a_published_token(refresher: Command) -> None:
    """If it failed, agents would get work before they have a token, or never."""
    gate = Gate()
    with TokenServer(lambda _: 3600.0, hold=gate) as server:
        refresher.bring("linear", server.grant("linear"))
        with running(refresher, *LISTEN) as process:
            address = where(process)
            assert gate.reached.wait(90)
            wait_until(lambda: page(address, "healthz")[0] == 200, "it is live")
            status, body = page(address, "readyz")
            assert (status, body["waiting"], body["fresh"], body["live"]) == (503, ["linear"], 0, True)
            done = refresher("health", "--listen", address)
            assert done.code == 1
            assert "not ready: 0 of 1 grant fresh; waiting for a token: linear ('refresher status'" in done.stdout
            done = refresher("health", "--live", "--listen", address)
            assert (done.code, done.stdout.partition(":")[0]) == (0, "live"), "--live was ignored"
            gate.opened.set()
            wait_until(lambda: is_ready(address), "it is ready")
            assert refresher.token("linear").access_token is not None
            done = refresher("health", environment={"REFRESHER_LISTEN": address})
            assert (done.code, done.stdout) == (0, "ready: 1 of 1 grant fresh\n")
            assert json.loads(refresher("health", "--json", "--listen", address).stdout) == page(address, "healthz")[1]
            assert set(page(address, "healthz")[1]) == set(Health.__struct_fields__)
            stopped(refresher, process)


def test_the_daemon_is_not_ready_while_a_token_is_expired(refresher: Command) -> None:
    """If it failed, nobody would notice that agents have no valid token."""
    refresher.bring("short", {**UNREACHABLE, "access_token": "a-token-that-ends", "expires_in": 2})
    refresher.bring("long", {**LIVE, "refresh_token": "a-refresh-token-of-another"})
    with running(refresher, *LISTEN) as process:
        address = where(process)
        wait_until(lambda: page(address, "readyz")[1]["waiting"] == ["short"], "its token has expired")
        status, body = page(address, "readyz")
        assert (status, body["ready"], body["grants"], body["fresh"]) == (503, False, 2, 1)
        assert page(address, "healthz")[0] == 200, "a restart would not help"
        refresher("remove", "short")
        wait_until(lambda: is_ready(address), "a removed grant no longer counts")
        stopped(refresher, process)


def test_grants_that_need_a_person_are_listed_and_do_not_prevent_ready(refresher: Command, own_oidc: Start) -> None:
    """If it failed, one dead grant would take all agents out of service, or nobody would notice it."""
    server = own_oidc()
    fields = server.mint("public")
    refresher.import_grant("dead", fields)
    refresher.bring("good", LIVE)
    refresher.bring("broken", {**LIVE, "refresh_token": "a-refresh-token-of-a-third"})
    (refresher.state / "grants/broken.json").write_bytes(b"damaged")
    server.script(status=400, body={"error": "invalid_grant"})
    with running(refresher, *LISTEN) as process:
        address = where(process)
        wait_until(lambda: is_ready(address), "it is ready")
        body = page(address, "readyz")[1]
        assert (body["reauthorization_required"], body["invalid_grant_file"]) == (["dead"], ["broken"])
        assert (body["waiting"], body["grants"], body["fresh"]) == ([], 3, 1)
        done = refresher("health", "--listen", address)
        assert done.code == 0
        assert "needs a person: dead, broken ('refresher status' says why)" in done.stdout
        stopped(refresher, process)


def test_an_unpublished_token_does_not_count(refresher: Command) -> None:
    """If it failed, the daemon would be ready while agents have no token."""
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


def test_health_reports_that_no_refresher_answers(refresher: Command) -> None:
    """If it failed, a probe of the wrong port would succeed, or print a traceback."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        for arguments in (("--listen", address), ("--live", "--listen", address)):
            done = refresher("health", *arguments)
            assert (done.code, done.stderr) == (1, "")
            assert f"nothing answers at {address} (connection refused): is 'refresher run --listen" in done.stdout
        answer = json.loads(refresher("health", "--json", "--listen", address).stdout)
        assert (answer["live"], answer["ready"]) == (False, False)
        assert "nothing answers" in answer["problem"]
    with TokenServer(lambda _: 1.0) as other:
        done = refresher("health", "--listen", other.url.removeprefix("http://"))
        assert done.code == 1
        assert "is not refresher" in done.stdout


@pytest.mark.parametrize(
    "invalid",
    [
        *("9464", ":9464", "127.0.0.1", "::1:9464", "127.0.0.1:65536", "http://127.0.0.1:9464"),
        *("999.0.0.1:9464", "1.2.3.4.5:9464", "[::zz]:9464", "[1::2::3]:9464", "a..b:9464", f"{'a' * 64}.example:9464"),
    ],
)
def test_an_address_that_cannot_exist_is_one_line(refresher: Command, invalid: str) -> None:
    """If it failed, a daemon would try for ever to listen on a mistyped address."""
    done = refresher("run", "--listen", invalid)
    assert (done.code, done.stderr.count("\n")) == (2, 1)
    assert "--listen must be HOST:PORT" in done.stderr


def test_the_health_endpoint_serves_only_its_pages_and_only_reads(refresher: Command) -> None:
    """If it failed, the health endpoint could expose grants or change something."""
    refresher.bring("linear", LIVE)
    with running(refresher, *LISTEN) as process:
        address = where(process)
        wait_until(lambda: is_ready(address), "it is ready")
        url = f"http://{address}"
        with httpx.Client(trust_env=False, verify=False, timeout=60) as client:
            for path in ("/grants/linear.json", "/healthz/../grants/linear.json", "/healthz/", "/page/index.html"):
                assert client.get(f"{url}{path}").status_code == 404
            for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW"):
                assert client.request(method, f"{url}/readyz").status_code == 405
            head = client.head(f"{url}/readyz")
            assert (head.status_code, head.content) == (200, b"")
            answer = client.get(f"{url}/readyz?verbose")
            assert (answer.headers["content-type"], answer.headers["server"]) == ("application/json", "refresher")
            assert str(LIVE["access_token"]) not in answer.text
        stopped(refresher, process)


def test_silent_and_countless_connections_do_not_block_probes(refresher: Command) -> None:
    """If it failed, one bad client could cause endless restarts of refresher."""
    refresher.bring("linear", LIVE)
    with running(refresher, *LISTEN) as process:
        address = where(process)
        host, port = address.split(":")
        with ExitStack() as connections:
            for _ in range(100):
                connection = connections.enter_context(socket.create_connection((host, int(port))))
                connection.send(b"GET /healthz")

            def answered() -> bool:
                try:
                    return page(address, "healthz")[0] == 200
                except httpx.TransportError:
                    return False  # all connections are in use at the moment

            wait_until(answered, "the probe is answered while the others wait")
            assert len(list(Path(f"/proc/{process.pid}/task").iterdir())) < 80, "each connection got a thread"
            assert (process.poll(), refresher("health", "--live", "--listen", address).code) == (None, 0)
        stopped(refresher, process)


def test_a_reload_changes_the_address_once_the_new_one_can_be_used(refresher: Command) -> None:
    """If it failed, probes would get no answer after a reload."""
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
            heard(process, "cannot listen on")
            status, body = page(first, "healthz")
            assert (status, body["listening"]) == (200, False)
        second = where(process)
        assert page(second, "healthz")[0] == 200
        config.write_text(f'listen = "0.0.0.0:{second.rpartition(":")[2]}"\n')
        process.send_signal(signal.SIGHUP)
        assert where(process).startswith("0.0.0.0:"), "its own former address is no obstacle"
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


def test_a_stopping_daemon_answers_until_the_end(refresher: Command, own_oidc: Start) -> None:
    """If it failed, a failed probe could kill refresher while it saves a new token."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public"))
    with running(refresher, *LISTEN) as process:
        address = where(process)
        wait_until(lambda: published(refresher) == 1, "the first token is there")
        in_mid_exchange(refresher, server)
        process.send_signal(signal.SIGTERM)
        heard(process, "waiting for linear to finish")
        assert page(address, "healthz")[0] == 200
        server.release()
        assert refresher.finish(process).code == 0


# --- systemd ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_notified_of_start_reload_and_stop(refresher: Command, abstract: bool) -> None:
    """If it failed, a service of Type=notify would never start, or be killed during a reload."""
    refresher.bring("linear", LIVE)
    place: Path | str = f"@refresher-{refresher.home}" if abstract else refresher.home / "notify"
    with Notified(place) as systemd, running(refresher, environment=systemd.environment) as process:
        first = systemd.hear()
        assert first == {"READY": "1", "STATUS": "1 of 1 grant fresh"}
        assert "WATCHDOG" not in systemd.until("STATUS")[-1], "WATCHDOG_USEC is not set"
        process.send_signal(signal.SIGHUP)
        messages = systemd.until("RELOADING")
        assert int(messages[-1]["MONOTONIC_USEC"]) > 0
        assert "READY" in systemd.until("READY")[-1]
        process.send_signal(signal.SIGTERM)
        assert systemd.until("STOPPING")[-1]["STATUS"] == "stopping"
        assert refresher.finish(process).code == 0


def test_the_service_starts_while_a_server_is_unreachable(refresher: Command) -> None:
    """If it failed, refresher would not start on a machine that boots before its network."""
    refresher.bring("linear", UNREACHABLE)
    with Notified(refresher.home / "notify") as systemd, running(refresher, environment=systemd.environment) as process:
        assert systemd.hear()["READY"] == "1"
        assert "waiting for a token: linear" in systemd.until("STATUS")[-1]["STATUS"]
        stopped(refresher, process)


def test_a_stop_is_extended_until_the_new_token_is_saved(refresher: Command, own_oidc: Start) -> None:
    """If it failed, systemd would kill refresher before it has saved a new token."""
    server = own_oidc()
    refresher.import_grant("linear", server.mint("public"))
    with (
        Notified(refresher.home / "notify", watchdog=60.0) as systemd,
        running(refresher, environment=systemd.environment) as process,
    ):
        wait_until(lambda: published(refresher) == 1, "the first token is there")
        in_mid_exchange(refresher, server)
        process.send_signal(signal.SIGTERM)
        assert "waiting for linear to finish" in systemd.until("STOPPING")[-1]["STATUS"]
        extension = systemd.until("EXTEND_TIMEOUT_USEC")[-1]
        assert int(extension["EXTEND_TIMEOUT_USEC"]) >= 5_000_000
        assert extension["WATCHDOG"] == "1"
        server.release()
        assert refresher.finish(process).code == 0


def test_a_loop_that_hangs_sends_no_watchdog_notification(refresher: Command) -> None:
    """If it failed, systemd would never restart a refresher that hangs."""
    need(no_strace())
    refresher.bring("linear", LIVE)
    with (
        Notified(refresher.home / "notify", watchdog=0.9) as systemd,
        running(refresher, environment=systemd.environment) as process,
    ):
        systemd.until("WATCHDOG", "1")
        # Only the thread that scans hangs, in the kernel; all others continue.
        hang = ["strace", "-qq", "-o", "/dev/null", "-e", "inject=newfstatat:delay_enter=60s", "-p", str(process.pid)]
        with subprocess.Popen(hang, stderr=subprocess.DEVNULL) as strace:
            try:
                wait_until(lambda: systemd.hear(longest=3.0) == {}, "it sends nothing")
            finally:
                strace.kill()
        systemd.until("WATCHDOG", "1")
        stopped(refresher, process)


def test_an_invalid_notify_socket_is_ignored(refresher: Command) -> None:
    """If it failed, an environment inherited from another service would end the daemon."""
    for address in (str(refresher.home / "nobody"), "@nobody", "vsock:2:1234", ""):
        environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "invalid", "WATCHDOG_PID": "1"}
        with running(refresher, *LISTEN, environment=environment) as process:
            where(process)
            assert stopped(refresher, process).endswith(" refresher: stopped\n")
