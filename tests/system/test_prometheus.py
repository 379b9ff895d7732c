"""A real Prometheus collects the metrics of a real daemon; its alert rules and the queries of the dashboard find them."""

import json
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from refresher import config
from tests.conftest import need
from tests.support.command import LONGEST, Command, wait_until
from tests.support.daemon import heard, published, running, stopped
from tests.support.documents import block
from tests.support.prometheus import PROMETHEUS, check_metrics, missing
from tests.support.token_server import TokenServer
from tests.support.unreachable import UNREACHABLE

DEPLOY = Path(__file__).parent.parent.parent / "deploy/prometheus"
QUERIES = [
    target["expr"]
    for panel in json.loads((DEPLOY / "dashboard.json").read_text())["panels"]
    for target in panel.get("targets", ())
]
Ask = Callable[[str], list[dict[str, Any]]]


def free_port() -> int:
    """Return a port that nothing uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def ask(tmp_path: Path) -> Iterator[Callable[[str], Ask]]:
    """Starts Prometheus with the configuration of the document, and returns a function that runs a query."""
    need(missing())
    processes = []

    def start(address: str) -> Ask:
        given = yaml.safe_load(block("deploy/README.md", "yaml"))
        (job,) = given["scrape_configs"]
        job["static_configs"] = [{"targets": [address]}]
        given |= {
            "rule_files": [str(DEPLOY / "alerts.yaml")],
            "global": {"scrape_interval": "300ms", "evaluation_interval": "300ms"},
        }
        job["scrape_timeout"] = "300ms"
        (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(given))
        listen = f"127.0.0.1:{free_port()}"
        command = [
            *(str(PROMETHEUS), f"--config.file={tmp_path}/prometheus.yaml", f"--storage.tsdb.path={tmp_path}/tsdb"),
            *(f"--web.listen-address={listen}", "--log.level=error"),
        ]
        processes.append(subprocess.Popen(command, stderr=subprocess.PIPE))

        def query(expression: str) -> list[dict[str, Any]]:
            try:
                answer = httpx.get(
                    f"http://{listen}/api/v1/query", params={"query": expression}, trust_env=False, timeout=60
                )
            except httpx.TransportError:
                assert processes[-1].poll() is None, processes[-1].communicate()[1]
                return []
            if answer.status_code == 503:
                return []  # it starts
            assert answer.status_code == 200, (expression, answer.text)
            result: list[dict[str, Any]] = answer.json()["data"]["result"]
            return result

        return query

    yield start
    for process in processes:
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=LONGEST)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def test_prometheus_collects_the_metrics_of_the_daemon(refresher: Command, ask: Callable[[str], Ask]) -> None:
    """If it failed, Prometheus would refuse the page, or an alert or a panel would never show anything."""
    with TokenServer(lambda _: 3600.0) as server:
        refresher.bring("linear", server.grant("linear"))
        refresher.bring("broken", UNREACHABLE)
        with running(refresher, "--listen", "127.0.0.1:0") as process:
            found = re.search(r"http://(\S+?)/", heard(process, "/healthz")[-1])
            assert found is not None
            wait_until(lambda: published(refresher) > 0, "it has rotated")
            page = httpx.get(f"http://{found[1]}/metrics", trust_env=False, timeout=60)
            assert page.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
            check_metrics(page.content)
            query = ask(found[1])
            collected = 'refresher_rotations_total{job="refresher",name="linear",outcome="rotated"} == 1'
            wait_until(lambda: bool(query(collected)), "Prometheus has the rotation")
            wait_until(
                lambda: bool(query('refresher_grant_state{name="broken",state="failing"} == 1')), "and the failure"
            )
            (state,) = query('refresher_grant_state{name="linear"} == 1')
            assert state["metric"]["state"] == "active"
            wait_until(
                lambda: bool(query('ALERTS{alertname="RefresherFailing",name="broken"}')), "the rules are evaluated"
            )
            (refresher.state / f"demands/linear.{published(refresher)}").touch()
            wait_until(lambda: bool(query("refresher_demands_total == 1")), "the demand is counted")
            empty = {expression for expression in QUERIES if not query(filled(expression))}
            stopped(refresher, process)
    assert {re.findall(r"refresher_\w+", expression)[0] for expression in empty} <= {
        "refresher_grant_state",  # none needs a person
        "refresher_login_expiration_timestamp_seconds",  # this server names no end
    }


def filled(expression: str) -> str:
    """Return a query of the dashboard with values for the variables of Grafana."""
    return expression.replace("$instance", ".*").replace("$__rate_interval", "1m")


def test_the_line_of_the_configuration_for_cron_works(refresher: Command, tmp_path: Path) -> None:
    """If it failed, a line that a user copies from the page would be refused, or no file would be written."""
    text = block("deploy/README.md", "toml", "metrics_file")
    path = refresher.home / "config.toml"
    path.write_text(text.replace("/var/lib/prometheus/node-exporter", str(tmp_path)))
    settings = config.resolve({}, str(path))
    assert settings.metrics_file == tmp_path / "refresher.prom"
    began = time.time()
    assert refresher("--config", str(path), "run-once").code == 0
    assert (tmp_path / "refresher.prom").stat().st_mtime >= began - 1
