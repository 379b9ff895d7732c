"""The thread that reads certificates."""

import threading
from pathlib import Path

import msgspec
import pytest

from refresher.daemon.certificate_watch import CertificateWatch
from refresher.operations import certificates
from refresher.operations.events import Event
from tests.support.command import wait_until
from tests.support.samples import grant


def test_a_thread_that_cannot_start_and_a_certificate_that_fails_stop_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """If it failed, a limit of threads would stop the rotations that are due with it, or one file would hide others."""
    emitted: list[Event] = []
    watch = CertificateWatch(emitted.append)
    for name in ("broken", "linear"):
        watch.note(msgspec.structs.replace(grant(), name=name, client_cert=str(tmp_path / name)))

    # Fakes: neither the limit of threads nor a bug can be had for one call.
    def end_in(path: str) -> float:
        if path.endswith("broken"):
            raise ValueError(path)
        return 0.0

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(certificates, "end_in", end_in)
    with monkeypatch.context() as limited:
        limited.setattr(threading.Thread, "start", refuse)
        watch.check()
    assert emitted == []
    watch.check()
    wait_until(lambda: len(emitted) == 1, "the other certificate is reported")
    assert (emitted[0].name, emitted[0].kind) == ("linear", "login_ending")
