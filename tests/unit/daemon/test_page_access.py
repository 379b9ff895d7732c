"""Who may read the page: the token in its file, and what a request gives."""

import base64
import logging
import os
from pathlib import Path

import pytest

from refresher.daemon.page_access import PageToken, page_refusal

TOKEN = "a-token-of-the-page-1"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with the token, for its owner only."""
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    path.chmod(0o600)
    return path


def read(path: Path | None) -> PageToken:
    token = PageToken()
    token.refresh(None if path is None else str(path))
    return token


def basic(user: str, password: str) -> str:
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


def test_the_token_is_a_bearer_or_the_password_of_any_user(file: Path) -> None:
    """If it failed, a browser or a script could not open the page with its token, or anybody could without."""
    token = read(file)
    for accepted in (f"Bearer {TOKEN}", f"bearer  {TOKEN}", basic("me", TOKEN), basic("", TOKEN)):
        assert token.accepts(accepted), accepted
    for refused in (
        *("", "Bearer", "Bearer ", TOKEN, f"Token {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer \xe9"),
        *("Basic", "Basic ===", f"Basic {TOKEN}", basic(TOKEN, ""), basic("me", f"{TOKEN}:x"), "Basic \xe9"),
    ):
        assert not token.accepts(refused), refused


def test_a_token_that_changes_is_read_anew(file: Path) -> None:
    """If it failed, a token that was withdrawn would open the page until the next start."""
    token = read(file)
    file.write_text("another-token-of-the-page")
    token.refresh(str(file))
    assert not token.accepts(f"Bearer {TOKEN}")
    assert token.accepts("Bearer another-token-of-the-page")
    file.unlink()
    token.refresh(str(file))
    assert (token.wanted, token.usable) == (True, False)
    assert not token.accepts("Bearer another-token-of-the-page")
    assert not token.accepts("Bearer ")


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        (TOKEN, 0o640, "other users can read it"),
        (TOKEN, 0o604, "other users can read it"),
        (TOKEN, 0o620, "other users can read it"),
        ("fifteen--------\n", 0o600, "shorter than 16 characters"),
        ("é" * 15, 0o600, "shorter than 16 characters"),
        ("", 0o600, "shorter than 16 characters"),
        ("x" * 5000, 0o600, "larger than"),
    ],
)
def test_a_token_file_that_is_not_safe_opens_nothing(
    file: Path, content: str, mode: int, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """If it failed, other users could read the token or guess it."""
    file.write_text(content)
    file.chmod(mode)
    token = PageToken()
    with caplog.at_level(logging.WARNING):
        token.refresh(str(file))
        token.refresh(str(file))
    (warning,) = caplog.messages
    assert said in warning
    assert TOKEN not in warning
    assert not token.accepts(f"Bearer {content.strip()}")
    assert page_refusal({"authorization": f"Bearer {content.strip()}"}, token, loopback=True) is not None
    file.write_text(TOKEN)
    file.chmod(0o600)
    token.refresh(str(file))
    assert token.accepts(f"Bearer {TOKEN}")


def test_a_mounted_secret_may_belong_to_root(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it failed, a pod could not use a Secret, which the kubelet mounts for the group of the pod."""
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    file.chmod(0o440)
    assert read(file).usable
    file.chmod(0o444)
    assert not read(file).usable


def test_what_waits_for_a_writer_is_no_token_file(tmp_path: Path) -> None:
    """If it failed, a pipe in place of the file would stop the health pages."""
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "missing"):
        token = read(path)
        assert (token.wanted, token.usable) == (True, False)


def test_the_page_is_for_this_machine_or_for_who_has_the_token(file: Path) -> None:
    """If it failed, others could read whose accounts these are, or another website could."""

    def status(token: PageToken, *, loopback: bool, **headers: str) -> int:
        refused = page_refusal(
            {name.replace("_", "-"): value for name, value in headers.items()}, token, loopback=loopback
        )
        return 200 if refused is None else refused.status

    without, given = read(None), read(file)
    assert status(without, loopback=True) == 200
    assert status(without, loopback=False) == 403
    for loopback in (True, False):
        assert status(given, loopback=loopback) == 401
        assert status(given, loopback=loopback, authorization="Bearer wrong") == 401
        assert status(given, loopback=loopback, authorization=f"Bearer {TOKEN}") == 200
        assert status(given, loopback=loopback, authorization=f"Bearer {TOKEN}", sec_fetch_site="cross-site") == 403
    assert status(without, loopback=True, sec_fetch_site="cross-site") == 403
    assert status(without, loopback=True, sec_fetch_site="same-origin") == 200
    assert status(without, loopback=True, sec_fetch_site="none") == 200
    here = {"host": "127.0.0.1:9464"}
    for origin, code in {
        "http://127.0.0.1:9464": 200,
        "http://127.0.0.1:80": 403,
        "http://evil.example": 403,
        "null": 403,
    }.items():
        assert status(without, loopback=True, origin=origin, **here) == code


def test_a_link_of_another_website_opens_the_page_and_nothing_else() -> None:
    """If it failed, a link in a chat would end in an error, or a website could open streams."""
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    token = read(None)
    assert page_refusal(link, token, loopback=True, document=True) is None
    assert page_refusal(link, token, loopback=True) is not None
    assert page_refusal(link | {"sec-fetch-mode": "no-cors"}, token, loopback=True, document=True) is not None
