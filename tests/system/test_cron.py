"""The crontabs of deploy/, run by a real cron with the commands of the README. Its clock runs faster, so minutes are short."""

import re
from collections.abc import Iterator

import pytest

from shim._token import TokenFile, parse
from tests.conftest import need
from tests.support import parts
from tests.support.command import wait_until, without_times
from tests.support.deployed import typed
from tests.support.machine import Machine, no_machine
from tests.support.token_server import Gate, TokenServer

pytestmark = pytest.mark.alone  # the clock of its machine runs faster

FASTER = 20
"""A minute of cron takes three seconds. The processes that cron starts see the real clock."""
MAIL = '#!/bin/sh\nd=$(mktemp -d /tmp/mail/XXXXXX); cat >"$d/being-written"; mv "$d/being-written" "$d/mail"\n'


class Server(TokenServer):
    """Holds the first response to ``slow``; tokens of ``short`` expire before the next run."""

    def __init__(self) -> None:
        self.gate = Gate()
        super().__init__(lambda client: 1 if client == "short" else 3600, self._hold, grace=3600)

    def _hold(self) -> None:
        if self.asked["slow"] and not self.gate.reached.is_set():
            self.gate()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as made:
        yield made


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Iterator[Machine]:
    """A machine set up with the commands of the README, and a mail system that keeps each mail in a file."""
    faketime = parts.faketime()
    need(no_machine("cron") or (None if faketime else "libfaketime is not installed"))
    clock = (f"LD_PRELOAD={faketime}", f"FAKETIME=+0 x{FASTER}")
    with Machine(tmp_path_factory.mktemp("machine") / "root", "env", *clock, "cron", "-f") as made:
        # All processes that cron starts share the clock, including its mailer, which is another user.
        wait_until(lambda: made.run("chmod a+rw /dev/shm/*faketime*").returncode == 0, "the clock is there")
        made("mkdir -m 1777 /tmp/mail; useradd -m agent1; useradd -m person")
        made(f"cat >/usr/sbin/sendmail <<'END'\n{MAIL}END\nchmod 755 /usr/sbin/sendmail")
        made.install("/opt/refresher/bin/refresher")
        made(typed("Install", 1).partition("\n")[2])
        made(typed("cron, for a machine"))
        made.bring("linear", server.grant("machine"), user="refresher")
        made.install("/home/person/.local/share/refresher/bin/refresher", user="person")
        made(typed("Install").splitlines()[2], user="person")
        made(typed("cron"), user="person")
        made.bring("dead", server.grant("dead", refresh_token="a-token-of-nobody"), user="person")
        made.bring("linear", server.grant("short"), user="person")
        made.bring("slow", server.grant("slow"), user="person")
        yield made


def published(machine: Machine, name: str, home: str = "/home/person/.local/state/refresher") -> TokenFile | None:
    """Return a published token."""
    try:
        return parse(machine.path(f"{home}/tokens/{name}.json").read_bytes())
    except FileNotFoundError:
        return None


def mails(machine: Machine, to: str) -> list[str]:
    """Return the mails of cron to a user."""
    sent = [path.read_text() for path in machine.path("/tmp/mail").glob("*/mail")]
    return [mail for mail in sent if f"\nTo: {to}\n" in mail]


def test_overlapping_and_late_runs_rotate(machine: Machine, server: Server) -> None:
    """If it failed, a server that hangs for a minute, or a machine that sleeps, would cost a login under cron."""
    assert server.gate.reached.wait(90)
    running = "pgrep --full --count 'main.* run-once --horizon' --euid person"
    wait_until(lambda: int(machine(running)) > 1, "the next run waits for the first")
    server.gate.opened.set()
    wait_until(lambda: published(machine, "slow") is not None, "the first run has ended")
    # Each token had expired long before the run that replaced it.
    wait_until(lambda: len(server.asked["short"]) > 2, "each run rotates expired tokens")
    assert len(server.asked["slow"]) == 1
    assert server.reused == 0


def test_cron_mails_an_error_once_and_sets_only_its_own_environment(machine: Machine, server: Server) -> None:
    """If it failed, a person would get no mail about a dead grant, or one every minute."""
    wait_until(lambda: mails(machine, "person") != [], "cron has sent a mail")
    before = len(server.asked["short"])
    wait_until(lambda: len(server.asked["short"]) > before + 1, "two more runs have begun")
    (mail,) = mails(machine, "person")
    head, _, body = mail.partition("\n\n")
    assert without_times(body).startswith("refresher: dead: reauthorization_required: ")
    assert body.count("\n") == 1
    assert set(re.findall(r"^X-Cron-Env: <(\w+)=", head, re.MULTILINE)) == {"HOME", "LOGNAME", "PATH", "SHELL"}
    assert len(server.asked["dead"]) == 1


def test_the_next_run_answers_a_demand(machine: Machine) -> None:
    """If it failed, the check of the README would not show that refresher works."""
    wait_until(lambda: published(machine, "slow") is not None, "there is a token")
    assert "slow" in machine(typed("cron", 1).replace("linear.0", "slow.1"), user="person")
    wait_until(lambda: getattr(published(machine, "slow"), "generation", 0) == 2, "it is replaced")


def test_the_crontab_of_a_machine_publishes_for_agents_of_another_user(machine: Machine) -> None:
    """If it failed, the agents of a server without systemd would have no tokens."""
    wait_until(lambda: published(machine, "linear", "/var/lib/refresher") is not None, "it fetches the first token")
    token = published(machine, "linear", "/var/lib/refresher")
    assert token is not None
    assert machine(typed("Grants and agents of a machine", 1)).strip() == token.access_token
    assert machine.run("ls /var/lib/refresher/grants", user="agent1").returncode != 0
    assert mails(machine, "root") == []
