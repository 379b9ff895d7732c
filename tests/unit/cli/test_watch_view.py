"""What ``status --watch`` shows, for terminals of different sizes and texts of servers that do harm."""

import time
from typing import Any

import pytest
from rich.cells import cell_len

from refresher.cli import watch_view
from refresher.grants.record import Account, Grant, Login, TokenRejected
from refresher.operations.live_rows import LiveRows
from refresher.storage.directories import Directories
from refresher.storage.file_store import FileStore
from tests.support.fake_state import directories, put
from tests.support.samples import failure, grant

DAY = 86400.0
HOSTILE = "\x1b[2J\x1b]0;title\x07[bold red]markup[/]\u202e\u0007\r\nnew\u200b " + "名前" * 200


@pytest.fixture
def state(tmp_path: Any) -> Directories:
    """Directories without grants."""
    return directories(tmp_path)


def there(state: Directories, name: str, **changes: Any) -> Grant:
    """Put a grant that has just been rotated."""
    now = time.time()
    made = grant(**({"name": name, "issued_at": now, "expires_at": now + 3600, "last_rotation_at": now} | changes))
    put(state.record(name), made)
    return made


def shown(state: Directories, width: int = 80, height: int = 24, *, late: bool | None = None) -> list[str]:
    """Return the lines of the screen, and check that they fit."""
    rows = LiveRows(FileStore(state))
    rows.refresh()
    view = watch_view.view_of(rows.by_name.values(), late, time.time(), height)
    found = [line.plain for line in watch_view.lines(view, width, height, ascii_only=False)]
    assert len(found) <= height
    assert [line for line in found if cell_len(line) > width or not line.isprintable()] == []
    return found


def all_states(state: Directories) -> None:
    """Put one grant in each state."""
    now = time.time()
    person = failure(outcome="reauthorization_required", description="the server ended the grant", retry_at=None)
    there(state, "dead", dead=True, failure=person, login=Login(client="given"))
    there(state, "failing", failure=failure(retry_at=now + 50), failures=1)
    there(state, "refused", login=Login(client="given"), token_rejected=TokenRejected(at=now))
    there(state, "ending", login=Login(client="given"), login_ends_at=now + 3.1 * DAY)
    there(state, "client", login=Login(client="registered", client_expires_at=now + 2.1 * DAY))
    there(state, "new", access_token=None, expires_at=None)
    there(state, "fresh", account=Account(issuer=None, subject="1", label="ann@x.example"))
    state.record("broken").write_bytes(b"")
    state.record("broken").chmod(0o600)


def test_the_grants_that_need_a_person_come_first_with_what_to_do(state: Directories) -> None:
    """If it failed, a person would search a long list for the one grant that does not work, or not know what to type."""
    all_states(state)
    first, _, _, head, *rows = shown(state, 120, 50)
    assert first == "2 need a person, 2 failing, 1 waiting, 2 end soon, 1 fresh"
    assert head.split() == ["NAME", "STATE", "TOKEN", "ROTATION", "LOGIN", "ENDS", "ACCOUNT", "SERVER"]
    names = [row.split()[0] for row in rows if not row.startswith(" ")]
    assert names == ["broken", "dead", "failing", "refused", "new", "client", "ending", "fresh"]
    text = "\n".join(rows)
    for words in (
        "the file is empty",
        "the server ended the grant\n  run: refresher login dead\n",
        "the token endpoint answered 503",
        "run: refresher login refused\n",
        "the client expires in 2d 2h\n  run: refresher login client --new-client\n",
        "the login ends in 3d 2h\n  run: refresher login ending\n",
        "ann@x.example",
        "mcp.example",
    ):
        assert words in text, words
    assert "token-of-generation-3" not in text


def test_rows_that_do_not_fit_are_counted(state: Directories) -> None:
    """If it failed, a person would believe that the grants on the screen are all."""
    for number in range(40):
        there(state, f"g{number:02}")
    assert shown(state, 80, 24)[-1] == "21 more, all fresh"
    assert shown(state, 80, 44)[-1].startswith("g39 ")
    there(state, "z", failure=failure(), failures=1)
    assert shown(state, 80, 24)[-1] == "23 more, all fresh", "the failing one is not first"
    assert shown(state, 80, 5)[-1] == "41 more: 1 failing, 40 fresh"


@pytest.mark.parametrize("height", [1, 5, 24, 60])
@pytest.mark.parametrize("width", [10, 20, 40, 80, 200])
def test_every_size_of_a_terminal_is_used_and_not_exceeded(state: Directories, width: int, height: int) -> None:
    """If it failed, lines would wrap and the picture would scroll on a small terminal."""
    all_states(state)
    found = shown(state, width, height)
    if width >= 40 and height >= 24:
        assert any(line.startswith("dead") and "needs a person" in line for line in found)
        assert any("ROTATION" in line or "NEXT" in line for line in found)


def test_texts_of_servers_stay_texts(state: Directories) -> None:
    """If it failed, a server could clear the screen, hide a grant, or fill it with one error."""
    there(
        state,
        "evil",
        failure=failure(description=HOSTILE),
        failures=1,
        account=Account(issuer=None, subject="1", label=HOSTILE[:100]),
        server_url="https://[",
    )
    there(state, "fresh")
    found = shown(state, 120, 24)
    assert any("[bold red]markup[/]" in line for line in found)
    assert any(line.startswith("fresh") for line in found)


def test_it_says_that_nobody_refreshes_and_how_to_begin(state: Directories) -> None:
    """If it failed, a person would look at a picture that counts down, and nothing would happen at the end."""
    assert shown(state)[0] == "no grants yet; begin with 'refresher login NAME URL'"
    there(state, "linear")
    assert shown(state)[0] == "1 fresh"
    assert shown(state, late=True)[:2] == [
        "1 overdue, 0 fresh",
        "nobody refreshes: is 'refresher run' or cron running?",
    ]


def test_a_command_is_never_cut(state: Directories) -> None:
    """If it failed, a person would copy a command with half a name."""
    name = "a" * 64
    there(state, name, dead=True, failure=failure(retry_at=None), login=Login(client="given"))
    text = "".join(line.strip() for line in shown(state, 40, 24))
    assert f"refresher login{name}" in text
