"""Whether a daemon is seen to serve a state directory."""

from pathlib import Path

from refresher.storage.presence import Presence, is_served


def test_a_directory_is_served_while_any_process_shows_it(tmp_path: Path) -> None:
    """If it failed, a login would say that nothing renews it beside a running daemon, or the opposite."""
    first, second = Presence(), Presence()
    assert not is_served(tmp_path)
    first.show(tmp_path)
    second.show(tmp_path)
    assert is_served(tmp_path)
    first.end()
    assert is_served(tmp_path)
    second.show(tmp_path.parent)
    assert not is_served(tmp_path)
    second.end()
    assert not is_served(tmp_path.parent)


def test_a_directory_that_does_not_exist_is_not_served(tmp_path: Path) -> None:
    """If it failed, a message about the daemon would end a login in a traceback."""
    presence = Presence()
    presence.show(tmp_path / "none")
    assert not is_served(tmp_path / "none")
    presence.end()
