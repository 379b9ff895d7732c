"""Logins that need no person at the server: ``login --jwt-bearer`` and ``login --enterprise``, as a person sees them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from refresher.grants.record import Login
from tests.support.assertion_server import AssertionServer, Issuer
from tests.support.command import Command
from tests.support.documents import block
from tests.support.vault import Vault


@pytest.fixture
def issuer() -> Issuer:
    """Puts tokens into files, as a platform does."""
    return Issuer()


@pytest.fixture
def company(vault: Vault) -> Iterator[AssertionServer]:
    """The identity provider of a company."""
    with AssertionServer() as made:
        yield made
    vault.learn(*made.issued)


@pytest.fixture
def server(company: AssertionServer, issuer: Issuer, vault: Vault) -> Iterator[AssertionServer]:
    """An MCP server and its authorization server, which trusts both."""
    with AssertionServer(company.own, issuer) as made:
        yield made
    vault.learn(*made.issued)


@pytest.fixture
def path(tmp_path: Path, vault: Vault) -> Iterator[Path]:
    """Where the token of the workload is; the search for secrets comes after it."""
    yield tmp_path / "token"
    (tmp_path / "token").unlink(missing_ok=True)


def one_line(stderr: str) -> str:
    """Return the last line of the log, without its time."""
    return stderr.strip().splitlines()[-1].partition("refresher: ")[2]


def test_a_workload_logs_in_and_its_login_can_be_repeated(
    refresher: Command, server: AssertionServer, issuer: Issuer, path: Path, vault: Vault
) -> None:
    """If it failed, a workload would need a client or a person, or would have to be set up again each time."""
    first = issuer.write(path, server.token_endpoint)
    done = refresher("login", "work", server.mcp, "--jwt-bearer", str(path), "--no-verify")
    assert (done.code, done.stdout.partition(";")[0]) == (0, "logged in: work (generation 0)"), done.stderr
    second = issuer.write(path, server.token_endpoint)
    vault.learn(first, second)
    assert refresher("login", "work", "--no-verify").code == 0
    assert [(fields["assertion"], fields["resource"]) for fields in server.requests] == [
        (first, server.mcp),
        (second, server.mcp),
    ]
    assert not any("client_id" in fields for fields in server.requests)
    assert refresher("run-once", "--force", "--json").outcome == "rotated"
    login = refresher.grant("work").login
    assert isinstance(login, Login)
    assert login.way == "jwt_bearer"


@pytest.mark.parametrize(
    ("audience", "lifetime", "words"),
    [
        (None, 0.0, "cannot read the assertion {}: No such file or directory"),
        ("{server}/token", -3600.0, "the assertion {} expired 60 min ago: whatever writes this file must renew it"),
        (
            "https://other.example",
            600.0,
            "the token in {} is for https://other.example, and the authorization server is {server}: nothing was sent to "
            "it. If it accepts this token, name it yourself: --issuer {server}",
        ),
    ],
    ids=["missing", "expired", "other audience"],
)
def test_an_assertion_that_does_not_help_ends_the_login_with_one_line(
    refresher: Command,
    server: AssertionServer,
    issuer: Issuer,
    path: Path,
    audience: str | None,
    lifetime: float,
    words: str,
) -> None:
    """If it failed, a login in a pod would open a browser or wait for a person, or would not say what is wrong."""
    if audience is not None:
        issuer.write(path, audience.format(server=server.url), lifetime=lifetime)
    done = refresher("login", "work", server.mcp, "--jwt-bearer", str(path), "--no-verify")
    assert (done.code, done.stdout) == (2, "")
    assert words.format(path, server=server.url) in one_line(done.stderr)
    assert server.requests == []
    assert not refresher.directories.record("work").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--jwt-bearer", "token", "--device"), "--jwt-bearer is a way of login by itself"),
        (("--enterprise", "company", "--browser"), "--enterprise is a way of login by itself"),
        (("--enterprise", "No Name"), "--enterprise needs the NAME"),
        (("--enterprise", "company"), "--enterprise needs the --client-id"),
        (("--enterprise", "work", "--client-id", "x"), "work would need its own token: give another source"),
        (
            ("--client-id", "x", "--client-secret-file", "x", "--client-assertion-file", "x"),
            "--client-assertion-file and --client-secret-file both authenticate the client",
        ),
        (("--auth-method", "private_key_jwt", "--client-id", "x"), "--private-key-file or --client-assertion-file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_options_that_cannot_work_are_named(
    refresher: Command, server: AssertionServer, options: tuple[str, ...], words: str
) -> None:
    """If it failed, a login would take one of two ways that a person gave, or fail without a reason."""
    done = refresher("login", "work", server.mcp, "--no-verify", *options)
    assert done.code == 2
    assert words in one_line(done.stderr)


def test_a_login_by_a_grant_that_cannot_feed_it_says_what_a_person_does(
    refresher: Command, company: AssertionServer, server: AssertionServer
) -> None:
    """If it failed, a script would take a missing login for wrong usage, or a person would log in without effect."""
    by = ("login", "saas", server.mcp, "--client-id", "x", "--no-verify", "--enterprise")
    missing = refresher(*by, "company")
    assert missing.code == 3
    assert (
        "its source company does not exist: log in at the identity provider with 'refresher login company URL --scope "
        "openid'; nothing was changed"
    ) in one_line(missing.stderr)
    refresher.import_grant("company", company.person())
    assert (
        refresher("login", "tools", server.mcp, "--client-id", "x", "--no-verify", "--enterprise", "company").code == 0
    )
    other = refresher(*by, "tools")
    assert other.code == 3
    line = one_line(other.stderr)
    assert (
        "its source tools has no id_token, and a login of its kind brings none: give the NAME of a login by a" in line
    )
    assert "refresher login tools" not in line


def test_one_login_at_the_company_is_enough(
    refresher: Command, company: AssertionServer, server: AssertionServer
) -> None:
    """If it failed, a person would log in at each server, or a denial would look like a login that has ended."""
    refresher.import_grant("company", company.person())
    enterprise = ("login", "saas", server.mcp, "--enterprise", "company", "--client-id", "at-server", "--no-verify")
    done = refresher(*enterprise)
    assert (done.code, done.stdout.partition(";")[0]) == (0, "logged in: saas for alice (generation 0)"), done.stderr
    assert refresher("login", "saas", "--no-verify").code == 0
    company.answer = lambda fields: (400, {"error": "access_denied"}) if "audience" in fields else None
    denied = refresher("login", "saas", "--no-verify")
    assert denied.code == 3
    assert one_line(denied.stderr).startswith("blocked by an administrator: the identity provider company answered")
    assert refresher.grant("saas").generation == 1, "a login that fails changes nothing"
    run = refresher("run-once", "saas", "--force", "--json")
    assert (run.code, run.outcome) == (3, "reauthorization_required")
    status = refresher("status").stdout
    assert "blocked by an administrator" in status
    doctor = " ".join(refresher("doctor", "--offline").stdout.split())
    assert "ask those who run the identity provider, then 'refresher run-once saas --force'" in doctor
    assert refresher("run-once", "--json").results["saas"]["outcome"] == "reauthorization_required"
    assert len(company.asked("token_exchange")) == 4


def test_the_end_of_the_login_at_the_company_is_shown_at_each_grant(
    refresher: Command, company: AssertionServer, server: AssertionServer
) -> None:
    """If it failed, a person would log in at a server although only the login at the company helps."""
    refresher.import_grant("company", company.person(id_token=company.own.token("company", lifetime=-10.0)))
    refresher.import_grant("saas", server.managed("company"))
    company.dead = True
    run = refresher("run-once", "--json")
    assert run.code == 3
    words = "'refresher login company' brings back every grant that needs it"
    assert words in run.results["saas"]["detail"]
    assert words in refresher("status", "saas").stdout
    doctor = " ".join(refresher("doctor", "saas", "--offline").stdout.split())
    assert "Mend: refresher login company" in doctor
    token = refresher("token", "saas", "--wait", "0s")
    assert token.code == 3
    assert words in one_line(token.stderr)


def test_a_provider_that_is_away_is_named_and_the_login_can_be_repeated(
    refresher: Command, company: AssertionServer, server: AssertionServer
) -> None:
    """If it failed, a script would give up, and a person would look for the cause at the server."""
    refresher.import_grant("company", company.person(id_token=company.own.token("company", lifetime=-10.0)))
    company.answer = lambda _: (503, {})
    done = refresher("login", "saas", server.mcp, "--enterprise", "company", "--client-id", "x", "--no-verify")
    assert done.code == 4
    line = one_line(done.stderr)
    assert "its source company has no valid id_token now: the token endpoint answered 503" in line
    assert "Log in again later" in line


@pytest.mark.parametrize("grant_type", ["jwt_bearer", "token_exchange"])
def test_the_imports_of_the_reference_work(
    refresher: Command, server: AssertionServer, company: AssertionServer, issuer: Issuer, path: Path, grant_type: str
) -> None:
    """If it failed, a reader would copy an import that is refused."""
    fields = json.loads(block("refresher/README.md", "json", f'"{grant_type}"'))
    fields["token_endpoint"] = (server if grant_type == "jwt_bearer" else company).token_endpoint
    if grant_type == "jwt_bearer":
        issuer.write(path, server.token_endpoint)
        fields["assertion_file"] = str(path)
    else:
        refresher.import_grant(fields["subject_grant"], company.person())
    refresher.import_grant("tools", fields)
    assert refresher("run-once", "tools", "--json").outcome == "rotated"


def test_an_imported_grant_logs_in_without_a_browser(
    refresher: Command, server: AssertionServer, company: AssertionServer, issuer: Issuer, path: Path
) -> None:
    """If it failed, ``login NAME`` would ask a person to approve what a workload does by itself."""
    issuer.write(path, server.token_endpoint)
    refresher.import_grant("work", server.workload(path, server_url=server.mcp, issuer=server.url))
    assert refresher("login", "work", "--no-verify").code == 0
    login = refresher.grant("work").login
    assert login is not None
    assert login.way == "jwt_bearer"
    refresher.import_grant("company", company.person())
    exchanged = {"grant_type": "token_exchange", "subject_grant": "company", "server_url": server.mcp}
    refresher.import_grant("api", {"token_endpoint": company.token_endpoint, **exchanged})
    done = refresher("login", "api", "--no-verify")
    assert done.code == 2
    assert "refresher import api --replace --from FILE" in one_line(done.stderr)


def test_a_token_goes_to_no_server_that_another_server_names(
    refresher: Command, server: AssertionServer, issuer: Issuer, path: Path, vault: Vault
) -> None:
    """If it failed, an MCP server could collect the tokens of workloads for other servers (I8)."""
    vault.learn(issuer.write(path, "https://kubernetes.default.svc"))
    workload = ("--jwt-bearer", str(path))
    client = ("--client-credentials", "--client-id", "cid", "--client-assertion-file", str(path))
    for way in (workload, client):
        done = refresher("login", "work", server.mcp, *way, "--no-verify")
        assert (done.code, "nothing was sent to it" in done.stderr) == (2, True), done.stderr
    path.write_text("hunter2-a-password")
    done = refresher("login", "work", server.mcp, *workload, "--issuer", server.url, "--no-verify")
    assert (done.code, "is no JWT" in done.stderr, "hunter2" in done.stderr) == (2, True, False), done.stderr
    assert server.requests == []
    vault.learn(issuer.write(path, server.url))
    assert refresher("login", "work", server.mcp, *workload, "--issuer", server.url, "--no-verify").code == 0
    browser = refresher("login", "work", "--browser", "--no-verify")
    assert "client_id=&" not in browser.stderr + browser.stdout


@pytest.mark.parametrize("key", ["assertion_file", "client_assertion_file"])
def test_the_doctor_looks_at_the_file_of_an_assertion(
    refresher: Command, server: AssertionServer, issuer: Issuer, path: Path, vault: Vault, key: str
) -> None:
    """If it failed, a person would learn of a token that expired only when agents have none."""
    vault.learn(issuer.write(path, server.token_endpoint))
    about = {"grant_type": "jwt_bearer", "assertion_file": str(path), "client_id": "c", key: str(path)}
    refresher.import_grant("work", {"token_endpoint": server.token_endpoint, "server_url": server.mcp, **about})
    refresher("run-once")
    assert str(path) not in refresher("doctor", "work", "--offline").stdout
    vault.learn(issuer.write(path, server.token_endpoint, lifetime=-3600.0))
    assert "expired 60 min ago" in " ".join(refresher("doctor", "work", "--offline").stdout.split())
