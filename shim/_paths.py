"""Where tokens and demands are, by the environment's word (DESIGN section 1); refresher asks here too."""

# os.path and not pathlib, which would double the cost of importing shim.
import os

__all__ = ["default_state_dir", "demands_dir", "state_dir", "tokens_dir"]


def state_dir() -> str:
    """Return ``REFRESHER_STATE_DIR``, else the default."""
    return os.environ.get("REFRESHER_STATE_DIR") or default_state_dir()


def default_state_dir() -> str:
    """Return ``$XDG_STATE_HOME/refresher``, else ``~/.local/state/refresher``; unexpanded where there is no home."""
    base = os.environ.get("XDG_STATE_HOME", "")
    # The XDG base directory specification: a relative path is to be ignored.
    return os.path.join(base if os.path.isabs(base) else os.path.expanduser("~/.local/state"), "refresher")  # noqa: PTH111, PTH117, PTH118  see above


def tokens_dir() -> str:
    """Return ``REFRESHER_TOKENS_DIR``, else ``tokens`` in the state directory."""
    return os.environ.get("REFRESHER_TOKENS_DIR") or os.path.join(state_dir(), "tokens")  # noqa: PTH118


def demands_dir() -> str:
    """Return ``REFRESHER_DEMANDS_DIR``, else ``demands`` in the state directory."""
    return os.environ.get("REFRESHER_DEMANDS_DIR") or os.path.join(state_dir(), "demands")  # noqa: PTH118
