"""The soak does not rot, and its ledger misses nothing."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import need
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


def test_a_soak_of_ten_seconds_holds_and_tells_it_all() -> None:
    """If it failed, the long soak would have rotted by the day somebody wants to know."""
    need(oidc.missing())
    command = [sys.executable, "-m", "tests.faults.soak", str(10 / 60), "--seed", "7"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = dict(re.findall(r"^([a-z ]+?)  +(\S+)", done.stdout, re.MULTILINE))
    assert set(LINES) <= figures.keys(), done.stdout
    assert (figures["unaccounted"], figures["violations"], figures["calm"]) == ("0", "0", "all")
    assert int(figures["exchanges"].rstrip(",")) > 5
    assert int(figures["faults"]) > 0


class Story:
    """One login in a ledger whose clock is told; what no real process would do can be told as well."""

    def __init__(self, grace: float = 0.0) -> None:
        self.now = 1000.0
        self.journal = Journal(lambda: self.now)
        self.ledger = Ledger(self.journal, Vault(), lambda: self.now)
        self.login = self.ledger.minted("linear", Terms(LIFE, grace), "token-0")
        self.ledger.imported(self.login)

    def send(self, number: int, *, lost: bool = False, refused: bool = False) -> Presentation:
        """Refresh token ``number`` is sent, and the next one comes back, or is lost, or it is refused."""
        sent = self.ledger.presented(f"token-{number}", fault="answer lost" if lost else "", delivers=not lost)
        answer = {"error": "invalid_grant"} if refused else {"refresh_token": f"token-{number + 1}"}
        self.ledger.answered(sent, 400 if refused else 200, json.dumps(answer).encode())
        self.now += 1
        return sent

    def refused(self, number: int) -> Presentation:
        """Refresh token ``number`` is sent and refused for good."""
        return self.send(number, refused=True)

    def objection(self) -> str:
        """Return the first word of what the ledger has against it."""
        self.ledger.check(everything=True)
        return " ".join(violation.what.partition(":")[0] for violation in self.journal.violations)


def lost_and_died(story: Story) -> None:
    story.send(0)
    story.send(1, lost=True)
    story.now += LIFE
    story.refused(1)


def killed_and_died(story: Story) -> None:
    story.send(0)
    sent = story.send(1)
    story.ledger.killed("linear", sent.fingerprint)
    story.now += LIFE
    story.refused(1)


def demanded_in_doubt(story: Story) -> None:
    story.send(0)
    story.send(1, lost=True)
    story.ledger.demanded("linear", 1)
    story.refused(1)


def killed_after_it_was_saved(story: Story) -> None:
    story.send(0)
    story.ledger.killed("linear", story.send(1).fingerprint)
    story.send(2)
    story.refused(3)


def sent_again(story: Story) -> None:
    story.send(0)
    story.send(0)


def in_doubt_and_impatient(story: Story) -> None:
    story.send(0)
    story.send(1, lost=True)
    story.send(1)


def dead_and_sent_again(story: Story) -> None:
    lost_and_died(story)
    story.refused(1)


def forced(story: Story) -> None:
    lost_and_died(story)
    with story.ledger.forcing("linear"):
        story.refused(1)


def replaced(story: Story) -> None:
    story.send(0)
    story.ledger.imported(story.ledger.minted("linear", Terms(LIFE), "another-0"))
    story.now += 1
    story.send(1)


def stolen(story: Story) -> None:
    story.send(0)
    story.refused(1)


def went_back(story: Story) -> None:
    fingerprints = [story.send(number).fingerprint for number in range(2)]
    story.ledger.stored("linear", fingerprints[1], 1)
    story.ledger.stored("linear", fingerprints[0], 2)


def unnamed(story: Story) -> None:
    lost_and_died(story)
    story.ledger.doubted("linear")
    story.ledger.died("linear", story.login.chain[1], "the token endpoint answered 400")


@pytest.mark.parametrize(
    ("told", "objection"),
    [
        (lost_and_died, ""),
        (killed_and_died, ""),
        (demanded_in_doubt, ""),
        (forced, ""),
        (killed_after_it_was_saved, "UNACCOUNTED"),
        (stolen, "UNACCOUNTED"),
        (sent_again, "I3"),
        (in_doubt_and_impatient, "I1"),
        (dead_and_sent_again, "a dead refresh token was sent again though nobody had forced it"),
        (replaced, "a refresh token was sent after a person had replaced or removed it"),
        (went_back, "I6"),
        (unnamed, "I4"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_ledger_sees_what_must_not_be_and_nothing_else(told: Callable[[Story], None], objection: str) -> None:
    """If it failed, a soak would call a lost login a success, or cry wolf until nobody runs it."""
    story = Story()
    told(story)
    assert story.objection() == objection


def test_the_ledger_knows_a_grace() -> None:
    """If it failed, every replay that a server allows would be called a reuse."""
    story = Story(grace=5.0)
    story.send(0)
    story.send(1, lost=True)
    story.send(1)
    assert story.objection() == ""
