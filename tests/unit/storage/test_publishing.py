"""What readers see where the record and the token file are of different generations."""

from pathlib import Path

import pytest

from refresher.common.secret import Secret
from refresher.grants.record import Grant
from refresher.storage import publishing
from refresher.storage.directories import Directories
from refresher.storage.publishing import Publisher
from shim._token import TokenFile
from tests.support.fake_state import directories
from tests.support.samples import failure, grant

RECORD = grant()
NEWER = grant(generation=7, access_token=Secret("access-token-of-generation-7"))


@pytest.fixture
def state(tmp_path: Path) -> Directories:
    """A state directory where readers have a token of generation 7."""
    made = directories(tmp_path)
    Publisher(made).publish(NEWER)
    return made


def _published(state: Directories) -> TokenFile:
    token = publishing.read_published(state, "linear")
    assert token is not None
    return token


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("older", [RECORD, grant(failure=failure(), failures=1), grant(grant_id="another")])
def test_an_older_generation_never_replaces_a_newer_one(state: Directories, older: Grant, again: bool) -> None:
    """If it failed, agents would get an expired token back after a backup was restored."""
    before = _published(state)
    assert not Publisher(state).publish(older, again=again)
    assert _published(state) == before


def test_the_end_of_a_restored_grant_leaves_readers_the_newer_token(state: Directories) -> None:
    """If it failed, agents would lose a live token, or never see that a person must log in again (I5)."""
    before = _published(state)
    dead = grant(dead=True, failure=failure(outcome="reauthorization_required", code="invalid_grant"))
    assert Publisher(state).publish(dead)
    after = _published(state)
    assert (after.generation, after.access_token) == (7, before.access_token)
    assert after.state == "reauthorization_required"


def test_a_demand_for_a_newer_published_token_is_current(state: Directories) -> None:
    """If it failed, a demand for the token that readers have would be removed unanswered after a restored backup."""
    assert Publisher(state).current(RECORD) == range(3, 8)
    assert not Publisher(state).current(grant(generation=9)), "nobody has this token yet"
