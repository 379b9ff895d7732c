"""The system units of deploy/, run by a real systemd in a machine of its own, with the commands of the README."""

import json
import re
from collections.abc import Iterator
from random import randrange

import pytest

from shim._token import parse
from tests.conftest import need
from tests.support.command import wait_until
from tests.support.deployed import typed
from tests.support.machine import Machine, no_machine
from tests.support.token_server import Gate, TokenServer

STATE = "/var/lib/refresher"
SHARED = "systemd (a machine for several users)"
AGENTS = "Grants and agents of a machine"
KEY = "A key for the grants"


class Server(TokenServer):
    """A token server that can hold its next response."""

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
    """A machine set up with the commands of the README for a machine."""
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
    """A grant that the service rotates."""
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


def show(machine: Machine, key: str) -> str:
    """Return a property of the service."""
    return machine(f"systemctl show --property={key} --value refresher").strip()


def fresh(machine: Machine) -> bool:
    """Whether the service reports that all its grants are fresh."""
    return re.fullmatch(r"(?!0)(\d+) of \1 grants? fresh", show(machine, "StatusText")) is not None


def journal(machine: Machine) -> str:
    """Return the journal of the service."""
    return machine("journalctl --unit=refresher --output=cat")


# --- the service of a machine ----------------------------------------------------------------------------------------


def test_the_commands_for_a_machine_start_the_service(machine: Machine, linear: str) -> None:
    """If it failed, the README would lead to no service, or to one that does not start with the machine."""
    assert "active (running)" in machine("systemctl status refresher")
    wait_until(lambda: fresh(machine), "its grants are fresh")
    assert machine("systemctl is-enabled refresher") == "enabled\n"
    assert "linear  active" in machine(typed(AGENTS))
    assert "Failed" not in journal(machine)


def test_an_agent_of_another_user_reads_the_token_and_demands_the_next(machine: Machine, linear: str) -> None:
    """If it failed, the agents of a server would have no tokens."""
    before = generation(machine)
    token = parse(machine.path(f"{STATE}/tokens/linear.json").read_bytes()).access_token
    assert machine(typed(AGENTS, 1)).strip() == token
    machine(f"touch {STATE}/demands/linear.{before}", user="agent1")
    wait_until(lambda: generation(machine) == before + 1, "the service answers the demand")
    # A person runs the command without the groups of the unit.
    machine("refresher run-once --force linear", user="refresher")
    assert machine(typed(AGENTS, 1)).strip() != token


@pytest.mark.parametrize(
    ("user", "command", "works"),
    [
        ("agent1", f"cat {STATE}/tokens/linear.json >/dev/null", True),
        ("agent1", f"ls {STATE}/tokens {STATE}/demands", True),
        ("agent1", f"touch {STATE}/tokens/mine.json", False),
        ("agent1", f"rm {STATE}/tokens/linear.json", False),
        ("agent1", f"ls {STATE}", False),
        ("agent1", f"ls {STATE}/grants", False),
        ("agent1", f"cat {STATE}/grants/linear.json", False),
        ("agent1", "ls /var/spool/refresher", False),
        ("agent1", f"rm {STATE}/demands/a-demand.1", True),
        ("agent2", f"rm {STATE}/demands/a-demand.1", False),
        ("stranger", f"cat {STATE}/tokens/linear.json", False),
        ("stranger", f"touch {STATE}/demands/linear.7", False),
    ],
)
def test_users_have_only_the_rights_that_they_need(
    machine: Machine, linear: str, user: str, command: str, works: bool
) -> None:
    """If it failed, agents could not read their tokens, or could read refresh tokens."""
    machine(f"touch {STATE}/demands/a-demand.1", user="agent1")
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
        ("ls /tmp/other", False),
    ],
)
def test_the_service_can_write_only_its_own_directories(machine: Machine, command: str, works: bool) -> None:
    """If it failed, a new token could not be saved, or an attacker in the service could change the machine."""
    machine("mkdir -p /tmp/other")
    # As root, so that only the unit limits it; another test checks the owners of files.
    pid = show(machine, "MainPID")
    assert (machine.run(f"nsenter --target {pid} --mount sh -euc '{command}'").returncode == 0) == works


def test_the_service_and_tmpfiles_make_the_same_directories(machine: Machine, linear: str) -> None:
    """If it failed, the access of agents would depend on which of the two made the directories."""
    listing = f"cd {STATE}; stat --format='%n %a %U %G' . tokens demands"
    before = machine(listing)
    machine(f"systemctl stop refresher; rm -r {STATE}/tokens {STATE}/demands; systemctl start refresher")
    assert machine(listing) == before
    wait_until(lambda: generation(machine) > 0, "the token is published again")
    machine(f"rm -r {STATE}/tokens {STATE}/demands; systemd-tmpfiles --create refresher.conf")
    assert machine(listing) == before
    wait_until(lambda: generation(machine) > 0, "the token is published again")


def test_the_service_is_confined(machine: Machine) -> None:
    """If it failed, an attacker in the service could reach the rest of the machine."""
    assert machine("systemd-analyze security --offline=yes --threshold=20 refresher.service")
    assert machine("systemd-analyze security --threshold=20 refresher.service")
    status = machine(f"cat /proc/{show(machine, 'MainPID')}/status")
    assert re.findall(r"^(?:CapBnd|CapEff|NoNewPrivs|Seccomp):\t(\S+)$", status, re.MULTILINE) == ["0" * 16] * 2 + [
        "1",
        "2",
    ]
    assert show(machine, "MemoryMax") == str(512 * 1024 * 1024)


def test_a_stop_during_an_exchange_waits_for_its_end(machine: Machine, server: Server) -> None:
    """If it failed, each restart of the service could cost a login."""
    server.gate = gate = Gate()
    machine.bring("slow", server.grant("slow"), user="refresher")
    assert gate.reached.wait(90)
    machine("systemctl stop --no-block refresher")
    wait_until(lambda: show(machine, "ActiveState") == "deactivating", "the stop has begun")
    wait_until(lambda: "waiting for slow to finish" in journal(machine), "the service waits for the exchange")
    gate.opened.set()
    wait_until(lambda: show(machine, "ActiveState") == "inactive", "the service has stopped")
    assert show(machine, "Result") == "success"
    assert generation(machine, "slow") == 1
    machine("systemctl start refresher")
    assert len(server.asked["slow"]) == 1


@pytest.mark.parametrize("number", ["KILL", "STOP"])
def test_the_service_starts_again_after_a_crash_or_a_hang(machine: Machine, linear: str, number: str) -> None:
    """If it failed, one crash or hang would end the rotation of every grant."""
    # The times of the unit are shortened from a minute to seconds.
    shorter = "WatchdogSec=5s\\nRestartSec=100ms\\nTimeoutAbortSec=100ms"
    directory = "/run/systemd/system/refresher.service.d"
    machine(
        f"mkdir -p {directory}; printf '[Service]\\n{shorter}\\n' >{directory}/shorter.conf; systemctl daemon-reload"
    )
    machine("systemctl restart refresher")
    before = show(machine, "MainPID")
    machine(f"kill -{number} {before}")
    wait_until(lambda: show(machine, "MainPID") not in (before, "0"), "another process runs")
    wait_until(lambda: fresh(machine), "its grants are fresh")
    machine(f"rm -r {directory}; systemctl daemon-reload; systemctl restart refresher")


def test_a_reload_applies_the_configuration(machine: Machine, linear: str) -> None:
    """If it failed, a change would need a restart, or a reload would have no effect."""
    before = show(machine, "MainPID")
    # The machine shares the network with other tests, and each has its own loopback address.
    address = f"127.{randrange(1, 255)}.{randrange(255)}.{randrange(1, 255)}:19464"
    machine(f"sed -i 's/^# listen = .*/listen = \"{address}\"/' /etc/refresher/config.toml")
    machine("systemctl reload refresher")
    wait_until(
        lambda: machine.run("refresher health", user="refresher").returncode == 0, "it listens at the new address"
    )
    assert show(machine, "MainPID") == before
    machine("install -D -m 644 deploy/config.toml /etc/refresher/config.toml; systemctl reload refresher")


def test_an_invalid_configuration_is_reported_in_the_journal(machine: Machine, linear: str) -> None:
    """If it failed, a typing error would stop the service without a message."""
    machine("echo 'unknown = 1' >>/etc/refresher/config.toml")
    assert machine.run("systemctl restart refresher").returncode != 0
    assert "unknown key" in journal(machine)
    machine("install -D -m 644 deploy/config.toml /etc/refresher/config.toml")
    wait_until(lambda: show(machine, "ActiveState") == "active", "systemd starts the service again")


def test_a_credential_of_systemd_is_imported_once(machine: Machine, server: Server) -> None:
    """If it failed, an automatic setup would import no grant, or the service would not start without the credential."""
    seed = machine.path("/etc/credstore/refresher.linear.json")
    machine("install -d -m 700 /etc/credstore; systemctl stop refresher")
    machine("test ! -e /var/lib/refresher/grants/linear.json || refresher remove linear", user="refresher")
    seed.touch(0o600)
    seed.write_text(json.dumps(server.grant("seeded")))
    machine(typed(AGENTS, 2))
    wait_until(lambda: len(server.asked["seeded"]) == 1, "the grant is imported")
    machine("systemctl restart refresher")
    seed.unlink()
    machine("systemctl restart refresher")
    assert show(machine, "ActiveState") == "active"
    assert len(server.asked["seeded"]) == 1
    assert "warning" not in journal(machine)
    # An invalid credential is reported.
    machine("echo no grant >/etc/credstore/refresher.notion.json")
    machine(typed(AGENTS, 2).replace("linear", "notion"))
    assert "notion: " in journal(machine)


def test_a_key_that_systemd_keeps_seals_the_grants(machine: Machine, linear: str) -> None:
    """If it failed, the service could not rotate its grants with an encrypted credential as the key."""
    before = generation(machine)
    machine(typed(KEY))
    wait_until(lambda: show(machine, "ActiveState") == "active", "the service is there again")
    assert machine(typed(KEY, 1)).startswith("sealed: ")
    assert '"sealed":' in machine.path(f"{STATE}/grants/linear.json").read_text()
    rotate = typed(KEY, 1).replace("encryption enable", "run-once linear --force")
    assert "rotated" in machine(rotate)
    assert generation(machine) == before + 1
    assert "is skipped" not in journal(machine)
    # Without the credential, nothing is sent and nothing is lost.
    assert machine.run("su -s /bin/sh refresher -c 'refresher run-once linear --force'").returncode == 2
    assert machine.run("su -s /bin/sh refresher -c 'refresher status'").returncode == 0
    machine("sed -i 's/^encryption_key/previous_encryption_key/' /etc/refresher/config.toml")
    machine(typed(KEY, 1).replace("enable", "disable"))
    machine(
        "rm /etc/systemd/system/refresher.service.d/key.conf; install -D -m 644 deploy/config.toml /etc/refresher/config.toml"
    )
    machine("systemctl daemon-reload; systemctl restart refresher")


def test_systemd_verifies_the_units_without_a_warning(machine: Machine) -> None:
    """If it failed, systemd would ignore a misspelt setting."""
    done = machine.run("systemd-analyze verify refresher.service")
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
