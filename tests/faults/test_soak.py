"""The soak test works, and its ledger detects each violation."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import need
from tests.faults.fuzz import fuzz
from tests.faults.soak.journal import Journal
from tests.faults.soak.ledger import Ledger
from tests.faults.soak.logins import Presentation, Terms
from tests.support import oidc
from tests.support.vault import Vault

ROOT = Path(__file__).parent.parent.parent
LIFE = 20.0
LINES = [
    "exchanges",
    "people",
    "agents",
    "faults",
    "losses",
    "unaccounted",
    "violations",
    "worst wait",
    "daemons",
    "calm",
]


def test_a_short_soak_passes_and_prints_every_figure() -> None:
    """If it failed, the long soak would no longer work when a developer needs it."""
    need(oidc.missing())
    command = [sys.executable, "-m", "tests.faults.soak", str(12 / 60), "--seed", "7"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = dict(re.findall(r"^([a-z ]+?)  +(\S+)", done.stdout, re.MULTILINE))
    assert set(LINES) <= figures.keys(), done.stdout
    assert (figures["unaccounted"], figures["violations"], figures["calm"]) == ("0", "0", "all")
    assert int(figures["exchanges"].rstrip(",")) > 5
    assert int(figures["faults"]) > 0
    assert (figures["chaos problems"], figures["bridge problems"]) == ("0", "0"), done.stdout + done.stderr
    if fuzz.missing() is None:
        assert figures["fuzz problems"] == "0", done.stdout + done.stderr


class Scenario:
    """Events of one login in a ledger with a fake clock, also those that no real process causes."""

    def __init__(self, grace: float = 0.0) -> None:
        self.now = 1000.0
        self.journal = Journal(lambda: self.now)
        self.ledger = Ledger(self.journal, Vault(), lambda: self.now)
        self.login = self.ledger.minted("linear", Terms(LIFE, grace), "token-0")
        self.ledger.imported(self.login)

    def send(self, number: int, *, lost: bool = False, refused: bool = False) -> Presentation:
        """Send refresh token ``number``: the answer has the next one, is lost, or is a refusal."""
        sent = self.ledger.presented(f"token-{number}", fault="answer lost" if lost else "", delivers=not lost)
        answer = {"error": "invalid_grant"} if refused else {"refresh_token": f"token-{number + 1}"}
        self.ledger.answered(sent, 400 if refused else 200, json.dumps(answer).encode())
        self.now += 1
        return sent

    def refused(self, number: int) -> Presentation:
        """Send refresh token ``number``, which the server refuses."""
        return self.send(number, refused=True)

    def violations(self) -> str:
        """Return the first words of the violations that the ledger finds."""
        self.ledger.check(everything=True)
        return " ".join(violation.what.partition(":")[0] for violation in self.journal.violations)


def lost_and_ended(scenario: Scenario) -> None:
    scenario.send(0)
    scenario.send(1, lost=True)
    scenario.now += LIFE
    scenario.refused(1)


def killed_and_ended(scenario: Scenario) -> None:
    scenario.send(0)
    sent = scenario.send(1)
    scenario.ledger.killed("linear", sent.fingerprint)
    scenario.now += LIFE
    scenario.refused(1)


def demanded_in_doubt(scenario: Scenario) -> None:
    scenario.send(0)
    scenario.send(1, lost=True)
    scenario.ledger.demanded("linear", 1)
    scenario.refused(1)


def killed_after_it_was_saved(scenario: Scenario) -> None:
    scenario.send(0)
    scenario.ledger.killed("linear", scenario.send(1).fingerprint)
    scenario.send(2)
    scenario.refused(3)


def sent_again(scenario: Scenario) -> None:
    scenario.send(0)
    scenario.send(0)


def sent_in_doubt(scenario: Scenario) -> None:
    scenario.send(0)
    scenario.send(1, lost=True)
    scenario.send(1)


def ended_and_sent_again(scenario: Scenario) -> None:
    lost_and_ended(scenario)
    scenario.refused(1)


def forced(scenario: Scenario) -> None:
    lost_and_ended(scenario)
    with scenario.ledger.forcing("linear"):
        scenario.refused(1)


def replaced(scenario: Scenario) -> None:
    scenario.send(0)
    scenario.ledger.imported(scenario.ledger.minted("linear", Terms(LIFE), "another-0"))
    scenario.now += 10
    scenario.send(1)


def refused_without_cause(scenario: Scenario) -> None:
    scenario.send(0)
    scenario.refused(1)


def older_token_stored(scenario: Scenario) -> None:
    fingerprints = [scenario.send(number).fingerprint for number in range(2)]
    scenario.ledger.stored("linear", fingerprints[1], 1)
    scenario.ledger.stored("linear", fingerprints[0], 2)


def loss_not_reported(scenario: Scenario) -> None:
    lost_and_ended(scenario)
    scenario.ledger.doubted("linear")
    scenario.ledger.ended("linear", scenario.login.chain[1], "the token endpoint answered 400")


@pytest.mark.parametrize(
    ("events", "violation"),
    [
        (lost_and_ended, ""),
        (killed_and_ended, ""),
        (demanded_in_doubt, ""),
        (forced, ""),
        (killed_after_it_was_saved, "UNACCOUNTED"),
        (refused_without_cause, "UNACCOUNTED"),
        (sent_again, "I3"),
        (sent_in_doubt, "I1"),
        (ended_and_sent_again, "the refresh token of an ended grant was sent again without --force"),
        (replaced, "a refresh token was sent after a person had replaced or removed it"),
        (older_token_stored, "I6"),
        (loss_not_reported, "I4"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_ledger_reports_violations_and_nothing_else(events: Callable[[Scenario], None], violation: str) -> None:
    """If it failed, a soak would pass although a login was lost, or fail without a reason."""
    scenario = Scenario()
    events(scenario)
    assert scenario.violations() == violation


def test_the_ledger_allows_a_replay_within_the_grace_period() -> None:
    """If it failed, a soak would report each allowed replay as a reuse."""
    scenario = Scenario(grace=5.0)
    scenario.send(0)
    scenario.send(1, lost=True)
    scenario.send(1)
    assert scenario.violations() == ""
