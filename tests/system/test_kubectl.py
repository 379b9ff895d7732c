"""``token --format exec-credential`` as the credential plugin of the real kubectl."""

import json
import subprocess
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import need
from tests.support import kubectl
from tests.support.command import Command
from tests.support.keys import server_context
from tests.support.listener import Listening
from tests.support.published import Published
from tests.support.warm import stub

VERSION = {"major": "1", "minor": "29", "gitVersion": "v1.29.0"}


class Cluster(Listening):
    """An API server that knows its version; it accepts the bearer that ``accepted`` names."""

    def __init__(self, certificate: Path) -> None:
        self.accepted = "Bearer access-token-1"
        self.statuses: list[int] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                known = self.headers["Authorization"] == server.accepted
                self._send(200, VERSION) if known else self._send(401, {})

            def _send(self, status: int, fields: Any) -> None:
                server.statuses.append(status)
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps(fields).encode())

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  http.server's signature
                return

        super().__init__(Handler)
        context = server_context(certificate, "localhost")
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = self.url.replace("http://127.0.0.1", "https://localhost")  # kubectl sends no token without TLS


@pytest.mark.parametrize("version", kubectl.VERSIONS)
def test_kubectl_runs_the_command_and_runs_it_again_after_a_401(refresher: Command, version: str) -> None:
    """If it failed, a person could not use the tokens of a cluster's provider with kubectl."""
    need(kubectl.missing())
    published = Published(refresher.home / "shared")
    runs = refresher.home / "runs"
    words = " ".join(stub("refresher", "token", "linear", "--format", "exec-credential"))
    plugin = refresher.home / "plugin"
    # Once it is asked, the next token is published, as by a refresher elsewhere.
    plugin.write_text(
        f'#!/bin/sh\necho run >>"{runs}"\n{words}\nmv "{published.tokens}/next" "{published.path}" 2>/dev/null || true\n'
    )
    plugin.chmod(0o700)
    environment = refresher.environment | {
        "REFRESHER_TOKENS_DIR": str(published.tokens),
        "REFRESHER_DEMANDS_DIR": str(published.demands),
    }

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(kubectl.program(version)), "--kubeconfig", str(config), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=90)

    with Cluster(certificate := refresher.home / "ca.pem") as cluster:
        config = refresher.home / "kubeconfig"
        config.write_text(json.dumps(kubeconfig(cluster.url, certificate, plugin)))
        published.put(1)
        first = run("get", "--raw", "/version")
        assert first.stdout.strip() == json.dumps(VERSION), (first.stderr, cluster.statuses)
        assert (cluster.statuses, runs.read_text()) == ([200], "run\n")

        published.put(2)
        published.path.rename(published.tokens / "next")
        published.put(1)
        cluster.accepted = "Bearer access-token-2"
        cluster.statuses.clear()
        # kubectl does not send the request again: its next one carries the new token.
        assert run("get", "--raw", "/version").returncode == 1
        assert (cluster.statuses, runs.read_text().count("run")) == ([401], 3)
        assert run("get", "--raw", "/version").returncode == 0
        assert cluster.statuses == [401, 200]


def kubeconfig(server: str, certificate: Path, plugin: Path) -> dict[str, Any]:
    """Return a configuration that gets its credential from ``plugin``."""
    plugged = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": str(plugin),
        "interactiveMode": "Never",
    }
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "here", "cluster": {"server": server, "certificate-authority": str(certificate)}}],
        "users": [{"name": "me", "user": {"exec": plugged}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
    }
