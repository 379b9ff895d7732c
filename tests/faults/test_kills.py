"""A process that is killed between any two of its steps."""

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
from tests.support.token_server import TokenServer

Start = Callable[..., OIDC]

DONE = {"adopted", "not_due"}
_KNOWN = re.compile(r"\.import\.lock|linear\.(json|lock|intent|next(\.[1-5])?)")


@pytest.fixture(autouse=True)
def _strace(refresher: Command) -> None:
    need(no_strace())
    refresher.environment["REFRESHER_SPILL_DIR"] = str(refresher.home / "spill")


def left(refresher: Command, before: Grant) -> str:
    """Return how far a killed rotation of ``before`` came: ``nothing`` was sent, it was ``sent``, or ``saved``.

    By the files alone, each of which must be whole and of a known kind.
    """
    directories = refresher.directories
    there = sorted(path.name for path in directories.grants.iterdir())
    assert [name for name in there if not _KNOWN.fullmatch(name)] == []
    assert {path.name for path in directories.tokens.iterdir()} <= {"linear.json", ".linear.json.new"}
    places = [directories.record("linear"), *directories.candidates("linear")]
    places += directories.spill.iterdir() if directories.spill.exists() else []
    found = [records.read_candidate(path, "linear").record for path in places]
    assert found[0] is not None, "the record is not whole"
    assert all(path.stat().st_mode & 0o077 == 0 for path in places)
    generations = {record.generation for record in found if record is not None}
    assert generations <= {before.generation, before.generation + 1}
    if before.generation + 1 in generations:
        return "saved"
    begun = read_intent(directories.intent("linear"))
    return "nothing" if begun is None or begun[1] is Mark.UNSENT else "sent"


def tidy(refresher: Command) -> bool:
    """Whether nothing lies about that is no record, lock or token file."""
    directories = refresher.directories
    spilled = list(directories.spill.iterdir()) if directories.spill.exists() else []
    return (
        not spilled and not refresher.leftovers() and [*directories.tokens.iterdir()] == [directories.token("linear")]
    )


def kept(refresher: Command) -> Callable[[], None]:
    """Keep all files as they are now; return what brings them back."""
    made = refresher.directories
    made.spill.mkdir(mode=0o700, exist_ok=True)
    # Under a name below which secrets may be.
    copies = {place: refresher.home / "kept/grants" / place.name for place in (made.state, made.spill)}
    for place, copy in copies.items():
        shutil.copytree(place, copy)

    def again() -> None:
        for place, copy in copies.items():
            shutil.rmtree(place)
            shutil.copytree(copy, place)

    return again


# --- rotations ----------------------------------------------------------------------------------------------------


class Way(NamedTuple):
    """A rotation that is killed again and again, and what is to be counted on its way."""

    arguments: Sequence[str] = ("run-once", "--force")
    calls: Sequence[str] = (*CHANGES, *NETWORK)
    live: bool = True
    """There is an access token, which a second attempt could endanger."""
    fault: str | None = None
    killed: Sequence[str] | None = None


WAYS = {
    "forced": Way(),
    # The same way, with other consequences: once at each stage.
    "first": Way(("run-once",), ("pwrite64", "recvfrom"), live=False),
    "spilling": Way(calls=CHANGES, fault="rename:error=EIO"),
    "daemon": Way(("run-once",), ("pwrite64", "rename", "recvfrom"), live=False, killed=("run",)),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_killed_at_any_system_call_the_next_run_goes_on_or_says_in_doubt(
    refresher: Command, own_oidc: Start, way: Way
) -> None:
    """If it failed, a kill at the wrong instant would lose a token, or send a spent one again (I1, I4, I6)."""
    server = own_oidc()
    before: list[Grant] = []
    right = {"nothing": {"not_due" if way.live else "rotated"}, "sent": {"in_doubt"}, "saved": DONE}

    def prepare() -> None:
        shutil.rmtree(refresher.directories.spill, ignore_errors=True)
        if not way.live:
            shutil.rmtree(refresher.state, ignore_errors=True)
        before.append(refresher.bring("linear", server.mint(live=way.live), replace=True))

    seen = set()
    for point in sweep(refresher, prepare, way.arguments, calls=way.calls, fault=way.fault, killed=way.killed):
        stage = left(refresher, before[-1])
        seen.add(stage)
        assert not way.live or refresher.token("linear").access_token, f"killed at {point}, readers see nothing"
        sent = len(server.requests())
        done = refresher("run-once", "--json")
        assert done.outcome in right[stage], f"killed at {point} ({stage}): {done.stdout}"
        assert tidy(refresher), f"killed at {point} ({stage}): {refresher.leftovers()}"
        after = refresher.grant("linear")
        token = refresher.token("linear")
        if stage == "sent":
            assert (after.refresh_token, after.generation) == (before[-1].refresh_token, before[-1].generation)
            assert token.state == "failing"
            assert (token.access_token is not None) is way.live
            if way.live:
                assert refresher("run-once", "--force", "--json").outcome == "in_doubt"
            assert len(server.requests()) == sent, f"killed at {point}, it sent a token that may be spent"
        else:
            assert after.refresh_token is not None
            assert server.introspect(after.refresh_token.reveal())["active"], f"killed at {point}, the login is lost"
            assert (token.generation, token.state) == (after.generation, "active")
    assert seen == {"nothing", "sent", "saved"}
    assert (server.log()["reused"], server.log()["presented_twice"]) == (0, 0)


def test_killed_at_any_system_call_a_replay_goes_on_by_itself(refresher: Command) -> None:
    """If it failed, a kill would cost agents their token though the server forgives the second request (I4)."""
    before: list[Grant] = []
    with TokenServer(lambda _: 3600) as server:

        def prepare() -> None:
            fields = server.grant("client", replay="unlimited", access_token="an-access-token", expires_in=3600)
            before.append(refresher.bring("linear", fields, replace=True))

        for point in sweep(refresher, prepare, ("run-once", "--force"), calls=("pwrite64", "recvfrom")):
            stage = left(refresher, before[-1])
            done = refresher("run-once", "--json")
            assert done.outcome in {"nothing": {"not_due"}, "sent": {"rotated"}, "saved": DONE}[stage], point
            assert refresher.grant("linear").generation == before[-1].generation + (stage != "nothing")
            assert tidy(refresher), f"killed at {point} ({stage}): {refresher.leftovers()}"


def test_an_answer_that_a_kill_has_lost_is_named_when_its_time_is_over(refresher: Command, own_oidc: Start) -> None:
    """If it failed, a login would end in a refusal that nobody can explain (I4, I5)."""
    server = own_oidc()
    refresher.bring("linear", server.mint(live=True) | {"expires_in": 3})
    kill = injecting("recvfrom", "signal=KILL:when=1")
    assert refresher.finish(refresher.start("run-once", "--force", prefix=kill)).code == -9
    wait_until(lambda: server.requests()[-1]["status"] == 200, "the server has answered nobody")
    done = refresher("run-once", "--json")
    while done.outcome == "in_doubt":
        assert (done.code, len(server.requests())) == (5, 1)
        wait_until(lambda: _rests_no_longer(refresher), "the access token has ended, and the backoff too")
        done = refresher("run-once", "--force", "--json")
    assert (done.code, done.outcome) == (3, "reauthorization_required")
    token = refresher.token("linear")
    assert token.error is not None
    for words in (done.results["linear"]["detail"], token.error.description, refresher("status").stdout):
        assert "the rotation was lost" in words
    assert tidy(refresher)


def _rests_no_longer(refresher: Command) -> bool:
    expires_at = refresher.grant("linear").expires_at
    return expires_at is not None and time.time() > expires_at + 0.1


# --- recoveries ---------------------------------------------------------------------------------------------------


class Broken(NamedTuple):
    """What a killed attempt has left, and what the next run says of it."""

    faults: Sequence[str]
    """What strace does to the attempt."""
    stage: str
    outcome: set[str]
    then: Callable[[Command], object] = lambda _: None
    """What happens to the files afterwards."""


def _flip(refresher: Command) -> None:
    intent = refresher.directories.intent("linear")
    intent.write_bytes(intent.read_bytes().replace(b"generation", b"generatiom"))


BROKEN = {
    "unanswered": Broken(["recvfrom:signal=KILL:when=1"], "sent", {"in_doubt"}),
    "a damaged intent": Broken(["recvfrom:signal=KILL:when=1"], "sent", {"in_doubt"}, _flip),
    "a damaged intent and an answer": Broken(["rename:signal=KILL:when=1"], "saved", DONE, _flip),
    "saved and not cut": Broken(["ftruncate:signal=KILL:when=1"], "saved", DONE),
    "spilled": Broken(["rename:error=EIO"], "saved", DONE),
    "saved twice": Broken(["fsync:error=EIO:when=4", "unlink:signal=KILL:when=1"], "saved", DONE),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_a_recovery_that_is_killed_too_is_finished_by_the_next(
    refresher: Command, own_oidc: Start, broken: Broken
) -> None:
    """If it failed, a machine that crashes again while it starts would lose what the first crash had left (I4, I6)."""
    server = own_oidc()
    before = refresher.bring("linear", server.mint(live=True))
    calls = ",".join(fault.partition(":")[0] for fault in broken.faults)
    injected = [option for fault in broken.faults for option in ("-e", f"inject={fault}")]
    prefix = ("strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={calls}", *injected)
    refresher.finish(refresher.start("run-once", "--force", prefix=prefix))
    assert left(refresher, before) == broken.stage
    broken.then(refresher)
    again = kept(refresher)
    assert refresher("run-once", "--json").outcome in broken.outcome
    right = told(refresher)
    for point in sweep(refresher, again, ("run-once",), calls=CHANGES):
        done = refresher("run-once", "--json")
        assert done.outcome in broken.outcome, f"killed at {point}: {done.stdout}"
        assert told(refresher) == right, f"killed at {point}"
    assert len(server.requests()) == 1
    if broken.stage == "saved":
        assert server.introspect(refresher.refresh_token("linear"))["active"]


def told(refresher: Command) -> tuple[object, ...]:
    """Return all that a recovery decides, without its times."""
    grant, token = refresher.grant("linear"), refresher.token("linear")
    aside = [path.name.rpartition(".")[0] for path in refresher.directories.grants.glob("*.aside.*")]
    assert [name for name in refresher.leftovers() if ".aside." not in name] == []
    assert not list(refresher.directories.spill.iterdir())
    doubt = grant.doubt is not None, grant.failures
    return grant.generation, grant.refresh_token, doubt, token.generation, token.access_token, token.state, aside


# --- imports and removals -----------------------------------------------------------------------------------------


def _live(refresher: Command) -> None:
    """Leave the grant as it is."""


def _cut_off(refresher: Command) -> None:
    """Leave an attempt that was killed after its request, an answer that nobody could read, and a stranger."""
    kill = injecting("recvfrom", "signal=KILL:when=1")
    assert refresher.finish(refresher.start("run-once", "--force", prefix=kill)).code == -9
    grants = refresher.directories.grants
    (grants / "linear.answer.1").write_bytes(b"an answer")
    (grants / "linear.next.1").mkdir()
    (grants / "linear.next.2").write_bytes(b"another only copy, perhaps")


def _damage(refresher: Command) -> None:
    record = refresher.directories.record("linear")
    record.write_bytes(record.read_bytes()[:200])


WRITERS = {
    "first import": ("import", None),
    "import over a live grant": ("import", _live),
    "import over a cut off attempt": ("import", _cut_off),
    "import over a damaged record": ("import", _damage),
    "removal of a live grant": ("remove", _live),
    "removal of a cut off attempt": ("remove", _cut_off),
}


@pytest.mark.parametrize(("command", "state"), WRITERS.values(), ids=WRITERS)
def test_an_import_or_a_removal_that_is_killed_is_old_or_new(
    refresher: Command, own_oidc: Start, command: str, state: Callable[[Command], None] | None
) -> None:
    """If it failed, a killed import could leave half a record, or both logins lost (I4)."""
    server = own_oidc()
    old, new = server.mint(live=True), server.mint(live=True)
    arguments = ["remove", "linear"]
    if command == "import":
        arguments = ["import", "linear", "--replace", "--from", str(refresher.write_import("linear", new))]
    made = refresher.directories
    made.ensure()
    if state is not None:
        refresher.bring("linear", old)
        state(refresher)
    for point in sweep(refresher, kept(refresher), arguments, calls=CHANGES):
        here = f"killed at {point}"
        damaged = state is _damage and made.record("linear").stat().st_size == 200
        done = refresher("run-once", "--json")
        if damaged:
            assert (done.code, done.outcome) == (2, "invalid_grant_file"), here
        elif made.record("linear").exists() and isinstance(record := refresher.record("linear"), Grant):
            assert record.refresh_token is not None
            assert record.refresh_token.reveal() in (old["refresh_token"], new["refresh_token"]), here
            assert refresher.token("linear").access_token in (old["access_token"], new["access_token"]), here
        else:
            assert state is None or command == "remove", f"{here}, both logins are lost"
            assert made.token("linear").exists() is (command == "remove"), here
        untidy = [name for name in refresher.leftovers() if ".aside." not in name and ".answer." not in name]
        # Beside a damaged record nothing is touched.
        assert untidy == [] or (damaged and untidy == ["linear.next.1"]), here
        # A person whose command is killed gives it again.
        assert refresher(*arguments).code in (0, 2), here
        record = refresher.record("linear")
        if command == "import":
            assert isinstance(record, Grant)
            assert record.refresh_token is not None
            assert record.refresh_token.reveal() == new["refresh_token"], here
            assert refresher.token("linear").access_token == new["access_token"], here
            if state is not _cut_off:
                assert [name for name in refresher.leftovers() if "linear.json.aside" not in name] == [], here
        else:
            assert isinstance(record, Tombstone)
            assert refresher.token("linear").state == "removed", here
            assert [name for name in refresher.leftovers() if "linear.next.1.aside" not in name] == [], here
    assert (server.log()["reused"], server.log()["presented_twice"]) == (0, 0)
