"""What the doctor finds in grants: their state, their ends, their refresh tokens, and the files that they name."""

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from refresher.common import clocks
from refresher.common.errors import GrantFileError
from refresher.common.secret import Secret
from refresher.doctor import grants
from refresher.doctor.finding import Finding
from refresher.grants.record import Grant, Login, TokenRejected
from refresher.operations.inspection import ListedGrant, list_grants
from refresher.storage.file_store import FileStore
from tests.conftest import need
from tests.support.fake_state import directories, put
from tests.support.keys import certificate, key
from tests.support.parts import dead_mount, no_dead_mounts
from tests.support.samples import doubt, failure, grant

DAY = 86400.0


def fresh(**changes: Any) -> Grant:
    """Return a grant with a token that was issued now for an hour; times that begin with "+" count from now."""
    now = time.time()
    times = {"issued_at": now, "expires_at": now + 3600, "last_rotation_at": now, "issued": clocks.now()}
    return grant(**{**times, **changes})


def after(seconds: float) -> float:
    return time.time() + seconds


def found(tmp_path: Path, *of: Grant) -> list[Finding]:
    """Return what is found in stored grants."""
    made = directories(tmp_path)
    for each in of:
        put(made.record(each.name), each)
    entries = list_grants(FileStore(made))
    return [*grants.check(made, entries), *grants.check_refresh_tokens(entries)]


def registered(seconds: float) -> Login:
    """Return a login whose client was registered until so many seconds from now."""
    return Login(client="registered", client_expires_at=after(seconds))


@pytest.mark.parametrize(
    ("changes", "code", "mend"),
    [
        ({}, None, ""),
        ({"refresh_token_expires_at": after(3 * DAY), "login": registered(90 * DAY)}, None, ""),
        ({"login_ends_at": after(8 * DAY)}, None, ""),
        ({"login_ends_at": after(6 * DAY)}, "login_ends", "refresher login linear"),
        ({"login_ends_at": after(-60)}, "login_ended", "refresher login linear"),
        ({"refresh_token_expires_at": after(-60)}, "login_ended", "refresher login linear"),
        ({"login": registered(6 * DAY)}, "client_ends", "refresher login linear --new-client"),
        ({"login": registered(-60)}, "client_ended", "refresher login linear --new-client"),
        ({"renewable": False, "refresh_token": None}, "no_refresh_token", "refresher login linear"),
        ({"dead": True, "failure": failure(outcome="reauthorization_required", retry_at=None)}, "reauthorization_required", "refresher login linear"),
        ({"dead": True, "server_url": None, "login_ends_at": after(-60)}, "reauthorization_required", "refresher import linear --replace --from FILE"),
        ({"failure": failure(), "failures": 1}, "failing", "refresher run-once --force linear"),
        ({"failure": failure(outcome="in_doubt"), "failures": 1, "doubt": doubt(clocks.now())}, "in_doubt", "refresher login linear"),
        ({"token_rejected": TokenRejected(at=time.time(), origin="https://mcp.example")}, "token_rejected", "refresher login linear"),
    ],
)  # fmt: skip
def test_the_state_and_the_ends_of_a_grant_are_found(
    tmp_path: Path, changes: dict[str, Any], code: str | None, mend: str
) -> None:
    """If it failed, a login that ends or fails would go unnoticed, or a healthy one would be reported."""
    findings = found(tmp_path, fresh(**changes))
    assert [finding.code for finding in findings] == ([code] if code else [])
    assert all(finding.mend.startswith(mend) and finding.name == "linear" for finding in findings)


@pytest.mark.parametrize(
    ("mode", "data", "mend"),
    [
        (0o644, None, "chmod 600 {path}"),
        (0o600, b"damaged", "restore it"),
        (0o600, b'{"version":99}', "newer refresher"),
    ],
)
def test_a_grant_file_that_cannot_be_used_is_found(tmp_path: Path, mode: int, data: bytes | None, mend: str) -> None:
    """If it failed, a person would not learn which file stops the rotation of a grant."""
    made = directories(tmp_path)
    put(path := made.record("linear"), fresh())
    path.write_bytes(path.read_bytes() if data is None else data)
    path.chmod(mode)
    (finding,) = grants.check(made, list_grants(FileStore(made)))
    assert (finding.code, finding.name) == ("invalid_grant_file", "linear")
    assert mend.format(path=path) in finding.mend
    assert str(path) in finding.what


def test_a_grant_file_of_another_user_has_a_command_that_mends_it(tmp_path: Path) -> None:
    """If it failed, a person would read that a file cannot be used, and not what to do."""
    error = GrantFileError(f"cannot read {tmp_path}/linear.json: Permission denied")
    (finding,) = grants.check(directories(tmp_path), [("linear", error)])
    assert "chown" in finding.mend


def test_a_refresh_token_under_two_names_is_found(tmp_path: Path) -> None:
    """If it failed, two names would end each other's login at the next rotation."""
    other = fresh(name="notion", refresh_token=Secret("a-refresh-token-of-another"))
    assert found(tmp_path / "a", fresh(), other) == []
    (finding,) = found(tmp_path / "b", fresh(), fresh(name="notion"))
    assert (finding.code, finding.name, finding.mend) == ("shared_refresh_token", "notion", "refresher remove notion")
    entries: list[ListedGrant] = [("linear", fresh()), ("notion", fresh(name="notion"))]
    for asked, twin in {"linear": "notion", "notion": "linear"}.items():
        (finding,) = grants.check_refresh_tokens(entries, asked)
        assert (finding.name, finding.what) == (asked, f"{twin} has the same refresh token")
        assert finding.mend == "refresher remove notion"
    assert [*grants.check_refresh_tokens(entries, "another")] == []
    spent = (fresh().refresh_token or Secret("")).fingerprint()
    (finding,) = found(tmp_path / "c", fresh(), fresh(name="notion", refresh_token=other.refresh_token, spent=(spent,)))
    assert (finding.code, finding.name, finding.mend) == ("shared_refresh_token", "linear", "refresher login linear")


def test_keys_and_certificates_that_can_be_used_have_no_finding(tmp_path: Path) -> None:
    """If it failed, a person would be sent to mend a key that works."""
    key(tmp_path / "key.pem")
    certificate(tmp_path / "client.pem", "client", lifetime=timedelta(days=90))
    files = {"client_cert": str(tmp_path / "client.pem"), "client_key": str(tmp_path / "client.key")}
    signed = fresh(token_endpoint_auth_method="private_key_jwt", private_key_file=str(tmp_path / "key.pem"))
    assert [*grants.check_files([fresh(), fresh(name="mtls", **files), signed], None)] == []


@pytest.mark.parametrize(
    "kind", ["missing key", "no key", "key of another", "missing certificate", "authorities", "passphrase"]
)
def test_a_key_or_certificate_that_cannot_be_used_is_found_once(tmp_path: Path, kind: str) -> None:
    """If it failed, each grant of a client would fail at its next rotation, and nobody would know of the file."""
    key(tmp_path / "key.pem")
    certificate(tmp_path / "client.pem", "client", lifetime=timedelta(days=90))
    certificate(tmp_path / "other.pem", "other", lifetime=timedelta(days=90))
    (tmp_path / "text").write_text("no PEM")
    files, ca_file = {
        "missing key": ({"private_key_file": str(tmp_path / "nowhere")}, None),
        "no key": ({"private_key_file": str(tmp_path / "text")}, None),
        "key of another": ({"client_cert": str(tmp_path / "client.pem"), "client_key": str(tmp_path / "other.key")}, None),
        "missing certificate": ({"client_cert": str(tmp_path / "nowhere")}, None),
        "authorities": ({}, str(tmp_path / "text")),
        "passphrase": ({"private_key_file": str(tmp_path)}, None),
    }[kind]  # fmt: skip
    (finding,) = grants.check_files([fresh(**files), fresh(name="notion", **files)], ca_file)
    assert (finding.code, finding.name) == ("file_unreadable", None)
    assert finding.what.startswith("linear, notion: ")
    assert str(tmp_path) in finding.what


@pytest.mark.parametrize(("days", "code"), [(5.0, "certificate_ends"), (-1.0, "certificate_ended")])
@pytest.mark.parametrize("which", ["client", "authority"])
def test_the_end_of_a_certificate_is_found(tmp_path: Path, days: float, code: str, which: str) -> None:
    """If it failed, all grants of a client would fail on the day that its certificate ends."""
    certificate(tmp_path / "a.pem", "client", lifetime=timedelta(days=days))
    files = {"client_cert": str(tmp_path / "a.pem"), "client_key": str(tmp_path / "a.key")}
    of, ca_file = (fresh(**files), None) if which == "client" else (fresh(), str(tmp_path / "a.pem"))
    assert [finding.code for finding in grants.check_files([of], ca_file)] == [code]


def test_an_authority_of_a_bundle_may_have_expired(tmp_path: Path) -> None:
    """If it failed, the bundle of each system would be reported, because it has old authorities."""
    certificate(tmp_path / "old.pem", "old", lifetime=timedelta(days=-1))
    certificate(tmp_path / "new.pem", "new", lifetime=timedelta(days=900))
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes((tmp_path / "old.pem").read_bytes() + (tmp_path / "new.pem").read_bytes())
    assert [*grants.check_files([fresh()], str(bundle))] == []


def test_a_key_on_a_file_system_that_does_not_answer_is_found(tmp_path: Path) -> None:
    """If it failed, the doctor itself would hang on the mount that a person looks for."""
    need(no_dead_mounts())
    (tmp_path / "dead").mkdir()
    with dead_mount(tmp_path / "dead"):
        (finding,) = grants.check_files([fresh(private_key_file=str(tmp_path / "dead/key.pem"))], None)
    assert finding.code == "file_unreadable"
    assert "does not answer" in finding.what
