"""The units of deploy/, run by a real systemd as process 1 of a machine of their own, as its README says."""

import json
import re
from collections.abc import Iterator

import pytest

from shim._token import parse
from tests.conftest import need
from tests.support.command import wait_until
from tests.support.deployed import typed
from tests.support.machine import Machine, no_machine
from tests.support.token_server import Gate, TokenServer

pytestmark = pytest.mark.xdist_group("systemd")  # one machine for all of them

STATE = "/var/lib/refresher"
SHARED = "systemd (a machine for several users)"
AGENTS = "Grants and agents of a machine"


class Server(TokenServer):
    """One whose next answer can be kept back."""

    def __init__(self) -> None:
        self.gate: Gate | None = None
        super().__init__(lambda _: 3600, self._hold)

    def _hold(self) -> None:
        gate, self.gate = self.gate, None
        if gate is not None:
            gate()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as made:
        yield made


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """What somebody has who has typed what the README says for a machine."""
    need(no_machine("pkcheck"))
    with Machine(tmp_path_factory.mktemp("machine") / "root") as made:
        made("useradd -m agent1; useradd -m agent2; useradd -m stranger")
        made.install("/opt/refresher/bin/refresher")
        made(typed("Install", 1).partition("\n")[2])
        made(typed(SHARED))
        made(typed(AGENTS).replace("status", "--version"))
        made(typed(AGENTS, 1).partition("\n")[0] + "; usermod -aG refresher-agents agent2")
        yield made


@pytest.fixture
def linear(machine: Machine, server: Server) -> str:
    """A grant that the service keeps fresh."""
    if not machine.path(f"{STATE}/tokens/linear.json").exists():
        machine.bring("linear", server.grant("linear"), user="refresher")
        wait_until(lambda: generation(machine) == 1, "the service fetches its first token")
    return "linear"


def generation(machine: Machine, name: str = "linear") -> int:
    """Return the published generation, -1 where there is none."""
    try:
        return parse(machine.path(f"{STATE}/tokens/{name}.json").read_bytes()).generation
    except FileNotFoundError:
        return -1


def shown(machine: Machine, key: str) -> str:
    """Return what systemd says of the service."""
    return machine(f"systemctl show --property={key} --value refresher").strip()


def fresh(machine: Machine) -> bool:
    """Whether the service says that all its grants are fresh."""
    return re.fullmatch(r"(?!0)(\d+) of \1 grants? fresh", shown(machine, "StatusText")) is not None


def told(machine: Machine) -> str:
    """Return what the service has said, and systemd of it."""
    return machine("journalctl --unit=refresher --output=cat")


# --- the service of a machine ----------------------------------------------------------------------------------------


def test_what_the_readme_says_for_a_machine_works(machine: Machine, linear: str) -> None:
    """If it failed, who follows the README would have no service, or one that does not start again with the machine."""
    assert "active (running)" in machine("systemctl status refresher")
    wait_until(lambda: fresh(machine), "it counts what is fresh")
    assert machine("systemctl is-enabled refresher") == "enabled\n"
    assert "linear  active" in machine(typed(AGENTS))
    assert "Failed" not in told(machine)


def test_an_agent_of_another_user_finds_the_token_and_asks_for_the_next(machine: Machine, linear: str) -> None:
    """If it failed, the agents of a server would have no tokens."""
    before = generation(machine)
    token = parse(machine.path(f"{STATE}/tokens/linear.json").read_bytes()).access_token
    assert machine(typed(AGENTS, 1)).strip() == token
    machine(f"touch {STATE}/demands/linear.{before}", user="agent1")
    wait_until(lambda: generation(machine) == before + 1, "the service has heard the demand")
    # And what a person types, who has not the groups of the unit.
    machine("refresher run-once --force linear", user="refresher")
    assert machine(typed(AGENTS, 1)).strip() != token


@pytest.mark.parametrize(
    ("user", "command", "works"),
    [
        ("agent1", f"cat {STATE}/tokens/linear.json >/dev/null", True),
        ("agent1", f"ls {STATE}/tokens {STATE}/demands", True),
        ("agent1", f"touch {STATE}/tokens/mine.json", False),
        ("agent1", f"rm -f {STATE}/tokens/linear.json", False),
        ("agent1", f"ls {STATE}", False),
        ("agent1", f"ls {STATE}/grants", False),
        ("agent1", f"cat {STATE}/grants/linear.json", False),
        ("agent1", "ls /var/spool/refresher", False),
        ("agent1", f"touch {STATE}/demands/a-demand.1", True),
        ("agent2", f"rm -f {STATE}/demands/a-demand.1", False),
        ("stranger", f"cat {STATE}/tokens/linear.json", False),
        ("stranger", f"touch {STATE}/demands/linear.7", False),
    ],
)
def test_who_may_do_what(machine: Machine, linear: str, user: str, command: str, works: bool) -> None:
    """If it failed, agents would be without tokens, or hold what is not theirs."""
    done = machine.run(command, user=user)
    assert (done.returncode == 0) == works, done.stderr
    assert works or "Permission denied" in done.stderr or "Operation not permitted" in done.stderr


@pytest.mark.parametrize(
    ("command", "works"),
    [
        (f"touch {STATE}/tried; rm {STATE}/tried", True),
        ("touch /var/spool/refresher/tried; rm /var/spool/refresher/tried", True),
        ("cat /proc/sys/kernel/random/boot_id", True),
        ("touch /etc/refresher/tried", False),
        ("touch /opt/refresher/tried", False),
        ("touch /var/cache/tried", False),
        ("ls /home/agent1", False),
        ("ls /tmp/theirs", False),
    ],
)
def test_what_the_service_can_reach(machine: Machine, command: str, works: bool) -> None:
    """If it failed, a new token could not be saved, or somebody who broke in could change the machine."""
    machine("mkdir -p /tmp/theirs")
    # As root: only the unit holds it back. What files say of their owners is another test.
    pid = shown(machine, "MainPID")
    assert (machine.run(f"nsenter --target {pid} --mount sh -euc '{command}'").returncode == 0) == works


def test_the_directories_are_those_that_the_program_makes(machine: Machine, linear: str) -> None:
    """If it failed, agents could pass or not depending on who came first, or not at all once a directory was lost."""
    look = f"cd {STATE}; stat --format='%n %a %U %G' . tokens demands"
    before = machine(look)
    machine(f"systemctl stop refresher; rm -r {STATE}/tokens {STATE}/demands; systemctl start refresher")
    assert machine(look) == before
    wait_until(lambda: generation(machine) > 0, "the token is there again")
    machine(f"rm -r {STATE}/tokens {STATE}/demands; systemd-tmpfiles --create refresher.conf")
    assert machine(look) == before
    wait_until(lambda: generation(machine) > 0, "the token is there again")


def test_it_is_confined(machine: Machine) -> None:
    """If it failed, somebody who breaks in over the network would find more than refresh tokens."""
    assert machine("systemd-analyze security --offline=yes --threshold=20 refresher.service")
    assert machine("systemd-analyze security --threshold=20 refresher.service")
    status = machine(f"cat /proc/{shown(machine, 'MainPID')}/status")
    assert re.findall(r"^(?:CapBnd|CapEff|NoNewPrivs|Seccomp):\t(\S+)$", status, re.MULTILINE) == ["0" * 16] * 2 + [
        "1",
        "2",
    ]


def test_a_stop_in_mid_exchange_waits_for_its_end(machine: Machine, server: Server) -> None:
    """If it failed, each restart of the service could cost a login."""
    server.gate = gate = Gate()
    machine.bring("slow", server.grant("slow"), user="refresher")
    assert gate.reached.wait(30)
    machine("systemctl stop --no-block refresher")
    wait_until(lambda: shown(machine, "ActiveState") == "deactivating", "it is told to stop")
    wait_until(lambda: "waiting for slow to finish" in told(machine), "it says what it waits for")
    gate.opened.set()
    wait_until(lambda: shown(machine, "ActiveState") == "inactive", "it has stopped")
    assert shown(machine, "Result") == "success"
    assert generation(machine, "slow") == 1
    machine("systemctl start refresher")
    assert len(server.asked["slow"]) == 1


@pytest.mark.parametrize("number", ["KILL", "STOP"])
def test_it_comes_back_whatever_ends_or_stops_it(machine: Machine, linear: str, number: str) -> None:
    """If it failed, one crash, or one loop that stands still, would end the rotation of every grant."""
    # Only sooner than people would want it: seconds instead of a minute.
    quick = "WatchdogSec=2s\\nRestartSec=100ms\\nTimeoutAbortSec=100ms"
    there = "/run/systemd/system/refresher.service.d"
    machine(f"mkdir -p {there}; printf '[Service]\\n{quick}\\n' >{there}/quick.conf; systemctl daemon-reload")
    machine("systemctl restart refresher")
    before = shown(machine, "MainPID")
    machine(f"kill -{number} {before}")
    wait_until(lambda: shown(machine, "MainPID") not in (before, "0"), "another process is begun")
    wait_until(lambda: fresh(machine), "it has taken over")
    machine(f"rm -r {there}; systemctl daemon-reload; systemctl restart refresher")


def test_a_reload_takes_up_the_configuration(machine: Machine, linear: str) -> None:
    """If it failed, a change would need a restart, or be believed to be in force when it is not."""
    before = shown(machine, "MainPID")
    machine("sed -i 's/^# listen = .*/listen = \"127.0.0.1:19464\"/' /etc/refresher/config.toml")
    machine("systemctl reload refresher")
    wait_until(lambda: machine.run("refresher health", user="refresher").returncode == 0, "it listens")
    assert shown(machine, "MainPID") == before
    machine("install -D -m 644 deploy/config.toml /etc/refresher/config.toml; systemctl reload refresher")


def test_a_wrong_configuration_is_told_where_people_look(machine: Machine, linear: str) -> None:
    """If it failed, a typing error would leave people without a service and without a word."""
    machine("echo 'wrong = 1' >>/etc/refresher/config.toml")
    assert machine.run("systemctl restart refresher").returncode != 0
    assert "unknown key" in told(machine)
    machine("install -D -m 644 deploy/config.toml /etc/refresher/config.toml")
    wait_until(lambda: shown(machine, "ActiveState") == "active", "it is tried again by itself")


def test_a_login_that_systemd_brings_is_taken_in_once(machine: Machine, server: Server) -> None:
    """If it failed, a machine that is set up by a program would have no grants, or die when their seed is deleted."""
    seed = machine.path("/etc/credstore/refresher.linear.json")
    machine("install -d -m 700 /etc/credstore; systemctl stop refresher")
    machine("test ! -e /var/lib/refresher/grants/linear.json || refresher remove linear", user="refresher")
    seed.touch(0o600)
    seed.write_text(json.dumps(server.grant("seeded")))
    machine(typed(AGENTS, 2))
    wait_until(lambda: len(server.asked["seeded"]) == 1, "it is taken in")
    machine("systemctl restart refresher")
    seed.unlink()
    machine("systemctl restart refresher")
    assert shown(machine, "ActiveState") == "active"
    assert len(server.asked["seeded"]) == 1
    assert "warning" not in told(machine)
    # One that is refused.
    machine("echo no grant >/etc/credstore/refresher.notion.json")
    machine(typed(AGENTS, 2).replace("linear", "notion"))
    assert "notion: " in told(machine)


def test_systemd_has_nothing_to_say_of_the_units(machine: Machine) -> None:
    """If it failed, a setting would be ignored because of a typing error, and nobody would see it."""
    done = machine.run("systemd-analyze verify refresher.service")
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
