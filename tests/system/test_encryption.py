"""Sealed grants on the command line: enable, rotate, rekey, disable, and what happens without the key."""

import json
from collections.abc import Iterator

import pytest

from tests.support.command import Command
from tests.support.sealed import in_the_clear, make_key, use_keys
from tests.support.token_server import TokenServer
from tests.support.vault import Vault


@pytest.fixture
def server(vault: Vault) -> Iterator[TokenServer]:
    """A token endpoint."""
    with TokenServer(lambda _: 3600.0) as running:
        yield running


@pytest.fixture
def sealed(refresher: Command, server: TokenServer) -> Command:
    """The command with two grants that were sealed after they were plain."""
    refresher.environment["REFRESHER_SPILL_DIR"] = str(refresher.home / "spill")
    for name in ("linear", "github"):
        refresher.bring(name, server.grant(name, client_secret=f"secret-of-{name}"))
    assert refresher("run-once").code == 0
    use_keys(refresher, make_key(refresher.home, "first"))
    done = refresher("encryption", "enable")
    assert (done.code, done.stdout) == (0, "sealed: 2 grants, 2 of them by this run\n"), done.stderr
    return refresher


def forms(refresher: Command) -> dict[str, str]:
    """Return the form of each grant."""
    shown = json.loads(refresher("encryption", "status", "--json").stdout)
    return {grant["name"]: grant["form"] for grant in shown["grants"]}


def test_a_sealed_grant_rotates_and_no_secret_of_it_is_in_the_clear(sealed: Command, server: TokenServer) -> None:
    """If it failed, a backup of the state directory would hold refresh tokens, or a sealed grant would not rotate."""
    secrets = ("secret-of-linear", "secret-of-github")
    assert in_the_clear(sealed, server, *secrets) == []
    before = sealed.refresh_token("linear")
    done = sealed("run-once", "--force", "--json")
    assert {result["outcome"] for result in done.results.values()} == {"rotated"}, done.stderr
    assert sealed.refresh_token("linear") != before
    assert in_the_clear(sealed, server, *secrets) == []
    assert forms(sealed) == {"linear": "current", "github": "current"}
    assert sealed("encryption", "enable").stdout == "sealed: 2 grants, 0 of them by this run\n"


def test_without_the_key_nothing_due_is_decided_and_nothing_else_is_done(sealed: Command, server: TokenServer) -> None:
    """If it failed, each cron run would need the key, or a lost key would cost tokens."""
    path = sealed.home / "first.key"
    path.rename(sealed.home / "elsewhere")
    files = {each: each.read_bytes() for each in sealed.state.glob("grants/*.json")}
    done = sealed("run-once", "--json")
    assert {result["outcome"] for result in done.results.values()} == {"not_due"}
    asked = {name: len(times) for name, times in server.asked.items()}
    done = sealed("run-once", "--force", "--json")
    assert done.code == 2
    assert {result["outcome"] for result in done.results.values()} == {"invalid_grant_file"}
    assert "cannot read the key" in done.results["linear"]["detail"]
    assert {name: len(times) for name, times in server.asked.items()} == asked
    assert {each: each.read_bytes() for each in files} == files
    assert sealed("status").code == 0
    assert set(forms(sealed).values()) == {"unknown"}


def test_a_key_is_replaced_and_taken_back(sealed: Command, server: TokenServer) -> None:
    """If it failed, a key that somebody has seen could not be replaced, or nobody could end the encryption."""
    first, second = sealed.home / "first.key", make_key(sealed.home, "second")
    assert sealed("encryption", "rekey").code == 2
    use_keys(sealed, second, first)
    assert set(forms(sealed).values()) == {"previous"}
    assert sealed("run-once", "linear", "--force").code == 0
    assert forms(sealed) == {"linear": "current", "github": "previous"}
    secrets = {name: (sealed.refresh_token(name), sealed.grant(name).client_secret) for name in ("linear", "github")}
    assert sealed("encryption", "rekey").stdout == "sealed with the new key: 2 grants, 1 of them by this run\n"
    use_keys(sealed, second)
    assert set(forms(sealed).values()) == {"current"}
    assert sealed("encryption", "disable").code == 2
    use_keys(sealed, None, second)
    assert sealed("encryption", "disable").stdout == "plain: 2 grants, 2 of them by this run\n"
    use_keys(sealed, None)
    assert set(forms(sealed).values()) == {"plain"}
    assert secrets == {name: (sealed.refresh_token(name), sealed.grant(name).client_secret) for name in secrets}
    assert sealed("run-once", "--force").code == 0
