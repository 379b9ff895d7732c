"""A process that is killed between two of its steps, for each pair of steps."""

import re
import shutil
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest

from refresher.grants.record import Grant, Tombstone
from refresher.storage import records
from refresher.storage.journal import Mark, read_intent
from tests.conftest import need
from tests.support.command import Command, wait_until
from tests.support.kills import CHANGES, NETWORK, sweep
from tests.support.oidc import OIDC
from tests.support.parts import injecting, no_strace
from tests.support.sealed import make_key, use_keys
from tests.support.token_server import TokenServer

Start = Callable[..., OIDC]

DONE = {"adopted", "not_due"}
_KNOWN = re.compile(r"\.import\.lock|\.health\.sock|linear\.(json|lock|intent|next(\.[1-5])?)")


@pytest.fixture(autouse=True)
def _strace(refresher: Command) -> None:
    need(no_strace())
    refresher.environment["REFRESHER_SPILL_DIR"] = str(refresher.home / "spill")


def last_stage(refresher: Command, before: Grant) -> str:
    """Return the last stage of a killed rotation of ``before``: ``nothing`` was sent, ``sent``, or ``saved``.

    It reads the files alone. Each must be complete and of a known kind.
    """
    directories = refresher.directories
    there = sorted(path.name for path in directories.grants.iterdir())
    assert [name for name in there if not _KNOWN.fullmatch(name)] == []
    assert {path.name for path in directories.tokens.iterdir()} <= {"linear.json", ".linear.json.new"}
    places = [directories.record("linear"), *directories.candidates("linear")]
    places += directories.spill.iterdir() if directories.spill.exists() else []
    found = [records.read_candidate(path, "linear", directories.keys).record for path in places]
    assert found[0] is not None, "the record is not complete"
    assert all(path.stat().st_mode & 0o077 == 0 for path in places)
    generations = {record.generation for record in found if record is not None}
    assert generations <= {before.generation, before.generation + 1}
    if before.generation + 1 in generations:
        return "saved"
    begun = read_intent(directories.intent("linear"))
    return "nothing" if begun is None or begun[1] is Mark.UNSENT else "sent"


def is_clean(refresher: Command) -> bool:
    """Whether there are no files but records, locks and token files."""
    directories = refresher.directories
    spilled = list(directories.spill.iterdir()) if directories.spill.exists() else []
    return (
        not spilled and not refresher.leftovers() and [*directories.tokens.iterdir()] == [directories.token("linear")]
    )


def restorer(refresher: Command) -> Callable[[], None]:
    """Copy all files; return a function that restores them."""
    made = refresher.directories
    made.spill.mkdir(mode=0o700, exist_ok=True)
    # Secrets are allowed below this name.
    copies = {place: refresher.home / "kept/grants" / place.name for place in (made.state, made.spill)}
    for place, copy in copies.items():
        shutil.copytree(place, copy)

    def restore() -> None:
        for place, copy in copies.items():
            shutil.rmtree(place)
            shutil.copytree(copy, place)

    return restore


# --- rotations ----------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A rotation that is killed at each of the given system calls."""

    arguments: Sequence[str] = ("run-once", "--force")
    calls: Sequence[str] = (*CHANGES, *NETWORK)
    live: bool = True
    """There is an access token that a second attempt could revoke."""
    fault: str | None = None
    killed: Sequence[str] | None = None
    planted: bool = False
    """An agent has planted a demand for the next generation."""
    sealed: bool = False
    """The grant is sealed with a key."""


CASES = {
    "forced": Case(),
    # The same steps with other consequences: killed once at each stage.
    "first": Case(("run-once",), ("pwrite64", "recvfrom"), live=False),
    "planted": Case(calls=("rename", "renameat", "unlinkat", "recvfrom", "pwrite64"), planted=True),
    "sealed": Case(calls=("pwrite64", "ftruncate", "rename", "renameat", "unlink", "recvfrom"), sealed=True),
    "sealed and spilling": Case(calls=("pwrite64", "unlink"), fault="rename:error=EIO", sealed=True),
    "spilling": Case(calls=CHANGES, fault="rename:error=EIO"),
    "daemon": Case(("run-once",), ("pwrite64", "rename", "renameat", "recvfrom"), live=False, killed=("run",)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_killed_at_any_system_call_the_next_run_continues_or_reports_in_doubt(
    refresher: Command, own_oidc: Start, case: Case
) -> None:
    """If it failed, a kill at the wrong moment would lose a token, or send a spent one again (I1, I4, I6)."""
    server = own_oidc()
    before: list[Grant] = []
    expected = {"nothing": {"not_due" if case.live else "rotated"}, "sent": {"in_doubt"}, "saved": DONE}

    def prepare() -> None:
        shutil.rmtree(refresher.directories.spill, ignore_errors=True)
        if not case.live:
            shutil.rmtree(refresher.state, ignore_errors=True)
        before.append(refresher.bring("linear", server.mint(live=case.live), replace=True))
        if case.planted:
            (refresher.state / "demands").mkdir(mode=0o700, exist_ok=True)
            (refresher.state / f"demands/linear.{before[-1].generation + 1}").touch()

    if case.sealed:
        use_keys(refresher, make_key(refresher.home, "first"))
    seen, published, removed = set(), False, False
    for point in sweep(refresher, prepare, case.arguments, calls=case.calls, fault=case.fault, killed=case.killed):
        published |= point.call == "renameat"
        removed |= point.call == "unlinkat" and point.path == str(refresher.state / "demands")
        stage = last_stage(refresher, before[-1])
        seen.add(stage)
        assert not case.live or refresher.token("linear").access_token, f"killed at {point}, readers have no token"
        sent = len(server.requests())
        done = refresher("run-once", "--json")
        assert done.outcome in expected[stage], f"killed at {point} ({stage}): {done.stdout}"
        assert is_clean(refresher), f"killed at {point} ({stage}): {refresher.leftovers()}"
        after = refresher.grant("linear")
        token = refresher.token("linear")
        if stage == "sent":
            assert (after.refresh_token, after.generation) == (before[-1].refresh_token, before[-1].generation)
            assert token.state == "failing"
            assert (token.access_token is not None) is case.live
            if case.live:
                assert refresher("run-once", "--force", "--json").outcome == "in_doubt"
            assert len(server.requests()) == sent, f"killed at {point}, a token that may be spent was sent"
        else:
            assert after.refresh_token is not None
            assert server.introspect(after.refresh_token.reveal())["active"], f"killed at {point}, the login is lost"
            assert (token.generation, token.state) == (after.generation, "active")
    assert seen == {"nothing", "sent", "saved"}
    assert published == ("renameat" in case.calls), "no kill at the publication"
    assert removed or not case.planted, "no kill at the removal of the planted demand"
    assert (server.log()["reused"], server.log()["presented_twice"]) == (0, 0)


def test_killed_at_any_system_call_a_replay_goes_on_by_itself(refresher: Command) -> None:
    """If it failed, agents would be without a token after a kill, although the server allows a replay (I4)."""
    before: list[Grant] = []
    with TokenServer(lambda _: 3600) as server:

        def prepare() -> None:
            fields = server.grant("client", replay="unlimited", access_token="an-access-token", expires_in=3600)
            before.append(refresher.bring("linear", fields, replace=True))

        for point in sweep(refresher, prepare, ("run-once", "--force"), calls=("pwrite64", "recvfrom")):
            stage = last_stage(refresher, before[-1])
            done = refresher("run-once", "--json")
            assert done.outcome in {"nothing": {"not_due"}, "sent": {"rotated"}, "saved": DONE}[stage], point
            assert refresher.grant("linear").generation == before[-1].generation + (stage != "nothing")
            assert is_clean(refresher), f"killed at {point} ({stage}): {refresher.leftovers()}"


def test_an_answer_that_was_lost_by_a_kill_is_reported_once_the_token_has_expired(
    refresher: Command, own_oidc: Start
) -> None:
    """If it failed, a grant would end without an explanation (I4, I5)."""
    server = own_oidc()
    refresher.bring("linear", server.mint(live=True) | {"expires_in": 3})
    kill = injecting("recvfrom", "signal=KILL:when=1")
    assert refresher.finish(refresher.start("run-once", "--force", prefix=kill)).code == -9
    wait_until(lambda: server.requests()[-1]["status"] == 200, "the server answers the killed process")
    done = refresher("run-once", "--json")
    while done.outcome == "in_doubt":
        assert (done.code, len(server.requests())) == (5, 1)
        wait_until(lambda: _is_expired(refresher), "the access token has expired")
        done = refresher("run-once", "--force", "--json")
    assert (done.code, done.outcome) == (3, "reauthorization_required")
    token = refresher.token("linear")
    assert token.error is not None
    for words in (done.results["linear"]["detail"], token.error.description, refresher("status").stdout):
        assert "the rotation was lost" in words
    assert is_clean(refresher)


def _is_expired(refresher: Command) -> bool:
    expires_at = refresher.grant("linear").expires_at
    return expires_at is not None and time.time() > expires_at + 0.1


# --- recoveries ---------------------------------------------------------------------------------------------------


class Interrupted(NamedTuple):
    """An attempt that was interrupted, and the outcome of the next run."""

    faults: Sequence[str]
    """Faults that strace injects into the attempt."""
    stage: str
    outcome: set[str]
    then: Callable[[Command], object] = lambda _: None
    """A change of the files after it."""


def _flip(refresher: Command) -> None:
    intent = refresher.directories.intent("linear")
    intent.write_bytes(intent.read_bytes().replace(b"generation", b"generatiom"))


INTERRUPTED = {
    "unanswered": Interrupted(["recvfrom:signal=KILL:when=1"], "sent", {"in_doubt"}),
    "a damaged intent": Interrupted(["recvfrom:signal=KILL:when=1"], "sent", {"in_doubt"}, _flip),
    "a damaged intent and an answer": Interrupted(["rename:signal=KILL:when=1"], "saved", DONE, _flip),
    "saved and not cut": Interrupted(["ftruncate:signal=KILL:when=1"], "saved", DONE),
    "spilled": Interrupted(["rename:error=EIO"], "saved", DONE),
    "saved twice": Interrupted(["fsync:error=EIO:when=4", "unlink:signal=KILL:when=1"], "saved", DONE),
}


@pytest.mark.parametrize("interrupted", INTERRUPTED.values(), ids=INTERRUPTED)
def test_a_recovery_that_is_killed_is_completed_by_the_next_run(
    refresher: Command, own_oidc: Start, interrupted: Interrupted
) -> None:
    """If it failed, a machine that crashes again during its start would lose what the first crash left (I4, I6)."""
    server = own_oidc()
    before = refresher.bring("linear", server.mint(live=True))
    calls = ",".join(fault.partition(":")[0] for fault in interrupted.faults)
    injected = [option for fault in interrupted.faults for option in ("-e", f"inject={fault}")]
    prefix = ("strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={calls}", *injected)
    refresher.finish(refresher.start("run-once", "--force", prefix=prefix))
    assert last_stage(refresher, before) == interrupted.stage
    interrupted.then(refresher)
    restore = restorer(refresher)
    assert refresher("run-once", "--json").outcome in interrupted.outcome
    expected = recovered_state(refresher)
    for point in sweep(refresher, restore, ("run-once",), calls=CHANGES):
        done = refresher("run-once", "--json")
        assert done.outcome in interrupted.outcome, f"killed at {point}: {done.stdout}"
        assert recovered_state(refresher) == expected, f"killed at {point}"
    assert len(server.requests()) == 1
    if interrupted.stage == "saved":
        assert server.introspect(refresher.refresh_token("linear"))["active"]


def recovered_state(refresher: Command) -> tuple[object, ...]:
    """Return everything that a recovery decides, without times."""
    grant, token = refresher.grant("linear"), refresher.token("linear")
    aside = [path.name.rpartition(".")[0] for path in refresher.directories.grants.glob("*.aside.*")]
    assert [name for name in refresher.leftovers() if ".aside." not in name] == []
    assert not list(refresher.directories.spill.iterdir())
    doubt = grant.doubt is not None, grant.failures
    return grant.generation, grant.refresh_token, doubt, token.generation, token.access_token, token.state, aside


# --- imports and removals -----------------------------------------------------------------------------------------


def _unchanged(refresher: Command) -> None:
    """Leave the grant as it is."""


def _interrupt(refresher: Command) -> None:
    """Leave an attempt that was killed after its request, an unreadable answer, and a foreign file."""
    kill = injecting("recvfrom", "signal=KILL:when=1")
    assert refresher.finish(refresher.start("run-once", "--force", prefix=kill)).code == -9
    grants = refresher.directories.grants
    (grants / "linear.answer.1").write_bytes(b"an answer")
    (grants / "linear.next.1").mkdir()
    (grants / "linear.next.2").write_bytes(b"a foreign file")


def _damage(refresher: Command) -> None:
    record = refresher.directories.record("linear")
    record.write_bytes(record.read_bytes()[:200])


WRITERS = {
    "first import": ("import", None),
    "import over a live grant": ("import", _unchanged),
    "import over an interrupted attempt": ("import", _interrupt),
    "import over a damaged record": ("import", _damage),
    "removal of a live grant": ("remove", _unchanged),
    "removal of an interrupted attempt": ("remove", _interrupt),
}


@pytest.mark.parametrize(("command", "state"), WRITERS.values(), ids=WRITERS)
def test_a_killed_import_or_removal_leaves_the_old_or_the_new_record(
    refresher: Command, own_oidc: Start, command: str, state: Callable[[Command], None] | None
) -> None:
    """If it failed, a killed import could leave an incomplete record, or lose both logins (I4)."""
    server = own_oidc()
    old, new = server.mint(live=True), server.mint(live=True)
    arguments = ["remove", "linear"]
    if command == "import":
        arguments = ["import", "linear", "--replace", "--from", str(refresher.write_import("linear", new))]
    made = refresher.directories
    made.prepare()
    if state is not None:
        refresher.bring("linear", old)
        state(refresher)
    for point in sweep(refresher, restorer(refresher), arguments, calls=CHANGES):
        where = f"killed at {point}"
        damaged = state is _damage and made.record("linear").stat().st_size == 200
        done = refresher("run-once", "--json")
        if damaged:
            assert (done.code, done.outcome) == (2, "invalid_grant_file"), where
        elif made.record("linear").exists() and isinstance(record := refresher.record("linear"), Grant):
            assert record.refresh_token is not None
            assert record.refresh_token.reveal() in (old["refresh_token"], new["refresh_token"]), where
            assert refresher.token("linear").access_token in (old["access_token"], new["access_token"]), where
        else:
            assert state is None or command == "remove", f"{where}, both logins are lost"
            assert made.token("linear").exists() is (command == "remove"), where
        untidy = [name for name in refresher.leftovers() if ".aside." not in name and ".answer." not in name]
        # If the record is damaged, no other file is changed.
        assert untidy == [] or (damaged and untidy == ["linear.next.1"]), where
        # A person repeats the killed command.
        assert refresher(*arguments).code in (0, 2), where
        record = refresher.record("linear")
        if command == "import":
            assert isinstance(record, Grant)
            assert record.refresh_token is not None
            assert record.refresh_token.reveal() == new["refresh_token"], where
            assert refresher.token("linear").access_token == new["access_token"], where
            if state is not _interrupt:
                assert [name for name in refresher.leftovers() if "linear.json.aside" not in name] == [], where
        else:
            assert isinstance(record, Tombstone)
            assert refresher.token("linear").state == "removed", where
            assert [name for name in refresher.leftovers() if "linear.next.1.aside" not in name] == [], where
    assert (server.log()["reused"], server.log()["presented_twice"]) == (0, 0)
