"""The state directory that 0.1.0 wrote: every later version reads it, and its grants rotate."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec
import pytest

from refresher.common import clocks
from refresher.common.secret import Secret
from refresher.grants.encoding import decode
from refresher.grants.record import Grant, Record, Tombstone
from refresher.grants.token_file import derive
from shim import FileTokenSource, ReauthorizationRequired, Removed, TokenUnavailable
from shim._token import parse, render
from tests.support.command import Command, Done
from tests.support.stored_state import (
    KEYS,
    NEVER_ROTATE,
    ORIGIN,
    OUTCOMES,
    SPILL,
    STORED,
    TOMBSTONES,
    change,
    opened,
    prepared,
)
from tests.support.token_server import TokenServer
from tests.support.vault import Vault

START = 1_790_000_000.0
"""When the first command of the fixture ran."""

FACTS: dict[str, dict[str, Any]] = {
    "client-credentials": {"refresh_token": None, "client_secret": "cs-client-credentials", "generation": 1, "spent": ()},
    "dead": {"dead": True, "failure.outcome": "reauthorization_required", "failure.code": "invalid_grant", "failure.retry_at": None},
    "demanded": {"demanded": 2, "generation": 2},
    "failing-busy": {"failure.outcome": "transient", "failure.busy_until": START + 153, "failures": 1, "refusals": 0},
    "failing-client-rejected": {"failure.outcome": "client_rejected", "failure.code": "invalid_client", "refusals": 1},
    "failing-refused": {"failure.outcome": "transient", "refusals": 10, "failures": 10, "dead": False},
    "failing-too-early": {"failure.outcome": "too_early", "refuses_early": True, "failure.moment.wall": START + 35},
    "failing-transient": {"failure.outcome": "transient", "failure.code": "temporarily_unavailable", "failure.busy_until": None},
    "healthy": {"generation": 0, "refresh_token": "rt-healthy-0", "access_token": "at-healthy-0", "scope": "read write", "asked_scope": "read write",
                "replay": msgspec.UNSET, "issued_at": START, "issued.wall": START, "expires_at": START + 3600, "login": None, "dead": False},
    "imported-first": {"access_token": None, "expires_at": None, "generation": 0},
    "imported-whole": {"issuer": "https://as.example", "revocation_endpoint": f"{ORIGIN}/revoke", "resource": "https://mcp.example/mcp",
                       "send_resource": True, "replay": 30.0, "max_age": 1800.0, "token_type": "dpop", "server_url": "https://mcp.example/mcp",
                       "origins": ("https://mcp.example", "https://api.example:8443"), "expires_at": None},
    "in-doubt": {"failure.outcome": "in_doubt", "doubt.since.wall": START + 52, "doubt.since.boottime": 1052.0, "doubt.kept": None, "doubt.replay_over": False},
    "in-doubt-kept": {"failure.outcome": "in_doubt", "doubt.kept": "it is kept as in-doubt-kept.answer.1790000054 beside the record"},
    "in-doubt-restored": {"doubt.restored": True, "doubt.replay_over": True, "generation": 2, "refresh_token": "rt-in-doubt-restored-1"},
    "in-doubt-spill": {"doubt.spill": f"{SPILL}/in-doubt-spill.02d077fddcfe0e4f8a5e48576461445e.next",
                       "doubt.begun_from": "02d077fddcfe0e4f8a5e48576461445e1ac1ec5515c11fc00ebf62747e5fdf29"},
    "left-blank": {"generation": 0},
    "left-blank-intent": {"generation": 0},
    "left-finished": {"generation": 1, "refresh_token": "rt-left-finished-1"},
    "left-sent": {"generation": 0, "doubt": None},
    "left-sent-alone": {"generation": 0, "doubt": None},
    "left-sent-next": {"generation": 0, "refresh_token": "rt-left-sent-next-0"},
    "left-sent-next-1": {"generation": 0, "refresh_token": "rt-left-sent-next-1-0"},
    "left-spilled": {"generation": 0, "refresh_token": "rt-left-spilled-0"},
    "left-spilled-gone": {"generation": 0, "refresh_token": "rt-left-spilled-gone-0"},
    "left-spilled-next": {"generation": 0, "refresh_token": "rt-left-spilled-next-0"},
    "left-unsent": {"generation": 0, "doubt": None},
    "left-unsent-alone": {"generation": 0, "doubt": None},
    "left-unsent-next": {"generation": 0, "failure": None},
    "logged-out": {"generation": 1, "removed_at": START + 133, "origins": ("https://mcp.example",)},
    "login-browser": {"login.client": "registered", "login.way": "browser", "login.client_expires_at": START + 90 * 86400,
                      "login.redirect_uri": "http://127.0.0.1:18765/callback", "login.scope": "read write", "login.resource": f"{ORIGIN}/mcp",
                      "login.params": (("audience", "fake"), ("login_hint", "nobody")), "login.authorization_endpoint": f"{ORIGIN}/authorize",
                      "issuer": ORIGIN, "scope": "read write offline_access", "token_endpoint_auth_method": "client_secret_basic", "generation": 1},
    "login-client-credentials": {"login.way": "client_credentials", "login.client": "given", "login.issuer_given": True, "refresh_token": None, "renewable": True},
    "login-device": {"login.way": "device", "login.client": "registered", "login.device_authorization_endpoint": f"{ORIGIN}/device", "login.client_expires_at": None},
    "login-document": {"login.client": "metadata_document", "client_id": "https://client.example/login-document.json", "login.resource": "none", "resource": None},
    "login-given": {"login.endpoints_given": True, "login.client": "given", "client_secret": "cs-login-given", "login.device_authorization_endpoint": f"{ORIGIN}/device"},
    "login-not-renewable": {"renewable": False, "refresh_token": None, "refuses_early": True, "max_age": 315_360_000.0},
    "method-basic": {"token_endpoint_auth_method": "client_secret_basic", "client_secret": "cs-method-basic"},
    "method-jwt": {"token_endpoint_auth_method": "private_key_jwt", "private_key_file": f"{KEYS}/client.pem", "private_key_id": "key-1",
                   "token_endpoint_auth_signing_alg": "ES256", "client_secret": None},
    "method-post": {"token_endpoint_auth_method": "client_secret_post", "client_secret": "cs-method-post"},
    "method-self-signed": {"token_endpoint_auth_method": "self_signed_tls_client_auth", "client_cert": f"{KEYS}/client.crt", "client_key": f"{KEYS}/client.key"},
    "method-tls": {"token_endpoint_auth_method": "tls_client_auth", "client_cert": f"{KEYS}/client.crt", "client_key": f"{KEYS}/client.key"},
    "not-before": {"not_before": START + 600, "generation": 0},
    "removed": {"generation": 2, "removed_at": START + 130, "grant_id": "00000000000000000000000000000027"},
    "replaced": {"generation": 1, "refresh_token": "rt-replaced-9"},
    "replay-none": {"replay": 0.0},
    "replay-unlimited": {"replay": None},
    "rotated": {"generation": 5, "refresh_token": "rt-rotated-5", "last_rotation_at": START + 6},
    "seen-refuses-early": {"refuses_early": True, "generation": 1, "failure": None},
    "seen-resource-refused": {"resource_refused": True, "resource": "https://mcp.example/mcp", "send_resource": None},
}  # fmt: skip
"""For each name, the fields for which its record exists; secrets as plain text."""

STATES = {
    "dead": "reauthorization_required",
    "failing-busy": "failing",
    "failing-client-rejected": "failing",
    "failing-refused": "reauthorization_required",
    "failing-transient": "failing",
    "in-doubt": "failing",
    "in-doubt-kept": "failing",
    "in-doubt-restored": "failing",
    "in-doubt-spill": "failing",
}
"""The states in ``status`` that are not ``active``."""

FIRST_SENT = {
    "in-doubt-restored": "rt-in-doubt-restored-1",
    "in-doubt-spill": "rt-in-doubt-spill-1",
    "left-import": "rt-left-import-0",
    "left-sent-next": "rt-left-sent-next-1",
    "left-sent-next-1": "rt-left-sent-next-1-1",
    "left-spilled": "rt-left-spilled-1",
    "left-spilled-next": "rt-left-spilled-next-1",
}
"""The refresh token that is sent first, where it is not that of the stored record."""


class Upgraded(NamedTuple):
    """The results of the upgrade: ``plain`` of ``run-once``, then ``forced`` of ``run-once --force``."""

    refresher: Command
    server: TokenServer
    status: dict[str, Any]
    plain: Done
    doubts: dict[str, Grant]
    left: list[str]
    forced: Done


def served() -> AbstractContextManager[TokenServer]:
    """Return a token endpoint."""
    return TokenServer(lambda _: 3600.0)


@pytest.fixture(scope="module")
def upgraded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upgraded]:
    """The state directory after an upgrade: ``status``, a run, and a forced run."""
    home, vault = tmp_path_factory.mktemp("home"), Vault()
    with served() as server:
        refresher = prepared(home, vault, server)
        listed = json.loads(refresher("status", "--json").stdout)["grants"]
        plain = refresher("run-once", "--json")
        doubts = {name: refresher.grant(name) for name, outcome in OUTCOMES.items() if outcome == "in_doubt"}
        left = [*refresher.leftovers(), *(path.name for path in (home / "spill").iterdir())]
        forced = refresher("run-once", "--force", "--json")
        yield Upgraded(refresher, server, {grant["name"]: grant for grant in listed}, plain, doubts, left, forced)
    assert vault.leaks_below(home) == []


def record(name: str) -> Record:
    """Decode a record of the fixture."""
    found = decode((STORED / f"grants/{name}.json").read_bytes(), name).record
    assert found is not None
    return found


def fingerprint(token: str) -> str:
    """Return the stored form of a used refresh token."""
    return hashlib.sha256(token.encode()).hexdigest()[:32]


def test_every_record_has_its_facts() -> None:
    """If it failed, a record could be missing from the table and from every test below."""
    assert {path.stem for path in STORED.glob("grants/*.json")} == set(FACTS)


@pytest.mark.parametrize("name", FACTS)
def test_each_field_of_a_record_is_read_as_before(name: str) -> None:
    """If it failed, an upgrade would lose a part of a grant, or read it incorrectly."""
    found = {path: attrgetter(path)(record(name)) for path in FACTS[name]}
    assert {path: _plain(value) for path, value in found.items()} == FACTS[name]


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return value.reveal() if isinstance(value, Secret) else value


def test_used_refresh_tokens_are_remembered() -> None:
    """If it failed, a used refresh token could be imported after an upgrade, and the server would revoke the grant."""
    assert record("rotated").spent == tuple(fingerprint(f"rt-rotated-{number}") for number in range(5))
    assert record("removed").spent == (fingerprint("rt-removed-0"), fingerprint("rt-removed-1"))
    assert record("logged-out").spent == (fingerprint("rt-logged-out-0"), fingerprint("rt-logged-out-1"))


def test_every_file_has_a_valid_checksum() -> None:
    """If it failed, the tests below would make records that the product does not read."""
    files = [path for pattern in ("grants/*", "spill/*") for path in STORED.glob(pattern)]
    sealed = {path.name for path in files if opened(path.read_bytes()) is not None}
    others = {path.name for path in files} - sealed
    assert {name for name in others if not name.endswith((".next", ".intent"))} == {
        "in-doubt-kept.answer.1790000054",
        "replaced.json.aside.1790000135",
    }
    assert not any(
        (STORED / "grants" / name).read_bytes().strip(b"\0") for name in others if name.endswith((".next", ".intent"))
    )


def test_status_shows_every_grant(upgraded: Upgraded) -> None:
    """If it failed, a person could not see the state of the logins after an upgrade."""
    grants = set(FACTS) - set(TOMBSTONES)
    assert {name: entry["state"] for name, entry in upgraded.status.items()} == dict.fromkeys(grants, "active") | STATES
    assert {name: entry["generation"] for name, entry in upgraded.status.items()} == {
        name: record(name).generation for name in grants
    }


def test_every_grant_that_can_rotate_rotates(upgraded: Upgraded) -> None:
    """If it failed, an upgrade would lose logins."""
    names = (set(FACTS) - set(TOMBSTONES)) | {"left-import"}
    assert {name: result["outcome"] for name, result in upgraded.plain.results.items()} == (
        dict.fromkeys(names, "rotated") | OUTCOMES
    ), upgraded.plain.stderr
    assert {name: result["outcome"] for name, result in upgraded.forced.results.items()} == (
        dict.fromkeys(names, "rotated") | {name: OUTCOMES[name] for name in NEVER_ROTATE}
    ), upgraded.forced.stderr
    for name in names - {*NEVER_ROTATE, *OUTCOMES}:
        before = 0 if name == "left-import" else record(name).generation
        adopted = int(name in {*FIRST_SENT} - {"left-import", "in-doubt-restored"})
        assert upgraded.refresher.grant(name).generation == before + adopted + 2, name
        assert upgraded.refresher.token(name).generation == before + adopted + 2, name


def test_the_newest_refresh_token_is_sent_and_no_used_one(upgraded: Upgraded) -> None:
    """If it failed, a used refresh token would be sent after an upgrade, and the server would revoke the grant (I1)."""
    clients = {name: found.client_id for name in FACTS if isinstance(found := record(name), Grant)} | {
        "left-import": "left-import"
    }
    sent = {name: upgraded.server.presented[client][0] for name, client in clients.items() if name not in NEVER_ROTATE}
    stored = {
        name: _plain(found.refresh_token) or ""
        for name in sent
        if name in FACTS and isinstance(found := record(name), Grant)
    }
    assert sent == stored | FIRST_SENT
    for name in sent:
        tokens = upgraded.server.presented[clients[name]]
        assert len(tokens) == (1 if name in OUTCOMES else 2), name


def test_recovery_settles_every_leftover(upgraded: Upgraded) -> None:
    """If it failed, the leftovers of a kill before the upgrade would be lost, or stay for ever (I6)."""
    # Files that a person may need stay, and those of an attempt whose spill is missing.
    assert upgraded.left == [
        "in-doubt-kept.answer.1790000054",
        "left-spilled-gone.intent",
        "left-spilled-gone.next",
        "replaced.json.aside.1790000135",
    ]
    assert (
        f"{upgraded.refresher.home}/spill/left-spilled-gone." in upgraded.plain.results["left-spilled-gone"]["detail"]
    )
    for name, grant in upgraded.doubts.items():
        intent = opened((STORED / f"grants/{name}.intent").read_bytes())
        assert intent is not None
        assert grant.doubt is not None
        assert grant.doubt.since.wall == intent.fields["at"]["wall"], name
        assert grant.doubt.spill is not None, f"{name}: an answer could be in a spill that appears later"


def test_an_attempt_that_sent_nothing_is_not_in_doubt(refresher: Command, vault: Vault) -> None:
    """If it failed, an upgrade of a running service would put healthy grants in doubt."""
    with served() as server:
        made = prepared(refresher.home, vault, server)
        for name in ("left-unsent", "left-unsent-alone"):
            # In another boot the mark proves nothing.
            change(made.state / f"grants/{name}.intent", at=msgspec.to_builtins(clocks.now()))
        done = made("run-once", "--json", "left-unsent", "left-unsent-alone", "left-unsent-next")
        assert {name: result["outcome"] for name, result in done.results.items()} == dict.fromkeys(
            done.results, "rotated"
        )
        assert [path for path in made.leftovers() if path.startswith("left-unsent")] == []
        assert server.presented["left-unsent"] == ["rt-left-unsent-0"]


def test_a_spill_that_appears_later_is_adopted(refresher: Command, vault: Vault) -> None:
    """If it failed, an upgrade would ignore the only copy of a refresh token (I6)."""
    with served() as server:
        made = prepared(refresher.home, vault, server)
        spill = refresher.home / "spill"
        (refresher.home / "elsewhere").mkdir()
        away = spill.rename(refresher.home / "elsewhere/spill")
        assert made("run-once", "--json", "left-spilled").outcome == "storage_failed"
        assert server.presented == {}
        away.rename(spill)
        assert made("run-once", "--json", "left-spilled").outcome == "rotated"
        assert server.presented["left-spilled"] == ["rt-left-spilled-1"]


def test_a_spill_is_found_by_its_name_if_the_intent_is_damaged(refresher: Command, vault: Vault) -> None:
    """If it failed, a new version with other names of spills would ignore the only copy of a refresh token (I6)."""
    with served() as server:
        made = prepared(refresher.home, vault, server)
        intent = made.state / "grants/left-spilled.intent"
        intent.write_bytes(intent.read_bytes()[:50])
        assert made("run-once", "--json", "left-spilled").outcome == "rotated"
        assert server.presented["left-spilled"] == ["rt-left-spilled-1"]


def test_demands_are_read(refresher: Command, vault: Vault) -> None:
    """If it failed, a demand from before an upgrade would have no effect, or never be removed."""
    with served() as server:
        made = prepared(refresher.home, vault, server)
        now = clocks.now().wall
        for name in ("healthy", "rotated"):
            path = made.state / f"grants/{name}.json"
            change(path, issued_at=now - 10, expires_at=now + 3590, issued=None, last_rotation_at=now - 10)
        done = made("run-once", "--json", "healthy", "rotated")
        # The first demand is for the current generation, the second for an older one.
        assert {name: result["outcome"] for name, result in done.results.items()} == {
            "healthy": "rotated",
            "rotated": "not_due",
        }
        assert sorted(path.name for path in (made.state / "demands").iterdir()) == ["nobody.0"]


def test_a_tombstone_refuses_a_used_refresh_token(upgraded: Upgraded) -> None:
    """If it failed, an old import file would restore a grant that was removed before the upgrade."""
    for name, spent in (("removed", "rt-removed-1"), ("logged-out", "rt-logged-out-1")):
        assert isinstance(upgraded.refresher.record(name), Tombstone)
        assert upgraded.refresher.token(name).state == "removed"
        old = {
            "token_endpoint": upgraded.server.token_endpoint,
            "client_id": name,
            "refresh_token": spent,
            "server_url": "https://mcp.example/mcp",
        }
        done = upgraded.refresher("import", name, "--from", str(upgraded.refresher.write_import(name, old)))
        assert (done.code, f"{name} has already spent this refresh token" in done.stderr) == (2, True)


def test_token_files_are_read() -> None:
    """If it failed, an agent with a newer shim would have no token until the next rotation."""
    found = {path.stem: parse(path.read_bytes()) for path in STORED.glob("tokens/*.json")}
    states = {name: token.state for name, token in found.items()}
    assert states == dict.fromkeys(found, "active") | STATES | dict.fromkeys(TOMBSTONES, "removed")
    problems = {"healthy": TokenUnavailable, "dead": ReauthorizationRequired, "removed": Removed}
    for name, problem in problems.items():
        source = FileTokenSource(name, tokens_dir=STORED / "tokens", demands_dir=STORED / "demands")
        assert source.current() == found[name]
        assert type(source.problem()) is problem
    error = found["failing-transient"].error
    assert error is not None
    assert (error.code, error.at) == ("temporarily_unavailable", START + 31)


def test_an_upgrade_adds_only_the_server_to_the_published_files() -> None:
    """If it failed, an upgrade would change what agents of an older version read in a token file."""
    # Their token file and their record are from different steps of a rotation.
    unsettled = {"left-finished", "left-spilled", "left-spilled-gone"}
    for name in set(FACTS) - unsettled:
        path = STORED / f"tokens/{name}.json"
        derived = derive(record(name))
        now = None if derived is None else render(parse(derived)._replace(server_url=None))
        assert now == (path.read_bytes() if path.exists() else None), name
