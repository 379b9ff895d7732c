"""The commands of the README for a new user, in a new environment: install, demo, login, run."""

import os
import re
import shutil
import subprocess

from tests.support.browser import as_browser
from tests.support.command import Command
from tests.support.daemon import heard
from tests.support.documents import DOCUMENTS, ROOT, blocks
from tests.support.mcp_login import MCPLogin

README = DOCUMENTS["README.md"]


def test_the_commands_of_the_readme_install_demonstrate_log_in_and_run(refresher: Command) -> None:
    """If it failed, the first commands that a new user types would not work."""
    install, _ = blocks("README.md", "sh")
    checkout = refresher.home / "checkout"
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    for name in tracked or ["pyproject.toml", "README.md"]:
        if name.startswith(("refresher/", "shim/", "pyproject.toml", "README.md")):
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, checkout / name)
    # Of the tester's environment, the commands get only what a package index needs.
    passed = {
        name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "HTTP", "NO_PROXY"))
    }
    # To compile all packages takes longer than all else here; Python compiles what it imports.
    environment = {**passed, "PIP_NO_COMPILE": "1", "HOME": str(refresher.home), "PATH": os.environ["PATH"]}

    def run(command: str) -> str:
        done = subprocess.run(
            ["bash", "-euc", command], cwd=checkout, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "not one call failed" in run(install)
    assert not refresher.state.exists(), "the demo has touched the user's own grants"
    # What comes after "puts the command on the PATH".
    (activate,) = re.findall(r"^`(\. \.venv/bin/activate)` puts", README, re.MULTILINE)
    log_in, watch = (
        f"{activate} && exec {line}" for line in re.findall(r"^refresher (?:login|run)\b.*$", README, re.MULTILINE)
    )
    with MCPLogin() as server:
        environment |= as_browser("person")
        assert "logged in: linear" in run(log_in.replace("https://mcp.linear.app/mcp", server.url))
    process = subprocess.Popen(
        ["bash", "-euc", watch],
        cwd=checkout,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "watching 1 grant" in heard(process, "watching")[-1]
    process.terminate()
    assert refresher.finish(process).code == 0
