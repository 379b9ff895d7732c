"""A real PostgreSQL on loopback for tests: Debian's programs, as the user ``postgres`` if this user is root."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg

FAST = "fsync=off", "full_page_writes=off"

_GUARD = 'read -r _; kill -QUIT "$(head -n 1 "$0/data/postmaster.pid")"; rm -rf "$0"'
"""Ends a server whose test process was killed: its end of the pipe closes then."""


def find_binaries() -> Path | None:
    """Return the directory of initdb and pg_ctl; ``None`` without PostgreSQL."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    found = shutil.which("initdb")
    return versions[-1].parent if versions else Path(found).parent if found else None


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


class Cluster:
    """A server with a data directory of its own."""

    def __init__(self, root: Path, *settings: str, user: str | None = None) -> None:
        binaries = find_binaries()
        assert binaries is not None
        self._binaries = binaries
        self.root = root
        self.port = free_port()
        self._settings = settings
        self._user = user
        self.data = root / "data"

    def create(self) -> None:
        """Make the data directory: a superuser ``owner`` without a password, on loopback only."""
        self.run("initdb", "-D", str(self.data), "-U", "owner", "-A", "trust", "-E", "UTF8", "--no-sync")

    def start(self) -> None:
        options = [f"port={self.port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={self.root}"]
        words = " ".join(f"-c {option}" for option in (*options, *self._settings))
        self.run("pg_ctl", "-D", str(self.data), "-l", str(self.root / "log"), "-w", "-t", "60", "-o", words, "start")

    def stop(self, mode: str = "immediate") -> None:
        self.run("pg_ctl", "-D", str(self.data), "-w", "-t", "60", "-m", mode, "stop")

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop every process of the server, as a disk does that does not answer: connections stay, and nothing comes."""
        main = int((self.data / "postmaster.pid").read_text().split()[0])
        os.kill(main, signal.SIGSTOP)  # first, so that it starts no other
        children = Path(f"/proc/{main}/task/{main}/children").read_text().split()
        try:
            for child in children:
                os.kill(int(child), signal.SIGSTOP)
            yield
        finally:
            for process in (*map(int, children), main):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGCONT)

    def copy_of(self, primary: "Cluster") -> None:
        """Make the data directory of a standby of ``primary``, which must run."""
        source = f"host=127.0.0.1 port={primary.port} user=owner application_name=standby"
        self.run("pg_basebackup", "-D", str(self.data), "-d", source, "-R", "-c", "fast", "--no-sync", "-X", "stream")

    def promote(self) -> None:
        self.run("pg_ctl", "-D", str(self.data), "-w", "-t", "60", "promote")

    def url(self, database: str = "postgres", user: str = "owner", port: int | None = None) -> str:
        return f"postgresql://{user}@127.0.0.1:{port or self.port}/{database}"

    def run(self, program: str, *arguments: str) -> str:
        owner = None if self._user is None else pwd.getpwnam(self._user)
        done = subprocess.run(
            [str(self._binaries / program), *arguments],
            user=None if owner is None else owner.pw_uid,
            group=None if owner is None else owner.pw_gid,
            cwd=self.root,
            env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run one statement as the superuser, and return its rows."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    @contextmanager
    def database(self, template: str = "template1") -> Iterator[str]:
        """Make a database for one test, and return its URL."""
        name = f"test_{uuid.uuid4().hex[:12]}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        try:
            yield self.url(name)
        finally:
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def running(*settings: str, standby_of: Cluster | None = None) -> Iterator[Cluster]:
    """Make and start a server, or a standby of another; stop it and remove it at the end."""
    user = "postgres" if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="postgres-") as place:
        root = Path(place)
        if user is not None:
            shutil.chown(root, user)
        cluster = Cluster(root, *settings, user=user)
        if standby_of is None:
            cluster.create()
        else:
            cluster.copy_of(standby_of)
        guard = subprocess.Popen(["/bin/sh", "-c", _GUARD, root], stdin=subprocess.PIPE, start_new_session=True)
        try:
            cluster.start()
            yield cluster
        finally:
            guard.kill()
            guard.communicate()
            if (cluster.data / "postmaster.pid").exists():
                cluster.stop()
