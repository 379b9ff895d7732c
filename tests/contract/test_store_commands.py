"""The commands store init and store check, against a real PostgreSQL, and how a password and a certificate reach it."""

import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from refresher.doctor.database import judge_content, judge_server
from refresher.storage.postgres import migrations
from refresher.storage.postgres.facts import Content, Orphan, ServerFacts
from tests.conftest import need
from tests.support.command import Command, wait_until
from tests.support.deployed import settings
from tests.support.documents import ROOT, block
from tests.support.keys import certificate
from tests.support.notified import Notified
from tests.support.postgres import Cluster, find_binaries, running
from tests.support.token_server import TokenServer
from tests.support.vault import Vault

GOOD = ServerFacts(
    place="PostgreSQL at db.example",
    version="16.3",
    database="refresher",
    role="refresher",
    local=False,
    tls=True,
    verified=True,
    pooled=False,
    recovering=False,
    read_only=False,
    fsync=True,
    full_page_writes=True,
    logs_parameters=False,
    synchronous_commit="on",
    synchronous_standbys="ANY 1 (a, b)",
    standbys=2,
    clock_difference=0.1,
    schema=migrations.LATEST,
    owner="refresher",
    missing_rights=(),
    refreshers=("refresher",),
    mirrors=("host-a",),
)

EMPTY = Content(
    grants=0,
    moved=0,
    due=0,
    held=0,
    epoch_known=True,
    heartbeat_seconds=1.0,
    sampled=0,
    in_doubt=0,
    contradictions=(),
    orphans=(),
    orphan_count=0,
)


@pytest.fixture
def url(postgres: Cluster) -> Iterator[str]:
    """An empty database on a server that is fast and not safe."""
    with postgres.database() as found:
        yield found


@pytest.fixture(scope="module")
def safe() -> Iterator[Cluster]:
    """A server as it comes, with TLS for ``localhost``, which asks the role ``secret`` for a password."""
    need(None if find_binaries() else "PostgreSQL is not installed: apt-get install postgresql")
    with running() as cluster:
        certificate(cluster.root / "server.pem", "localhost")
        for name, place in (("server.pem", "server.crt"), ("server.key", "server.key")):
            shutil.copy(cluster.root / name, cluster.data / place)
            status = cluster.data.stat()
            shutil.chown(cluster.data / place, status.st_uid, status.st_gid)
            (cluster.data / place).chmod(0o600)
        (cluster.root / "server.pem").chmod(0o644)
        access = cluster.data / "pg_hba.conf"
        access.write_text(f"host all secret 127.0.0.1/32 scram-sha-256\n{access.read_text()}")
        cluster.execute("CREATE ROLE secret LOGIN PASSWORD 'the-password-of-the-database'")
        cluster.execute("ALTER SYSTEM SET ssl = on")
        cluster.execute("SELECT pg_reload_conf()")
        yield cluster


def codes(refresher: Command, url: str, *, command: tuple[str, ...] = ("store", "check")) -> tuple[int, list[str]]:
    """Return the exit code, and the codes of the findings."""
    done = refresher(*command, "--json", environment={"REFRESHER_STORE": url})
    answer = json.loads(done.stdout)
    assert answer["exit_code"] == done.code
    return done.code, [finding["code"] for finding in answer["findings"]]


def test_init_makes_the_schema_once(refresher: Command, url: str, postgres: Cluster) -> None:
    """If it failed, a second start would fail, or make the tables again."""
    environment = {"REFRESHER_STORE": url}
    before = refresher("run-once", "linear", environment=environment)
    assert before.code == 2 or "refresher store init" in before.stderr
    first = refresher("store", "init", environment=environment)
    assert (first.code, first.stdout.count("\n")) == (0, 1), first.stderr
    assert f"has version {migrations.LATEST} of the schema now" in first.stdout
    second = refresher("store", "init", environment=environment)
    assert "already" in second.stdout
    third = refresher("store", "init", "--json", environment=environment)
    assert json.loads(third.stdout) == {"version": migrations.LATEST, "applied": []}
    name = url.rpartition("/")[2]
    assert postgres.execute("SELECT count(*) FROM refresher.version", name) == [(migrations.LATEST,)]


def test_several_init_at_once_make_the_schema_once(refresher: Command, url: str) -> None:
    """If it failed, hosts that start together would stop each other."""
    started = [refresher.start("store", "init", "--json", environment={"REFRESHER_STORE": url}) for _ in range(4)]
    done = [refresher.finish(process) for process in started]
    assert [each.code for each in done] == [0] * 4, [each.stderr for each in done]
    applied = [json.loads(each.stdout)["applied"] for each in done]
    assert sorted(applied, key=len) == [[], [], [], [*range(1, migrations.LATEST + 1)]]


def test_a_role_that_may_not_create_finds_a_schema_that_is_complete(
    refresher: Command, url: str, postgres: Cluster
) -> None:
    """If it failed, the role of a refresher would need the rights of an administrator to start."""
    name = url.rpartition("/")[2]
    role = f"limited_{name}"
    assert refresher("store", "init", environment={"REFRESHER_STORE": url}).code == 0
    postgres.execute(f"CREATE ROLE {role} LOGIN", name)
    try:
        own = url.replace("owner@", f"{role}@")
        assert "database_rights" in codes(refresher, own)[1]
        advice = json.loads(refresher("store", "check", "--json", "--store", own).stdout)
        (mend,) = [each["mend"] for each in advice["findings"] if each["code"] == "database_rights"]
        rights = "SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA refresher"
        postgres.execute(f"GRANT USAGE ON SCHEMA refresher TO {role}; GRANT {rights} TO {role}", name)
        assert "database_rights" in codes(refresher, own)[1], "row security hides all rows from this role"
        postgres.execute(mend.partition(", or")[0], name)
        assert "database_rights" not in codes(refresher, own)[1]
        done = refresher("store", "init", "--store", own)
        assert (done.code, "already" in done.stdout) == (0, True), done.stderr
    finally:
        postgres.execute(f"DROP OWNED BY {role}", name)
        postgres.execute(f"DROP ROLE {role}", name)


def test_an_older_refresher_refuses_a_newer_schema(
    refresher: Command, url: str, postgres: Cluster, server: TokenServer
) -> None:
    """If it failed, an old refresher would write records that miss what the newer ones rely on."""
    environment = {"REFRESHER_STORE": url}
    assert refresher("store", "init", environment=environment).code == 0
    newer = migrations.LATEST + 1
    postgres.execute(f"INSERT INTO refresher.version (number) VALUES ({newer})", url.rpartition("/")[2])
    path = refresher.write_import("linear", server.grant("client"))
    for arguments in (("store", "init"), ("import", "linear", "--from", str(path)), ("status",)):
        done = refresher(*arguments, environment=environment)
        assert done.code in (2, 4)
        assert f"has version {newer} of the schema" in done.stderr
        assert "use the newer refresher" in done.stderr
    assert "database_schema" in codes(refresher, url)[1]


@pytest.fixture
def server() -> Iterator[TokenServer]:
    with TokenServer(lambda _: 3600.0, grace=0) as made:
        yield made


def test_check_names_what_is_unsafe(refresher: Command, url: str) -> None:
    """If it failed, nobody would see that a crash of the machine loses refresh tokens."""
    assert codes(refresher, url) == (2, ["database_schema", *["database_unsafe"] * 2, "database_asynchronous"])
    assert refresher("store", "init", environment={"REFRESHER_STORE": url}).code == 0
    assert codes(refresher, url) == (2, [*["database_unsafe"] * 2, "database_asynchronous"])
    done = refresher("store", "check", environment={"REFRESHER_STORE": url})
    assert "fsync = off" in done.stdout
    assert "0 grants, 0 due, 0 held, 0 in doubt" in done.stdout


def test_check_shows_what_waits_for_a_person(
    refresher: Command, url: str, postgres: Cluster, server: TokenServer
) -> None:
    """If it failed, a token that fits no record, or a record that was changed by hand, would stay unseen."""
    environment = {"REFRESHER_STORE": url}
    name = url.rpartition("/")[2]
    assert refresher("store", "init", environment=environment).code == 0
    path = refresher.write_import("linear", server.grant("client"))
    done = refresher("import", "linear", "--from", str(path), environment=environment)
    assert done.code == 0, done.stderr
    postgres.execute(
        "INSERT INTO refresher.orphan (attempt, name, bytes, why) VALUES "
        "('00000000-0000-0000-0000-000000000001', 'notion', '', 'the grant is not there any more')",
        name,
    )
    spill = refresher.state / f"grants/asana.{'0' * 31}1.spill"
    spill.touch(mode=0o600)
    postgres.execute("UPDATE refresher.lease SET generation = 7", name)
    answer = json.loads(refresher("store", "check", "--json", environment=environment).stdout)
    found = {each["code"]: (each["name"], each["mend"]) for each in answer["findings"]}
    assert found["record_contradicts"][0] == "linear"
    assert "DELETE FROM refresher.orphan" in found["orphaned_token"][1]
    assert found["spilled_token"] == ("asana", "refresher run-once asana")
    postgres.execute("UPDATE refresher.lease SET generation = 0", name)
    answer = json.loads(refresher("store", "check", "--json", environment=environment).stdout)
    assert "record_contradicts" not in {each["code"] for each in answer["findings"]}
    assert "1 grant, 1 due, 0 held" in refresher("store", "check", environment=environment).stdout


def test_check_and_doctor_say_that_the_database_is_away(refresher: Command) -> None:
    """If it failed, a database that is away would end in a trace, or look like one without grants."""
    url = "postgresql://refresher@127.0.0.1:9/refresher"
    assert codes(refresher, url) == (2, ["database_away"])
    code, found = codes(refresher, url, command=("doctor", "--offline"))
    assert code == 2
    assert found.count("database_away") == 1
    done = refresher("status", environment={"REFRESHER_STORE": url})
    assert done.code == 4
    assert "PostgreSQL at 127.0.0.1" in done.stderr


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, []),
        ({"schema": 0}, ["database_schema"]),
        ({"schema": migrations.LATEST + 1}, ["database_schema"]),
        ({"missing_rights": ("UPDATE on lease",)}, ["database_rights"]),
        ({"missing_rights": ("UPDATE on lease",), "role": "host-a"}, []),
        ({"fsync": False}, ["database_unsafe"]),
        ({"full_page_writes": False}, ["database_unsafe"]),
        ({"logs_parameters": True}, ["database_log"]),
        ({"recovering": True, "synchronous_standbys": ""}, ["database_read_only"]),
        ({"read_only": True}, ["database_read_only"]),
        ({"synchronous_standbys": ""}, ["database_asynchronous"]),
        ({"tls": False}, ["database_tls"]),
        ({"verified": False}, ["database_tls"]),
        ({"verified": False, "tls": False, "local": True}, []),
        ({"clock_difference": 10.0}, ["clock_differs"]),
        ({"clock_difference": -40.0}, ["database_clock"]),
        ({"pooled": True}, ["database_pooler"]),
    ],
)
def test_each_fault_of_a_server_is_a_finding(changed: dict[str, Any], expected: list[str]) -> None:
    """If it failed, a person would not learn of a database that is not fit for refresh tokens."""
    assert [each.code for each in judge_server(GOOD._replace(**changed))] == expected


@pytest.mark.parametrize(
    "setting", ["log_statement = 'mod'", "log_min_duration_statement = 0", "log_transaction_sample_rate = 1"]
)
def test_a_server_that_logs_tokens_is_found(refresher: Command, url: str, setting: str) -> None:
    """If it failed, a person would not learn that refresh tokens are in the log of the database."""
    assert refresher("store", "init", environment={"REFRESHER_STORE": url}).code == 0
    name = url.rpartition("/")[2]
    for statement, found in ((setting, True), ("log_parameter_max_length = 0", False)):
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE {name} SET {statement}".encode())
        assert ("database_log" in codes(refresher, url)[1]) is found


def test_a_record_and_a_token_that_fit_nowhere_are_findings() -> None:
    """If it failed, what only a person can settle would be hidden among what refresher settles by itself."""
    assert [*judge_content(EMPTY)] == []
    content = EMPTY._replace(
        contradictions=(("linear", "the record of linear is damaged. Restore it, or log in again"),),
        orphans=(Orphan("1", "notion", "the grant was replaced", 60.0),),
    )
    assert [(each.code, each.name) for each in judge_content(content)] == [
        ("record_contradicts", "linear"),
        ("orphaned_token", "notion"),
    ]


def test_a_password_is_never_part_of_the_address(refresher: Command, safe: Cluster, tmp_path: Path) -> None:
    """If it failed, each user of the machine could read the password of all grants in the list of processes."""
    password = "the-password-of-the-database"
    open_url = f"postgresql://secret:{password}@127.0.0.1:{safe.port}/postgres"
    for arguments in (("store", "check"), ("status",), ("store", "init")):
        done = refresher(*arguments, environment={"REFRESHER_STORE": open_url})
        assert done.code == 2 or arguments == ("store", "check")
        assert password not in done.stdout + done.stderr
        assert "?passfile=PATH" in done.stdout + done.stderr
    url = f"postgresql://secret@127.0.0.1:{safe.port}/postgres"
    without = refresher("store", "check", environment={"REFRESHER_STORE": url})
    assert "no password supplied" in without.stdout
    passwords = tmp_path / "passwords"
    passwords.touch(mode=0o600)
    passwords.write_text(f"127.0.0.1:{safe.port}:postgres:secret:{password}\n")
    by_file = refresher("store", "check", "--store", f"{url}?passfile={passwords}")
    by_variable = refresher("store", "check", environment={"REFRESHER_STORE": url, "PGPASSWORD": password})
    shutil.copy(passwords, refresher.home / ".pgpass")
    by_home = refresher("store", "check", "--store", url)
    for done in (by_file, by_variable, by_home):
        assert "refresher store init" in done.stdout
        assert password not in done.stdout + done.stderr


def test_the_commands_of_the_readme_set_up_a_database(
    refresher: Command, safe: Cluster, server: TokenServer, tmp_path: Path
) -> None:
    """If it failed, a person who follows the page would not get refresher to run on a database."""
    export, *commands, run = block("refresher/README.md", "sh", "REFRESHER_STORE").splitlines()
    with safe.database() as url:
        refresher.import_grant("linear", server.grant("client"))
        given = export.partition("'")[2].rpartition("'")[0]
        certificate_of = safe.root / "server.pem"
        address = given.replace("db.example/refresher", f"localhost:{safe.port}/{url.rpartition('/')[2]}")
        address = address.replace("/etc/refresher/db.pem", str(certificate_of)).replace("refresher@", "owner@")
        environment = {"REFRESHER_STORE": address}
        codes_of = []
        for command in commands:
            words = shlex.split(command.replace('"$REFRESHER_STORE"', shlex.quote(address)), comments=True)
            assert words[0] == "refresher"
            done = refresher(*words[1:], environment=environment)
            codes_of.append(done.code)
        assert codes_of == [0, 1, 0], done.stderr  # there is no standby
        shown = json.loads(refresher("status", "--json", environment=environment).stdout)
        assert [grant["name"] for grant in shown["grants"]] == ["linear"]
        assert shlex.split(run, comments=True) == ["refresher", "run"]
        process = refresher.start("run", environment=environment)
        try:
            wait_until(lambda: (refresher.tokens / "linear.json").exists(), "run publishes the token")
        finally:
            process.terminate()
            assert refresher.finish(process).code == 0
        assert len(server.asked["client"]) == 1


def test_the_role_of_a_mirror_needs_no_refresh_token(
    refresher: Command, postgres: Cluster, url: str, server: TokenServer, vault: Vault, tmp_path: Path
) -> None:
    """If it failed, hosts of agents would need a role that can read refresh tokens, or could show no token."""
    environment = {"REFRESHER_STORE": url}
    name = url.rpartition("/")[2]
    assert refresher("store", "init", environment=environment).code == 0
    path = refresher.write_import("linear", server.grant("client"))
    for arguments in (("import", "linear", "--from", str(path)), ("run-once", "--force")):
        assert refresher(*arguments, environment=environment).code == 0
    role = f"mirror_{name}"
    lines = (ROOT / "deploy/postgresql/mirror.sql").read_text().splitlines()
    statements = "\n".join(line for line in lines if not line.startswith("--")).replace("refresher_mirror", role)
    try:
        postgres.execute(statements, name)
        (refresher.home / "agents").mkdir()
        host = Command(refresher.home / "agents", vault)
        own = {"REFRESHER_STORE": url.replace("owner@", f"{role}@")}
        # As the unit for a host starts it.
        unit = settings("system/refresher-mirror.service")
        assert (unit["Type"], unit["ExecStart"][0].split()[1::2]) == (["notify"], ["--config", "mirror"])
        with Notified(tmp_path / "notify") as notified:
            process = host.start("mirror", environment=own | notified.environment)
            notified.until("READY")
        try:
            wait_until(lambda: (host.tokens / "linear.json").exists(), "the mirror publishes the token")
            (host.state / "demands/linear.1").touch()
            wait_until(lambda: postgres.execute("SELECT name FROM refresher.demand", name) != [], "the demand arrives")
        finally:
            process.terminate()
            assert host.finish(process).code == 0
        assert host.token("linear").generation == 1
        for statement in (
            "SELECT bytes FROM refresher.record",
            "SELECT * FROM refresher.lease",
            "DELETE FROM refresher.demand",
        ):
            with (
                psycopg.connect(own["REFRESHER_STORE"]) as connection,
                pytest.raises(psycopg.errors.InsufficientPrivilege),
            ):
                connection.execute(statement.encode())
        checked = host("store", "check", environment=own)
        assert "(a mirror)" in checked.stdout
        assert "lacks" not in checked.stdout
    finally:
        postgres.execute(f"DROP OWNED BY {role}", name)
        postgres.execute(f"DROP ROLE {role}", name)


def test_a_moved_grant_says_where_it_is(refresher: Command, url: str, server: TokenServer) -> None:
    """If it failed, a person would look for a login that is in another store, or log in a second time."""
    environment = {"REFRESHER_STORE": url}
    assert refresher("store", "init", environment=environment).code == 0
    path = refresher.write_import("linear", server.grant("client"))
    assert refresher("import", "linear", "--from", str(path)).code == 0
    for wrong in (("--to", "elsewhere"), ("--to", "files"), ("--to", url, "nobody"), ()):
        assert refresher("store", "move", *wrong).code == 2
    moved = refresher("store", "move", "--to", url)
    assert (moved.code, "moved linear to PostgreSQL at 127.0.0.1" in moved.stdout) == (0, True), moved.stderr
    again = refresher("store", "move", "--to", url, "linear")
    assert (again.code, "already moved: linear" in again.stdout) == (0, True), again.stderr
    place = f"PostgreSQL at 127.0.0.1, database {url.rpartition('/')[2]}"
    for arguments in (
        ("status", "linear"),
        ("run-once", "linear"),
        ("remove", "linear"),
        ("login", "linear", "http://127.0.0.1:9/mcp"),
        ("import", "linear", "--from", str(path)),
    ):
        done = refresher(*arguments)
        assert (done.code, f"was moved to {place}" in done.stderr or arguments[0] == "import") == (2, True), done.stderr
    assert f"moved to {place}: linear" in refresher("status").stderr
    listed = json.loads(refresher("status", "--json").stdout)
    assert listed == {"grants": [], "moved": [{"name": "linear", "place": place, "arriving": False}]}
    assert "0 grants, 1 moved" in refresher("doctor", "--offline").stdout
    assert "linear" in refresher("status", environment=environment).stdout
    events = json.loads(refresher("events", "linear", "--json").stdout)["events"]
    assert [each["detail"].rpartition(" to ")[2] for each in events if each["kind"] == "moved"] == [place]
    assert f"to {place}" in refresher("events", "linear").stdout
    same = refresher("store", "move", "--to", url, environment=environment)
    assert (same.code, "both stores are the same" in same.stderr) == (2, True)
    back = refresher("store", "move", "--to", "files", "--json", environment=environment)
    assert (back.code, refresher.grant("linear").generation) == (0, 0), back.stderr
    assert json.loads(back.stdout)["grants"] == [{"name": "linear", "outcome": "moved", "error": None}]
    refused = refresher("store", "move", "--to", "files", "nobody", "--json", environment=environment)
    (entry,) = json.loads(refused.stdout)["grants"]
    assert (refused.code, entry["outcome"], "nobody" in entry["error"]) == (2, None, True)
    named = refresher("run-once", "linear", environment=environment)
    assert (named.code, "was moved to" in named.stderr) == (2, True), named.stderr
    assert refresher("run-once", "--json").outcome == "rotated"


def test_a_wrong_certificate_of_the_database_is_refused(refresher: Command, safe: Cluster, tmp_path: Path) -> None:
    """If it failed, another server could answer in the place of the database, and read each new refresh token."""
    certificate(tmp_path / "other.pem", "localhost")
    base = f"postgresql://owner@localhost:{safe.port}/postgres?sslmode=verify-full&sslrootcert="
    good = refresher("store", "check", "--store", f"{base}{safe.root / 'server.pem'}")
    assert "TLS" in good.stdout.splitlines()[0]
    assert "database_away" not in good.stdout
    assert codes(refresher, f"{base}{tmp_path / 'other.pem'}") == (2, ["database_away"])
    by_address = base.replace("localhost", "127.0.0.1", 1)  # the certificate is for a name
    assert codes(refresher, f"{by_address}{safe.root / 'server.pem'}") == (2, ["database_away"])
    done = refresher("store", "init", "--store", f"{base}{tmp_path / 'other.pem'}")
    assert done.code == 4
    assert "certificate verify failed" in done.stderr
