"""Access tokens that are obtained from tokens of others: files, other grants, and an identity provider."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from refresher.common import clocks
from refresher.common.errors import ImportRefused
from refresher.grants import policy
from refresher.grants.policy import Rotate, Wait
from refresher.grants.record import Grant
from refresher.operations import import_request
from refresher.operations.import_grant import store_grant
from refresher.operations.result import Result, repair_command
from refresher.operations.rotate import Order, Terms, rotate
from refresher.storage.file_store import FileStore
from refresher.storage.keys import KeyRing, parse_source
from refresher.storage.postgres.postgres_store import PostgresStore
from refresher.storage.store import Store
from shim._token import TokenFile, parse
from tests.support.assertion_server import AssertionServer, Issuer
from tests.support.postgres import Cluster
from tests.support.stores import KINDS, Place, open_place

DAY = 86400.0


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """An empty place for grants, of each kind."""
    yield from _opened(request, tmp_path, request.param)


@pytest.fixture
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """An empty place for grants in files."""
    yield from _opened(request, tmp_path, "files")


def _opened(request: pytest.FixtureRequest, root: Path, kind: str) -> Iterator[Store]:
    def cluster() -> Cluster:
        found: Cluster = request.getfixturevalue("postgres")
        return found

    place: Place
    with open_place(kind, root, cluster) as place:
        yield place.open()


@pytest.fixture
def issuer() -> Issuer:
    """Whoever puts tokens into files."""
    return Issuer()


@pytest.fixture
def server(issuer: Issuer) -> Iterator[AssertionServer]:
    """The authorization server of a workload."""
    with AssertionServer(issuer) as made:
        yield made


@pytest.fixture
def company() -> Iterator[AssertionServer]:
    """The identity provider of a company."""
    with AssertionServer() as made:
        yield made


@pytest.fixture
def saas(company: AssertionServer) -> Iterator[AssertionServer]:
    """The authorization server of an MCP server, which trusts the company."""
    with AssertionServer(company.own) as made:
        yield made


def _import(store: Store, name: str, fields: dict[str, Any], *, replace: bool = False) -> Grant:
    parsed = import_request.parse(name, json.dumps(fields).encode(), clocks.now())
    return store_grant(store, parsed, replace=replace, if_absent=False, stopping=lambda: False).grant


def _rotate(store: Store, name: str, *, force: bool = True) -> Result:
    record = store.load(name).record
    seen = -1 if record is None else record.generation
    result = rotate(store, Order(name=name, seen=seen, force=force), Terms(ca_file=None, stopping=lambda: False))
    assert result is not None
    return result


def _grant(store: Store, name: str) -> Grant:
    record = store.load(name).record
    assert isinstance(record, Grant)
    return record


def _published(store: Store, name: str) -> TokenFile:
    return parse((store.directories.tokens / f"{name}.json").read_bytes())


def _change(store: Store, name: str, **changes: Any) -> None:
    """Write other fields into a record, as if it had come so far by itself."""
    with store.held(name, stopping=lambda: False) as held:
        stored = held.recover()
        assert isinstance(stored.record, Grant)
        held.write(stored, msgspec.structs.replace(stored.record, **changes))


def _retry_now(store: Store, name: str) -> None:
    """End the backoff of a failure."""
    failure = _grant(store, name).failure
    assert failure is not None
    _change(store, name, failure=msgspec.structs.replace(failure, retry_at=1.0, moment=None))


# --- workload identity ------------------------------------------------------------------------------------------------


def test_the_file_of_an_assertion_is_read_for_each_request(
    files: Store, server: AssertionServer, issuer: Issuer, tmp_path: Path
) -> None:
    """If it failed, a projected token would be used after it was replaced, or a client would be sent that nobody has."""
    path = tmp_path / "token"
    tokens = [issuer.write(path, server.token_endpoint)]
    _import(files, "work", server.workload(path, resource="https://mcp.example/mcp", scope="use"))
    assert _rotate(files, "work").outcome == "rotated"
    tokens.append(issuer.write(path, server.token_endpoint))
    assert _rotate(files, "work").outcome == "rotated"
    assert server.requests == [
        {
            "grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer",
            "assertion": token,
            "scope": "use",
            "resource": "https://mcp.example/mcp",
        }
        for token in tokens
    ]
    record = files.directories.record("work").read_text()
    assert _grant(files, "work").refresh_token is None
    assert not any(token in record for token in tokens)


@pytest.mark.parametrize(
    ("lifetime", "code", "words"),
    [
        (None, "assertion_missing", "cannot read the assertion {}: No such file or directory"),
        (-3600.0, "assertion_expired", "the assertion {} expired 60 min ago: whatever writes this file must renew it"),
    ],
    ids=["missing", "expired"],
)
def test_an_assertion_that_cannot_be_used_is_named_and_not_sent(
    files: Store,
    server: AssertionServer,
    issuer: Issuer,
    tmp_path: Path,
    lifetime: float | None,
    code: str,
    words: str,
) -> None:
    """If it failed, nobody would know which file is the cause, or agents would lose a token that is still valid (I5)."""
    path = tmp_path / "token"
    issuer.write(path, server.token_endpoint)
    _import(files, "work", server.workload(path))
    _rotate(files, "work")
    before = _published(files, "work")
    path.unlink() if lifetime is None else issuer.write(path, server.token_endpoint, lifetime=lifetime)
    result = _rotate(files, "work")
    assert result.outcome == "transient"
    assert result.detail.startswith(words.format(path))
    assert len(server.requests) == 1
    after = _published(files, "work")
    assert (after.state, after.access_token) == ("failing", before.access_token)
    assert after.error is not None
    assert (after.error.code, after.error.retry_at is not None) == (code, True)
    issuer.write(path, server.token_endpoint)
    assert _rotate(files, "work").outcome == "rotated"
    assert _published(files, "work").state == "active"


def test_an_assertion_for_another_server_is_explained_and_retried(
    files: Store, server: AssertionServer, issuer: Issuer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """If it failed, a wrong audience would look like a login that has ended, or a mended one would not be tried."""
    path = tmp_path / "token"
    issuer.write(path, "https://other.example")
    _import(files, "work", server.workload(path))
    assert f"the audience of the assertion {path} is https://other.example" in caplog.text
    result = _rotate(files, "work")
    assert result.outcome == "transient"
    expected = f"{path}, whose audience is https://other.example: most servers require {server.token_endpoint}"
    assert expected in result.detail
    assert not _grant(files, "work").dead
    issuer.write(path, server.token_endpoint)
    assert _rotate(files, "work").outcome == "rotated"


def test_a_file_that_is_too_large_is_no_assertion(
    files: Store, server: AssertionServer, issuer: Issuer, tmp_path: Path
) -> None:
    """If it failed, whatever a wrong path leads to would be sent to a server."""
    path = tmp_path / "token"
    issuer.write(path, server.token_endpoint)
    _import(files, "work", server.workload(path))
    path.write_text("a" * 300_000)
    assert "it is larger than 262144 bytes" in _rotate(files, "work").detail
    assert server.requests == []


def test_a_client_authenticates_with_an_assertion_of_somebody_else(
    files: Store, server: AssertionServer, issuer: Issuer, tmp_path: Path
) -> None:
    """If it failed, a workload would need a secret although its platform vouches for it (RFC 7523 section 2.2)."""
    path = tmp_path / "token"
    issuer.write(path, server.token_endpoint)
    fields = {
        "token_endpoint": server.token_endpoint,
        "client_id": "app",
        "refresh_token": server.refresh_token,
        "client_assertion_file": str(path),
        "server_url": "https://mcp.example/mcp",
    }
    _import(files, "app", fields)
    token = issuer.write(path, server.token_endpoint)
    assert _rotate(files, "app").outcome == "rotated"
    assert server.requests[0]["client_assertion"] == token
    assert server.requests[0]["client_assertion_type"] == "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
    before = _grant(files, "app").refresh_token
    path.unlink()
    result = _rotate(files, "app")
    assert (result.outcome, len(server.requests)) == ("transient", 1)
    assert _grant(files, "app").refresh_token == before
    assert _grant(files, "app").doubt is None, "nothing was sent"


def test_a_doubt_outlives_an_assertion_that_is_missing(
    files: Store, server: AssertionServer, issuer: Issuer, tmp_path: Path
) -> None:
    """If it failed, a refresh token that may be spent would be sent again, and could revoke a valid access token (I1)."""
    path = tmp_path / "token"
    issuer.write(path, server.token_endpoint)
    fields = {
        "token_endpoint": server.token_endpoint,
        "client_id": "app",
        "refresh_token": server.refresh_token,
        "client_assertion_file": str(path),
        "server_url": "https://mcp.example/mcp",
        "replay": "none",
    }
    _import(files, "app", fields)
    assert _rotate(files, "app").outcome == "rotated"
    server.answer = lambda _: (500, {})
    assert _rotate(files, "app").outcome == "in_doubt"
    path.unlink()
    demand = files.directories.demands / "app.1"
    demand.touch()
    _retry_now(files, "app")
    order = Order(name="app", seen=1, demanded=frozenset({1}))
    assert "No such file" in str(rotate(files, order, Terms(ca_file=None, stopping=lambda: False)))
    assert _grant(files, "app").doubt is not None
    demand.unlink(missing_ok=True)
    issuer.write(path, server.token_endpoint)
    _retry_now(files, "app")
    assert _rotate(files, "app").outcome == "in_doubt"
    assert len(server.requests) == 2, "the token in doubt was sent again"


def test_an_answer_never_repeats_an_assertion(
    files: Store, server: AssertionServer, issuer: Issuer, tmp_path: Path
) -> None:
    """If it failed, a server that echoes the assertion would put it into logs and token files (I7)."""
    path = tmp_path / "token"
    token = issuer.write(path, server.token_endpoint)
    # A whole one would be masked as any token is.
    server.answer = lambda fields: (
        400,
        {"error": "invalid_grant", "error_description": f"bad {fields['assertion'][90:99]}"},
    )
    _import(files, "work", server.workload(path))
    detail = _rotate(files, "work").detail
    assert "bad " in detail
    assert token[90:99] not in detail


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"assertion_file": None}, "jwt_bearer needs an assertion_file"),
        ({"idp": "company"}, "one of them"),
        ({"subject_file": "/x"}, "subject_file: only for grant_type token_exchange"),
        ({"grant_type": "token_exchange"}, "assertion_file: only for grant_type jwt_bearer"),
        ({"grant_type": "token_exchange", "assertion_file": None}, "needs a subject_file or a subject_grant"),
        ({"assertion_file": None, "idp": "company"}, "idp needs the issuer"),
        ({"assertion_file": None, "assertion_grant": "No Name"}, "must be the NAME of another grant"),
        ({"client_secret": "secret-of-it"}, "client_id is missing"),
        ({"refresh_token": "token-of-it"}, "give a refresh_token, or another grant_type"),
        (
            {"grant_type": "client_credentials", "client_id": "x", "client_secret": "y"},
            "only for grant_type jwt_bearer",
        ),
        ({"assertion_file": None, "assertion_grant": "work"}, "needs work itself"),
        ({"refresh_params": {"assertion": "static"}}, "refresh_params must be .* none of .*assertion"),
        (
            {
                "grant_type": "token_exchange",
                "assertion_file": None,
                "subject_grant": "other",
                "refresh_params": {"audience": "x"},
            },
            "a token_exchange has a field audience",
        ),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_an_import_that_contradicts_itself_is_refused(
    files: Store, server: AssertionServer, issuer: Issuer, tmp_path: Path, fields: dict[str, Any], words: str
) -> None:
    """If it failed, a grant would be stored that can never get a token."""
    path = tmp_path / "token"
    issuer.write(path, server.token_endpoint)
    given = {key: value for key, value in server.workload(path, **fields).items() if value is not None}
    with pytest.raises(ImportRefused, match=words):
        _import(files, "work", given)


# --- token exchange ---------------------------------------------------------------------------------------------------


def _exchanged(server: AssertionServer, **more: Any) -> dict[str, Any]:
    about = {"grant_type": "token_exchange", "client_id": "gateway", "server_url": "https://api.example"}
    return {"token_endpoint": server.token_endpoint, **about, **more}


def test_a_subject_and_an_actor_are_exchanged(
    files: Store, server: AssertionServer, issuer: Issuer, tmp_path: Path
) -> None:
    """If it failed, a server would not know for whom a token is, or who acts (RFC 8693 section 2.1)."""
    path = tmp_path / "token"
    _import(files, "base", server.person())
    _rotate(files, "base")
    actor = issuer.write(path, "anything")
    fields = _exchanged(
        server,
        grant_type="urn:ietf:params:oauth:grant-type:token-exchange",
        subject_grant="base",
        actor_file=str(path),
        audience="https://api.example",
        requested_token_type="jwt",
        scope="read",
    )
    _import(files, "api", fields)
    assert _rotate(files, "api").outcome == "rotated"
    source = _grant(files, "base").access_token
    assert source is not None
    assert server.requests[-1] == {
        "client_id": "gateway",
        "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
        "subject_token": source.reveal(),
        "subject_token_type": "urn:ietf:params:oauth:token-type:access_token",
        "actor_token": actor,
        "actor_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "audience": "https://api.example",
        "requested_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "scope": "read",
    }


@pytest.mark.parametrize(
    "about",
    [
        {"token_type": "N_A"},
        {"token_type": "Bearer", "issued_token_type": "urn:ietf:params:oauth:token-type:refresh_token"},
    ],
    ids=["N_A", "refresh token"],
)
def test_what_is_no_access_token_is_not_published(
    files: Store, company: AssertionServer, about: dict[str, str]
) -> None:
    """If it failed, agents would present a token that no server accepts, or that is more than they may have."""
    _import(files, "base", company.person())
    assert _rotate(files, "base").outcome == "rotated"
    _import(files, "api", _exchanged(company, subject_grant="base"))
    company.answer = lambda _: (200, {"access_token": "a-token-of-another-kind", "expires_in": 600, **about})
    result = _rotate(files, "api")
    assert (result.outcome, "is no access token" in result.detail) == ("transient", True), result
    assert _published(files, "api").access_token is None


def test_a_grant_follows_the_one_whose_token_it_needs(store: Store, company: AssertionServer) -> None:
    """If it failed, agents would keep a token that was made from one that is not valid any more."""
    _import(store, "base", company.person())
    _rotate(store, "base")
    company.life = 7200.0  # so that its own schedule is later
    _import(store, "api", _exchanged(company, subject_grant="base"))
    assert _rotate(store, "api", force=False).outcome == "rotated"
    assert _rotate(store, "api", force=False).outcome == "not_due"
    due = policy.due_at(_grant(store, "base"))
    assert due <= policy.due_at(_grant(store, "api")) <= due + 60
    _rotate(store, "base")
    _change(store, "api", last_rotation_at=0.0)
    assert _rotate(store, "api", force=False).outcome == "rotated"
    source = _grant(store, "base").access_token
    assert source is not None
    assert company.requests[-1]["subject_token"] == source.reveal()
    _change(store, "api", last_rotation_at=0.0)
    assert _rotate(store, "api", force=False).outcome == "not_due"


def test_a_source_whose_key_is_not_here_is_named_and_nothing_is_begun(
    files: Store, company: AssertionServer, tmp_path: Path
) -> None:
    """If it failed, each try would leave an attempt that was cut off, and no word of the key that is missing."""
    key = tmp_path / "key"
    key.touch(0o600)
    key.write_bytes(bytes(range(32)))
    sealing = KeyRing(parse_source("encryption_key", f"file:{key}"))
    sealed = FileStore(msgspec.structs.replace(files.directories, keys=sealing))
    _import(sealed, "base", company.person())
    assert _rotate(sealed, "base").outcome == "rotated"
    _import(files, "api", _exchanged(company, subject_grant="base"))
    asked = len(company.requests)
    result = _rotate(files, "api")
    assert (result.outcome, "its source base cannot be opened" in result.detail) == ("transient", True), result
    assert len(company.requests) == asked
    assert list(files.directories.grants.glob("*.intent")) == []
    assert _rotate(sealed, "api").outcome == "rotated"


def test_a_source_that_is_due_is_rotated_first_and_only_once(store: Store, company: AssertionServer) -> None:
    """If it failed, grants of one source would each spend a refresh token of it, or wait for each other for ever (I3)."""
    names = [f"api-{number}" for number in range(4)]
    _import(store, "base", company.person())
    for name in names:
        _import(store, name, _exchanged(company, subject_grant="base"))
    free: list[str] = []

    def look(fields: dict[str, str]) -> None:
        if "subject_token" in fields:
            with store.held("base", stopping=lambda: False, wait=10.0):
                free.append("base")

    company.before = look
    threads = [threading.Thread(target=_rotate, args=(store, name), kwargs={"force": False}) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(company.asked("refresh_token")) == 1
    assert len(company.asked("token_exchange")) == len(names) == len(free)
    assert _grant(store, "base").generation == 1


def test_grants_that_need_each_other_are_refused(files: Store, company: AssertionServer) -> None:
    """If it failed, a rotation of one would rotate the other, and so on, without end."""
    _import(files, "base", company.person())
    _import(files, "one", _exchanged(company, subject_grant="base"))
    _import(files, "two", _exchanged(company, subject_grant="one"))
    circular = _exchanged(company, subject_grant="two")
    with pytest.raises(ImportRefused, match="two needs one itself"):
        _import(files, "one", circular, replace=True)
    _change(files, "one", assertion=import_request.parse("one", json.dumps(circular).encode(), clocks.now()).assertion)
    result = _rotate(files, "two")
    assert "needs two itself" in result.detail
    assert _grant(files, "two").failure is not None
    assert company.requests == []


def test_a_long_chain_is_rotated_from_its_source(files: Store, company: AssertionServer) -> None:
    """If it failed, a grant at the end of a chain would present a token that nobody has renewed."""
    _import(files, "link-0", company.person())
    for number in range(1, 8):
        _import(files, f"link-{number}", _exchanged(company, subject_grant=f"link-{number - 1}"))
    assert _rotate(files, "link-7", force=False).outcome == "rotated"
    assert [_grant(files, f"link-{number}").generation for number in range(8)] == [1] * 8
    assert len(company.requests) == 8


@pytest.mark.parametrize("where", ["audience", "resource"])
def test_a_target_that_is_refused_is_not_left_out(files: Store, company: AssertionServer, where: str) -> None:
    """If it failed, agents would get a token for another target than the one that a person has named."""
    _import(files, "base", company.person())
    _rotate(files, "base")
    _import(files, "api", _exchanged(company, subject_grant="base", **{where: "https://api.example"}))
    company.answer = lambda fields: (400, {"error": "invalid_target"}) if where in fields else None
    assert _rotate(files, "api", force=False).outcome == "transient"
    grant = _grant(files, "api")
    assert (len(company.asked("token_exchange")), grant.refusals, grant.resource_refused) == (1, 1, False)
    company.answer = lambda _: None
    assert _rotate(files, "api").outcome == "rotated"
    assert company.requests[-1][where] == "https://api.example"


def test_what_becomes_due_before_the_next_run_is_rotated_before_what_needs_it(
    files: Store, company: AssertionServer
) -> None:
    """If it failed, a run of cron would make a token from one that it replaces in the same run, and again the next."""
    _import(files, "base", company.person())
    _import(files, "api", _exchanged(company, subject_grant="base"))
    assert _rotate(files, "api", force=False).outcome == "rotated"
    for name in ("base", "api"):
        grant, passed = _grant(files, name), 2400.0
        assert grant.expires_at is not None
        assertion = grant.assertion
        if assertion is not None and assertion.source_due_at is not None:
            assertion = msgspec.structs.replace(assertion, source_due_at=assertion.source_due_at - passed)
        _change(
            files,
            name,
            issued_at=grant.issued_at - passed,
            issued=None,
            expires_at=grant.expires_at - passed,
            last_rotation_at=grant.issued_at - passed,
            assertion=assertion,
        )
    rotate(files, Order(name="api", seen=1, horizon=600.0), Terms(ca_file=None, stopping=lambda: False))
    source = _grant(files, "base").access_token
    assert source is not None
    assert (_grant(files, "base").generation, _grant(files, "api").generation) == (2, 2)
    assert company.requests[-1]["subject_token"] == source.reveal()


def test_a_grant_that_was_claimed_is_free_while_its_source_is_rotated(
    request: pytest.FixtureRequest, tmp_path: Path, company: AssertionServer
) -> None:
    """If it failed, the exchange of a source could outlast the lease of the grant that needs it, and end its attempt."""
    with open_place("postgresql", tmp_path, lambda: request.getfixturevalue("postgres")) as place:
        store, other = place.open(), place.open("other")
        assert isinstance(store, PostgresStore)
        assert isinstance(other, PostgresStore)
        _import(store, "base", company.person())
        _import(store, "api", _exchanged(company, subject_grant="base"))
        assert "api" in store.claim_due(8, each=8, rooms={})
        free: list[str] = []

        def look(fields: dict[str, str]) -> None:
            if fields["grant_type"] == "refresh_token":
                assert "api" not in other.claim_due(8, each=8, rooms={}), "nor does another host begin the same"
                with other.held("api", stopping=lambda: False, wait=0.0):
                    free.append("api")

        company.before = look
        assert _rotate(store, "api", force=False).outcome == "rotated"
        assert free == ["api"]


# --- enterprise-managed authorization ---------------------------------------------------------------------------------


def test_one_login_at_the_company_feeds_a_server(store: Store, company: AssertionServer, saas: AssertionServer) -> None:
    """If it failed, a person would have to log in at each MCP server, though the company has decided for all."""
    login = _import(store, "company", company.person())
    _import(store, "saas", saas.managed("company", scope="read"))
    _rotate(store, "company")
    assert _rotate(store, "saas").outcome == "rotated"
    identity = _grant(store, "company").id_token
    assert login.id_token is not None
    assert identity is not None
    assert company.requests[-1] == {
        "client_id": "company",
        "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
        "requested_token_type": "urn:ietf:params:oauth:token-type:id-jag",
        "audience": saas.url,
        "resource": saas.mcp,
        "scope": "read",
        "subject_token": identity.reveal(),
        "subject_token_type": "urn:ietf:params:oauth:token-type:id_token",
    }
    (request,) = saas.requests
    assertion = request.pop("assertion")
    assert company.own.claims(assertion, saas.url)["sub"] == "alice"
    assert request == {
        "client_id": "at-server",
        "grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer",
        "resource": saas.mcp,
        "scope": "read",
    }
    assert assertion not in repr(msgspec.json.encode(_grant(store, "saas"), enc_hook=lambda secret: secret.reveal()))
    assert _published(store, "saas").state == "active"


@pytest.mark.parametrize("code", ["access_denied", "invalid_target", "unauthorized_client"])
def test_a_denial_is_shown_and_asked_again_after_a_day(
    files: Store, company: AssertionServer, saas: AssertionServer, code: str
) -> None:
    """If it failed, agents would ask a policy all the time, or never again, or a person would log in in vain."""
    _import(files, "company", company.person())
    _import(files, "saas", saas.managed("company"))
    assert _rotate(files, "saas").outcome == "rotated"
    company.answer = lambda fields: (400, {"error": code}) if "audience" in fields else None
    result = _rotate(files, "saas")
    assert result.outcome == "reauthorization_required"
    assert result.detail.startswith("blocked by an administrator: the identity provider company answered 400")
    assert "no login helps" in result.detail
    published = _published(files, "saas")
    assert published.state == "reauthorization_required"
    assert published.error is not None
    assert published.error.code == "access_denied"
    assert published.access_token is not None, "the last token may still be valid (I5)"
    asked = len(company.asked("token_exchange"))
    assert _rotate(files, "saas", force=False).outcome == "reauthorization_required"
    assert len(company.asked("token_exchange")) == asked
    grant, now = _grant(files, "saas"), clocks.now()
    for passed, is_asked in ((0.0, False), (0.95 * DAY, False), (1.05 * DAY, True)):
        later = msgspec.structs.replace(
            now, wall=now.wall + passed, monotonic=now.monotonic + passed, boottime=now.boottime + passed
        )
        for demanded in (False, True):
            decision = policy.decide(grant, later, demanded=demanded)
            assert isinstance(decision, Rotate if is_asked else Wait)
    company.answer = lambda _: None
    assert _rotate(files, "saas").outcome == "rotated"
    assert _published(files, "saas").state == "active"
    assert not _grant(files, "saas").refuses_early


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"issued_token_type": "urn:ietf:params:oauth:token-type:access_token"}, "another type of token"),
        ({"access_token": "opaque"}, "whose audience is not this server"),
        ({"audience": "https://other.example"}, "whose audience is not this server"),
        ({"audience": ["{saas}", "https://other.example"]}, "whose audience is not this server"),
    ],
    ids=["type", "opaque", "other", "two"],
)
def test_an_assertion_goes_only_to_the_server_that_is_its_audience(
    files: Store, company: AssertionServer, saas: AssertionServer, answer: dict[str, Any], words: str
) -> None:
    """If it failed, a server could use an assertion at another one, as the person (I8)."""
    audience = answer.get("audience", saas.url)
    if isinstance(audience, list):
        audience = [each.format(saas=saas.url) for each in audience]
    made = {
        "access_token": company.own.token(audience),
        "issued_token_type": "urn:ietf:params:oauth:token-type:id-jag",
        "token_type": "N_A",
    }
    company.answer = lambda fields: (200, made | answer) if "audience" in fields else None
    _import(files, "company", company.person())
    _import(files, "saas", saas.managed("company"))
    result = _rotate(files, "saas")
    assert words in result.detail
    assert saas.requests == []


def test_a_provider_that_fails_is_not_asked_for_each_grant(
    files: Store, company: AssertionServer, saas: AssertionServer
) -> None:
    """If it failed, each grant of a company would ask its provider again and again while that is down."""
    _import(files, "company", company.person(id_token=company.own.token("company", lifetime=-10.0)))
    company.answer = lambda _: (503, {})
    for name in ("one", "two", "three"):
        _import(files, name, saas.managed("company"))
        result = _rotate(files, name)
        assert result.outcome == "transient"
        assert "its source company has no valid id_token now" in result.detail
    assert len(company.requests) == 1


# IdentityAssertionGrantTokenExchangeProvider.java and StandardTokenExchangeProvider.java in keycloak/keycloak.
KEYCLOAK = [
    ("saas", 403, "access_denied", "Audience is not allowed for this client", "access_denied"),
    ("saas", 400, "unauthorized_client", "Client is not allowed to issue an Identity Assertion JWT", "access_denied"),
    ("saas", 400, "invalid_client", "Public clients are not allowed to issue an Identity Assertion JWT", None),
    ("saas", 400, "invalid_scope", "Scope not allowed for an Identity Assertion JWT: admin", None),
    ("saas", 400, "invalid_grant", "Invalid subject_token", None),
    ("api", 403, "access_denied", "Client is not within the token audience", "access_denied"),
    ("api", 400, "invalid_request", "Invalid token", None),
    ("api", 400, "invalid_client", "Public client is not allowed to exchange token", None),
    ("api", 400, "invalid_request", "Standard token exchange is not enabled for the requested client", None),
]


@pytest.mark.parametrize(("name", "status", "code", "text", "denied"), KEYCLOAK, ids=lambda value: str(value)[:40])
def test_what_keycloak_answers_is_a_denial_or_is_retried(
    files: Store,
    company: AssertionServer,
    saas: AssertionServer,
    name: str,
    status: int,
    code: str,
    text: str,
    denied: str | None,
) -> None:
    """If it failed, a grant would end although Keycloak accepts the next token, or ask a policy all the time."""
    _import(files, "company", company.person())
    _rotate(files, "company")
    _import(files, "saas", saas.managed("company"))
    _import(files, "api", _exchanged(company, subject_grant="company"))
    company.answer = lambda _: (status, {"error": code, "error_description": text})
    result = _rotate(files, name)
    assert text in result.detail
    grant = _grant(files, name)
    assert grant.failure is not None
    if denied is None:
        assert (grant.dead, grant.failure.code, grant.failure.retry_at is not None) == (False, code, True)
    else:
        assert (grant.dead, grant.failure.code) == (True, denied)
        assert result.detail.startswith("blocked by an administrator")


def test_an_id_token_that_has_expired_makes_its_source_due(
    files: Store, company: AssertionServer, saas: AssertionServer
) -> None:
    """If it failed, a server would need a person as soon as the id_token of the company has expired."""
    _import(files, "company", company.person())
    _rotate(files, "company")
    now = clocks.now().wall
    _change(files, "company", last_rotation_at=now - 60, id_token_issued_at=now - 60, id_token_expires_at=now + 10)
    _import(files, "saas", saas.managed("company"))
    assert _rotate(files, "saas").outcome == "rotated"
    assert _grant(files, "company").generation == 2
    assert _rotate(files, "saas").outcome == "rotated"
    assert _grant(files, "company").generation == 2, "an id_token that is valid is used again"


def test_a_refresh_that_brings_no_id_token_names_the_login(
    files: Store, company: AssertionServer, saas: AssertionServer
) -> None:
    """If it failed, each attempt would rotate the login of the company in vain, and nobody would know what helps."""
    company.id_token_life = None
    _import(files, "company", company.person(id_token=company.own.token("company", lifetime=-10.0)))
    _import(files, "saas", saas.managed("company"))
    for _ in range(2):
        result = _rotate(files, "saas")
        assert result.outcome == "reauthorization_required"
        assert "'refresher login company'" in result.detail
    assert _grant(files, "company").generation == 1
    assert _published(files, "saas").state == "reauthorization_required"


def test_one_login_brings_back_every_grant_that_needs_it(
    store: Store, company: AssertionServer, saas: AssertionServer
) -> None:
    """If it failed, a person would have to look for each grant that the end of one login has ended."""
    _import(store, "company", company.person(id_token=company.own.token("company", lifetime=-10.0)))
    _import(store, "saas", saas.managed("company"))
    _import(store, "api", _exchanged(company, subject_grant="company"))
    company.dead = True
    for name in ("saas", "api"):
        result = _rotate(store, name, force=False)
        assert result.outcome == "reauthorization_required"
        assert "'refresher login company' brings back every grant that needs it" in result.detail
        published = _published(store, name)
        assert published.error is not None
        assert published.error.code == "source_reauthorization_required"
    assert len(company.asked("refresh_token")) == 1
    company.dead = False
    _import(store, "company", company.person(refresh_token=company.renew()), replace=True)
    for name in ("saas", "api"):
        assert _rotate(store, name, force=False).outcome == "rotated"
        assert _published(store, name).state == "active"


def test_an_answer_of_the_provider_that_is_lost_spends_nothing(
    files: Store, company: AssertionServer, saas: AssertionServer
) -> None:
    """If it failed, a fault of the identity provider would leave a grant in doubt, though nothing was spent."""
    _import(files, "company", company.person())
    _import(files, "saas", saas.managed("company"))
    company.answer = lambda fields: (503, {}) if "audience" in fields else None
    assert _rotate(files, "saas").outcome == "transient"
    company.answer = lambda fields: (500, {}) if "audience" in fields else None
    result = _rotate(files, "saas")
    assert (result.outcome, _grant(files, "saas").doubt) == ("transient", None)
    assert "the identity provider company" in result.detail
    company.answer = lambda _: None
    assert _rotate(files, "saas").outcome == "rotated"


def test_a_provider_that_is_busy_does_not_stop_the_server(
    files: Store, company: AssertionServer, saas: AssertionServer
) -> None:
    """If it failed, each grant of a server would wait for a provider that it does not need, or demands would not wait."""
    _import(files, "company", company.person())
    _rotate(files, "company")
    _import(files, "saas", saas.managed("company"))
    company.answer = lambda fields: (429, {}) if "audience" in fields else None
    company.headers = {"Retry-After": "120"}
    assert _rotate(files, "saas", force=False).outcome == "transient"
    grant, now = _grant(files, "saas"), clocks.now()
    assert grant.failure is not None
    assert grant.failure.busy_until is None
    for passed, expected in ((60.0, Wait), (121.0, Rotate)):
        later = msgspec.structs.replace(
            now, wall=now.wall + passed, monotonic=now.monotonic + passed, boottime=now.boottime + passed
        )
        assert isinstance(policy.decide(grant, later, demanded=True), expected)


def test_an_id_token_of_a_short_life_is_brought_again(
    files: Store, company: AssertionServer, saas: AssertionServer
) -> None:
    """If it failed, a person would be told to log in, though each refresh brings an id_token."""
    company.id_token_life = 25.0
    _import(files, "company", company.person())
    _rotate(files, "company")
    _import(files, "saas", saas.managed("company"))
    assert _rotate(files, "saas").outcome == "rotated"
    assert _grant(files, "company").generation == 1, "the new one is used"
    grant = _grant(files, "company")
    assert grant.id_token_expires_at is not None
    assert grant.id_token_issued_at is not None
    changes = {
        "id_token_expires_at": grant.id_token_expires_at - 26,
        "id_token_issued_at": grant.id_token_issued_at - 26,
        "last_rotation_at": grant.id_token_issued_at - 26,
    }
    _change(files, "company", **changes)
    assert _rotate(files, "saas").outcome == "rotated"
    assert _grant(files, "company").generation == 2


# --- when a source is the cause ---------------------------------------------------------------------------------------


def test_processes_that_wait_for_each_other_ask_a_policy_once(
    files: Store, company: AssertionServer, saas: AssertionServer
) -> None:
    """If it failed, each process that saw a source come back would exchange its token once more."""
    _import(files, "company", company.person(id_token=company.own.token("company", lifetime=-10.0)))
    _import(files, "saas", saas.managed("company"))
    company.answer = lambda _: (503, {})
    assert _rotate(files, "saas", force=False).outcome == "transient"
    company.answer = lambda fields: (400, {"error": "access_denied"}) if "audience" in fields else None
    assert _rotate(files, "company").outcome == "rotated"
    waits = threading.Event()

    def noted() -> bool:
        waits.set()
        return False

    later = threading.Thread(
        target=rotate,
        args=(files, Order(name="saas", seen=0), Terms(ca_file=None, stopping=noted)),
    )

    def start_another(fields: dict[str, str]) -> None:
        if "audience" in fields and not waits.is_set():
            later.start()
            assert waits.wait(20)  # it has read the sources, and waits for the lock

    company.before = start_another
    assert _rotate(files, "saas", force=False).outcome == "reauthorization_required"
    later.join()
    assert len(company.asked("token_exchange")) == 1


def test_a_source_that_stays_as_it_was_is_no_reason_for_another_attempt(
    files: Store, company: AssertionServer, saas: AssertionServer
) -> None:
    """If it failed, a grant with two sources would be attempted many times a second while both have failed."""
    _import(files, "company", company.person())
    _rotate(files, "company")
    _import(files, "agent", saas.person(client_id="agent"))
    _import(files, "api", _exchanged(company, subject_grant="company", actor_grant="agent"))
    company.dead = True
    _rotate(files, "company")
    assert _grant(files, "company").dead, "its access token is still valid"
    saas.answer = lambda _: (503, {})
    for _ in range(3):
        assert _rotate(files, "api", force=False).outcome == "transient"
    assert _grant(files, "api").failures == 1
    _change(files, "company", expires_at=0.0, issued=None)
    _retry_now(files, "api")
    assert _rotate(files, "api", force=False).outcome == "reauthorization_required"
    company.dead = False
    _import(files, "company", company.person(refresh_token=company.renew()), replace=True)
    saas.answer = lambda _: None
    _retry_now(files, "agent")
    assert _rotate(files, "api", force=False).outcome == "rotated"


def test_a_server_cannot_write_the_command_that_a_person_runs(files: Store, company: AssertionServer) -> None:
    """If it failed, a server could have a person log in at an address that it chooses."""
    text = "run 'refresher login company https://evil.example/mcp --replace'"
    _import(files, "company", company.person())
    _import(files, "api", _exchanged(company, subject_grant="company"))
    company.answer = lambda _: (400, {"error": "invalid_grant", "error_description": text})
    assert _rotate(files, "api", force=False).outcome == "reauthorization_required"
    assert repair_command(_grant(files, "api")) == "refresher login company"
    company.answer = lambda _: (400, {"error": "source_reauthorization_required", "error_description": text})
    _import(files, "plain", company.person(refresh_token=company.renew()))
    _rotate(files, "plain", force=False)
    assert repair_command(_grant(files, "plain")) == "refresher login plain"


def test_a_login_that_helped_is_not_asked_for_again(files: Store, company: AssertionServer) -> None:
    """If it failed, a person would be told to log in once more, though now the server is the cause."""
    _import(files, "company", company.person())
    _import(files, "api", _exchanged(company, subject_grant="company"))
    company.dead = True
    assert _rotate(files, "api", force=False).outcome == "reauthorization_required"
    company.dead = False
    _import(files, "company", company.person(refresh_token=company.renew()), replace=True)
    company.answer = lambda fields: (503, {}) if "subject_token" in fields else None
    result = _rotate(files, "api", force=False)
    assert (result.outcome, "503" in result.detail) == ("transient", True), result
    published = _published(files, "api")
    assert published.error is not None
    assert (published.state, published.error.code) == ("failing", "temporarily_unavailable")


def test_the_command_for_a_source_helps(files: Store, company: AssertionServer, saas: AssertionServer) -> None:
    """If it failed, a person would log in where no login helps, or look for a grant that is there."""
    _import(files, "company", company.person())
    _import(files, "saas", saas.managed("company"))
    _import(files, "api", _exchanged(saas, subject_grant="saas"))
    company.answer = lambda fields: (400, {"error": "access_denied"}) if "audience" in fields else None
    result = _rotate(files, "api", force=False)
    assert result.outcome == "reauthorization_required"
    assert "ask those who run the identity provider, then 'refresher run-once saas --force'" in result.detail
    assert "refresher login" not in result.detail
    assert repair_command(_grant(files, "api")) == "refresher run-once saas --force"
    record = files.directories.record("saas")
    record.chmod(0o666)
    detail = _rotate(files, "api").detail
    assert "its source saas cannot be read: " in detail
    assert "does not exist" not in detail


def test_a_grant_that_waits_rotates_no_source(files: Store, company: AssertionServer, saas: AssertionServer) -> None:
    """If it failed, demands for a grant that is denied would spend refresh tokens of the company, one after the other."""
    _import(files, "company", company.person())
    _rotate(files, "company")
    _import(files, "saas", saas.managed("company"))
    company.answer = lambda fields: (400, {"error": "access_denied"}) if "audience" in fields else None
    assert _rotate(files, "saas", force=False).outcome == "reauthorization_required"
    asked, now = len(company.requests), clocks.now().wall
    _change(files, "company", last_rotation_at=now - 100, id_token_expires_at=now - 1)
    (files.directories.demands / "saas.0").touch()
    order = Order(name="saas", seen=0, demanded=frozenset({0}))
    rotate(files, order, Terms(ca_file=None, stopping=lambda: False))
    assert len(company.requests) == asked
