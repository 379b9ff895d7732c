"""The cost of a run with nothing to do, as a ratio to an empty Python program measured in the same run."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Final

import pytest

from refresher.common import clocks
from refresher.config import resolve
from refresher.grants.record import NO_RECORD, Stored
from refresher.operations import import_request
from refresher.storage import records
from refresher.storage.publishing import Publisher
from tests.bench.conftest import Compare

ROUNDS = 5
BARE: Final = ("-c", "pass")
RUN: Final = ("-m", "refresher", "run-once", "--horizon", "70")


def _run(arguments: tuple[str, ...], home: Path) -> str:
    environment = {"HOME": str(home), "PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, *arguments], env=environment, cwd=home, check=True, capture_output=True)
    return done.stdout.decode()


def _cpu(arguments: tuple[str, ...], home: Path) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    _run(arguments, home)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _store(home: Path, count: int) -> None:
    """Store healthy grants of fifty servers, each with the files of an import."""
    directories = resolve({"state_dir": str(home / ".local/state/refresher")}, None).directories
    directories.prepare()
    for number in range(count):
        fields = {
            "token_endpoint": f"https://as{number % 50}.example/token",
            "client_id": "client",
            "refresh_token": f"refresh-token-{number}",
            "server_url": "https://mcp.example/mcp",
            "access_token": f"access-token-{number}",
            "expires_in": 36000,
        }
        grant = import_request.parse(f"grant-{number}", json.dumps(fields).encode(), clocks.now())
        directories.lock(grant.name).touch(mode=0o600)
        records.write(directories, grant.name, Stored(None, NO_RECORD), grant)
        Publisher(directories).publish(grant)


@pytest.mark.parametrize(("grants", "at_most"), [(1, 8), (10_000, 40)])
def test_a_run_with_nothing_due_costs_little(
    grants: int, at_most: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compare: Compare
) -> None:
    """If it failed, a crontab that runs it each minute would slow down a small machine."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)  # it takes minutes, and the measured run only reads
        _store(tmp_path, grants)
    assert _run(RUN, tmp_path).count("not_due") == grants
    ratios = []
    for _ in range(ROUNDS):
        # In turn, so that both run under the same load; the minimum is the cost when nothing else runs.
        bare = [_cpu(BARE, tmp_path) for _ in range(4)]
        ours = [_cpu(RUN, tmp_path) for _ in range(1 if grants > 1 else 4)]
        bare += [_cpu(BARE, tmp_path) for _ in range(4)]
        ratios.append(mean(ours) / mean(bare))
    compare(f"a run over {grants} healthy grants, against a bare interpreter", min(ratios), at_most=at_most)
