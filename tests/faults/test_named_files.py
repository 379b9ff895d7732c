"""Files that a person names (keys, certificates, configuration, imports) and that hang, have no end, or are huge."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from refresher.common import reading
from refresher.oauth.tls import ssl_context
from refresher.operations.rotate import Order, Terms, rotate
from refresher.storage import lock
from refresher.storage.file_store import FileStore
from tests.conftest import need
from tests.support import keys
from tests.support.assertion_server import Issuer
from tests.support.cli import GRANT
from tests.support.command import LONGEST, Command, wait_until
from tests.support.daemon import heard, published, running, stopped
from tests.support.parts import dead_mount, no_dead_mounts
from tests.support.token_server import TokenServer

WORDS = {
    "fifo": "it is not a regular file",
    "device": "it is not a regular file",
    "socket": "it is not a regular file",
    "huge": "it is larger than",
    "dead mount": "its file system does not answer",
}
UNREACHABLE = "https://127.0.0.1:9/token"


@contextmanager
def _spoilt(path: Path, kind: str) -> Iterator[None]:
    """Replace ``path`` by what a reader cannot read to its end; it is alone in its directory."""
    path.unlink(missing_ok=True)
    if kind == "dead mount":
        need(no_dead_mounts())
        with dead_mount(path.parent):
            yield
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            yield
    else:
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "device":
            path.symlink_to("/dev/zero")
        else:
            path.touch()
            os.truncate(path, 1 << 34)
        yield
    path.unlink(missing_ok=True)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory for one file."""
    made = tmp_path / "place"
    made.mkdir()
    return made


@pytest.mark.parametrize("kind", WORDS)
@pytest.mark.parametrize("what", ["private_key_file", "client_cert", "client_key", "ca_file", "SSL_CERT_FILE"])
def test_a_key_or_certificate_that_cannot_be_read_holds_no_rotation(
    refresher: Command, place: Path, what: str, kind: str
) -> None:
    """If it failed, a FIFO or a dead mount in place of a key would hold the lock of its grant for ever."""
    fields: dict[str, Any] = GRANT | {"token_endpoint": UNREACHABLE}
    named = place / "client.pem"
    options: tuple[str, ...] = ()
    environment: dict[str, str] = {}
    keys.certificate(refresher.home / "own.pem", "client")
    if what == "private_key_file":
        keys.key(named)
        fields |= {"private_key_file": str(named)}
    elif what in ("client_cert", "client_key"):
        own = refresher.home / ("own.pem" if what == "client_cert" else "own.key")
        named.write_bytes(own.read_bytes())
        paths = {"client_cert": refresher.home / "own.pem", "client_key": refresher.home / "own.key"} | {what: named}
        fields |= {key: str(path) for key, path in paths.items()}
    elif what == "ca_file":
        options = ("--ca-file", str(named))
    else:
        environment = {"SSL_CERT_FILE": str(named)}
    refresher.import_grant("linear", fields)
    with _spoilt(named, kind):
        done = refresher(*options, "run-once", environment=environment)
    assert f"{named}: {WORDS[kind]}" in done.stderr
    if what in ("ca_file", "SSL_CERT_FILE"):
        assert done.code == 2, done.stderr
    else:
        assert done.code == 4, done.stderr
        failure = refresher.grant("linear").failure
        assert failure is not None
        assert failure.outcome == "transient"
        assert failure.description.startswith("nothing was sent: cannot read ")


@pytest.mark.parametrize("kind", WORDS)
@pytest.mark.parametrize("what", ["configuration", "import", "client secret"])
def test_a_file_given_to_a_command_that_cannot_be_read_is_one_line(
    refresher: Command, place: Path, what: str, kind: str
) -> None:
    """If it failed, a command with a wrong path would hang, or read until the memory is full."""
    named = place / "named"
    command = {
        "configuration": ("--config", str(named), "status"),
        "import": ("import", "linear", "--from", str(named)),
        "client secret": (
            *("login", "linear", "https://mcp.example/mcp", "--no-browser", "--client-id", "client"),
            *("--client-secret-file", str(named), "--token-endpoint", UNREACHABLE),
            *("--authorization-endpoint", "https://127.0.0.1:9/authorize"),
        ),
    }[what]
    with _spoilt(named, kind):
        done = refresher(*command)
    assert done.code == 2, done.stderr
    assert f"{named}: {WORDS[kind]}" in done.stderr


@pytest.mark.parametrize("kind", [kind for kind in WORDS if kind != "dead mount"])
def test_an_entry_that_cannot_be_read_does_not_stop_the_import_of_a_directory(
    refresher: Command, place: Path, kind: str
) -> None:
    """If it failed, one FIFO in a mounted directory would keep every grant beside it from starting."""
    (place / "notion.json").write_text(json.dumps(GRANT))
    (place / "notion.json").chmod(0o600)
    with _spoilt(place / "linear.json", kind):
        done = refresher("import", "--from", str(place))
    (place / "notion.json").unlink()
    assert done.code == 2
    assert f"cannot read {place / 'linear.json'}: {WORDS[kind]}" in done.stderr
    assert done.stdout.startswith("imported notion")
    assert refresher.grant("notion").generation == 0


def test_a_directory_on_a_dead_mount_is_not_imported(refresher: Command, place: Path) -> None:
    """If it failed, a start-up script would wait for a mount that never answers."""
    need(no_dead_mounts())
    with dead_mount(place):
        done = refresher("import", "--from", str(place))
    assert done.code == 2
    assert f"cannot read {place}: {WORDS['dead mount']}" in done.stderr


@pytest.mark.parametrize("kind", ["fifo", "dead mount"])
def test_a_directory_of_certificates_that_cannot_be_read_holds_no_rotation(
    refresher: Command, place: Path, kind: str
) -> None:
    """If it failed, OpenSSL would wait in a connection for a certificate that never comes."""
    refresher.import_grant("linear", GRANT | {"token_endpoint": UNREACHABLE})
    with _spoilt(place / "0a1b2c3d.0", kind):
        done = refresher("run-once", environment={"SSL_CERT_DIR": str(place)})
    assert done.code == 2
    assert WORDS[kind] in done.stderr
    assert str(place) in done.stderr


@pytest.mark.parametrize("kind", ["fifo", "dead mount"])
def test_an_assertion_that_cannot_be_read_holds_no_rotation(refresher: Command, place: Path, kind: str) -> None:
    """If it failed, the volume of a workload's token would hold the lock of its grant for ever, when it hangs."""
    named = place / "token"
    named.write_text(Issuer().token(UNREACHABLE))
    about = {"grant_type": "jwt_bearer", "assertion_file": str(named), "server_url": "https://mcp.example/mcp"}
    refresher.import_grant("linear", {"token_endpoint": UNREACHABLE, **about})
    with _spoilt(named, kind):
        done = refresher("run-once")
    assert (done.code, f"cannot read the assertion {named}: {WORDS[kind]}" in done.stderr) == (4, True), done.stderr
    failure = refresher.grant("linear").failure
    assert failure is not None
    assert failure.code == "assertion_missing"


def test_a_dead_mount_is_waited_for_before_the_lock(refresher: Command, place: Path) -> None:
    """If it failed, every process would wait for the grant while one of them waits for a dead mount."""
    need(no_dead_mounts())
    keys.key(place / "key.pem")
    with TokenServer(lambda _: 3600) as server:
        grant = refresher.bring("linear", server.grant("client") | {"private_key_file": str(place / "key.pem")})
        store = FileStore(refresher.directories)
        results = []

        def rotate_it() -> None:
            terms = Terms(ca_file=None, stopping=lambda: False, lock_wait=LONGEST)
            results.append(rotate(store, Order(name="linear", seen=grant.generation), terms))

        rotating = threading.Thread(target=rotate_it, daemon=True)
        with dead_mount(place):
            refresher.directories.prepare()
            rotating.start()
            wait_until(lambda: bool(reading._calls), "the key is being read")
            with lock.held(refresher.directories.lock("linear"), stopping=lambda: False, wait=LONGEST):
                wait_until(lambda: any(call._overdue for call in reading._calls.values()), "the mount is given up")
                assert rotating.is_alive()
                assert not refresher.directories.intent("linear").exists()
            rotating.join(LONGEST)
        assert [result and result.outcome for result in results] == ["transient"]
        assert server.asked == {}
    wait_until(lambda: not any(call.is_alive() for call in reading._calls.values()), "no thread stays")


def test_a_daemon_on_a_dead_mount_rotates_the_others_and_stops(refresher: Command, place: Path) -> None:
    """If it failed, one dead mount would stop every rotation, the reload and the stop of a daemon."""
    need(no_dead_mounts())
    keys.key(place / "key.pem")
    with TokenServer(lambda _: 3600) as server:
        refresher.import_grant("linear", server.grant("one") | {"private_key_file": str(place / "key.pem")})
        refresher.import_grant("notion", server.grant("two"))
        with dead_mount(place), running(refresher) as process:
            wait_until(lambda: published(refresher, "notion") == 1, "the other grant is rotated")
            assert "does not answer" in heard(process, "linear: transient")[-1]
            (refresher.state / "demands/notion.1").touch()
            wait_until(lambda: published(refresher, "notion") == 2, "demands are still served")
            assert "lose" not in stopped(refresher, process)
        assert len(server.asked["one"]) == 0
        assert refresher("run-once", "--force", "linear").code == 0, "it goes on once the mount is there"


def test_a_stop_says_lost_only_if_something_was_sent(refresher: Command) -> None:
    """If it failed, an operator would fear for a token that was never sent, and not stop a process that hangs."""
    connected = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            connection, _ = listener.accept()
            connected.set()
            with connection:
                while connection.recv(65536):
                    pass  # no TLS handshake: the request is not sent

        threading.Thread(target=accept, daemon=True).start()
        port = listener.getsockname()[1]
        refresher.import_grant("linear", GRANT | {"token_endpoint": f"https://127.0.0.1:{port}/token"})
        with running(refresher) as process:
            assert connected.wait(LONGEST)
            process.send_signal(signal.SIGTERM)
            heard(process, "stopping: waiting for linear")
            process.send_signal(signal.SIGTERM)
            line = heard(process, "linear: still rotating")[-1]
            assert "nothing was sent, so nothing is lost" in line
            assert refresher.finish(process).code == 0


def test_a_bundle_with_comments_and_older_forms_of_pem_is_accepted(tmp_path: Path) -> None:
    """If it failed, the bundle of a distribution would not be accepted any more as a file of authorities."""
    keys.certificate(tmp_path / "one.pem", "one.example")
    keys.certificate(tmp_path / "two.pem", "two.example")
    older = (tmp_path / "two.pem").read_bytes().replace(b"CERTIFICATE", b"X509 CERTIFICATE")
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes("# Autorité de certification\n".encode() + (tmp_path / "one.pem").read_bytes() + older)
    (tmp_path / "link.pem").symlink_to(bundle)
    for path in (bundle, tmp_path / "link.pem"):
        assert ssl_context(str(path)).cert_store_stats()["x509"] == 2


def test_a_client_certificate_is_usable_by_any_user_and_leaves_no_copy() -> None:
    """If it failed, a service that is not root could not use its key, or a copy of the key would stay on a disk."""
    program = (
        "import ctypes, os, sys\n"
        "from refresher.oauth.tls import ssl_context\n"
        "os.getuid() or os.setresuid(65534, 65534, 65534)\n"
        "ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)\n"  # as the command does: no core dump
        "path, before = sys.argv[1], os.listdir('/proc/self/fd')\n"
        "ssl_context(path, client_cert=path, client_key=path.replace('.pem', '.key'))\n"
        "print(os.listdir('/proc/self/fd') == before, *sorted(os.listdir(os.environ['TMPDIR'])))\n"
    )
    with tempfile.TemporaryDirectory() as home:  # that of pytest is closed to other users
        keys.certificate(Path(home) / "own.pem", "client")
        if os.geteuid() == 0:
            for path in (Path(home), *Path(home).iterdir()):
                os.chown(path, 65534, 65534)
        done = subprocess.run(
            [sys.executable, "-c", program, str(Path(home) / "own.pem")],
            env=os.environ | {"TMPDIR": home},
            capture_output=True,
            text=True,
            check=False,
            timeout=LONGEST,
        )
    assert done.stdout == "True own.key own.pem\n", done.stderr
