"""The user units of deploy/, run by the systemd of a user, with the commands of the README."""

import re
from collections.abc import Iterator

import pytest

from shim._token import TokenFile, parse
from tests.conftest import need
from tests.support.command import wait_until
from tests.support.deployed import typed
from tests.support.machine import Machine, no_machine
from tests.support.token_server import TokenServer

STATE = ".local/state/refresher"
OWN = "systemd (your own user)"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine on which two users have installed the command."""
    need(no_machine("pkcheck"))
    with Machine(tmp_path_factory.mktemp("machine") / "root") as made:
        for user in ("person", "another"):
            made(f"useradd --create-home {user}")
            made.install(f"/home/{user}/.local/share/refresher/bin/refresher", user=user)
            made(typed("Install").splitlines()[2], user=user)
        yield made


def published(machine: Machine, user: str, name: str) -> TokenFile | None:
    """Return the published token of a user."""
    try:
        return parse(machine.path(f"/home/{user}/{STATE}/tokens/{name}.json").read_bytes())
    except FileNotFoundError:
        return None


def test_the_commands_for_a_user_start_the_service(machine: Machine) -> None:
    """If it failed, the README would lead to no service, or to one that ends when the user logs out."""
    machine(typed(OWN), user="person")
    assert "active (running)" in machine(typed(OWN, 1), user="person")
    assert machine("ls /var/lib/systemd/linger") == "person\n"
    with TokenServer(lambda _: 3600) as server:
        machine.bring("linear", server.grant("linear"), user="person")
        wait_until(lambda: published(machine, "person", "linear") is not None, "it fetches the first token")
        machine("systemctl --user reload refresher", user="person")
        machine("systemctl --user stop refresher", user="person")
    journal = machine("journalctl --user --unit=refresher --output=cat", user="person")
    assert "configuration reloaded" in journal
    assert "refresher: stopped" in journal
    assert "Failed" not in journal


@pytest.mark.parametrize("unit", ["refresher.service", "refresher-once.timer"])
def test_systemd_verifies_the_units_without_a_warning(machine: Machine, unit: str) -> None:
    """If it failed, systemd would ignore a misspelt setting."""
    done = machine.run(f"systemd-analyze --user verify deploy/systemd/user/{unit}", user="person")
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_timer_rotates_other_grants_while_one_is_dead(machine: Machine) -> None:
    """If it failed, one dead grant would end the rotation of all others, or would not be reported."""
    machine(typed("timer"), user="another")
    assert "refresher-once.timer" in machine("systemctl --user list-timers", user="another")
    # Each second instead of each minute; everything else is unchanged.
    sooner = "mkdir -p ~/{0}; printf '[Timer]\\nOnCalendar=\\nOnCalendar=*:*:*\\n' >~/{0}/sooner.conf"
    machine(sooner.format(".config/systemd/user/refresher-once.timer.d"), user="another")
    machine("systemctl --user daemon-reload; systemctl --user restart refresher-once.timer", user="another")
    show = "systemctl --user show --property=Result,ExecMainStatus refresher-once.service"
    log = "journalctl --user --unit=refresher-once --output=cat"
    away = {"token_endpoint": "http://127.0.0.1:9/token", "client_id": "away", "refresh_token": "a-token-for-later"}
    machine.bring("away", away | {"server_url": "https://mcp.example/mcp"}, user="another")
    ended = re.compile(r"away: transient: .*?(Finished|Failed)", re.DOTALL)
    wait_until(lambda: ended.search(machine(log, user="another")) is not None, "a run has ended while a server is away")
    assert "Failed" not in machine(log, user="another"), "a failure that is retried ended the run with an error"
    with TokenServer(lambda _: 3600, grace=0) as server:
        machine.bring("dead", server.grant("dead", refresh_token="a-token-of-nobody"), user="another")
        failed = {"Result=exit-code", "ExecMainStatus=3"}
        wait_until(lambda: set(machine(show, user="another").split()) == failed, "a run has failed")
        machine.bring("linear", server.grant("linear"), user="another")
        wait_until(lambda: published(machine, "another", "linear") is not None, "the timer still rotates")
        machine("systemctl --user stop refresher-once.timer", user="another")
    journal = machine(log, user="another")
    assert journal.count("dead: reauthorization_required: ") == 1
    assert len(server.asked["dead"]) == 1
