"""Commands that need not load the MCP SDK: real processes of the real program, that begin where its imports end."""

import sys
from pathlib import Path

from tests.support.served import Served

__all__ = ["Warm"]

_STANDS_FOR_IT = Path(__file__).parent.parent / "servers/warmly.py"


class Warm(Served):
    """``command`` is what ``refresher`` is begun by; ``path``: a socket's, that is not there yet."""

    def __init__(self, path: Path) -> None:
        super().__init__(sys.executable, "-m", "tests.servers.warm", str(path))
        self.command = (sys.executable, "-I", "-S", str(_STANDS_FOR_IT), str(path))
