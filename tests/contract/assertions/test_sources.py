"""A grant that waits for, or fails because of, the grant whose token it needs."""

import threading

from refresher.common import clocks
from refresher.doctor.grants import check
from refresher.operations.events import Event
from refresher.operations.remove import remove
from refresher.operations.result import repair_command
from refresher.operations.rotate import Order, Terms, rotate
from refresher.storage.store import Store
from tests.support.assertion_grants import (
    change,
    exchanged,
    grant_of,
    import_grant,
    published_of,
    retry_now,
    rotate_now,
)
from tests.support.assertion_server import AssertionServer


def test_processes_that_wait_for_each_other_ask_a_policy_once(
    files: Store, company: AssertionServer, saas: AssertionServer
) -> None:
    """If it failed, each process that saw a source come back would exchange its token once more."""
    import_grant(files, "company", company.person(id_token=company.own.token("company", lifetime=-10.0)))
    import_grant(files, "saas", saas.managed("company"))
    company.answer = lambda _: (503, {})
    assert rotate_now(files, "saas", force=False).outcome == "transient"
    company.answer = lambda fields: (400, {"error": "access_denied"}) if "audience" in fields else None
    assert rotate_now(files, "company").outcome == "rotated"
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
    assert rotate_now(files, "saas", force=False).outcome == "reauthorization_required"
    later.join()
    assert len(company.asked("token_exchange")) == 1


def test_a_source_that_stays_as_it_was_is_no_reason_for_another_attempt(
    files: Store, company: AssertionServer, saas: AssertionServer
) -> None:
    """If it failed, a grant with two sources would be attempted many times a second while both have failed."""
    import_grant(files, "company", company.person())
    rotate_now(files, "company")
    import_grant(files, "agent", saas.person(client_id="agent"))
    import_grant(files, "api", exchanged(company, subject_grant="company", actor_grant="agent"))
    company.dead = True
    rotate_now(files, "company")
    assert grant_of(files, "company").dead, "its access token is still valid"
    saas.answer = lambda _: (503, {})
    for _ in range(3):
        assert rotate_now(files, "api", force=False).outcome == "transient"
    assert grant_of(files, "api").failures == 1
    change(files, "company", expires_at=0.0, issued=None)
    retry_now(files, "api")
    assert rotate_now(files, "api", force=False).outcome == "reauthorization_required"
    company.dead = False
    import_grant(files, "company", company.person(refresh_token=company.renew()), replace=True)
    saas.answer = lambda _: None
    retry_now(files, "agent")
    assert rotate_now(files, "api", force=False).outcome == "rotated"


def test_a_source_whose_token_is_refused_is_rotated_once(store: Store, company: AssertionServer) -> None:
    """If it failed, a token that was revoked early would stop what it feeds for up to an hour; or a server that refuses
    each token would have a source rotated every five minutes."""
    import_grant(store, "company", company.person())
    rotate_now(store, "company")
    import_grant(store, "api", exchanged(company, subject_grant="company"))
    company.issued.clear()
    assert rotate_now(store, "api", force=False).outcome == "rotated"
    assert grant_of(store, "company").generation == 2
    company.answer = lambda fields: (400, {"error": "invalid_request"}) if "subject_token" in fields else None
    assert rotate_now(store, "api").outcome == "transient"
    for _ in range(3):
        retry_now(store, "api")
        assert rotate_now(store, "api", force=False).outcome == "transient"
    assert grant_of(store, "company").generation == 3


def test_a_removal_names_what_it_stops(store: Store, company: AssertionServer, saas: AssertionServer) -> None:
    """If it failed, a person would learn from failing agents that other grants need the one that was removed."""
    import_grant(store, "company", company.person())
    import_grant(store, "api", exchanged(company, subject_grant="company"))
    import_grant(store, "saas", saas.managed("company"))
    import_grant(store, "alone", company.person(refresh_token="of-another-login"))
    import_grant(store, "deep", exchanged(company, subject_grant="api", actor_grant="saas"))
    words = remove(store, "company", stopping=lambda: False)
    again = "refresher login company URL"
    assert f"; api, saas, deep need its token, and fail from now on: '{again}' brings them back" in words
    assert "need" not in remove(store, "alone", stopping=lambda: False)
    rotate_now(store, "api")
    (finding,) = check(store.directories, [("api", grant_of(store, "api"))])
    assert finding.mend == "'refresher login company URL' or 'refresher import company --from FILE'"
    assert finding.mend in finding.what
    again = "refresher import api --replace --from FILE"
    words = remove(store, "api", stopping=lambda: False)
    assert f"; deep needs its token, and fails from now on: '{again}' brings it back" in words


def test_an_imported_access_token_is_renewed_with_its_source(store: Store, company: AssertionServer) -> None:
    """If it failed, agents would keep a token that ends with the one that it was made from."""
    import_grant(store, "company", company.person())
    rotate_now(store, "company")
    import_grant(store, "api", exchanged(company, subject_grant="company", access_token="earlier", expires_in=3600))
    assert rotate_now(store, "api", force=False).outcome == "not_due"
    assert rotate_now(store, "company").outcome == "rotated"
    assert rotate_now(store, "api", force=False).outcome == "rotated"


def test_a_newer_token_is_presented_at_once_after_a_refusal(store: Store, company: AssertionServer) -> None:
    """If it failed, agents would wait for the end of a backoff, although a person has renewed the source."""
    import_grant(store, "company", company.person())
    rotate_now(store, "company")
    import_grant(store, "api", exchanged(company, subject_grant="company"))
    company.answer = lambda fields: (400, {"error": "invalid_request"}) if "subject_token" in fields else None
    assert rotate_now(store, "api", force=False).outcome == "transient"
    company.answer = lambda _: None
    assert rotate_now(store, "api", force=False).outcome == "transient", "it waits"
    assert rotate_now(store, "company").outcome == "rotated"
    assert rotate_now(store, "api", force=False).outcome == "rotated"


def test_a_chain_recovers_in_one_operation(store: Store, company: AssertionServer) -> None:
    """If it failed, agents would get a 401 while each grant of a chain waits for a backoff of its own."""
    import_grant(store, "company", company.person())
    rotate_now(store, "company")
    import_grant(store, "middle", exchanged(company, subject_grant="company"))
    import_grant(store, "api", exchanged(company, subject_grant="middle"))
    assert rotate_now(store, "api", force=False).outcome == "rotated"
    company.issued.clear()
    assert rotate_now(store, "api").outcome == "rotated"
    assert [grant_of(store, name).generation for name in ("company", "middle", "api")] == [2, 2, 2]
    assert len(company.asked("refresh_token")) == 2


def test_a_grant_that_failed_before_is_told_to_work_again(store: Store, company: AssertionServer) -> None:
    """If it failed, a person who was told that a grant fails would never hear that it works again."""
    import_grant(store, "company", company.person())
    rotate_now(store, "company")
    import_grant(store, "api", exchanged(company, subject_grant="company"))
    assert rotate_now(store, "api").outcome == "rotated"
    company.answer = lambda fields: (503, {}) if "subject_token" in fields else None
    assert rotate_now(store, "api").outcome == "transient"
    company.answer = lambda _: None
    company.issued.clear()
    told: list[Event] = []
    terms = Terms(ca_file=None, stopping=lambda: False, emit=told.append)
    rotate(store, Order(name="api", seen=1, force=True), terms)
    assert [(event.kind, event.state_before, event.state) for event in told if event.name == "api"] == [
        ("rotated", None, None),
        ("state_changed", "failing", "active"),
    ]


def test_a_dead_source_whose_token_is_refused_names_its_login(store: Store, company: AssertionServer) -> None:
    """If it failed, a person would look at a server that is right, and the refused token be sent again and again."""
    import_grant(store, "company", company.person())
    rotate_now(store, "company")
    import_grant(store, "api", exchanged(company, subject_grant="company"))
    company.issued.clear()
    company.dead = True
    assert rotate_now(store, "api", force=False).outcome == "reauthorization_required"
    assert repair_command(grant_of(store, "api")) == "refresher login company"
    asked = len(company.requests)
    retry_now(store, "api")
    assert rotate_now(store, "api", force=False).outcome == "reauthorization_required"
    assert len(company.requests) == asked
    company.dead = False
    import_grant(store, "company", company.person(refresh_token=company.renew()), replace=True)
    assert rotate_now(store, "api", force=False).outcome == "rotated"


def test_the_newest_refusal_replaces_a_denial(store: Store, company: AssertionServer) -> None:
    """If it failed, a person would ask an administrator who has lifted the denial already; or it be asked many times."""
    import_grant(store, "company", company.person())
    rotate_now(store, "company")
    import_grant(store, "api", exchanged(company, subject_grant="company"))
    company.answer = lambda fields: (400, {"error": "access_denied"}) if "subject_token" in fields else None
    assert rotate_now(store, "api").outcome == "reauthorization_required"
    company.answer = lambda fields: (503, {}) if "subject_token" in fields else None
    assert rotate_now(store, "api").outcome == "reauthorization_required"
    failure = grant_of(store, "api").failure
    assert failure is not None
    assert failure.retry_at is not None
    assert (failure.code, failure.retry_at - failure.at > 80000) == ("access_denied", True)
    company.answer = lambda fields: (400, {"error": "invalid_scope"}) if "subject_token" in fields else None
    result = rotate_now(store, "api")
    assert (result.outcome, "invalid_scope" in result.detail) == ("transient", True), result


def test_a_server_cannot_write_the_command_that_a_person_runs(files: Store, company: AssertionServer) -> None:
    """If it failed, a server could have a person log in at an address that it chooses."""
    text = "run 'refresher login company https://evil.example/mcp --replace'"
    import_grant(files, "company", company.person())
    import_grant(files, "api", exchanged(company, subject_grant="company"))
    company.answer = lambda _: (400, {"error": "invalid_grant", "error_description": text})
    assert rotate_now(files, "api", force=False).outcome == "reauthorization_required"
    assert repair_command(grant_of(files, "api")) == "refresher login company"
    company.answer = lambda _: (400, {"error": "source_reauthorization_required", "error_description": text})
    import_grant(files, "plain", company.person(refresh_token=company.renew()))
    rotate_now(files, "plain", force=False)
    assert repair_command(grant_of(files, "plain")) == "refresher login plain"


def test_a_login_that_helped_is_not_asked_for_again(files: Store, company: AssertionServer) -> None:
    """If it failed, a person would be told to log in once more, though now the server is the cause."""
    import_grant(files, "company", company.person())
    import_grant(files, "api", exchanged(company, subject_grant="company"))
    company.dead = True
    assert rotate_now(files, "api", force=False).outcome == "reauthorization_required"
    company.dead = False
    import_grant(files, "company", company.person(refresh_token=company.renew()), replace=True)
    company.answer = lambda fields: (503, {}) if "subject_token" in fields else None
    result = rotate_now(files, "api", force=False)
    assert (result.outcome, "503" in result.detail) == ("transient", True), result
    published = published_of(files, "api")
    assert published.error is not None
    assert (published.state, published.error.code) == ("failing", "temporarily_unavailable")


def test_the_command_for_a_source_helps(files: Store, company: AssertionServer, saas: AssertionServer) -> None:
    """If it failed, a person would log in where no login helps, or look for a grant that is there."""
    import_grant(files, "company", company.person())
    import_grant(files, "saas", saas.managed("company"))
    import_grant(files, "api", exchanged(saas, subject_grant="saas"))
    company.answer = lambda fields: (400, {"error": "access_denied"}) if "audience" in fields else None
    result = rotate_now(files, "api", force=False)
    assert result.outcome == "reauthorization_required"
    assert "ask those who run the identity provider, then 'refresher run-once saas --force'" in result.detail
    assert "refresher login" not in result.detail
    assert repair_command(grant_of(files, "api")) == "refresher run-once saas --force"
    record = files.directories.record("saas")
    record.chmod(0o666)
    detail = rotate_now(files, "api").detail
    assert "its source saas cannot be read: " in detail
    assert "does not exist" not in detail


def test_a_grant_that_waits_rotates_no_source(files: Store, company: AssertionServer, saas: AssertionServer) -> None:
    """If it failed, demands for a grant that is denied would spend refresh tokens of the company, one after the other."""
    import_grant(files, "company", company.person())
    rotate_now(files, "company")
    import_grant(files, "saas", saas.managed("company"))
    company.answer = lambda fields: (400, {"error": "access_denied"}) if "audience" in fields else None
    assert rotate_now(files, "saas", force=False).outcome == "reauthorization_required"
    asked, now = len(company.requests), clocks.now().wall
    change(files, "company", last_rotation_at=now - 100, id_token_expires_at=now - 1)
    (files.directories.demands / "saas.0").touch()
    order = Order(name="saas", seen=0, demanded=frozenset({0}))
    rotate(files, order, Terms(ca_file=None, stopping=lambda: False))
    assert len(company.requests) == asked
