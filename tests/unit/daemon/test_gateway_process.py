"""The process of the gateway that ``run`` watches."""

import threading
from pathlib import Path
from typing import Any

import pytest

from refresher.config import resolve
from refresher.daemon import gateway_process
from refresher.daemon.gateway_process import GatewayProcess


class Process:
    """A gateway that starts when it is allowed to, and ends only when it is killed."""

    def __init__(self) -> None:
        self.starting, self.may_start = threading.Event(), threading.Event()
        self.terminated, self.killed = threading.Event(), threading.Event()

    def start(self, *_: Any, **__: Any) -> "Process":
        self.starting.set()
        assert self.may_start.wait(90)
        return self

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def wait(self) -> int:
        assert self.killed.wait(90)
        return -9

    def terminate(self) -> None:
        self.terminated.set()

    def kill(self) -> None:
        self.killed.set()


def test_a_gateway_that_neither_starts_nor_stops_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it failed, a slow disk or a stuck gateway would hold up the rotations, or the stop of the service."""
    process, gateway = Process(), GatewayProcess()
    monkeypatch.setattr("refresher.daemon.gateway_process.subprocess.Popen", process.start)
    monkeypatch.setattr(gateway_process, "_TIME_TO_STOP", 0.0)
    gateway.use(resolve({"state_dir": str(tmp_path), "gateway": "127.0.0.1:1"}, "/dev/null"))
    assert process.starting.wait(90)
    stopping = threading.Thread(target=gateway.stop, daemon=True)
    stopping.start()
    stopping.join(60)
    assert not stopping.is_alive(), "it waits for the start of a process"
    process.may_start.set()
    assert process.terminated.wait(60), "a process that started late stays"
    waiting = threading.Thread(target=gateway.wait, args=(300.0,), daemon=True)
    waiting.start()
    assert process.killed.wait(60), "it waits as long as for rotations"
