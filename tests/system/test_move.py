"""The answers of deploy/README.md about a copy of the state directory."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.support.command import Command
from tests.support.oidc import OIDC
from tests.support.vault import Vault

DOCUMENT = Path(__file__).parents[2] / "deploy/README.md"
COPY = "tar -C ~/.local/state -cpf - refresher"


def test_a_copied_state_directory_goes_on_at_another_place(
    refresher: Command, own_oidc: Callable[..., OIDC], tmp_path: Path, vault: Vault
) -> None:
    """If it failed, a person who moves to another machine as deploy/README.md says would lose each login."""
    assert COPY in DOCUMENT.read_text()
    server = own_oidc()
    refresher.import_grant("linear", server.mint("basic"))
    assert refresher("run-once").code == 0
    new_home = tmp_path / "new"
    (new_home / ".local/state").mkdir(parents=True)
    packed = subprocess.run(
        ["sh", "-c", COPY], env=refresher.environment, capture_output=True, check=True, cwd=refresher.home
    ).stdout
    subprocess.run(["tar", "-C", new_home / ".local/state", "-xpf", "-"], input=packed, check=True)
    shutil.rmtree(refresher.state)
    moved = Command(new_home, vault)
    done = moved("run-once", "--force", "--json")
    assert (done.code, done.outcome) == (0, "rotated")
    assert server.introspect(moved.token("linear").access_token)["active"]
    assert server.log()["reused"] == 0
    assert "imported" in moved("events").stdout, "the history moves too"
