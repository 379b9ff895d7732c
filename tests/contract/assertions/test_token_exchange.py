"""Access tokens that are exchanged for the token of a file or of another grant (RFC 8693)."""

import json
import threading
from pathlib import Path

import msgspec
import pytest

from refresher.common import clocks
from refresher.common.errors import ImportRefused
from refresher.grants import policy
from refresher.grants.assertion import TOKEN_TYPE
from refresher.operations import import_request
from refresher.operations.rotate import Order, Terms, rotate
from refresher.storage.file_store import FileStore
from refresher.storage.keys import KeyRing, parse_source
from refresher.storage.postgres.postgres_store import PostgresStore
from refresher.storage.store import Store
from tests.support.assertion_grants import change, exchanged, grant_of, import_grant, published_of, rotate_now
from tests.support.assertion_server import AssertionServer, Issuer
from tests.support.stores import open_place


def test_a_subject_and_an_actor_are_exchanged(
    files: Store, server: AssertionServer, issuer: Issuer, tmp_path: Path
) -> None:
    """If it failed, a server would not know for whom a token is, or who acts (RFC 8693 section 2.1)."""
    path = tmp_path / "token"
    import_grant(files, "base", server.person())
    rotate_now(files, "base")
    actor = issuer.write(path, "anything")
    fields = exchanged(
        server,
        grant_type="urn:ietf:params:oauth:grant-type:token-exchange",
        subject_grant="base",
        actor_file=str(path),
        audience="https://api.example",
        requested_token_type="jwt",
        scope="read",
    )
    import_grant(files, "api", fields)
    assert rotate_now(files, "api").outcome == "rotated"
    source = grant_of(files, "base").access_token
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
    import_grant(files, "base", company.person())
    assert rotate_now(files, "base").outcome == "rotated"
    import_grant(files, "api", exchanged(company, subject_grant="base"))
    company.answer = lambda _: (200, {"access_token": "a-token-of-another-kind", "expires_in": 600, **about})
    result = rotate_now(files, "api")
    assert (result.outcome, "is no access token" in result.detail) == ("transient", True), result
    assert published_of(files, "api").access_token is None


def test_a_grant_follows_the_one_whose_token_it_needs(store: Store, company: AssertionServer) -> None:
    """If it failed, agents would keep a token that was made from one that is not valid any more."""
    import_grant(store, "base", company.person())
    rotate_now(store, "base")
    company.life = 7200.0  # so that its own schedule is later
    import_grant(store, "api", exchanged(company, subject_grant="base"))
    assert rotate_now(store, "api", force=False).outcome == "rotated"
    assert rotate_now(store, "api", force=False).outcome == "not_due"
    due = policy.due_at(grant_of(store, "base"))
    assert due <= policy.due_at(grant_of(store, "api")) <= due + 60
    rotate_now(store, "base")
    change(store, "api", last_rotation_at=0.0)
    assert rotate_now(store, "api", force=False).outcome == "rotated"
    source = grant_of(store, "base").access_token
    assert source is not None
    assert company.requests[-1]["subject_token"] == source.reveal()
    change(store, "api", last_rotation_at=0.0)
    assert rotate_now(store, "api", force=False).outcome == "not_due"


def test_a_source_whose_key_is_not_here_is_named_and_nothing_is_begun(
    files: Store, company: AssertionServer, tmp_path: Path
) -> None:
    """If it failed, each try would leave an attempt that was cut off, and no word of the key that is missing."""
    key = tmp_path / "key"
    key.touch(0o600)
    key.write_bytes(bytes(range(32)))
    sealing = KeyRing(parse_source("encryption_key", f"file:{key}"))
    sealed = FileStore(msgspec.structs.replace(files.directories, keys=sealing))
    import_grant(sealed, "base", company.person())
    assert rotate_now(sealed, "base").outcome == "rotated"
    import_grant(files, "api", exchanged(company, subject_grant="base"))
    asked = len(company.requests)
    result = rotate_now(files, "api")
    assert (result.outcome, "its source base cannot be opened" in result.detail) == ("transient", True), result
    assert len(company.requests) == asked
    assert list(files.directories.grants.glob("*.intent")) == []
    assert rotate_now(sealed, "api").outcome == "rotated"


def test_a_source_that_is_due_is_rotated_first_and_only_once(store: Store, company: AssertionServer) -> None:
    """If it failed, grants of one source would each spend a refresh token of it, or wait for each other for ever (I3)."""
    names = [f"api-{number}" for number in range(4)]
    import_grant(store, "base", company.person())
    for name in names:
        import_grant(store, name, exchanged(company, subject_grant="base"))
    free: list[str] = []

    def look(fields: dict[str, str]) -> None:
        if "subject_token" in fields:
            with store.held("base", stopping=lambda: False, wait=10.0):
                free.append("base")

    company.before = look
    threads = [threading.Thread(target=rotate_now, args=(store, name), kwargs={"force": False}) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(company.asked("refresh_token")) == 1
    assert len(company.asked("token_exchange")) == len(names) == len(free)
    assert grant_of(store, "base").generation == 1


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"requested_token_type": "refresh_token"}, "requested_token_type: agents need an access token"),
        ({"requested_token_type": f"{TOKEN_TYPE}refresh_token"}, "requested_token_type: agents need an access token"),
        (
            {"subject_token_type": "of somebody"},
            "subject_token_type must be access_token, id_token, jwt or another URI",
        ),
        ({"subject_token_type": "urn:of somebody"}, "subject_token_type must be"),
        ({"subject_token_type": "1:number"}, "subject_token_type must be"),
        ({"requested_token_type": f"urn:{'a' * 200}"}, "another URI of at most 200 characters"),
        ({"actor_token_type": "jwt"}, "actor_token_type needs an actor_file or an actor_grant"),
    ],
)
def test_types_of_tokens_that_no_server_can_answer_are_refused(
    files: Store, company: AssertionServer, fields: dict[str, str], words: str
) -> None:
    """If it failed, an import that can never bring a token would succeed, and the server would be blamed."""
    with pytest.raises(ImportRefused, match=words):
        import_grant(files, "api", exchanged(company, **{"subject_grant": "base", **fields}))
    import_grant(files, "api", exchanged(company, subject_grant="base", subject_token_type="https://a.example/t?x=1"))


def test_grants_that_need_each_other_are_refused(files: Store, company: AssertionServer) -> None:
    """If it failed, a rotation of one would rotate the other, and so on, without end."""
    import_grant(files, "base", company.person())
    import_grant(files, "one", exchanged(company, subject_grant="base"))
    import_grant(files, "two", exchanged(company, subject_grant="one"))
    circular = exchanged(company, subject_grant="two")
    with pytest.raises(ImportRefused, match="one would need its own token through two: give another source"):
        import_grant(files, "one", circular, replace=True)
    change(files, "one", assertion=import_request.parse("one", json.dumps(circular).encode(), clocks.now()).assertion)
    result = rotate_now(files, "two")
    assert "two would need its own token through one" in result.detail
    assert grant_of(files, "two").failure is not None
    assert company.requests == []


def test_a_grant_at_the_start_of_a_long_row_gets_no_source(store: Store, company: AssertionServer) -> None:
    """If it failed, an import that succeeds would stop a grant that works, and name another cause."""
    import_grant(store, "link-0", company.person())
    for number in range(1, 9):
        import_grant(store, f"link-{number}", exchanged(company, subject_grant=f"link-{number - 1}"))
    too_long = "link-{} would need the tokens of more than 8 grants in a row: give another source"
    with pytest.raises(ImportRefused, match=too_long.format(9)):
        import_grant(store, "link-9", exchanged(company, subject_grant="link-8"))
    import_grant(store, "root", company.person(refresh_token="of-another-login"))
    with pytest.raises(ImportRefused, match=too_long.format(8)):
        import_grant(store, "link-0", exchanged(company, subject_grant="root"), replace=True)
    assert grant_of(store, "link-0").assertion is None
    assert rotate_now(store, "link-8", force=False).outcome == "rotated"
    import_grant(store, "link-0", company.person(refresh_token=company.renew()), replace=True)


def test_a_long_chain_is_rotated_from_its_source(files: Store, company: AssertionServer) -> None:
    """If it failed, a grant at the end of a chain would present a token that nobody has renewed."""
    import_grant(files, "link-0", company.person())
    for number in range(1, 8):
        import_grant(files, f"link-{number}", exchanged(company, subject_grant=f"link-{number - 1}"))
    assert rotate_now(files, "link-7", force=False).outcome == "rotated"
    assert [grant_of(files, f"link-{number}").generation for number in range(8)] == [1] * 8
    assert len(company.requests) == 8


@pytest.mark.parametrize("where", ["audience", "resource"])
def test_a_target_that_is_refused_is_not_left_out(files: Store, company: AssertionServer, where: str) -> None:
    """If it failed, agents would get a token for another target than the one that a person has named."""
    import_grant(files, "base", company.person())
    rotate_now(files, "base")
    import_grant(files, "api", exchanged(company, subject_grant="base", **{where: "https://api.example"}))
    company.answer = lambda fields: (400, {"error": "invalid_target"}) if where in fields else None
    assert rotate_now(files, "api", force=False).outcome == "transient"
    grant = grant_of(files, "api")
    assert (len(company.asked("token_exchange")), grant.refusals, grant.resource_refused) == (1, 1, False)
    company.answer = lambda _: None
    assert rotate_now(files, "api").outcome == "rotated"
    assert company.requests[-1][where] == "https://api.example"


def test_what_becomes_due_before_the_next_run_is_rotated_before_what_needs_it(
    files: Store, company: AssertionServer
) -> None:
    """If it failed, a run of cron would make a token from one that it replaces in the same run, and again the next."""
    import_grant(files, "base", company.person())
    import_grant(files, "api", exchanged(company, subject_grant="base"))
    assert rotate_now(files, "api", force=False).outcome == "rotated"
    for name in ("base", "api"):
        grant, passed = grant_of(files, name), 2400.0
        assert grant.expires_at is not None
        assertion = grant.assertion
        if assertion is not None and assertion.source_due_at is not None:
            assertion = msgspec.structs.replace(assertion, source_due_at=assertion.source_due_at - passed)
        change(
            files,
            name,
            issued_at=grant.issued_at - passed,
            issued=None,
            expires_at=grant.expires_at - passed,
            last_rotation_at=grant.issued_at - passed,
            assertion=assertion,
        )
    rotate(files, Order(name="api", seen=1, horizon=600.0), Terms(ca_file=None, stopping=lambda: False))
    source = grant_of(files, "base").access_token
    assert source is not None
    assert (grant_of(files, "base").generation, grant_of(files, "api").generation) == (2, 2)
    assert company.requests[-1]["subject_token"] == source.reveal()


def test_a_grant_that_was_claimed_is_free_while_its_source_is_rotated(
    request: pytest.FixtureRequest, tmp_path: Path, company: AssertionServer
) -> None:
    """If it failed, the exchange of a source could outlast the lease of the grant that needs it, and end its attempt."""
    with open_place("postgresql", tmp_path, lambda: request.getfixturevalue("postgres")) as place:
        store, other = place.open(), place.open("other")
        assert isinstance(store, PostgresStore)
        assert isinstance(other, PostgresStore)
        import_grant(store, "base", company.person())
        import_grant(store, "api", exchanged(company, subject_grant="base"))
        assert "api" in store.claim_due(8, each=8, rooms={})
        free: list[str] = []

        def look(fields: dict[str, str]) -> None:
            if fields["grant_type"] == "refresh_token":
                assert "api" not in other.claim_due(8, each=8, rooms={}), "nor does another host begin the same"
                with other.held("api", stopping=lambda: False, wait=0.0):
                    free.append("api")

        company.before = look
        assert rotate_now(store, "api", force=False).outcome == "rotated"
        assert free == ["api"]
