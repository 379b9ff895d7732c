"""A client secret and a client certificate that end: status, its exit code, the warnings of run and run-once."""

import json
import subprocess
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from refresher.grants.record import Grant, Login
from refresher.storage import records
from tests.support.cli import GRANT
from tests.support.command import Command, without_times
from tests.support.daemon import heard, stopped
from tests.support.keys import certificate

Daemon = Callable[..., subprocess.Popen[str]]

DAY = 86400.0
FRESH = GRANT | {"access_token": "an-access-token-of-it", "expires_in": 4 * 3600}


def change(refresher: Command, **changes: Any) -> None:
    """Change the record of linear."""
    stored = records.load(refresher.directories, "linear")
    assert isinstance(stored.record, Grant)
    records.write(refresher.directories, "linear", stored, msgspec.structs.replace(stored.record, **changes))


def ends(refresher: Command) -> list[dict[str, Any]]:
    """Return what status says that ends."""
    (grant,) = json.loads(refresher("status", "--json").stdout)["grants"]
    found: list[dict[str, Any]] = grant["ends"]
    return found


@pytest.mark.parametrize(("days", "code"), [(8, 0), (6, 1), (-1, 1)])
def test_status_shows_the_end_of_a_client(refresher: Command, days: int, code: int) -> None:
    """If it failed, a client secret would expire unseen, and the login would stop for no visible reason."""
    refresher.import_grant("linear", FRESH)
    assert ends(refresher) == []
    at = time.time() + days * DAY + 60
    change(refresher, login=Login(client="registered", client_expires_at=at))
    assert ends(refresher) == [{"kind": "client_secret", "at": pytest.approx(at), "source": "server"}]
    shown = refresher("status").stdout
    assert ("23 h 59 min ago (client)" if days < 0 else f"in {days} d (client)") in shown
    assert refresher("status", "--exit-code").code == code


def test_run_once_warns_of_the_end_of_a_client_once(refresher: Command) -> None:
    """If it failed, nobody would learn that a new client is needed, or cron would mail it each minute."""
    refresher.import_grant("linear", FRESH)
    month = time.time() - 30 * DAY
    login = Login(client="registered", client_expires_at=time.time() + 3 * DAY)
    change(refresher, login=login, authorized_at=month)
    done = refresher("run-once")
    (line,) = without_times(done.stderr).splitlines()
    assert line.startswith("refresher: linear: the registration of the client expires in ")
    assert line.endswith("log in with a new client: 'refresher login linear --new-client'")
    assert (done.code, refresher("run-once").stderr) == (0, "")


def test_a_certificate_that_ends_is_shown_and_run_warns_of_it(refresher: Command, daemon: Daemon) -> None:
    """If it failed, all grants with a client certificate would stop on the day that it expires, without a warning."""
    path = refresher.home / "client.pem"
    certificate(path, "client", lifetime=timedelta(days=5))
    mtls = {"client_cert": str(path), "client_key": str(path.with_suffix(".key"))}
    refresher.import_grant("linear", FRESH | mtls | {"token_endpoint_auth_method": "tls_client_auth"})
    (end,) = ends(refresher)
    assert (end["kind"], end["source"], end["at"]) == (
        "certificate",
        "certificate",
        pytest.approx(time.time() + 5 * DAY, abs=600),
    )
    assert "(certificate)" in refresher("status").stdout
    assert refresher("status", "--exit-code").code == 1
    process = daemon()
    log = heard(process, f"linear: the client certificate in {path} expires in ")
    assert sum("the client certificate in" in line for line in log) == 1
    assert "the client certificate in" not in stopped(refresher, process), "the warning is repeated"

    path.write_text("damaged")
    assert ends(refresher) == [], "a damaged file stops status"
    path.unlink()
    assert ends(refresher) == [], "a missing file stops status"
    certificate(path, "client", lifetime=timedelta(days=30))
    assert refresher("status", "--exit-code").code == 0
