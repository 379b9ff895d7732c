"""What a reader, which sees tokens and demands alone, learns if it gets no token."""

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from refresher import config
from refresher.common.errors import NotInTime, RefresherError, UnknownName
from refresher.operations.detached_rotation import DetachedRotation
from refresher.operations.obtain_token import obtain_token
from tests.support.published import Published


@pytest.fixture
def published(tmp_path: Path) -> Published:
    """The directories of a refresher of another user, with a token that has expired."""
    made = Published(tmp_path)
    made.put(expires_at=time.time() - 1)
    return made


def error(published: Published, name: str = "linear") -> RefresherError:
    """Return why a reader gets no token."""
    state = published.tokens.parent
    settings = config.resolve({"state_dir": str(state)}, None)
    with pytest.raises(RefresherError) as raised, DetachedRotation(name, (), 0) as rotation:
        obtain_token(settings, name, min_valid=None, wait=0, rotation=rotation, stopping=lambda: False)
    return raised.value


def test_a_typing_error_is_named_beside_the_names_that_there_are(published: Published) -> None:
    """If it failed, a script with a wrong name would try again for ever, because the service seems to be late."""
    unknown = error(published, "linnear")
    assert isinstance(unknown, UnknownName)
    assert "no token of 'linnear'" in str(unknown)
    assert "(known: linear)" in str(unknown)
    published.path.unlink()
    assert isinstance(error(published, "linnear"), NotInTime), "before the first login, a token can still come"


def test_a_demand_that_cannot_be_made_is_named(published: Published) -> None:
    """If it failed, a person would look at the service, and not at the rights of the reader."""
    assert "the token has expired" in str(error(published))
    published.put(2, expires_at=time.time() - 1)
    for path in published.demands.iterdir():
        path.unlink()
    published.demands.rmdir()
    assert f"cannot create a demand in {published.demands}: check" in str(error(published))


@pytest.mark.parametrize("free", [(0, 0, 0), (16, 0, 0), (10_000, 100, 0)], ids=["nothing", "little", "no files"])
def test_a_full_disk_is_named(
    published: Published, monkeypatch: pytest.MonkeyPatch, free: tuple[int, int, int]
) -> None:
    """If it failed, a person would look at the service, which can publish nothing."""
    blocks, files, free_files = free
    full = SimpleNamespace(f_bavail=blocks, f_frsize=1024, f_files=files, f_favail=free_files)

    real = os.statvfs
    monkeypatch.setattr(os, "statvfs", lambda path: full if path == published.tokens else real(path))
    assert f"the file system of {published.tokens} is full" in str(error(published))
