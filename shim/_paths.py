"""The default directories of tokens and demands; refresher uses the same defaults."""

# os.path instead of pathlib: pathlib doubles the time that "import shim" takes.
import os

__all__ = ["default_state_dir", "demands_dir", "tokens_dir"]


def default_state_dir() -> str:
    """Return ``$XDG_STATE_HOME/refresher``, else ``~/.local/state/refresher``; without a home, ``~`` stays as it is."""
    base = os.environ.get("XDG_STATE_HOME", "")
    # The XDG specification says to ignore a relative path.
    return os.path.join(base if os.path.isabs(base) else os.path.expanduser("~/.local/state"), "refresher")  # noqa: PTH111, PTH117, PTH118  see above


def tokens_dir() -> str:
    """Return ``REFRESHER_TOKENS_DIR``, else ``tokens`` in the state directory."""
    return _directory("REFRESHER_TOKENS_DIR", "tokens")


def demands_dir() -> str:
    """Return ``REFRESHER_DEMANDS_DIR``, else ``demands`` in the state directory."""
    return _directory("REFRESHER_DEMANDS_DIR", "demands")


def _directory(variable: str, name: str) -> str:
    state = os.environ.get("REFRESHER_STATE_DIR") or default_state_dir()
    return os.environ.get(variable) or os.path.join(state, name)  # noqa: PTH118
