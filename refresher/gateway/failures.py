"""What the gateway itself answers: a status, and JSON that an agent understands."""

import json
from typing import NamedTuple

from shim.errors import InsufficientScope, ShimError, TokenRejected

__all__ = ["Failure", "from_problem"]


class Failure(NamedTuple):
    """Why a request is not answered by its server.

    Never a 401: it would make an MCP client begin a login of its own.
    """

    status: int
    error: str
    message: str
    command: str | None = None
    """What a person must run."""
    retry_after: int | None = None
    """Seconds."""
    server: str | None = None
    """The origin of the server, for the log."""

    def with_program(self, program: str) -> "Failure":
        """Return the failure with commands that begin with ``program``: refresher, with the options of directories."""
        if self.command is None:
            return self
        command = program + self.command.removeprefix("refresher")
        return self._replace(command=command, message=self.message.replace(self.command, command))

    def body(self) -> bytes:
        """Return the JSON."""
        fields: dict[str, str] = {"error": self.error, "message": self.message}
        if self.command is not None:
            fields["command"] = self.command
        return json.dumps(fields).encode() + b"\n"

    def headers(self) -> dict[str, str]:
        """Return the headers that belong to the body."""
        headers = {"Content-Type": "application/json", "Cache-Control": "no-store", "Server": "refresher"}
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        return headers


def from_problem(problem: ShimError, server: str | None = None, retry_after: int | None = None) -> Failure:
    """Return the failure of a request whose token is missing or refused."""
    command = problem.login_command
    if isinstance(problem, InsufficientScope):
        return Failure(403, "insufficient_scope", str(problem), command, server=server)
    if command is not None:
        return Failure(503, "needs_reauth", str(problem), command, server=server)
    if isinstance(problem, TokenRejected):
        return Failure(502, "token_rejected", str(problem), server=server)
    return Failure(503, "no_token", str(problem), retry_after=retry_after, server=server)
