"""What the tests of the command line share: grants to import, and checks of an error message."""

from typing import Any, Final

from tests.support.browser import as_browser
from tests.support.command import Command, Done, without_times

__all__ = ["GRANT", "PERSON", "UNREACHABLE", "WORKING_LOGIN", "all_files", "last_line", "one_line"]

GRANT: Final[dict[str, Any]] = {
    "token_endpoint": "http://127.0.0.1:9/token",
    "client_id": "client",
    "refresh_token": "refresh-token-of-the-tests",
    "server_url": "https://mcp.example/mcp",
}
PERSON: Final = as_browser("person")
UNREACHABLE: Final = "http://127.0.0.1:9"
WORKING_LOGIN: Final[dict[str, Any]] = {
    "token_endpoint": f"{UNREACHABLE}/token",
    "client_id": "client",
    "refresh_token": "refresh-token-of-a-working-login",
    "access_token": "access-token-of-a-working-login",
    "expires_in": 3600,
    "origins": ["https://api.example"],
}


def one_line(done: Done, code: int = 2) -> str:
    """Check that the command printed one line on stderr, and nothing on stdout; return the line."""
    assert done.code == code, (done.code, done.stdout, done.stderr)
    assert done.stdout == ""
    stderr = without_times(done.stderr)
    assert stderr.startswith("refresher: ")
    assert stderr.count("\n") == 1
    return stderr


def last_line(done: Done, code: int) -> str:
    """Check that a login failed, and return its one line on stderr."""
    assert done.code == code, (done.code, done.stdout, done.stderr)
    *_, line = without_times(done.stderr).splitlines()
    assert line.startswith("refresher: ")
    assert done.stderr.count("refresher: ") == 1
    assert "logged in: " not in done.stdout
    return line


def all_files(refresher: Command) -> dict[str, bytes]:
    """Return the contents of all files of the state directory."""
    return {str(path): path.read_bytes() for path in refresher.state.rglob("*") if path.is_file()}
