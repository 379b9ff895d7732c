"""The pages of an address, in one process, beside metrics and a history that fail."""

import gc
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from refresher.config import Settings, resolve
from refresher.daemon import background
from refresher.daemon.http_endpoint import History, Metrics
from refresher.daemon.http_listener import Listener
from refresher.daemon.live_grants import LiveGrants
from refresher.daemon.page_access import PageToken
from refresher.daemon.pages import Sources, private_app, public_app
from refresher.daemon.readiness import Readiness
from refresher.operations.events import Event, happened
from tests.support.command import wait_until

Serve = Callable[..., httpx.Client]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """The settings of an empty state."""
    return resolve({"state_dir": str(tmp_path / "state")}, None)


@pytest.fixture
def opened() -> Iterator[list[Any]]:
    """The listeners and clients of a test."""
    opened: list[Any] = []
    yield opened
    for each in opened:
        each.close()


@pytest.fixture
def serve(settings: Settings, opened: list[Any]) -> Serve:
    """Serves the pages with these metrics and this history, and returns a client."""

    def start(metrics: Metrics | None = None, history: History | None = None, *, private: bool = False) -> httpx.Client:
        sources = Sources(lambda: settings, lambda: Readiness().health(live=True), metrics, history)
        live = LiveGrants(settings.open_store)
        app = private_app(sources) if private else public_app(sources, live, PageToken(), loopback=True)
        listening = socket.create_server(("127.0.0.1", 0))
        base = f"http://127.0.0.1:{listening.getsockname()[1]}"
        opened.extend(
            (Listener(listening, app, "test"), client := httpx.Client(base_url=base, timeout=60, trust_env=False))
        )
        return client

    return start


def test_the_history_of_the_last_day_is_json(serve: Serve) -> None:
    """If it failed, the page would have no timeline."""
    asked: list[tuple[str, float]] = []

    def history(name: str, since: float) -> list[Event]:
        asked.append((name, since))
        return [happened(name, "rotated", "it works", generation=3, outcome="rotated")]

    client = serve(history=history)
    answer = client.get("/history", params={"name": "linear"})
    (event,) = answer.json()["events"]
    assert (event["name"], event["kind"], event["generation"], event["detail"]) == ("linear", "rotated", 3, "it works")
    ((name, since),) = asked
    assert (name, since <= time.time() - 86400 <= since + 60) == ("linear", True)
    for bad in ("", "../linear", "Linear", "a" * 65, "a\n"):
        assert client.get("/history", params={"name": bad}).status_code == 400
    assert client.get("/history").status_code == 400
    assert len(asked) == 1
    assert serve().get("/history?name=linear").json() == {"events": []}


def test_metrics_have_their_own_media_type(serve: Serve) -> None:
    """If it failed, Prometheus would refuse the metrics."""
    answer = serve(metrics=lambda: (b"up 1\n", "text/plain; version=1.0.0")).get("/metrics")
    assert (answer.text, answer.headers["content-type"]) == ("up 1\n", "text/plain; version=1.0.0")
    assert serve().get("/metrics").status_code == 404


def test_a_history_that_fails_or_hangs_leaves_the_other_pages(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """If it failed, a damaged database could have refresher restarted by its probe, or fill it with threads."""
    monkeypatch.setattr(background, "_LONGEST", 0.1)
    client = serve(history=lambda *_: 1 / 0)
    for _ in range(3):
        answer = client.get("/history?name=linear")
        assert (answer.status_code, answer.text) == (500, "500 Internal Server Error\n")
    assert [each for each in caplog.messages if "Exception in ASGI" not in each] == [
        "page: internal error (ZeroDivisionError); please report it"
    ]
    let = threading.Event()
    client = serve(history=lambda *_: [] * let.wait(60), metrics=lambda: (b"", "text/plain"))
    before = threading.active_count()
    for _ in range(3):
        assert client.get("/history?name=linear").status_code == 503
        assert client.get("/metrics").status_code == 200
        assert client.get("/healthz").status_code == 200
    assert threading.active_count() <= before + 2
    let.set()
    wait_until(lambda: client.get("/history?name=linear").status_code == 200, "the history works again")
    assert "Traceback" not in capfd.readouterr().err


def test_an_open_page_does_not_keep_an_address(
    serve: Serve, opened: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    """If it failed, a reload would wait for a browser that nobody closes, or leave its work behind."""
    client = serve()
    with client.stream("GET", "/stream") as answer:
        parts = answer.iter_lines()
        assert next(parts) == "event: snapshot"
        opened[0].close()
    gc.collect()  # a task that was left behind is logged when it is collected
    assert caplog.messages == []


def test_the_private_socket_serves_health_alone(serve: Serve) -> None:
    """If it failed, the page would be where its token is not asked for."""
    client = serve(private=True)
    assert client.get("/healthz").json() == json.loads(client.get("/readyz").content)
    for path in ("/", "/stream", "/history?name=linear", "/metrics", "/page.js"):
        answer = client.get(path)
        assert (answer.status_code, answer.text) == (404, "404 Not Found: use /healthz or /readyz\n")
