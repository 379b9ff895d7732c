"""Sealed grants in a database: no secret is in the clear, and hosts of agents need their own key only."""

import json
import os
import signal
import uuid
from pathlib import Path
from typing import Any

import msgspec
import pytest

from refresher.common.secret import Secret
from refresher.grants.encoding import decode, encode
from refresher.grants.record import Grant
from refresher.storage.keys import KeyRing, Source
from refresher.storage.postgres import spills
from refresher.storage.postgres.postgres_store import PostgresStore
from tests.support.command import Command, wait_until
from tests.support.daemon import heard, running, stopped
from tests.support.fake_state import directories
from tests.support.fleet import import_grant, spill
from tests.support.sealed import make_key, use_keys
from tests.support.site import Site
from tests.support.token_server import Gate, TokenServer


def dumped(site: Site) -> bytes:
    """Return all bytes of the database that may hold a secret."""
    rows = site.execute("SELECT bytes, published FROM refresher.record")
    rows += site.execute("SELECT bytes, NULL FROM refresher.orphan")
    return b"".join(bytes(value) for row in rows for value in row if value is not None)


def in_the_clear(site: Site, server: TokenServer) -> list[str]:
    data = dumped(site)
    return [token[:4] for token in server.tokens() if token.encode() in data]


def with_keys(site: Site, name: str, records: Command | None = None, published: str | None = None) -> Command:
    """Return a host with the keys of ``records``, or the key for what is published alone."""
    host = site.host(name)
    for variable, value in {} if records is None else records.environment.items():
        if variable.endswith("_KEY"):
            host.environment[variable] = value
    if published is not None:
        host.environment["REFRESHER_PUBLISHED_KEY"] = published
    return host


def test_a_sealed_grant_of_a_database_rotates_and_is_mirrored(site: Site) -> None:
    """If it failed, a dump of the database would hold refresh tokens, or hosts of agents would need their key."""
    owner = site.host("a")
    with TokenServer(lambda _: 3600, grace=0) as server:
        owner.import_grant("linear", server.grant("linear"))
        owner.import_grant("github", server.grant("github"))
        assert owner("run-once").code == 0
        orphan = str(uuid.uuid4())
        site.execute("INSERT INTO refresher.orphan VALUES (%s, 'linear', NULL, %s, 'words')", orphan, b"an answer")
        assert len(in_the_clear(site, server)) >= 4
        use_keys(owner, make_key(owner.home, "records"))
        owner.environment["REFRESHER_PUBLISHED_KEY"] = f"file:{make_key(owner.home, 'published')}"
        done = owner("encryption", "enable")
        assert (done.code, done.stdout) == (0, "sealed: 2 grants, 2 of them by this run\n"), done.stderr
        assert in_the_clear(site, server) == []
        assert owner("run-once", "--force").code == 0
        assert in_the_clear(site, server) == []
        assert owner("encryption", "status").code == 0
        assert b"an answer" not in dumped(site)
        assert owner("encryption", "show", orphan).stdout == "an answer"
        assert owner("encryption", "show", str(uuid.uuid4())).code == 2
        mirror = with_keys(site, "b", published=owner.environment["REFRESHER_PUBLISHED_KEY"])
        process = mirror.start("mirror")
        wait_until(lambda: (mirror.tokens / "linear.json").exists(), "the mirror publishes")
        log = stopped(mirror, process)
        assert mirror.token("linear").access_token == owner.token("linear").access_token, log
        blind = with_keys(site, "c")
        process = blind.start("mirror")
        errors = process.stderr
        assert errors is not None
        lines = iter(errors.readline, "")
        assert any("cannot be opened" in line for line in lines)
        stopped(blind, process)
        assert not list(blind.tokens.glob("*.json"))
        # A host without the key of the records claims none of them, and leaves them to others.
        done = mirror("run-once", "--force", "linear", "--json")
        assert done.outcome == "invalid_grant_file"
        assert server.reused == 0


def test_a_key_of_a_database_is_replaced_while_an_answer_is_on_its_way(site: Site) -> None:
    """If it failed, a change of the key during an exchange would lose the new refresh token (I6)."""
    gate = Gate()
    owner = site.host("a")
    first = make_key(owner.home, "first")
    use_keys(owner, first)
    with TokenServer(lambda _: 3600, gate, grace=0) as server:
        gate.opened.set()
        owner.import_grant("linear", server.grant("linear"))
        assert owner("run-once").code == 0
        gate.opened.clear()
        process = owner.start("run-once", "--force", "--json")
        wait_until(lambda: len(server.asked["linear"]) == 2, "the request is at the server")
        data = site.execute("SELECT bytes FROM refresher.record")[0][0]
        # As another host writes it: the same record with another nonce.
        other = with_keys(site, "b", owner)
        stored = decode(bytes(data), "linear", other.directories.keys)
        assert stored.record is not None
        site.execute("UPDATE refresher.record SET bytes = %s", encode(stored.record, other.directories.keys)[0])
        gate.opened.set()
        done = owner.finish(process)
        assert done.outcome == "rotated"
        use_keys(owner, make_key(owner.home, "second"), first)
        done = owner("encryption", "rekey")
        assert done.code == 0, done.stderr
        use_keys(owner, owner.home / "second.key")
        assert owner("run-once", "--force", "--json").outcome == "rotated"
        use_keys(owner, None, owner.home / "second.key")
        assert owner("encryption", "disable").code == 0
        assert server.live("linear")
        assert all(token.encode() in dumped(site) for token in server.live("linear"))
        assert server.reused == 0


def test_a_spill_is_sealed_and_waits_for_its_key(site: Site, tmp_path: Path) -> None:
    """If it failed, an answer that the database did not take would lie in the clear, or be lost without its key."""
    made = directories(tmp_path / "own")
    key = Source("file", str(make_key(tmp_path, "first")))
    sealed = PostgresStore(site.url, msgspec.structs.replace(made, keys=KeyRing(key)))
    blind = PostgresStore(site.url, made)
    with TokenServer(lambda _: 3600) as server:
        grant = import_grant(sealed, server)
        new = "a-refresh-token-that-is-new"
        path = spill(sealed.directories, grant, new)
        assert new.encode() not in path.read_bytes()
        assert [each.problem.split(": ")[0] for each in blind.commit_spills()] == [str(path)]
        # Its writing may have been cut off, long ago; without the key, nobody knows.
        new_name = path.rename(path.with_suffix(spills.INCOMPLETE))
        os.utime(new_name, (0, 0))
        assert [each.problem.split(": ")[0] for each in blind.commit_spills()] == [str(new_name)]
        assert new_name.exists()
        assert sealed.commit_spills() == []
        assert not new_name.exists()
        stored = sealed.load("linear").record
        assert isinstance(stored, Grant)
        assert stored.refresh_token == Secret(new)
    for store in (sealed, blind):
        store.close()


def test_a_daemon_with_a_database_takes_its_keys_with_sighup(site: Site) -> None:
    """If it failed, it would refuse the new configuration, or a host would rotate what it cannot open any more."""
    owner = site.host("a")
    config = owner.home / ".config/refresher/config.toml"
    config.parent.mkdir(parents=True)
    config.touch()
    with TokenServer(lambda _: 3600, grace=0) as server:
        owner.import_grant("linear", server.grant("linear"))
        with running(owner) as process:
            wait_until(lambda: len(server.asked["linear"]) == 1, "the daemon rotates")
            config.write_text(f'encryption_key = "file:{make_key(owner.home, "first")}"\n')
            process.send_signal(signal.SIGHUP)
            heard(process, "configuration reloaded")
            wait_until(lambda: (owner.tokens / "linear.json").exists(), "the daemon publishes")
            before = owner.token("linear").generation
            (owner.directories.demands / f"linear.{before}").mkdir()
            wait_until(lambda: owner.token("linear").generation > before, "the daemon rotates and publishes")
            stopped(owner, process)
        assert in_the_clear(site, server) == []


def test_a_run_names_the_spill_that_it_cannot_store(site: Site) -> None:
    """If it failed, cron would be silent while the only copy of a token lies in a damaged file."""
    host = site.host("a")
    with TokenServer(lambda _: 3600) as server:
        host.import_grant("linear", server.grant("linear"))
        path = spill(host.directories, site.grant("linear"), "a-refresh-token-that-is-new")
        path.write_bytes(path.read_bytes()[:-9])
        done = host("run-once", "--json")
        assert [(each["name"], each["outcome"]) for each in json.loads(done.stdout)["results"]] == [
            ("linear", "invalid_grant_file")
        ]
        assert str(path) in done.stderr
        assert done.code == 2
        assert server.asked == {}


@pytest.mark.parametrize("program", ["run", "mirror"])
def test_a_host_that_can_open_nothing_is_not_ready(site: Site, program: str) -> None:
    """If it failed, a host whose key is wrong would be in service, and publish no token."""
    owner = site.host("a")
    use_keys(owner, make_key(owner.home, "first"))
    with TokenServer(lambda _: 3600, grace=0) as server:
        owner.import_grant("linear", server.grant("linear"))
        assert owner("run-once").code == 0
        blind = site.host("b")
        process = blind.start(program)

        def health() -> dict[str, Any]:
            shown: dict[str, Any] = json.loads(blind("health", "--json").stdout)
            return shown

        wait_until(lambda: "linear" in health().get("invalid_grant_file", ()), "the host says so")
        assert (health()["ready"], health()["grants"], health()["fresh"]) == (False, 1, 0)
        stopped(blind, process)
        assert blind("status", "--exit-code").code == 2
        if program == "run":
            assert "invalid_grant_file" in blind("events").stdout
        assert owner("status", "--exit-code").code == 0
