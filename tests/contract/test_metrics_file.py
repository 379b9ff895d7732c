"""The metrics file of ``run-once``: what it holds after each run, who can read it, and that no run depends on it."""

import os
import re
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import need
from tests.support.cli import GRANT, one_line
from tests.support.command import Command, Done, wait_until
from tests.support.daemon import published, running, stopped
from tests.support.oidc import OIDC
from tests.support.parts import mounted, no_mounts
from tests.support.prometheus import check_metrics, missing

HEALTHY = GRANT | {"access_token": "an-access-token-of-it", "expires_in": 3600}


def value(path: Path, sample: str) -> float | None:
    """Return the value of a sample in a metrics file; ``None`` if there is none."""
    found = re.search(rf"^{re.escape(sample)} (\S+)$", path.read_text(), re.MULTILINE)
    return None if found is None else float(found[1])


def warning(done: Done) -> str:
    """Check that a run was successful, and return its only line on stderr."""
    assert done.code == 0, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "not_due" in done.stdout
    return done.stderr


@pytest.fixture
def file(refresher: Command) -> Path:
    """The path of the file; its directory exists."""
    directory = refresher.home / "textfile"
    directory.mkdir(mode=0o755)
    return directory / "refresher.prom"


def test_each_run_continues_the_counters_and_every_user_can_read_them(refresher: Command, file: Path) -> None:
    """If it failed, node_exporter could not read the file, or would report a reset of the counters each minute."""
    refresher.import_grant("linear", GRANT)
    began = time.time()
    for count in (1, 2):
        done = refresher("run-once", "--force", "--metrics-file", str(file))
        assert done.code == 4, done.stderr
        assert value(file, 'refresher_rotations_total{name="linear",outcome="transient"}') == count
        assert value(file, "refresher_exchange_duration_seconds_count") == count
    assert value(file, 'refresher_grant_state{name="linear",state="failing"}') == 1
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert [path.name for path in file.parent.iterdir()] == [file.name], "node_exporter would read another file"
    last = value(file, "refresher_last_run_timestamp_seconds")
    assert last is not None
    assert began - 1 < last < time.time() + 1
    if missing() is None:
        check_metrics(file.read_bytes())


def test_each_run_counts_a_rotation_that_the_disk_refuses(refresher: Command, file: Path) -> None:
    """If it failed, no alert would fire before a token expires on a disk that refuses everything."""
    refresher.import_grant("linear", GRANT)
    lock = refresher.state / "grants/linear.lock"
    lock.unlink(missing_ok=True)
    lock.mkdir()
    for count in (1, 2):
        assert refresher("run-once", "--metrics-file", str(file)).code == 4
        assert value(file, 'refresher_rotations_total{name="linear",outcome="storage_failed"}') == count
    assert value(file, 'refresher_grant_state{name="linear",state="active"}') == 1, "another alert can fire"


def test_a_run_with_nothing_due_notes_the_time_and_the_state(refresher: Command, file: Path) -> None:
    """If it failed, an alert that nobody refreshes would come between two rotations."""
    refresher.import_grant("linear", HEALTHY)
    environment = {"REFRESHER_METRICS_FILE": str(file)}
    assert refresher("run-once", environment=environment).code == 0
    first = value(file, "refresher_last_run_timestamp_seconds")
    assert first is not None
    assert refresher("run-once", environment=environment).stderr == ""
    again = value(file, "refresher_last_run_timestamp_seconds")
    assert again is not None
    assert again > first
    assert value(file, 'refresher_grants{state="active"}') == 1
    expires = value(file, 'refresher_grant_expiration_timestamp_seconds{name="linear"}')
    assert expires == refresher.grant("linear").expires_at


def test_the_configuration_can_name_the_file_and_only_run_once_writes_it(
    refresher: Command, file: Path, oidc: OIDC
) -> None:
    """If it failed, the file of cron would be replaced by a daemon, whose counts are others."""
    config = refresher.home / ".config/refresher/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(f'metrics_file = "{file}"\n')
    refresher.import_grant("linear", oidc.mint())
    with running(refresher) as process:
        wait_until(lambda: published(refresher) > 0, "the daemon has rotated")
        stopped(refresher, process)
    assert not file.exists()
    assert refresher("status").code == 0
    assert not file.exists()
    assert refresher("run-once", "--force").code == 0
    assert value(file, 'refresher_rotations_total{name="linear",outcome="rotated"}') == 1


def test_the_counters_of_a_removed_grant_end(refresher: Command, file: Path) -> None:
    """If it failed, an alert would name a grant that does not exist any more."""
    refresher.import_grant("linear", GRANT)
    refresher("run-once", "--metrics-file", str(file))
    assert 'name="linear"' in file.read_text()
    refresher("remove", "linear")
    assert refresher("run-once", "--metrics-file", str(file)).code == 0
    assert "linear" not in file.read_text()


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"refresher_demands_total many\n", b"x" * 9_000_000])
def test_a_damaged_file_is_replaced_with_one_warning(refresher: Command, file: Path, content: bytes) -> None:
    """If it failed, a damaged file would stay forever, or end each run."""
    refresher.import_grant("linear", HEALTHY)
    file.write_bytes(content)
    assert "its counters begin at 0" in warning(refresher("run-once", "--metrics-file", str(file)))
    assert value(file, "refresher_demands_total") == 0
    assert refresher("run-once", "--metrics-file", str(file)).stderr == ""


def test_a_file_that_cannot_be_written_is_one_warning_and_changes_no_result(refresher: Command, file: Path) -> None:
    """If it failed, a full or missing directory of a monitoring system would stop the rotation of tokens."""
    refresher.import_grant("linear", HEALTHY)
    record = (refresher.state / "grants/linear.json").read_bytes()
    os.mkfifo(pipe := refresher.home / "pipe.prom")
    (directory := refresher.home / "directory.prom").mkdir()
    for wrong in (
        refresher.home / "missing/refresher.prom",
        refresher.state / "grants/linear.prom",
        refresher.state / "tokens/linear.prom",
        pipe,
        directory,
        Path("/proc/refresher.prom"),
    ):
        done = refresher("run-once", "--metrics-file", str(wrong))
        assert "cannot write the metrics file" in warning(done), wrong
    assert (refresher.state / "grants/linear.json").read_bytes() == record
    assert refresher.token("linear").access_token == HEALTHY["access_token"]


@pytest.mark.parametrize("name", ["refresher.txt", "refresher", "prom", "refresher.PROM", "refresher.prom.new", ".."])
def test_a_name_that_node_exporter_does_not_read_is_refused(refresher: Command, file: Path, name: str) -> None:
    """If it failed, a run would write metrics that nobody reads, and no alert would ever fire."""
    refresher.import_grant("linear", HEALTHY)
    wrong = str(file.parent / name)
    config = refresher.home / "metrics.toml"
    config.write_text(f'metrics_file = "{wrong}"\n')
    for refused in (
        refresher("run-once", "--metrics-file", wrong),
        refresher("run-once", environment={"REFRESHER_METRICS_FILE": wrong}),
        refresher("--config", str(config), "run-once"),
    ):
        assert f"the name of the metrics file {wrong} must end with .prom" in one_line(refused)
    assert list(file.parent.iterdir()) == []
    overridden = refresher("--config", str(config), "run-once", "--metrics-file", str(file))
    assert (overridden.code, file.exists()) == (0, True), overridden.stderr


def test_links_in_the_directory_are_not_followed(refresher: Command, file: Path) -> None:
    """If it failed, somebody who can write in that directory could have refresher overwrite its own files."""
    refresher.import_grant("linear", HEALTHY)
    record = refresher.state / "grants/linear.json"
    before = record.read_bytes()
    file.symlink_to(record)
    file.with_name(".refresher.prom.new").symlink_to(record)
    assert "it is not a regular file" in warning(refresher("run-once", "--metrics-file", str(file)))
    assert file.is_symlink()
    file.unlink()
    assert refresher("run-once", "--metrics-file", str(file)).stderr == ""
    assert record.read_bytes() == before


def test_without_grants_and_without_a_state_directory_the_run_is_noted(refresher: Command, file: Path) -> None:
    """If it failed, a new installation would print a warning each minute until the first login."""
    for _ in range(2):
        done = refresher("run-once", "--metrics-file", str(file))
        assert (done.code, "metrics" in done.stderr) == (0, False)
    assert value(file, "refresher_last_run_timestamp_seconds") is not None


def test_without_the_setting_nothing_is_imported_and_nothing_is_written(refresher: Command) -> None:
    """If it failed, each run of cron would be slower for everybody who uses no metrics."""
    refresher.import_grant("linear", HEALTHY)
    code = "import sys; from refresher.cli.main import run; run(['run-once']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=refresher.environment, capture_output=True, text=True, check=True
    )
    loaded = set(done.stderr.split())
    assert "refresher.operations.run_once" in loaded
    assert not {name for name in loaded if name.startswith(("prometheus_client", "refresher.observers.metrics"))}
    assert not (refresher.state / "metrics.lock").exists()


def test_on_a_full_disk_the_former_file_stays_whole(refresher: Command, tmp_path: Path) -> None:
    """If it failed, a full disk would leave half a file, which node_exporter refuses."""
    need(no_mounts())
    refresher.import_grant("linear", HEALTHY)
    with mounted(tmp_path / "small", "size=64k"):
        file = tmp_path / "small/refresher.prom"
        assert refresher("run-once", "--metrics-file", str(file)).stderr == ""
        before = file.read_bytes()
        with (tmp_path / "small/filler").open("wb", buffering=0) as filler, suppress(OSError):
            while True:
                filler.write(b"x" * 1024)
        said = warning(refresher("run-once", "--metrics-file", str(file)))
        assert "No space left on device" in said
        assert file.read_bytes() == before
        assert {path.name for path in file.parent.iterdir()} == {file.name, "filler"}
